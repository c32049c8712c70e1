"""The plugins of a server block, one module each: a Handler made from its configuration and the rest of the chain."""

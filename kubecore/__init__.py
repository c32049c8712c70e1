"""What both daemons share: the cluster as immutable values, the watch that fills it, logging, the operations server."""

__version__ = "0.1.0"

"""The commands of `dnsserver`, one module each: `add` puts it on the command line."""

"""Tools of the project: set-up of machines and fetched binaries."""

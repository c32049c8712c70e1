"""The commands, one module each: `add(subparsers)` declares it, `run(args)` does it and returns the exit code.

Heavy imports stay inside `run`, so that `--help` and a wrong option answer at once.
"""

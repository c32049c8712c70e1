"""Fixtures of all tests; each plugin's module says what it provides."""

pytest_plugins = ["tests.lab.kernel.fixtures"]

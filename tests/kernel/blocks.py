"""Imported by the guest's agent to hang it, in the test of what then happens."""

import time

time.sleep(1000)

"""Imported by every Python that a host starts: its clock is off by `SLIMSCOPE_TEST_CLOCK_S`."""

import os
import time

if off_s := int(os.environ.get("SLIMSCOPE_TEST_CLOCK_S", "0")):
    seconds, nanoseconds = time.time, time.time_ns
    time.time = lambda: seconds() + off_s
    time.time_ns = lambda: nanoseconds() + off_s * 10**9

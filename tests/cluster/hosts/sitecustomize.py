"""Imported by every Python that a host starts: its clock is off by `SLIMSCOPE_TEST_CLOCK_S`, as
nothing gives a process of Linux another clock of the day than that of the machine."""

from __future__ import annotations

import os
import time

OFF_S = int(os.environ.get("SLIMSCOPE_TEST_CLOCK_S", "0"))
if OFF_S:
    seconds, nanoseconds = time.time, time.time_ns
    time.time = lambda: seconds() + OFF_S
    time.time_ns = lambda: nanoseconds() + OFF_S * 10**9

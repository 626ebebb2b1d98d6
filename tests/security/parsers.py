"""Misbehaving parsers, to test the limits of the child process."""

import os
import signal
import time
from pathlib import Path


def hog(path: Path) -> int:
    return len(bytearray(64 * 2**30))


def sleep(path: Path) -> None:
    time.sleep(60)


def killed(path: Path) -> None:
    """End like a parser that has used up its CPU time."""
    os.kill(os.getpid(), signal.SIGXCPU)


def crash(path: Path) -> None:
    os._exit(3)


def chatter(path: Path) -> str:
    return "x" * 20_000_000


def size(path: Path) -> int:
    return path.stat().st_size

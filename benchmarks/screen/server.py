"""A dashboard in a process of its own, and a browser that looks at it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
from playwright.sync_api import Browser, sync_playwright

from backend.settings import settings
from tests.browser.chromium import find

ROOT = Path(__file__).resolve().parents[2]
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync"]


DATABASES: dict[Path, str] = {}  # data folder -> URL of its database, where that is no file in it


@dataclass(frozen=True)
class Dashboard:
    """Its address and its process."""

    url: str
    process: psutil.Process


def environment(data: Path) -> dict[str, str]:
    """The variables of a process that works on this data folder, and ends with its work."""
    url = DATABASES.get(data, "")
    named = {"SLIMSCOPE_DATA_DIR": str(data), "SLIMSCOPE_DATABASE_URL": url, "BROWSER": "true"}
    return {"SLIMSCOPE_IDLE_EXIT": "1", **os.environ, **named}  # a browser that opens nothing


@contextmanager
def reads(data: Path) -> Iterator[None]:
    """Meanwhile `queries`, `writing` and `submit` of this process mean this data folder."""
    before = dict(os.environ)
    os.environ.update(environment(data))
    settings.cache_clear()
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
        settings.cache_clear()


@contextmanager
def dashboard(data: Path) -> Iterator[Dashboard]:
    """A dashboard on this data folder, until the block ends."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    variables = environment(data) | {"SLIMSCOPE_PORT": str(port)}
    process = subprocess.Popen(
        [sys.executable, "app.py"], cwd=ROOT, env=variables, stdout=subprocess.DEVNULL
    )
    try:
        while not _answers(port):
            if process.poll() is not None:
                sys.exit("The dashboard did not start.")
            time.sleep(0.1)
        yield Dashboard(f"http://127.0.0.1:{port}", psutil.Process(process.pid))
    finally:
        process.kill()
        process.wait()


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def chromium() -> Iterator[Browser]:
    """A headless Chromium."""
    path = find()  # may ask Playwright, which runs once at a time
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()

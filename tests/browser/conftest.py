"""The dashboard as people start it, in a process of its own, and a real Chromium to look at it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from backend.queue.engines.local import LocalEngine
from backend.settings import settings
from backend.store import queries
from backend.store.session import engine_for
from backend.store.states import LIVE

ROOT = Path(__file__).resolve().parents[2]
STARTS_S = 120


@dataclass(frozen=True)
class Dashboard:
    """A running dashboard and its data folder."""

    url: str
    data: Path
    process: subprocess.Popen[bytes]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def dashboard(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Dashboard]:
    port = free_port()
    for name, value in (("PORT", str(port)), ("IDLE_EXIT", "1"), ("BROWSER", "false")):
        monkeypatch.setenv(f"SLIMSCOPE_{name}", value)
    settings.cache_clear()
    process = subprocess.Popen([sys.executable, "app.py"], cwd=ROOT, env=dict(os.environ))
    url = f"http://127.0.0.1:{port}"
    wait_for(url)
    yield Dashboard(url, data_dir, process)
    process.kill()
    process.wait()
    for job in queries.jobs(LIVE):
        for attempt in queries.attempts(job.id):
            if attempt.engine_ref:
                LocalEngine(1).kill(attempt.engine_ref)
    engine_for.cache_clear()


def wait_for(url: str) -> None:
    deadline = time.monotonic() + STARTS_S
    while True:
        try:
            urllib.request.urlopen(url, timeout=5)
            return
        except OSError:
            assert time.monotonic() < deadline, "the dashboard did not start"
            time.sleep(0.2)


@pytest.fixture
def page(browser: Browser, dashboard: Dashboard) -> Iterator[Page]:
    """A page that fails the test when its console shows an error or it asks another host."""
    context = browser.new_context(viewport={"width": 1400, "height": 900})
    page = context.new_page()
    complaints: list[str] = []
    page.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda r: complaints.append(r.url) if is_foreign(r.url, dashboard) else None)
    page.set_default_timeout(60_000)
    yield page
    context.close()
    assert complaints == []


def is_foreign(url: str, dashboard: Dashboard) -> bool:
    own = (dashboard.url, dashboard.url.replace("http", "ws"), "data:", "blob:")
    return not url.startswith(own)

"""The dashboard as people start it, in a process of its own, and a real Chromium to look at it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from backend.queue.engines.local import LocalEngine
from backend.settings import settings
from backend.store import queries
from backend.store.session import engine_for
from backend.store.states import LIVE

ROOT = Path(__file__).resolve().parents[2]
STARTS_S = 120
EVIL = "${document.body.dataset.x=1}<img src=x onerror=document.body.dataset.x=2>{{value}}"
PLUGIN = '["tests.queue.plugin"]'
SMALL = ("--model=toy", "--pattern=2:4", "--segments=8", "--windows=4", "--threads=1")


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


@contextmanager
def started(data: Path, environment: Mapping[str, str]) -> Iterator[Dashboard]:
    """The dashboard on this data folder, until the block ends."""
    port = free_port()
    own = {"SLIMSCOPE_PORT": str(port), "SLIMSCOPE_IDLE_EXIT": "1", "SLIMSCOPE_BROWSER": "false"}
    process = subprocess.Popen([sys.executable, "app.py"], cwd=ROOT, env={**environment, **own})
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for(url)
        yield Dashboard(url, data, process)
    finally:
        process.kill()
        process.wait()


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
def dashboard(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Dashboard]:
    """With an empty data folder; whatever it started is ended."""
    monkeypatch.setenv("SLIMSCOPE_IDLE_EXIT", "1")
    settings.cache_clear()
    with started(data_dir, os.environ) as shown:
        yield shown
    for job in queries.jobs(LIVE):
        for attempt in queries.attempts(job.id):
            if attempt.engine_ref:
                LocalEngine(1).kill(attempt.engine_ref)
    engine_for.cache_clear()


@contextmanager
def tab(browser: Browser, shown: Dashboard, **options: object) -> Iterator[Page]:
    """A page that fails the test when its console shows an error or it asks another host."""
    context = browser.new_context(**{"viewport": {"width": 1400, "height": 900}, **options})
    page = context.new_page()
    complaints: list[str] = []
    page.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda r: complaints.append(r.url) if is_foreign(r.url, shown) else None)
    page.set_default_timeout(60_000)
    yield page
    context.close()
    assert complaints == []


@pytest.fixture
def page(browser: Browser, dashboard: Dashboard) -> Iterator[Page]:
    with tab(browser, dashboard) as page:
        yield page


def is_foreign(url: str, dashboard: Dashboard) -> bool:
    own = (dashboard.url, dashboard.url.replace("http", "ws"), "data:", "blob:")
    return not url.startswith(own)


# a folder with runs, shared by the tests that only look -------------------------------------------


@pytest.fixture(scope="session")
def shared_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dashboard]:
    """Three small runs carried out on the toy model (sds-0001 to sds-0003, with a name that is an
    attack), and one that failed (count-0004)."""
    data = tmp_path_factory.mktemp("lab")
    here = {"DATA_DIR": str(data), "PLUGINS": PLUGIN, "IDLE_EXIT": "1", "SLOTS": "2"}
    environment = os.environ | {f"SLIMSCOPE_{name}": value for name, value in here.items()}
    for words, code in (
        (["sds", *SMALL, "--sweep", "base=magnitude,wanda,sparsegpt", "--name", EVIL], 0),
        (["count", "--fails-at", "1"], 1),
    ):
        line = [sys.executable, "-m", "jobs", "submit", *words, "--wait"]
        ended = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert ended.returncode == code, ended.stdout + ended.stderr
    with started(data, environment) as shown:
        yield shown


@pytest.fixture
def lab(shared_lab: Dashboard, monkeypatch: pytest.MonkeyPatch) -> Iterator[Dashboard]:
    """The same; `queries` read it."""
    monkeypatch.setenv("SLIMSCOPE_DATA_DIR", str(shared_lab.data))
    settings.cache_clear()
    yield shared_lab
    settings.cache_clear()
    engine_for.cache_clear()


@pytest.fixture
def visitor(browser: Browser, lab: Dashboard) -> Iterator[Page]:
    """A page of one who has been here before."""
    with tab(browser, lab) as page:
        page.add_init_script("try { localStorage.setItem('slimscope-toured', '1'); } catch {}")
        yield page


def opened(page: Page, url: str) -> None:
    """Goes there and waits until the page has drawn what it knows."""
    page.goto(url)
    expect(page.locator("h1")).to_have_count(1)
    expect(page.locator("#frame-status-line a, #frame-status-line span").first).to_be_visible()
    page.wait_for_function(
        "![...document.querySelectorAll('.skeleton')].some((one) => one.offsetParent)"
    )

"""From a click to its chart, and what open pages cost a running job.

    make bench-dashboard

Click: a heatmap cell on Weights, until the histogram of that tensor is drawn; a warm page, the
largest stored run.

Ten tabs: a run on the toy model, alone and beside ten open pages that follow it live; the browser
is on the same machine, which is harder than in a lab, where only the server's share counts.
Alternated; medians.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
from playwright.sync_api import Browser, Page, sync_playwright
from rich.console import Console
from rich.table import Table

from backend.queue import supervisor
from backend.queue.service import Actor
from backend.settings import available_threads
from backend.store import queries
from backend.store.migrate import upgrade
from backend.store.states import TERMINAL, State
from jobs.submit import submit
from tests.browser.chromium import find

CLICKS = 20
TABS = 10
ROUNDS = 2
STEPS = 1500
SETTLE_S = 15
ME = Actor("benchmark", "host")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
BINS = """() => JSON.stringify(
  document.querySelector('#weights-overlay .js-plotly-plot').data.map(trace => trace.y))"""
REDRAWN = f"old => ({BINS})() !== old"


@contextmanager
def dashboard() -> Iterator[tuple[str, psutil.Process]]:
    """A dashboard of its own on the current data folder: its address and its process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    own = {"SLIMSCOPE_PORT": str(port), "SLIMSCOPE_BROWSER": "false"}
    process = subprocess.Popen([sys.executable, "app.py"], env={**os.environ, **own})
    try:
        with socket.socket() as probe:
            while probe.connect_ex(("127.0.0.1", port)):
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}", psutil.Process(process.pid)
    finally:
        process.kill()


def largest_run() -> str:
    """The run with the most tensors stored."""
    sizes = {job.run: len(queries.tensor_table(job.id)) for job in queries.jobs(limit=20)}
    if not sizes or not max(sizes.values()):
        sys.exit("No run has stored weights yet. First: make bench-sds ARGS='--model toy'")
    return max(sizes, key=lambda run: sizes[run])


def clicks(page: Page, url: str) -> list[float]:
    """Milliseconds from a click in the heatmap to the redrawn histogram."""
    page.goto(f"{url}/weights?run={largest_run()}")
    page.locator("#weights-overlay .nsewdrag").first.wait_for()
    page.wait_for_timeout(2000)  # a warm page: everything is drawn and at rest
    box = page.locator("#weights-heatmap .nsewdrag").first.bounding_box()
    assert box is not None
    taken = []
    for n in range(1, CLICKS + 3):  # the first cell is the one already shown
        before = page.evaluate(BINS)
        x = box["x"] + box["width"] * ((n * 7) % CLICKS + 0.5) / (CLICKS + 1)
        y = box["y"] + box["height"] * ((n * 3) % 7 + 0.5) / 7
        start = page.evaluate("performance.now()")
        page.mouse.click(x, y)
        page.wait_for_function(REDRAWN, arg=before, polling=10)
        taken.append(page.evaluate("performance.now()") - start)
    return taken[2:]


def work() -> float:
    """Seconds a run on the toy model takes, most of them weight adjustment."""
    run = submit("sds", {"model": "toy", "adjust_steps": STEPS}, ME, name="benchmark").run
    supervisor.ensure()
    while (job := queries.job(run)).state not in TERMINAL:
        time.sleep(0.5)
    assert job.state == State.SUCCEEDED and job.started_at and job.finished_at, job.error
    return (job.finished_at - job.started_at) / 1000


def tabs(browser: Browser, url: str, server: psutil.Process) -> tuple[list[float], list[float]]:
    """Ratios of a run's time beside ten open pages that follow it to its time alone; and the share
    of this machine's processors that the server took meanwhile."""
    ratios, shares = [], []
    for _ in range(ROUNDS):
        alone = work()
        pages = [browser.new_page() for _ in range(TABS)]
        for number, page in enumerate(pages):
            page.goto(f"{url}/{('jobs', 'runs', '', 'weights')[number % 4]}")
        time.sleep(SETTLE_S)
        before, start = sum(server.cpu_times()[:2]), time.perf_counter()
        ratios.append(work() / alone)
        spent = sum(server.cpu_times()[:2]) - before
        shares.append(spent / (time.perf_counter() - start) / available_threads())
        for page in pages:
            page.close()
    return ratios, shares


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    upgrade()
    with dashboard() as (url, server), sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find(), args=FLAGS)
        page = browser.new_page(viewport={"width": 1600, "height": 1200})
        taken = sorted(clicks(page, url))
        page.close()
        ratios, shares = tabs(browser, url, server)
        browser.close()
    figures = {
        "click_ms_median": round(statistics.median(taken)),
        "click_ms_p95": round(taken[int(0.95 * (len(taken) - 1))]),
        "ten_tabs_ratio": round(statistics.median(ratios), 3),
        "ten_tabs_server_share": round(statistics.median(shares), 3),
    }
    table = Table("what", "figure", title="Dashboard")
    for name, value in figures.items():
        table.add_row(name, str(value))
    Console().print(table)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()

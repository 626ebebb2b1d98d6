"""How fast the dashboard shows what there is, and what it costs while people look.

    make bench-dashboard
    make bench-dashboard ARGS="--minutes 30"

A scratch folder with one real run on the toy model. Then, as a load test, that run is copied until
there are 1,000, and its weight statistics until there are 315 tensors: nothing new is measured.

- Cold: a server that has just started, a browser that has never been here. First: such a browser
  at a server others have visited. Warm: the page opened again. All from the start of the navigation
  to the first drawn chart. Beside the time stands the processor time of page and server together,
  which other work on the machine changes little.
- Click: a heatmap cell on Weights, until the histogram of that tensor is drawn.
- Sessions: ten open pages follow one run. A refresh is an answer of the server, as the browser
  timed it; the browser draws on the same cores, which is harder than in a lab.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from playwright.sync_api import Browser, Page
from rich.console import Console
from rich.table import Table

from backend.errors import ConflictError
from backend.queue import service
from backend.queue.actor import Actor
from backend.store import queries
from backend.store.states import TERMINAL
from benchmarks.screen.load import many_runs, many_tensors
from benchmarks.screen.runs import SDS, carry_out
from benchmarks.screen.server import Dashboard, chromium, dashboard, reads
from benchmarks.shared.timing import p95
from jobs.submit import submit

RUNS, TENSORS, SESSIONS, CLICKS = 1000, 315, 10, 40
SETTLE_S = 20
FOLLOWED = ("compare", "runs", "", "weights", "run?id=sds-0002")
ME = Actor("benchmark", "host")
HOME = ("", ".hero-now")
WEIGHTS = ("weights?run=sds-0001", "#weights-overlay h2:not(:empty)")
TABLE = ("runs", "#runs-board tbody tr[data-testid]")
TITLE = "() => document.querySelector('#weights-effect').textContent"
REDRAWN = f"old => ({TITLE})() !== old"
LEFT, TOP, RIGHT, BOTTOM = 76, 34, 4, 36  # of the cells in the canvas of the map, pixels
DRAWN = "selector => document.querySelector(selector) && performance.now()"
MATCHES = "old => document.querySelector('#runs-board .bulk').textContent !== old"
KEEP_ALL = "performance.setResourceTimingBufferSize(100000)"
REFRESHES = """() => performance.getEntriesByType('resource')
  .filter(e => e.name.includes('/run/predict')).map(e => e.duration)"""

Figures = dict[str, float]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", default=10.0, type=float, help="ten sessions follow a run")
    parser.add_argument("--rounds", default=3, type=int, help="of cold and warm pages")
    return parser.parse_args()


# pages --------------------------------------------------------------------------------------------


@contextmanager
def visitor(browser: Browser) -> Iterator[Page]:
    """A page of one who has never been here, nothing cached."""
    context = browser.new_context(viewport={"width": 1600, "height": 1200})
    context.set_default_timeout(120_000)
    yield context.new_page()
    context.close()


def drawn(page: Page, url: str, what: tuple[str, str]) -> float:
    """Seconds from opening a page until what it is there for is drawn."""
    path, selector = what
    page.goto(f"{url}/{path}", wait_until="commit")
    found = page.wait_for_function(DRAWN, arg=selector, polling="raf")
    return float(found.json_value()) / 1000


def pages(browser: Browser, data: Path, what: tuple[str, str], rounds: int, name: str) -> Figures:
    """Cold, first and warm pages, each cold one from a server just started."""
    cold, first, warm = [], [], []
    for _ in range(rounds):
        with dashboard(data) as shown:
            with visitor(browser) as page:
                cold.append(timed(page, shown, what))
                warm += [timed(page, shown, what) for _ in range(3)]
            with visitor(browser) as page:
                first.append(timed(page, shown, what))
    found: Figures = {}
    for way, taken in (("cold", cold), ("first", first), ("warm", warm)):
        seconds, cpu = zip(*taken, strict=True)
        found |= {f"{name}_{way}_s": median(seconds), f"{name}_{way}_best_s": min(seconds)}
        found[f"{name}_{way}_cpu_s"] = median(cpu)
    return found


def timed(page: Page, shown: Dashboard, what: tuple[str, str]) -> tuple[float, float]:
    """Seconds until it is drawn; processor seconds of the page's main thread and the server."""
    tools = page.context.new_cdp_session(page)
    tools.send("Performance.enable", {"timeDomain": "threadTicks"})
    before = sum(shown.process.cpu_times()[:2])
    seconds = drawn(page, shown.url, what)
    metrics = {m["name"]: m["value"] for m in tools.send("Performance.getMetrics")["metrics"]}
    spent = sum(shown.process.cpu_times()[:2]) - before
    tools.detach()
    return seconds, metrics["ThreadTime"] + spent


def until(page: Page, act: Callable[[], Any], test: str, before: str) -> float:
    """Milliseconds from an act until the test holds."""
    start = page.evaluate("performance.now()")
    act()
    page.wait_for_function(test, arg=before, polling="raf")
    return float(page.evaluate("performance.now()") - start)


def clicks(page: Page, url: str) -> list[float]:
    """Milliseconds from a click in the heatmap to the redrawn histogram, on a page at rest."""
    drawn(page, url, WEIGHTS)
    page.wait_for_timeout(2000)
    box = page.locator("#weights-heatmap canvas").bounding_box()
    blocks, modules = TENSORS // 7, 7
    assert box is not None
    across, down = box["width"] - LEFT - RIGHT, box["height"] - TOP - BOTTOM
    taken = []
    for n in range(1, CLICKS + 3):  # every click on another cell than the one before
        x = box["x"] + LEFT + across * ((n * 7) % blocks + 0.5) / blocks
        y = box["y"] + TOP + down * ((n * 3) % modules + 0.5) / modules
        before = page.evaluate(TITLE)
        taken.append(until(page, lambda x=x, y=y: page.mouse.click(x, y), REDRAWN, before))
    return taken[2:]


def filtered(page: Page, url: str) -> list[float]:
    """Milliseconds from a filter typed on Runs to the table of what matches."""
    drawn(page, url, TABLE)
    page.wait_for_timeout(2000)
    field, taken = page.locator("#runs-filter input, #runs-filter textarea"), []
    for n in range(1, 11):
        before = page.locator("#runs-board .bulk").text_content() or ""
        words = f"seed<{n * 70}"
        taken.append(until(page, lambda words=words: field.fill(words), MATCHES, before))
    return taken


def loaded(browser: Browser, data: Path, rounds: int) -> Figures:
    """1,000 runs, one of them with 315 tensors."""
    with reads(data):
        many_runs(RUNS)
        many_tensors(TENSORS)
    found = pages(browser, data, TABLE, rounds, "runs_1000_first_row")
    found |= pages(browser, data, HOME, rounds, "runs_1000_overview")
    found |= pages(browser, data, WEIGHTS, rounds, "tensors_315")
    with dashboard(data) as shown, visitor(browser) as page:
        click, answers = clicks(page, shown.url), filtered(page, shown.url)
    return found | {
        "runs_1000_filter_ms_p50": median(answers),
        "runs_1000_filter_ms_p95": p95(answers),
        "click_ms_p50": median(click),
        "click_ms_p95": p95(click),
    }


# ten sessions -------------------------------------------------------------------------------------


def keep_busy(until_s: float) -> None:
    """One run at work after another until then; the last is ended."""
    while time.monotonic() < until_s:
        run = submit("sds", {"model": "toy", "adjust_steps": 2000, "threads": 1}, ME).run
        while time.monotonic() < until_s and queries.job(run).state not in TERMINAL:
            time.sleep(0.5)
    with suppress(ConflictError):  # it has ended
        service.cancel([run, run], ME)
    while queries.job(run).state not in TERMINAL:
        time.sleep(0.5)


def sessions(browser: Browser, shown: Dashboard, minutes: float) -> Figures:
    """Ten pages follow a run: the server's share of one core, its answers, its memory."""
    open_pages = [browser.new_page() for _ in range(SESSIONS)]
    for number, page in enumerate(open_pages):
        page.add_init_script(KEEP_ALL)
        page.goto(f"{shown.url}/{FOLLOWED[number % len(FOLLOWED)]}")
    keep_busy(time.monotonic() + SETTLE_S)
    for page in open_pages:
        page.evaluate("performance.clearResourceTimings()")
    process, start = shown.process, time.monotonic()
    memory, spent = process.memory_info().rss, sum(process.cpu_times()[:2])
    keep_busy(start + 60 * minutes)
    took = time.monotonic() - start
    answers = [ms for page in open_pages for ms in page.evaluate(REFRESHES)]
    return {
        "sessions_minutes": took / 60,
        "sessions_refreshes": len(answers),
        "sessions_refresh_ms_p50": median(answers),
        "sessions_refresh_ms_p95": p95(answers),
        "sessions_server_share_of_a_core": (sum(process.cpu_times()[:2]) - spent) / took,
        "sessions_server_mb": process.memory_info().rss / 1e6,
        "sessions_server_grew_mb": (process.memory_info().rss - memory) / 1e6,
    }


# all ----------------------------------------------------------------------------------------------


def measured(data: Path, minutes: float, rounds: int) -> Figures:
    """All figures; `data` is an empty folder."""
    carry_out(data, [SDS])
    found: Figures = {}

    def keep(more: Figures) -> None:
        print(json.dumps(more), file=sys.stderr, flush=True)
        found.update(more)

    with chromium() as browser:
        keep(pages(browser, data, HOME, rounds, "overview"))
        keep(pages(browser, data, WEIGHTS, rounds, "weights"))
        with reads(data), dashboard(data) as shown:
            keep(sessions(browser, shown, minutes))
        keep(loaded(browser, data, rounds))
    return found


def main() -> None:
    asked, busy = arguments(), [os.getloadavg()[0]]
    with TemporaryDirectory(prefix="slimscope-") as scratch:
        figures = measured(Path(scratch), asked.minutes, asked.rounds)
    busy.append(os.getloadavg()[0])
    figures = {name: float(f"{value:.3g}") for name, value in figures.items()}
    table = Table("what", "figure", title="Dashboard")
    for name, value in figures.items():
        table.add_row(name, f"{value:g}")
    Console().print(table, f"Load of this machine at start and end: {busy[0]:.1f}, {busy[1]:.1f}")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()

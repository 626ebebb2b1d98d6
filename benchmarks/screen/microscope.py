"""What the statistics of weights cost: room in the database, time of the run, time of a click.

    make bench-screen.microscope
    make bench-screen.microscope ARGS="--run sds-0001"

Reads a finished run of the data folder (`SLIMSCOPE_DATA_DIR`), which has to be number 1 there. Its
database is copied, and in the copy its tensors until there are 315: nothing new is measured. Models
are read where they are.

- Room: bytes of histograms and profiles of a run in the database, for 210 tensors.
- Run: the seconds its statistics took, and their share of the run.
- Server: processor time of the answer to a click, for each view of one tensor, which other work on
  the machine changes little.
- Click: a cell of the map, until the histogram of that tensor is drawn in Chromium.
- Zoom: a cell of the matrix, until the single weights around it are drawn.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from playwright.sync_api import Page
from rich.console import Console
from rich.table import Table
from sqlalchemy import func, select

from backend.settings import settings
from backend.statistics.names import INPUT_ENERGY, JOINT, SIDES, SINGULAR_VALUES
from backend.store import queries
from backend.store.copies import copy_database
from backend.store.session import reading
from backend.store.tables import ProfileRow, TensorRow
from benchmarks.dashboard import CLICKS, clicks, quantile, until, visitor
from benchmarks.screen.load import many_tensors
from benchmarks.screen.server import chromium, dashboard, reads
from ui.pages.weights import handlers
from ui.pages.weights.data import TensorView
from ui.pages.weights.selection import TENSOR_VIEWS, WeightsSelection

TENSORS = 315
TILE = """() => { const c = document.querySelector('#weights-overlay .js-plotly-plot').data[0];
  return JSON.stringify([c.x[0], c.y[0], c.x.length]); }"""
MOVED = f"old => ({TILE})() !== old"
CORNERS = ((0.15, 0.2), (0.85, 0.8), (0.2, 0.75), (0.8, 0.25))  # of a panel, in turn
KINDS: dict[str, Callable[[str], bool]] = {  # of profiles
    "maps": lambda name: name.startswith("map_"),
    "joint_histograms": lambda name: name == JOINT,
    "singular_values": lambda name: name == SINGULAR_VALUES,
    "input_energies": lambda name: name == INPUT_ENERGY,
    "channels": lambda name: name.startswith(SIDES),
}
Figures = dict[str, float]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", default="sds-0001", help="number 1 of the data folder")
    return parser.parse_args()


def room(run: str) -> Figures:
    """Megabytes of the run's statistics, as for 210 tensors."""
    number = queries.job(run).id
    histograms = func.sum(func.length(TensorRow.counts)), func.count(TensorRow.tensor.distinct())
    with reading() as session:
        counts, tensors = session.execute(
            select(*histograms).where(TensorRow.job_id == number)
        ).one()
        stats = session.scalars(select(TensorRow.stats).where(TensorRow.job_id == number)).all()
        bytes_of = func.sum(func.length(ProfileRow.values))
        profiles = session.execute(
            select(ProfileRow.name, bytes_of).where(ProfileRow.job_id == number).group_by("name")
        ).all()
    sizes = Counter({"histograms": counts + sum(len(json.dumps(each)) for each in stats)})
    for name, size in profiles:
        sizes[next((kind for kind, of in KINDS.items() if of(name)), "others")] += size
    return {f"{kind}_mb": size * 210 / tensors / 1e6 for kind, size in sizes.items()}


def share(run: str) -> Figures:
    """Seconds of the run's statistics and their share of the run, as far as it recorded them."""
    job = queries.job(run)
    steps = {row.step: row.seconds for row in queries.step_times([job.id])}
    if "statistics" not in steps or not job.finished_at or not job.started_at:
        return {}
    whole = (job.finished_at - job.started_at) / 1000
    return {"statistics_s": steps["statistics"], "statistics_share": steps["statistics"] / whole}


def answers(run: str) -> Figures:
    """The 95 % quantile of the processor milliseconds of an answer, of each view."""
    found: Figures = {}
    for name in TENSOR_VIEWS:
        view = TensorView.at(WeightsSelection(run, view=name))
        assert view is not None
        taken = [*timed(handlers.pick_tensor, view)]
        found[f"answer_{name}_p95_cpu_ms"] = quantile(taken[2:], 0.95)
    return found


def timed(handler: Callable[[TensorView], object], view: TensorView) -> Iterator[float]:
    """Processor milliseconds of a handler, for tensors all over the model."""
    names = [*view.weights.tensors]
    for n in range(CLICKS + 2):
        tensor = names[(n * 37) % len(names)]
        chosen = view.select(replace(view.selection, tensor=tensor))
        start = time.process_time()
        handler(chosen)
        yield 1000 * (time.process_time() - start)


def zooms(page: Page, url: str, run: str) -> list[float]:
    """Milliseconds from a click in the matrix to the single weights around it."""
    tensor = "model.layers.3.mlp.up_proj.weight"
    page.goto(f"{url}/weights?run={run}&view=matrix&tensor={tensor}&show=dense")
    panel = page.locator("#weights-overlay .nsewdrag").first
    panel.wait_for()
    page.wait_for_timeout(2000)
    box = panel.bounding_box()
    assert box is not None
    taken = []
    for n in range(CLICKS + 2):
        x, y = CORNERS[n % len(CORNERS)]
        page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])
        page.wait_for_timeout(100)
        before = page.evaluate(TILE)
        taken.append(until(page, lambda: (page.mouse.down(), page.mouse.up()), MOVED, before))
        page.wait_for_timeout(300)
        box = panel.bounding_box() or box
    return taken[2:]


def in_browser(data: Path, run: str) -> Figures:
    with dashboard(data) as shown, chromium() as browser:
        with visitor(browser) as page:
            taken = clicks(page, shown.url)
        with visitor(browser) as page:
            tiles = zooms(page, shown.url, run)
    return {
        "click_median_ms": quantile(taken, 0.5), "click_p95_ms": quantile(taken, 0.95),
        "zoom_median_ms": quantile(tiles, 0.5), "zoom_p95_ms": quantile(tiles, 0.95),
    }  # fmt: skip


def main() -> None:
    run = arguments().run
    if queries.job(run).id != 1:
        sys.exit(f"{run} is not the first run of {settings().root}.")
    found = room(run) | share(run)
    with TemporaryDirectory() as folder:
        data = Path(folder)
        (data / "artifacts").symlink_to(settings().artifacts.resolve())
        copy_database(data / "results.db")
        with reads(data):
            many_tensors(TENSORS)
            found |= answers(run)
        found |= in_browser(data, run)
    table = Table("figure", "value")
    for name, value in found.items():
        table.add_row(name.replace("_", " "), f"{value:,.3g}")
    Console().print(table)
    print(json.dumps(found))


if __name__ == "__main__":
    main()

"""What the statistics of weights cost: room in the database, time of the run, time of one move.

    make bench-screen.microscope
    make bench-screen.microscope ARGS="--run sds-0001"

Reads a finished run of the data folder (`SLIMSCOPE_DATA_DIR`), which has to be number 1 there. Its
database is copied, and in the copy its tensors until there are 315: nothing new is measured. Models
are read where they are.

- Room: bytes of histograms and profiles of a run in the database, for 210 tensors.
- Run: the seconds its statistics took, and their share of the run.
- Binary: all histograms as the browser is sent them, and the processor time to make it.
- Hover, slider, brush: an event of the pointer or the slider, until every panel is drawn, and until
  that is on the screen.
- Click: a cell of the map, until the histogram of that tensor is drawn, as Playwright sees it.
- Zoom: a cell of the matrix, until the single weights around it are drawn.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from playwright.sync_api import Page
from rich.console import Console
from rich.table import Table
from sqlalchemy import func, select

from backend.settings import settings
from backend.statistics.tensors import INPUT_ENERGY, JOINT, SIDES, SINGULAR_VALUES
from backend.store import queries
from backend.store.copies import copy_database
from backend.store.session import reading
from backend.store.tables import ProfileRow, TensorRow
from benchmarks.dashboard import WEIGHTS, clicks, drawn, until, visitor
from benchmarks.screen.load import many_tensors
from benchmarks.screen.server import chromium, dashboard, reads
from benchmarks.shared.timing import p95
from ui.pages.weights import histograms

TENSORS = 315
TIMES = 30
HAND = """async ([what, times]) => {
  const find = (part) => document.querySelector(`#weights-${part}`), map = find('heatmap canvas');
  const histogram = find('overlay canvas'), slider = find('step'), taken = [];
  const pointer = (canvas, kind, x, y) => {
    const box = canvas.getBoundingClientRect(), at = { clientX: box.left + x * box.width,
      clientY: box.top + y * box.height, pointerId: 1, bubbles: true };
    canvas.dispatchEvent(new PointerEvent(`pointer${kind}`, at));
  };
  const acts = {
    hover: (n) => pointer(map, 'move', 0.2 + 0.7 * ((n * 7) % 30) / 30, 0.2 + 0.6 * (n % 5) / 5),
    slider: (n) => { slider.value = n % 2 ? 1 : 3; slider.dispatchEvent(new Event('input')); },
    brush: (n) => pointer(histogram, 'move', 0.55 + 0.3 * (n % 30) / 30, 0.5),
  };
  if (what === 'brush') {
    histogram.setPointerCapture = () => {};
    pointer(histogram, 'down', 0.52, 0.5);
  }
  for (let n = 0; n < times; n++) {
    await new Promise(requestAnimationFrame);
    const begin = performance.now();
    acts[what](n);
    const drawn = performance.now() - begin;
    await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
    taken.push([drawn, performance.now() - begin]);
  }
  pointer(map, 'leave', 0, 0);
  return taken;
}"""
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


def sent(run: str) -> Figures:
    """Size of the binary with all histograms, plain and as it travels, and seconds to make it."""
    histograms.packed_of.clear()
    begin = time.process_time()
    found = histograms.packed_of(run)
    spent = time.process_time() - begin
    assert found is not None
    sizes = {"binary_kb": len(found.plain) / 1e3, "binary_sent_kb": len(found.packed) / 1e3}
    return sizes | {"binary_cpu_s": spent}


def explored(page: Page, url: str, run: str) -> Figures:
    """Milliseconds of what a hand does, until every panel is drawn, and until that is on screen."""
    page.emulate_media(reduced_motion="reduce")  # else panels move for 200 ms to where they end
    drawn(page, url, (f"weights?run={run}", WEIGHTS[1]))
    page.wait_for_timeout(1500)
    found: Figures = {}
    for name in ("hover", "slider", "brush"):
        taken = page.evaluate(HAND, [name, TIMES + 3])[3:]
        for part, each in zip(("drawn", "shown"), zip(*taken, strict=True), strict=True):
            found[f"{name}_{part}_median_ms"] = median(each)
            found[f"{name}_{part}_p95_ms"] = p95(each)
    return found


def zooms(page: Page, url: str, run: str) -> list[float]:
    """Milliseconds from a click in the matrix to the single weights around it."""
    tensor, taken = "model.layers.0.mlp.up_proj.weight", []
    page.goto(f"{url}/weights?run={run}&view=matrix&tensor={tensor}")
    canvas, whole = page.locator("#weights-more canvas"), page.locator("[data-whole]")
    note = "document.querySelector('#weights-more .question')?.textContent"
    for n in range(TIMES):
        page.wait_for_function(f"{note}?.includes('outputs ×')")
        canvas.scroll_into_view_if_needed()
        box = canvas.bounding_box()
        assert box is not None
        x, y = box["x"] + 80 + 9 * n, box["y"] + 60 + 5 * n
        click = partial(page.mouse.click, x, y)
        taken.append(until(page, click, f"() => {note}?.includes('as they are saved')", ""))
        whole.click()
    return taken[2:]


def in_browser(data: Path, run: str) -> Figures:
    with dashboard(data) as shown, chromium() as browser:
        with visitor(browser) as page:
            taken = clicks(page, shown.url)
        with visitor(browser) as page:
            found = explored(page, shown.url, run)
        with visitor(browser) as page:
            tiles = zooms(page, shown.url, run)
    return found | {
        "click_median_ms": median(taken),
        "click_p95_ms": p95(taken),
        "zoom_median_ms": median(tiles),
        "zoom_p95_ms": p95(tiles),
    }


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
            found |= sent(run)
        found |= in_browser(data, run)
    table = Table("figure", "value")
    for name, value in found.items():
        table.add_row(name.replace("_", " "), f"{value:,.3g}")
    Console().print(table)
    print(json.dumps(found))


if __name__ == "__main__":
    main()

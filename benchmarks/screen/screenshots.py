"""Takes the pictures of these docs anew, so that they show what there is.

    make screenshots
    SLIMSCOPE_DATA_DIR=~/lab make screenshots

They are taken of the runs in the current data folder: of each kind the newest that succeeded, of
SDS the one with most tensors. Without any, small runs on the toy model are carried out in a scratch
folder first. A picture whose kind of run is missing is left as it is.
"""

from __future__ import annotations

import os
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from playwright.sync_api import Browser, Page, TimeoutError

from backend.backup.examples import recorded_turn
from backend.settings import settings
from backend.store import frames, queries
from backend.store.migrate import upgrade
from backend.store.states import State
from benchmarks.screen.runs import carry_out
from benchmarks.screen.server import chromium, dashboard, reads

IMAGES = Path(__file__).parents[2] / "docs" / "images"
WIDTH, TALLEST, PHONE, PHONE_HEIGHT = 1280, 1150, 390, 844
WAIT_MS, TRIES = 100_000, 3
FIRST_ANSWER = re.compile("/run/predict|/workbench/|/slimscope/(?:new-run|weights)")
AT_REST_MS = 2500  # after the first answer, until its charts begin to load
RUNS = (
    (
        "sds",
        "--model=toy",
        "--preset=quick look",
        "--sweep=base=magnitude,wanda,sparsegpt",
        "--sweep=pattern=2:4,50%",
    ),
    ("dlqat", "--model=toy", "--preset=quick look"),
    (
        "amphista",
        "--model=toy",
        "--minutes=0",
        "--steps=200",
        "--answers=256",
        "--answer-tokens=48",
    ),
    (
        "benchmark",
        "--model=toy",
        "--drafters=amphista-0008",
        "--count=6",
        "--max-new-tokens=32",
        "--rounds=2",
    ),
)
AT_REST = """() => document.querySelector('#frame-status-line')
  && [...document.querySelectorAll('.skeleton, .plot')].every(one => !one.offsetParent
    || one.querySelector('.main-svg .trace, .heatmaplayer image')
    || one.querySelector('.plot-empty:not([hidden])'))
  && [...document.querySelectorAll('#weights-overlay h2, #workbench-histogram h2, .workbench-said')]
    .every(one => one.textContent || one.closest('[hidden]'))
  && (!document.querySelector('.workbench-status')
    || document.querySelector('[data-gauge=ratio] [data-how=live] b').textContent !== '–')"""


@dataclass(frozen=True)
class Shot:
    """One picture. `page`: its address, see `shown_runs` for the names in it. `tallest`: pixels;
    what stands below is left out, of a run what it tells about the machine."""

    name: str
    page: str
    dark: bool = False
    phone: bool = False
    tallest: int = TALLEST


ONE_LAYER = (  # of SmolLM2 in 3 bits, and which tokens that breaks
    "workbench?model=smollm2-135m&state=~magnitude~rtn~dense_int3-g64~0x77_1_0x133"
    "&focus=model.layers.11.mlp.down_proj&view=why&prompt=Once+upon+a+time"
)
TENSOR = "model.layers.0.mlp.gate_proj.weight"  # of most models; the first where there is none
SHOTS = (
    Shot("home-light", ""),
    Shot("home-phone", "", phone=True),
    Shot("new-run-light", "new-run?kind=sds"),
    Shot("run-light", "run?id={weights}", tallest=770),
    Shot("runs-light", "runs?base={base}"),
    Shot("compare-light", "compare?ids={runs}"),
    Shot("weights-light", f"weights?run={{weights}}&tensor={TENSOR}"),
    Shot("weights-dark", f"weights?run={{weights}}&stage=redense&tensor={TENSOR}", dark=True),
    Shot("workbench-light", ONE_LAYER, tallest=900),
    Shot("workbench-dark", ONE_LAYER, dark=True, tallest=900),
    Shot("workbench-phone", ONE_LAYER, phone=True),
    Shot("quantization-light", "weights?run={dlqat}&view=groups"),
    Shot("benchmark-light", "run?id={benchmark}", tallest=1010),
    Shot("playground-light", "playground?chat={chat}"),
)


def shown_runs() -> dict[str, str]:
    """Return the runs of the addresses by name: a kind is its newest run that succeeded, `weights`
    the SDS run with most tensors, `runs` three comparable runs, `base` one of them, `chat` the
    recorded conversation of the examples."""
    ended = queries.jobs([State.SUCCEEDED])
    found = {job.kind: job.run for job in reversed(ended)}
    if turn := recorded_turn():
        found["chat"] = str(turn.number)
    pruned = [job for job in ended if job.kind == "sds"]
    if pruned:
        found["weights"] = max(pruned, key=lambda job: len(frames.tensor_table(job.id))).run
        model, _ = Counter(job.config["model"] for job in pruned).most_common(1)[0]
        alike = [job.run for job in pruned if job.config["model"] == model][:3]
        found |= {"runs": ",".join(alike), "base": alike[-1]}
    return found


def take(browser: Browser, url: str, shot: Shot, runs: Mapping[str, str]) -> str:
    """Takes one picture; says what became of it."""
    try:
        address = f"{url}/{shot.page.format_map(runs)}"
    except KeyError as missing:
        return f"left as it is: there is no run for {missing}"
    width, height = (PHONE, PHONE_HEIGHT) if shot.phone else (WIDTH, shot.tallest)
    scheme = "dark" if shot.dark else "light"
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=scheme, reduced_motion="reduce"
    )
    context.set_default_timeout(WAIT_MS)
    page = context.new_page()
    if not any(is_at_rest(page, address) for _ in range(TRIES)):
        context.close()
        return f"left as it is: the page was not ready within {WAIT_MS // 1000} s, {TRIES} times"
    tall = page.evaluate("document.querySelector('footer').getBoundingClientRect().bottom")
    shown = min(tall + 16, height, shot.tallest) if tall else shot.tallest
    clip = {"x": 0, "y": 0, "width": width, "height": shown}
    page.screenshot(path=IMAGES / f"{shot.name}.png", clip=clip)
    context.close()
    return "taken"


def is_at_rest(page: Page, address: str) -> bool:
    """Open a page; return False if it is not ready in time, as on a busy machine on which the
    process of the live models starts too late."""
    try:
        with page.expect_response(lambda answer: FIRST_ANSWER.search(answer.url) is not None):
            page.goto(address)
        page.wait_for_timeout(AT_REST_MS)
        page.wait_for_function(AT_REST)
    except TimeoutError:
        return False
    return True


@contextmanager
def data_folder() -> Iterator[Path]:
    """The current one if it has runs that succeeded, else a scratch folder with toy runs."""
    if (settings().root / "results.db").exists():
        upgrade()
        if queries.jobs([State.SUCCEEDED], limit=1):
            yield settings().root
            return
    with TemporaryDirectory(prefix="slimscope-") as scratch:
        print("Small runs on the toy model come first; a few minutes.", flush=True)
        carry_out(Path(scratch), RUNS)
        yield Path(scratch)


def main() -> None:
    wanted = sys.argv[1:]
    os.environ.setdefault("SLIMSCOPE_IDLE_EXIT", "120")  # live models stay between two pictures
    with data_folder() as data, reads(data), dashboard(data) as shown, chromium() as browser:
        runs = shown_runs()
        for shot in SHOTS:
            if not wanted or shot.name in wanted:
                print(f"{shot.name}: {take(browser, shown.url, shot, runs)}", flush=True)


if __name__ == "__main__":
    main()

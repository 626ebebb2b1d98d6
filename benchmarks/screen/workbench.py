"""What a knob of the Workbench costs, from the hand to the screen, and to what is measured.

    make bench-screen.workbench
    make bench-screen.workbench ARGS="--model toy --repeats 10"

On the data folder (`SLIMSCOPE_DATA_DIR`), which should have a profile of the model:

- slider, budget: an event of the slider, until every panel is drawn, and until that is shown.
- loss: a new sparsity of all layers, until the first loss is measured; words: until the live text
  has changed; both from the dense model, and from the budget's mix.

Other work on the machine makes all of it slower."""

from __future__ import annotations

import argparse
import json
from statistics import median

from playwright.sync_api import Page
from rich.console import Console
from rich.table import Table

from backend.settings import settings
from benchmarks.dashboard import visitor
from benchmarks.screen.server import chromium, dashboard
from benchmarks.shared.timing import p95

HAND = """async ([id, from, to, times]) => {
  const slider = document.querySelector(`#workbench-${id}`), taken = [];
  for (let n = 0; n < times; n++) {
    await new Promise(requestAnimationFrame);
    slider.value = from + ((n * 7) % (to - from));
    const begin = performance.now();
    slider.dispatchEvent(new Event('input'));
    const drawn = performance.now() - begin;
    await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
    taken.push([drawn, performance.now() - begin]);
  }
  return taken;
}"""
MEASURED = """async ([value, what]) => {
  const find = (part) => document.querySelector(part), pause = (done) => setTimeout(done, 2);
  const slider = find('#workbench-sparsity'), gauge = find('[data-how="live"]');
  const live = find('.workbench-texts div + div p'), words = live.textContent;
  const ready = {
    loss: () => gauge.dataset.known === 'live', words: () => live.textContent !== words,
  };
  slider.value = value;
  const begin = performance.now();
  slider.dispatchEvent(new Event('input'));
  while (!ready[what]()) await new Promise(pause);
  return performance.now() - begin;
}"""
Figures = dict[str, list[float]]
LOADS_MS = 600_000  # of the model, on a busy machine


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--repeats", type=int, default=30)
    return parser.parse_args()


def moved(page: Page, repeats: int) -> Figures:
    """Milliseconds until all is drawn, and until it is shown."""
    found: Figures = {}
    for name, low, high in (("sparsity", 5, 85), ("budget", 20, 980)):
        taken = page.evaluate(HAND, [name, low, high, repeats + 3])[3:]
        found |= {f"{name} drawn": [a for a, _ in taken], f"{name} shown": [b for _, b in taken]}
    return found


def measured(page: Page, repeats: int) -> Figures:
    """Milliseconds until the live model has told something new."""
    page.get_by_role("button", name="Write").click()  # which opens the model
    page.wait_for_selector("[data-gauge=speed][data-known=live]", timeout=LOADS_MS)
    return {
        what: [page.evaluate(MEASURED, [5 + (n + 40 * at) % 80, what]) for n in range(repeats)][1:]
        for at, what in enumerate(("loss", "words"))
    }


def main() -> None:
    asked = arguments()
    with dashboard(settings().root) as shown, chromium() as browser, visitor(browser) as page:
        page.emulate_media(reduced_motion="reduce")
        page.goto(f"{shown.url}/workbench?model={asked.model}")
        page.wait_for_function("document.querySelector('#workbench-histogram h2')?.textContent")
        page.wait_for_timeout(3000)
        found = measured(page, asked.repeats) | moved(
            page, asked.repeats
        )  # the budget mixes formats
        mixed = measured(page, asked.repeats)
        found |= {f"{what} in a mix": taken for what, taken in mixed.items()}
    table = Table("milliseconds", "median", "p95")
    for name, taken in found.items():
        table.add_row(name, *(f"{of(taken):,.3g}" for of in (median, p95)))
    Console().print(table)
    print(json.dumps(found))


if __name__ == "__main__":
    main()

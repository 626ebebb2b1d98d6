"""Films of what moves, as GIFs in docs/films: the weights of a layer through the stages of SDS
(zip), a group that snaps to its grid (comb), and a sweep of sparsity, each frame measured
(sweep).

    make bench-screen.films
    make bench-screen.films ARGS="zip comb"

Of the runs in the data folder, which begins with the examples. The clock of the page stands still
between two frames, so that a film shows what a person sees; that of the sweep runs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from io import BytesIO

from PIL import Image
from playwright.sync_api import Page

from backend.settings import settings
from benchmarks.screen.screenshots import IMAGES
from benchmarks.screen.server import chromium, dashboard

FILMS = IMAGES.with_name("films")
SIZE = {"width": 1200, "height": 800}
STEP_MS, SHOWN_MS, LAST_MS = 100, 800, 2000
LOADS_MS = 600_000  # of a model, on a busy machine
MEASURED = """() => ['ratio', 'speed'].every((name) =>
  document.querySelector(`[data-gauge=${name}] i`).textContent === 'measured')"""
COLORS = 48
Frame = tuple[bytes, int]  # a PNG, all of one size, and the milliseconds it is shown


def opened(page: Page, address: str, there: str) -> None:
    """The page, whose clock stands still once this is there."""
    page.clock.install()
    page.goto(address)
    page.locator(there).first.wait_for()
    page.wait_for_timeout(3000)  # fonts and charts
    page.clock.pause_at(page.evaluate("Date.now() + 1000"))


def filmed(page: Page, part: str, frames: int, hold: int) -> Iterator[Frame]:
    """What moves now; the last frame is held."""
    for number in range(frames):
        page.clock.run_for(STEP_MS)
        shown = page.locator(part).first.screenshot()
        yield shown, STEP_MS if number < frames - 1 else hold


def zipped(page: Page, url: str) -> Iterator[Frame]:
    opened(page, url, ".hero-stages button")
    stages = page.locator(".hero-stages button")
    for place in [*range(1, stages.count()), 0]:
        stages.nth(place).click()
        yield from filmed(page, ".hero-figure", 8, SHOWN_MS)


def comb(page: Page, url: str) -> Iterator[Frame]:
    page.set_viewport_size({"width": 1600, "height": 900})
    address = f"{url}/workbench?model=smollm2-135m&bell=comb"
    opened(page, address, "#workbench-histogram h2:has-text('weights')")
    page.locator("[data-knob=group]").select_option("0")
    for bits in (8, 6, 5, 4, 3, 2, 16):
        page.locator(f'[data-group="bits"] button[value="{bits}"]').click()
        yield from filmed(page, "#workbench-histogram", 4, SHOWN_MS)


def sweep(page: Page, url: str) -> Iterator[Frame]:
    page.goto(f"{url}/workbench?model=smollm2-135m&prompt=The capital of France is")
    page.wait_for_function("document.querySelector('#workbench-histogram h2')?.textContent")
    page.locator("[data-knob=pruner]").select_option("magnitude")
    page.get_by_role("button", name="Write").click()
    for zeros in range(0, 80, 4):
        page.locator("#workbench-sparsity").fill(str(zeros))
        page.wait_for_timeout(400)  # until it is asked
        page.wait_for_function(MEASURED)
        top = page.locator(".workbench-gauges").bounding_box()
        assert top is not None
        clip = {"x": 0, "y": top["y"] - 8, "width": SIZE["width"], "height": SIZE["height"]}
        still = page.screenshot(clip=clip | {"height": SIZE["height"] - top["y"]})  # type: ignore
        yield still, LAST_MS if zeros == 76 else 400


MADE: dict[str, Callable[[Page, str], Iterator[Frame]]] = {
    "zip": zipped,
    "comb": comb,
    "sweep": sweep,
}


def main() -> None:
    with dashboard(settings().root) as shown, chromium() as browser:
        for name in sys.argv[1:] or MADE:
            page = browser.new_page(viewport=SIZE, color_scheme="light")  # type: ignore
            page.set_default_timeout(LOADS_MS)
            film = animated([*MADE[name](page, shown.url)])
            (FILMS / f"{name}.gif").write_bytes(film)
            print(f"{name}.gif: {len(film) / 1e3:.0f} kB", flush=True)
            page.close()


def animated(frames: list[Frame]) -> bytes:
    """A GIF that goes on for ever, in few colors, of each frame what has changed."""
    stills = [Image.open(BytesIO(png)).convert("RGB") for png, _ in frames]
    first, *others = [still.quantize(COLORS, dither=Image.Dither.NONE) for still in stills]
    made, shown = BytesIO(), [ms for _, ms in frames]
    first.save(made, "GIF", save_all=True, append_images=others, duration=shown, loop=0)
    return made.getvalue()


if __name__ == "__main__":
    main()

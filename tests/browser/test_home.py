"""The first visit, deletion with undo, Back."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, expect

from tests.browser.conftest import ROOT, Dashboard, opened, started, warm_tab

RUN = "sds-0001"
HERO = """<p class=hero-said><b class=hero-stage></b><span></span></p><div class=hero-plot></div>
<button class=hero-play></button><div class=hero-stages></div>"""


@pytest.fixture
def first_visit(data_dir: Path, port: int) -> Iterator[Dashboard]:
    """A dashboard as it comes: with the examples."""
    with started(data_dir, os.environ | {"SLIMSCOPE_EXAMPLES": "true"}, port) as shown:
        yield shown


def test_a_first_visit_has_something_to_see(
    warm_context: BrowserContext, first_visit: Dashboard
) -> None:
    with warm_tab(warm_context, first_visit.url) as page:
        page.emulate_media(reduced_motion="no-preference")
        opened(page, first_visit.url)
        area = page.locator(".hero-now")
        before = area.get_attribute("d")
        expect(page.locator(".hero-stage")).to_have_text("First pruning")  # by itself
        page.get_by_role("button", name="Re-dense").click()
        expect(page.locator(".hero-stage")).to_have_text("Re-dense")
        expect(page.locator(".hero-play")).to_have_text("Play")  # somebody has chosen
        assert area.get_attribute("d") != before
        page.get_by_role("button", name="Remove the examples").click()
        expect(page.locator(".hero-figure")).to_have_count(0)
        page.get_by_role("button", name="Show the examples").click()
        expect(page.locator(".hero-figure")).to_have_count(1)


PLOT = "canvas, .main-svg .trace"
MISSION = {  # link on Home -> what it leads to
    "of sds-example": PLOT,  # weights before and after
    "See its groups": PLOT,  # group magnitudes
    "See its curves": "#run-sizes .main-svg .trace",  # speed-up, and acceptance beside it
    "side by side": "text=lighthouse keeper",
}


def test_every_plot_of_the_mission_is_one_click_from_home(
    warm_context: BrowserContext, first_visit: Dashboard
) -> None:
    with warm_tab(warm_context, first_visit.url) as page:
        for link, shown in MISSION.items():
            opened(page, first_visit.url)
            page.get_by_role("link", name=link).first.click()
            expect(page.locator(shown).first).to_be_visible()


def test_a_histogram_of_another_run_takes_the_place_of_the_first(browser: Browser) -> None:
    """Its old timers and observers go on with nothing: for a minute only the new run speaks."""
    first = moving("example")
    with browser.new_context(reduced_motion="no-preference") as context:
        page = context.new_page()
        page.clock.install()
        page.set_content(f"<figure data-histogram='{first}'>{HERO}</figure>")
        for script in ("slimscope", "hero"):
            page.add_script_tag(path=ROOT / f"ui/assets/scripts/{script}.js")
        said = page.locator(".hero-said span")
        expect(said).to_have_text("example dense")
        page.clock.run_for(1000)  # between two stages of the first
        page.evaluate(
            "text => { const figure = document.querySelector('figure');"
            " figure.dataset.histogram = text; figure.append('') }",
            moving("toy"),
        )
        expect(said).to_have_text("toy dense")
        heard = []
        for _ in range(60):
            page.clock.run_for(1000)
            heard.append(said.inner_text())
        assert {*heard} - {""} == {"toy dense", "toy first"}
        assert page.locator(".hero-stages button").count() == 2


def moving(run: str) -> str:
    """A histogram of two stages."""
    stages = [
        {
            "label": label,
            "color": "#0072B2",
            "zeros": 0.5,
            "heights": [0.1, 0.9],
            "said": f"{run} {label}",
        }
        for label in ("dense", "first")
    ]
    return json.dumps({"edge": 1.0, "stages": stages})


def test_an_unknown_address_looks_alike(other_context: BrowserContext, lab: Dashboard) -> None:
    page = other_context.new_page()  # not watched: the console tells of the 404
    page.goto(f"{lab.url}/nothing")
    assert page.evaluate("document.fonts.load('14px \"IBM Plex Sans\"').then(f => f.length)")
    page.get_by_role("navigation").get_by_role("link", name="Workbench").click()
    expect(page.locator("h1")).to_have_text("Workbench")
    page.close()

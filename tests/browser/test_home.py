"""The first visit, a presentation a room reads and a phone follows, deletion with undo, Back."""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect

from tests.browser.conftest import ROOT, Dashboard, code_to_follow, opened, started, warm_tab
from ui.theme import DARK

RUN = "sds-0001"
HERO = """<p class=hero-said><b class=hero-stage></b><span></span></p><div class=hero-plot></div>
<button class=hero-play></button><div class=hero-stages></div>"""
PROJECTOR = {"width": 1920, "height": 1080}
LEAST_PX = 18
READ_ALOUD = """() => {  // the smallest type of any text that is seen, and that text
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), found = [];
  while (walk.nextNode()) {
    const { textContent, parentElement: owner } = walk.currentNode, range = document.createRange();
    range.selectNodeContents(walk.currentNode);
    const { width, top, bottom } = range.getBoundingClientRect();
    if (!textContent.trim() || !width || top > innerHeight || bottom < 0) continue;
    if (!owner.checkVisibility({ checkVisibilityCSS: true, checkOpacity: true })) continue;
    found.push([parseFloat(getComputedStyle(owner).fontSize), textContent.trim()]);
  }
  return found.sort((a, b) => a[0] - b[0])[0];
}"""
CUT = """() => [...document.querySelectorAll('.card, .weights-figures, canvas, h2, p')]
  .filter((one) => one.checkVisibility({ checkVisibilityCSS: true }))
  .map((one) => [one, one.getBoundingClientRect()])
  .filter(([, { width, top }]) => width && top < innerHeight - 1)
  .filter(([, { bottom }]) => bottom > innerHeight + 1)
  .map(([one]) => `${one.tagName} ${one.id} ${one.className} ${one.textContent.slice(0, 40)}`)"""
CONTROLS = (
    ".toolbar, .bar, #frame-header header, #frame-status, .save-menu, .card-data, "
    ".weights-controls, .weights-views"
)
STAGE = "#weights-rail [aria-checked='true']"
THERE = {
    "": ".hero-plot svg path",
    "weights": "#weights-overlay h2:not(:empty)",
}


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
    "of sds-example-2": PLOT,  # weights before and after
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
        assert {*heard} == {"toy dense", "toy first"}
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


def test_a_presentation_is_slides_in_the_mode_of_the_pages_that_a_phone_follows(
    other_context: BrowserContext, lab: Dashboard, visitor: Page
) -> None:
    opened(visitor, f"{lab.url}/weights?run={RUN}&stage=dense")
    visitor.evaluate("localStorage.setItem('slimscope-theme', 'dark')")  # of a light browser
    visitor.keyboard.press("p")
    visitor.wait_for_url("**/slimscope/present**")
    bar, shown = visitor.locator(".bar"), visitor.frame("view")
    expect(bar).to_have_css("background-color", rgb(DARK.paper))
    expect(bar).to_have_css("font-family", re.compile("IBM Plex Sans"))
    assert visitor.evaluate("document.fonts.load('14px \"IBM Plex Sans\"').then(f => f.length)")
    expect(shown.locator(STAGE)).to_have_accessible_name("Dense")
    expect(shown.locator("#frame-status")).to_be_hidden()
    for picker in ("stat", "tensor", "vs", "run"):
        expect(shown.locator(f"#weights-{picker}")).to_be_hidden()
    code = code_to_follow(visitor)
    with warm_tab(other_context, lab.url) as phone:
        phone.goto(f"{lab.url}/slimscope/follow?code={code}")
        followed = phone.frame("view")
        step = followed.locator(STAGE)
        expect(step).to_have_accessible_name("Dense")
        visitor.get_by_role("button", name="Play").click()
        expect(shown.locator(STAGE)).to_have_accessible_name("First pruning")
        visitor.get_by_role("button", name="Pause").click()
        now = shown.locator(STAGE).get_attribute("aria-label") or ""
        expect(step).to_have_accessible_name(now)
    shown.locator("#weights-overlay .question").click()  # the focus is in the frame
    visitor.keyboard.press("Escape")
    visitor.wait_for_url(re.compile(rf"{lab.url}/weights\?"))


def rgb(color: str) -> str:
    """#12161B as a browser says it."""
    return "rgb({}, {}, {})".format(*bytes.fromhex(color[1:]))


def test_an_unknown_address_looks_alike(other_context: BrowserContext, lab: Dashboard) -> None:
    page = other_context.new_page()  # not watched: the console tells of the 404
    page.goto(f"{lab.url}/nothing")
    assert page.evaluate("document.fonts.load('14px \"IBM Plex Sans\"').then(f => f.length)")
    page.get_by_role("navigation").get_by_role("link", name="Workbench").click()
    expect(page.locator("h1")).to_have_text("Workbench")
    page.close()


@pytest.mark.parametrize("page", THERE)
def test_a_presented_page_is_one_screen_that_can_be_read_from_the_last_row(
    page: str, visitor: Page, lab: Dashboard
) -> None:
    visitor.set_viewport_size(PROJECTOR)  # type: ignore[arg-type]
    visitor.goto(f"{lab.url}/{page}?present=1")
    visitor.wait_for_url("**/slimscope/present**")
    shown = visitor.frame_locator("#view")
    expect(shown.locator(THERE[page]).first).to_be_attached()
    framed = visitor.frame(name="view")
    assert framed is not None
    framed.wait_for_function(f"!({CUT})().length")  # a chart that has just come may still grow
    size, text = framed.evaluate(READ_ALOUD)
    assert size >= LEAST_PX, text
    assert not [each for each in shown.locator(CONTROLS).all() if each.is_visible()]
    visitor.keyboard.press("Escape")
    visitor.wait_for_url(lambda url: "/slimscope/" not in url)
    expect(visitor.locator("#frame-header header")).to_be_visible()

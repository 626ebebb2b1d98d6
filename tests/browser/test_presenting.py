"""A presented page at 1920 x 1080: one screen, large type, no controls; Escape leaves."""

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import Dashboard

SCREEN = {"width": 1920, "height": 1080}
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
CUT = """() => [...document.querySelectorAll('.card, .weights-tiles, canvas, h2, p')]
  .filter((one) => one.checkVisibility({ checkVisibilityCSS: true }))
  .map((one) => [one, one.getBoundingClientRect()])
  .filter(([, { width, top }]) => width && top < innerHeight - 1)
  .filter(([, { bottom }]) => bottom > innerHeight + 1)
  .map(([one]) => `${one.tagName} ${one.id} ${one.className} ${one.textContent.slice(0, 40)}`)"""
CONTROLS = (
    ".toolbar, .bar, #frame-header header, #frame-subnav, #frame-status, .save-menu, .card-data, "
    ".weights-controls, .weights-views"
)
THERE = {
    "": ".hero-plot svg path",
    "weights": "#weights-overlay h2:not(:empty)",
    "benchmark": "#benchmark-bars .main-svg .trace",
}


@pytest.mark.parametrize("page", THERE)
def test_a_presented_page_is_one_screen_that_can_be_read_from_the_last_row(
    page: str, visitor: Page, lab: Dashboard
) -> None:
    visitor.set_viewport_size(SCREEN)  # type: ignore[arg-type]
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

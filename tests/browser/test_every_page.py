"""What holds on every page, with real runs: one heading, its own title, text that stays text, no
fault axe can find in light or dark, nothing wider than a phone, no other host asked and no rule of
the policy broken."""

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import BrowserContext, Page, expect

from tests.browser.conftest import (
    PHONE,
    SCREEN,
    VIOLATIONS,
    Dashboard,
    opened,
    warm_tab,
)
from tests.conftest import representatives
from tests.ui.charts.test_charts import contrast
from ui.frame import Page as OwnPage
from ui.pages import pages

QUERIES = {
    "runs": "base=sds-0007&pins=dlqat-0005&pick=sds-0003&open=sds-0001",
    "run": "id=sds-0001",
    "weights": "run=sds-0001",
    "workbench": "model=toy",
    "compare": "ids=sds-0001,sds-0002,sds-0003",
    "story": "n=1",
}
TAGS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]
RULES = {  # in the dark only those that look at colors: the page is the same
    "light": {"type": "tag", "values": TAGS},
    "dark": {"type": "rule", "values": ["color-contrast", "link-in-text-block"]},
}
BY_NAME = {page.name: page for page in pages()}
IN_THE_DARK = representatives(BY_NAME, "Compare", "Run", "Workbench")
TITLES: dict[str, str] = {}  # title -> the page that has it


def address(lab: Dashboard, page: OwnPage) -> str:
    query = QUERIES.get(page.path, "")
    return f"{lab.url}/{page.path}" + (f"?{query}" if query else "")


def faults(page: Page, scheme: str) -> list[str]:
    """What axe complains of."""
    options = {"runOnly": RULES[scheme], "resultTypes": ["violations"]}  # not all it has looked at
    found = Axe().run(page, options=options).response["violations"]
    return [
        f"{scheme}: {one['id']} at {' '.join(map(str, node['target']))}: {node['html'][:200]}"
        for one in found
        for node in one["nodes"]
    ]


@pytest.mark.parametrize("name", BY_NAME)
def test_a_page_has_a_title_fits_a_phone_and_has_no_fault_in_light_or_dark(
    warm_context: BrowserContext, lab: Dashboard, name: str
) -> None:
    """Opened once, on a phone. A tab of the tests fails on a request to another host, and on an
    error in the console."""
    of = BY_NAME[name]
    with warm_tab(warm_context, lab.url) as page:
        page.add_init_script(VIOLATIONS)
        page.emulate_media(color_scheme="light")
        page.set_viewport_size(PHONE)
        opened(page, address(lab, of))
        fits_a_phone(page)
        if name == "Runs":
            the_navigation_is_one_row(page)
        page.set_viewport_size(SCREEN["viewport"])
        heading = page.locator("h1").inner_text().strip()
        expect(page).to_have_title(f"{heading} · Slimscope")
        assert TITLES.setdefault(page.title(), name) == name
        current = page.locator("nav a[aria-current='page']")
        assert set(current.all_inner_texts()) == ({of.name} if of.section == of.name else set())
        assert page.evaluate("document.body.dataset.x") is None  # the name of the runs is an attack
        assert faults(page, "light") == []
        if name == "Compare":
            the_theme_is_switched_without_a_reload(page)
        if name in IN_THE_DARK:
            page.emulate_media(color_scheme="dark")
            expect(page.locator("body.dark")).to_have_count(1)
            assert faults(page, "dark") == []
        page.wait_for_load_state("networkidle")  # a page may hold none of the few connections
        assert page.evaluate("window.violations") == []


def test_what_is_no_page_asks_no_host_and_breaks_no_policy(visitor: Page, lab: Dashboard) -> None:
    """The fixture `visitor` fails on a request to another host and on an error in the console."""
    visitor.add_init_script(VIOLATIONS)
    for path in ("slimscope/docs", "slimscope/host"):
        visitor.goto(f"{lab.url}/{path}")
        expect(visitor.locator("h1")).to_have_count(1)
        assert visitor.evaluate("window.violations") == [], path


def fits_a_phone(page: Page) -> None:
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    page.locator("#frame-nav a").last.click(trial=True)  # nothing lies over it
    if not page.locator(".hidden h1").count():  # the navigation shows it
        page.locator("h1").click(trial=True)


def the_navigation_is_one_row(page: Page) -> None:
    for width in (PHONE["width"], 720, 890):
        page.set_viewport_size({"width": width, "height": 900})
        for part in ("#frame-nav a", "#frame-header header > :not(nav)"):
            boxes = [each.bounding_box() for each in page.locator(part).all()]
            middles = {round(box["y"] + box["height"] / 2, -1) for box in boxes if box}
            assert len(middles) == 1, (width, part)


COLORS = """() => {
  const chart = document.querySelector('#compare-lines .js-plotly-plot');
  const paint = (within, name) => getComputedStyle(chart.querySelector(within))[name];
  return [paint('.ytick text', 'fill'), chart._fullLayout.paper_bgcolor,
          paint('.gridlayer path', 'stroke')];
}"""


def the_theme_is_switched_without_a_reload(page: Page) -> None:
    """Text, paper and grid of a chart follow it, and it is remembered."""
    page.locator("#compare-lines .ytick text").first.wait_for()
    light = page.evaluate(COLORS)
    page.evaluate("window.here = true")
    page.locator("#frame-theme").click()
    changed = f"(before) => ({COLORS})().every((now, i) => now !== before[i])"
    page.wait_for_function(changed, arg=light)
    assert page.evaluate("window.here") is True
    for text, paper, _ in (light, page.evaluate(COLORS)):
        assert contrast(text, paper) >= 4.5
    assert page.evaluate("localStorage.getItem('slimscope-theme')") == "dark"

"""What holds on every page, with real runs: one heading, its own title, text that stays text, no
fault axe can find in light or dark, and nothing wider than a phone."""

from __future__ import annotations

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from tests.browser.conftest import Dashboard, opened, tab
from ui import app
from ui.frame import Page as OwnPage

expect.set_options(timeout=60_000)
pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

QUERIES = {
    "runs": "base=sds-0001&pins=sds-0002&pick=sds-0003",
    "run": "id=sds-0001",
    "sweep": "id=sds-0001",
    "weights": "run=sds-0001",
    "compare": "ids=sds-0001,sds-0002,sds-0003",
}
PHONE = {"width": 390, "height": 844}
RULES = {"runOnly": {"type": "tag", "values": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]}}
BY_NAME = {page.name: page for page in app.PAGES}


def address(lab: Dashboard, page: OwnPage) -> str:
    query = QUERIES.get(page.path, "")
    return f"{lab.url}/{page.path}" + (f"?{query}" if query else "")


def visit(browser: Browser, lab: Dashboard, of: OwnPage, scheme: str) -> list[str]:
    """Looks at one page; returns what axe complains of."""
    with tab(browser, lab, color_scheme=scheme) as page:
        opened(page, address(lab, of))
        heading = page.locator("h1").inner_text().strip()
        expect(page).to_have_title(f"{heading} · Slimscope")
        current = page.locator("#frame-nav a[aria-current='page']")
        assert current.all_inner_texts() == ([of.name] if of.in_navbar else [])
        assert page.evaluate("document.body.dataset.x") is None  # the name of the runs is an attack
        found = Axe().run(page, options=RULES).response["violations"]
        return [
            f"{scheme}: {one['id']} at {' '.join(map(str, node['target']))}: {node['html'][:200]}"
            for one in found
            for node in one["nodes"]
        ]


@pytest.mark.parametrize("name", BY_NAME)
def test_a_page_has_a_title_and_no_fault_in_light_or_dark(
    browser: Browser, lab: Dashboard, name: str
) -> None:
    assert visit(browser, lab, BY_NAME[name], "light") == []
    assert visit(browser, lab, BY_NAME[name], "dark") == []


def test_no_page_is_wider_than_a_phone_and_no_two_share_a_title(
    browser: Browser, lab: Dashboard
) -> None:
    titles = set()
    with tab(browser, lab, viewport=PHONE) as page:
        for of in app.PAGES:
            opened(page, address(lab, of))
            titles.add(page.title())
            assert page.evaluate("document.documentElement.scrollWidth") <= 390, of.name
            expect(page.locator("#frame-nav a").last).to_be_in_viewport()
    assert len(titles) == len(app.PAGES)


def test_the_colours_of_a_chart_follow_the_theme_without_a_reload(
    visitor: Page, lab: Dashboard
) -> None:
    opened(visitor, f"{lab.url}/compare?{QUERIES['compare']}")
    tick = visitor.locator("#compare-stages .xtick text").first
    tick.wait_for()
    paint = "(e) => getComputedStyle(e).fill"
    light = tick.evaluate(paint)
    visitor.evaluate("window.here = true")
    visitor.locator("#frame-theme").click()
    visitor.wait_for_function(
        "(before) => getComputedStyle(document.querySelector('#compare-stages .xtick text')).fill"
        " !== before",
        arg=light,
    )
    assert visitor.evaluate("window.here") is True
    visitor.reload()
    expect(visitor.locator("body.dark")).to_have_count(1)  # it is remembered

"""From what is measured of layers and groups to a run of the best mix, with the keyboard alone."""

import re

from playwright.sync_api import Page, expect

from tests.browser.conftest import Dashboard, opened


def test_a_layer_is_picked_and_a_budget_becomes_a_run(visitor: Page, lab: Dashboard) -> None:
    opened(visitor, f"{lab.url}/workbench?model=toy&focus=model.layers.0.self_attn.q_proj")
    layers = visitor.locator("#workbench-map canvas")
    chosen = visitor.locator("#workbench-histogram h2")
    expect(chosen).to_contain_text("Block 0, q_proj")
    layers.press("ArrowDown")
    expect(chosen).to_contain_text("Block 0, k_proj")
    visitor.wait_for_function("location.search.includes('k_proj')")
    visitor.reload()
    expect(chosen).to_contain_text("Block 0, k_proj")

    budget = visitor.get_by_role("textbox", name="Budget")
    budget.fill("50%")
    budget.press("Enter")
    visitor.wait_for_url(re.compile("state="))
    visitor.locator("[data-menu='run'] summary").press("Enter")
    row = visitor.locator("[data-effort='sds']")
    link = row.get_by_role("link", name="Open in New run")
    expect(link).to_have_attribute(
        "href", re.compile(r"^new-run\?kind=sds&model=toy&pattern=50%25")
    )

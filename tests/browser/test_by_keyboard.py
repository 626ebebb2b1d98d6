"""From what is measured of layers and groups to a run of the best mix, with the keyboard alone."""

import re

from playwright.sync_api import Page, expect

from tests.browser.conftest import Dashboard, opened


def test_a_layer_is_picked_and_a_budget_becomes_a_run(visitor: Page, lab: Dashboard) -> None:
    opened(visitor, f"{lab.url}/sensitivity?run=profile-0008&layer=model.layers.0.self_attn.q_proj")
    layers = visitor.locator("#sensitivity-map .plot-canvas")
    expect(layers.locator(".heatmaplayer image").first).to_be_visible()
    layers.focus()
    visitor.keyboard.press("ArrowDown")
    layer = visitor.get_by_role("combobox", name="Layer", exact=True)
    expect(layer).to_have_value("Block 0, k_proj")
    visitor.wait_for_function("location.search.includes('k_proj')")
    visitor.reload()
    expect(layer).to_have_value("Block 0, k_proj")

    visitor.get_by_role("link", name="Find the best mix").press("Enter")
    budget = visitor.get_by_role("textbox", name="Budget")
    expect(budget).to_have_value("loss 10%")
    budget.fill("1bits")
    budget.press("Enter")
    refusal = visitor.locator("#tradeoffs-refusal")
    expect(refusal).to_contain_text("No mix of formats satisfies a budget of 1bits.")
    expect(budget).to_have_value("1bits")
    budget.fill("50%")
    budget.press("Enter")
    expect(visitor.get_by_label("Pruned")).to_be_checked()
    expect(refusal).to_be_hidden()
    visitor.wait_for_function("location.search.includes('budget=50%25')")
    visitor.reload()
    expect(budget).to_have_value("50%")
    visitor.get_by_role("link", name="Queue this").press("Enter")
    expect(visitor).to_have_url(re.compile(r"/new\?kind=sds&model=toy&allocation=budget%3A50%25"))

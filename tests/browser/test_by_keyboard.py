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
    expect(visitor).to_have_url(
        re.compile(r"/new-run\?kind=sds&model=toy&allocation=budget%3A50%25")
    )


RUN = "dlqat-0005"
MAP_SHOWS = """
    tensor => document.querySelector("#quant-map-chart .plot-canvas")
        .layout.meta.name.includes(tensor)
"""


def test_groups_and_steps_are_reached_by_keyboard_from_the_whole_model_down(
    visitor: Page, lab: Dashboard
) -> None:
    opened(visitor, f"{lab.url}/quantization?run={RUN}")
    groups = visitor.locator("#quant-map-chart .plot-canvas")
    place = visitor.locator("#quant-charts .question", has_text=" by error, the worst first")
    expect(place).to_contain_text("number 1 of")
    expect(groups.locator(".heatmaplayer image").first).to_be_visible()  # then keys count
    tensor = visitor.get_by_role("combobox", name="Tensor", exact=True)
    tensor.press("ArrowDown")
    tensor.press("Enter")
    expect(tensor).to_have_value("Block 0, k_proj")
    visitor.wait_for_function(MAP_SHOWS, arg="k_proj")  # the address names it earlier
    groups.focus()
    visitor.keyboard.press("ArrowUp")
    expect(visitor.locator("#quant-charts")).not_to_contain_text("number 1 of")
    visitor.locator("#quant-worst-button").press("Enter")
    expect(place).to_contain_text("number 1 of")
    visitor.locator("#quant-on-button").press("Enter")
    expect(place).to_contain_text("number 2 of")
    expect(visitor.locator("#quant-weights-chart .scatterlayer .point").first).to_be_visible()

    note = visitor.locator("#quant-charts .question", has_text="As of step")
    expect(note).to_contain_text("As of step 4.")
    slider = visitor.locator("#quant-step input[type='range']")
    for _ in range(3):  # there is one of each step
        slider.press("ArrowLeft")
    expect(note).to_contain_text("As of step 1.")
    visitor.wait_for_function("location.search.includes('step=1')")
    visitor.reload()
    expect(note).to_contain_text("As of step 1.")
    expect(slider).to_have_value("1")

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

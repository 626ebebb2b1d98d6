"""The Weights page in a real Chromium: choosing by mouse and keyboard, the slider, saved files."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path

import gradio as gr
import pytest
from playwright.sync_api import Browser, BrowserContext, Locator, Page, expect

from backend.settings import Settings
from backend.store import frames, tensors
from tests.browser.conftest import forget
from ui.theme import DARK

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]
TENSOR = "model.layers.2.mlp.gate_proj.weight"
FIRST_TENSOR = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture
def address(seeded: Settings, served: gr.Blocks) -> str:
    return f"{served.local_url}weights"


@pytest.fixture
def tab(warm_context: BrowserContext, address: str) -> Iterator[Page]:
    """A page that fails the test when a script of it fails."""
    made, errors = warm_context.new_page(), []
    made.on("pageerror", lambda error: errors.append(str(error)))
    made.set_viewport_size({"width": 1600, "height": 1000})
    made.set_default_timeout(60_000)
    yield made
    forget(made, address)
    made.close()
    assert errors == []


def opened(tab: Page, address: str, query: str) -> None:
    tab.goto(f"{address}?{query}")
    tab.wait_for_selector("#weights-overlay .xaxislayer-above")


def in_card(tab: Page, chart: str) -> Locator:
    return tab.locator(".card", has=tab.locator(f"#{chart}"))


def test_mouse_keyboard_and_address_agree(address: str, tab: Page) -> None:
    opened(tab, address, "run=sds-0001")
    field = tab.locator("#weights-tensor input")
    box = tab.locator("#weights-heatmap .nsewdrag").first.bounding_box()
    assert box is not None
    tab.mouse.click(box["x"] + box["width"] * 0.5, box["y"] + box["height"] * 0.5)
    expect(field).to_have_value("Block 1, o_proj")
    tab.keyboard.press("ArrowRight")  # a click leaves the focus on the map
    tab.keyboard.press("ArrowDown")
    expect(field).to_have_value("Block 2, gate_proj")
    tab.keyboard.press("ArrowRight")
    expect(field).to_have_value("Block 2, gate_proj")  # there is no block 3
    tab.wait_for_url(f"**tensor={TENSOR}**")
    expect(tab.locator(f'#weights-table [aria-label="sds-0001-{TENSOR}"]')).to_be_visible()
    assert tab.locator("svg.main-svg[role=img]").count() == 3
    assert tab.title() == "Weights · Slimscope"
    assert tab.evaluate("document.body.dataset.x") is None, "a run's name was executed"

    tab.click("#frame-theme")
    paper = "document.querySelector('#weights-overlay .plot-canvas')._fullLayout.paper_bgcolor"
    tab.wait_for_function(f"{paper} === '{DARK.paper}'")

    tab.locator("#weights-view input").first.focus()
    tab.keyboard.press("ArrowRight")
    tab.wait_for_url("**view=mirror**")
    tab.keyboard.press("ArrowRight")
    tab.wait_for_url("**view=magnitude**")
    tab.locator("#weights-view").get_by_label("Mirror").check()
    expect(tab.locator("#weights-overlay .legendtext").first).to_contain_text("Above: Dense")
    tab.wait_for_url("**view=mirror**")
    link = tab.url
    tab.goto("about:blank")
    tab.goto(link)  # the address alone brings the same view back
    expect(field).to_have_value("Block 2, gate_proj")
    expect(tab.locator("#weights-overlay .legendtext").first).to_contain_text("Above: Dense")


def test_the_slider_goes_through_the_steps_and_the_address_remembers(
    address: str, tab: Page
) -> None:
    opened(tab, address, f"run=sds-0001&view=story&tensor={TENSOR}")
    chart = tab.locator("#weights-overlay")
    shown = "document.querySelector('#weights-overlay .plot-canvas').data[1]"
    expect(chart.locator(".scrub-said")).to_contain_text("Dense")
    chart.locator(".scrub input").focus()
    tab.keyboard.press("ArrowRight")
    tab.keyboard.press("ArrowRight")
    expect(chart.locator(".scrub-said")).to_contain_text("Re-dense")
    expect(in_card(tab, "weights-overlay").locator("h2")).to_have_text(re.compile("^Re-dense: "))
    expect(tab.locator("#weights-stage input")).to_have_value("Re-dense")  # the map goes along
    expect(tab.locator("#weights-heatmap .plot-canvas")).to_be_visible()
    tab.wait_for_function(f"{shown}.line.color === '#9467BD'")
    tab.wait_for_url("**at=redense**")
    chart.get_by_role("button", name="First pruning", include_hidden=True).click()
    tab.wait_for_function(f"{shown}.line.color === '#D55E00'")
    first = next(s for s in tensors.tensor_snapshots(1, TENSOR) if s.stage == "first")
    in_bins = 100 * first.counts.sum() / first.n
    tab.wait_for_function(f"Math.abs({shown}.y.reduce((a, b) => a + b) - {in_bins}) < 0.01")
    tab.reload()
    tab.wait_for_selector("#weights-overlay .xaxislayer-above")
    expect(chart.locator(".scrub-said")).to_contain_text("First pruning")


def saved(tab: Page, chart: str, format: str, folder: Path) -> Path:
    with tab.expect_download() as coming:
        in_card(tab, chart).locator("summary").click()
        in_card(tab, chart).locator(f'[data-save="{format}"]').click()
    target = folder / coming.value.suggested_filename
    coming.value.save_as(target)
    return target


def test_charts_are_saved_as_pictures_figures_and_a_page(
    address: str, tab: Page, browser: Browser, tmp_path: Path
) -> None:
    opened(tab, address, "run=sds-0001&stat=std&stage=sds")
    png = saved(tab, "weights-overlay", "png", tmp_path)
    assert png.name == f"sds-0001-{FIRST_TENSOR}-overlay.png"
    assert png.read_bytes().startswith(b"\x89PNG") and png.stat().st_size > 5000
    svg = saved(tab, "weights-overlay", "svg", tmp_path).read_text()
    assert svg.startswith("<svg") and "50.0 % exact zeros" in svg

    with saved(tab, "weights-heatmap", "csv", tmp_path).open(newline="") as file:
        rows = list(csv.DictReader(file))
    stored = frames.tensor_table(1).query("stage == 'sds'").set_index("tensor")["std"]
    assert {row["Tensor"]: float(row["Std"]) for row in rows} == pytest.approx(stored.to_dict())

    with saved(tab, "weights-overlay", "csv", tmp_path).open(newline="") as file:
        heads, *bins = list(csv.reader(file))
    assert heads == ["From", "To", "Dense", "First pruning", "Re-dense", "Second pruning (SDS)"]
    taken = next(s for s in tensors.tensor_snapshots(1, FIRST_TENSOR) if s.stage == "dense")
    assert sum(int(row[2]) for row in bins) == taken.counts.sum()
    assert all(float(low) < float(high) for low, high, *_ in bins)

    whole = saved(tab, "weights-overlay", "html", tmp_path)
    alone = browser.new_context(offline=True).new_page()
    alone.goto(whole.as_uri())
    expect(alone.locator(".legendtext").first).to_contain_text("Dense")
    expect(alone.locator("p")).to_contain_text("What did each step do")
    alone.context.close()


def test_a_tables_figures_are_saved_exactly(address: str, tab: Page, tmp_path: Path) -> None:
    opened(tab, address, "run=sds-0001")
    with tab.expect_download() as coming:
        tab.locator("#weights-table [data-csv]").click()
    coming.value.save_as(tmp_path / "words.csv")
    with (tmp_path / "words.csv").open(newline="") as file:
        rows = {row["Figure"]: row for row in csv.DictReader(file)}
    stored = {s.stage: s for s in tensors.tensor_snapshots(1, FIRST_TENSOR)}
    assert float(rows["Kurtosis"]["Re-dense"]) == stored["redense"].stats["kurtosis"]
    assert float(rows["Exact zeros, %"]["First pruning"]) == 50.0


def test_a_phone_needs_no_scrolling_sideways(address: str, tab: Page) -> None:
    tab.set_viewport_size({"width": 390, "height": 844})
    for layers, view in (("map", "overlay"), ("depth", "channels"), ("shapes", "story")):
        opened(tab, address, f"run=sds-0001&layers={layers}&view={view}")
        root = "document.documentElement"
        assert tab.evaluate(f"{root}.scrollWidth - {root}.clientWidth") == 0, (layers, view)

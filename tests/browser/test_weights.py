"""The Weights page: choosing by mouse and keyboard, the slider, saved files."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest
from playwright.sync_api import BrowserContext, Locator, Page, Response, expect

from backend.store import frames, tensors
from tests.browser.conftest import PHONE, WIDTH, Dashboard, opened, warm_tab
from ui.theme import DARK

TENSOR = "model.layers.2.mlp.gate_proj.weight"
FIRST_TENSOR = "model.layers.0.self_attn.q_proj.weight"
CHART = "document.querySelector('#weights-overlay .js-plotly-plot')"
HISTOGRAM = f"[{CHART}._fullLayout.yaxis.type, {CHART}.data.map((trace) => [trace.name, trace.x])]"


def opened_weights(page: Page, lab: Dashboard, query: str) -> None:
    opened(page, f"{lab.url}/weights?{query}")
    page.locator("#weights-overlay .xtick").first.wait_for()


def in_card(page: Page, chart: str) -> Locator:
    return page.locator(".card", has=page.locator(f"#{chart}"))


def test_mouse_keyboard_and_address_agree_and_a_link_shows_the_same_elsewhere(
    visitor: Page, lab: Dashboard, other_context: BrowserContext
) -> None:
    opened_weights(visitor, lab, "run=sds-0001")
    field = visitor.locator("#weights-tensor input")
    box = visitor.locator("#weights-heatmap .nsewdrag").first.bounding_box()
    assert box is not None
    visitor.mouse.click(box["x"] + box["width"] * 0.5, box["y"] + box["height"] * 0.5)
    expect(field).to_have_value("Block 1, o_proj")
    visitor.keyboard.press("ArrowRight")  # a click leaves the focus on the map
    visitor.keyboard.press("ArrowDown")
    expect(field).to_have_value("Block 2, gate_proj")
    visitor.keyboard.press("ArrowRight")
    expect(field).to_have_value("Block 2, gate_proj")  # there is no block 3
    visitor.wait_for_url(f"**tensor={TENSOR}**")
    expect(visitor.locator(f'#weights-table [aria-label="sds-0001-{TENSOR}"]')).to_be_visible()
    assert visitor.locator("svg.main-svg[role=img]").count() == 3

    visitor.click("#frame-theme")
    visitor.wait_for_function(f"{CHART}._fullLayout.paper_bgcolor === '{DARK.paper}'")

    visitor.locator("#weights-view input").first.focus()
    visitor.keyboard.press("ArrowRight")
    visitor.wait_for_url("**view=mirror**")
    visitor.keyboard.press("ArrowRight")
    visitor.wait_for_url("**view=magnitude**")
    visitor.locator("#weights-view").get_by_label("Overlay").check()
    visitor.locator("#weights-y").get_by_label("Log").check()
    visitor.wait_for_url("**y=log**")
    is_log = f"{CHART}?._fullLayout?.yaxis.type === 'log'"
    visitor.wait_for_function(is_log)
    with warm_tab(other_context, lab.url) as other:
        opened(other, visitor.url)
        other.wait_for_function(is_log)
        expect(other.locator("#weights-tensor input")).to_have_value("Block 2, gate_proj")
        assert other.evaluate(HISTOGRAM) == visitor.evaluate(HISTOGRAM)


def test_the_slider_goes_through_the_steps_and_the_address_remembers(
    visitor: Page, lab: Dashboard
) -> None:
    opened_weights(visitor, lab, f"run=sds-0001&view=story&tensor={TENSOR}")
    chart = visitor.locator("#weights-overlay")
    shown = f"{CHART}.data[1]"
    expect(chart.locator(".scrub-said")).to_contain_text("Dense")
    chart.locator(".scrub input").focus()
    visitor.keyboard.press("ArrowRight")
    visitor.keyboard.press("ArrowRight")
    expect(chart.locator(".scrub-said")).to_contain_text("Re-dense")
    title = in_card(visitor, "weights-overlay").locator("h2")
    expect(title).to_have_text(re.compile("^Re-dense: "))
    expect(visitor.locator("#weights-stage input")).to_have_value("Re-dense")  # the map goes along
    expect(visitor.locator("#weights-heatmap .plot-canvas")).to_be_visible()
    visitor.wait_for_function(f"{shown}.line.color === '#9467BD'")
    visitor.wait_for_url("**at=redense**")
    chart.get_by_role("button", name="First pruning", include_hidden=True).click()
    visitor.wait_for_function(f"{shown}.line.color === '#D55E00'")
    first = next(s for s in tensors.tensor_snapshots(1, TENSOR) if s.stage == "first")
    in_bins = 100 * first.counts.sum() / first.n
    visitor.wait_for_function(f"Math.abs({shown}.y.reduce((a, b) => a + b) - {in_bins}) < 0.01")
    visitor.reload()
    expect(chart.locator(".scrub-said")).to_contain_text("First pruning")


def saved(page: Page, chart: str, format: str, folder: Path) -> Path:
    with page.expect_download() as coming:
        in_card(page, chart).locator("summary").click()
        in_card(page, chart).locator(f'[data-save="{format}"]').click()
    target = folder / coming.value.suggested_filename
    coming.value.save_as(target)
    return target


def test_charts_are_saved_as_pictures_and_figures_and_a_table_exactly(
    visitor: Page, lab: Dashboard, tmp_path: Path
) -> None:
    opened_weights(visitor, lab, "run=sds-0001&stat=std&stage=sds")
    png = saved(visitor, "weights-overlay", "png", tmp_path)
    assert png.name == f"sds-0001-{FIRST_TENSOR}-overlay.png"
    assert png.read_bytes().startswith(b"\x89PNG") and png.stat().st_size > 5000
    svg = saved(visitor, "weights-overlay", "svg", tmp_path).read_text()
    assert svg.startswith("<svg") and "50.0 % exact zeros" in svg

    with saved(visitor, "weights-heatmap", "csv", tmp_path).open(newline="") as file:
        rows = list(csv.DictReader(file))
    stored = frames.tensor_table(1).query("stage == 'sds'").set_index("tensor")["std"]
    assert {row["Tensor"]: float(row["Std"]) for row in rows} == pytest.approx(stored.to_dict())

    with saved(visitor, "weights-overlay", "csv", tmp_path).open(newline="") as file:
        heads, *bins = list(csv.reader(file))
    assert heads == ["From", "To", "Dense", "First pruning", "Re-dense", "Second pruning (SDS)"]
    taken = {s.stage: s for s in tensors.tensor_snapshots(1, FIRST_TENSOR)}
    assert sum(int(row[2]) for row in bins) == taken["dense"].counts.sum()
    assert all(float(low) < float(high) for low, high, *_ in bins)

    with visitor.expect_download() as coming:
        visitor.locator("#weights-table [data-csv]").click()
    with Path(coming.value.path()).open(newline="") as file:
        figures = {row["Figure"]: row for row in csv.DictReader(file)}
    assert float(figures["Kurtosis"]["Re-dense"]) == taken["redense"].stats["kurtosis"]
    assert float(figures["Exact zeros, %"]["First pruning"]) == 50.0


def test_a_phone_needs_no_scrolling_sideways(visitor: Page, lab: Dashboard) -> None:
    visitor.set_viewport_size(PHONE)
    for layers, view in (("depth", "channels"), ("shapes", "story")):
        opened_weights(visitor, lab, f"run=sds-0001&layers={layers}&view={view}")
        root = "document.documentElement"
        assert visitor.evaluate(f"{root}.scrollWidth - {root}.clientWidth") == 0, (layers, view)


def test_sixteen_million_weights_travel_as_their_bins(visitor: Page, lab: Dashboard) -> None:
    answers: list[Response] = []
    visitor.on("response", lambda r: answers.append(r) if "/gradio_api/" in r.url else None)
    opened_weights(visitor, lab, f"run=statistics-0007&tensor={FIRST_TENSOR}")
    (snapshot,) = tensors.tensor_snapshots("statistics-0007", FIRST_TENSOR)
    assert snapshot.n == WIDTH**2
    told = [len(answer.body()) for answer in answers if "/run/predict" in answer.url]
    assert 1000 < max(told) < 300_000

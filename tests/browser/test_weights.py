"""The Weights page: one state that every panel and the address show, by mouse, keyboard and rail;
its modules; saved files."""

import csv
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import BrowserContext, Page, Response, expect

from backend.store import frames, tensors
from tests.browser.conftest import PHONE, WIDTH, Dashboard, opened, warm_tab
from ui.charts.series import Series, on_shared_bins
from ui.pages.weights.charts import VIEWS
from ui.theme import stage_style

TENSOR = "model.layers.2.mlp.gate_proj.weight"
FIRST_TENSOR = "model.layers.0.self_attn.q_proj.weight"
SHOWN = "&show=dense,first,redense"
TYPICAL = "model.layers.1.mlp.up_proj.weight"  # shown until another is chosen
INK = """selector => { const c = document.querySelector(selector), box = c.getContext('2d');
  const { data } = box.getImageData(0, 0, c.width, c.height);
  let sum = 0; for (let i = 0; i < data.length; i++) sum = (sum * 31 + data[i]) % 1000000007;
  return sum; }"""
MODULE = "(name) => slimscope.module(`weights/${name}`)"
STAGE = "#weights-rail [aria-checked='true']"  # the stop of the stage that is shown


def opened_weights(page: Page, lab: Dashboard, query: str) -> None:
    opened(page, f"{lab.url}/weights?{query}")
    expect(page.locator("#weights-overlay h2")).not_to_be_empty()


def ink(page: Page, panel: str) -> int:
    """A number that tells one drawing from another."""
    return int(page.evaluate(INK, f"#weights-{panel} canvas"))


def cell(page: Page, block: int, module: int) -> tuple[float, float]:
    """The middle of a cell of the map, of three blocks and seven modules."""
    page.locator("#weights-heatmap canvas").scroll_into_view_if_needed()
    box = page.locator("#weights-heatmap canvas").bounding_box()
    left, top, right, bottom = 76, 34, 4, 36
    across = (box["width"] - left - right) / 3
    down = (box["height"] - top - bottom) / 7
    return box["x"] + left + (block + 0.5) * across, box["y"] + top + (module + 0.5) * down


def test_hover_previews_a_click_keeps_and_a_link_shows_the_same_elsewhere(
    visitor: Page, lab: Dashboard, other_context: BrowserContext
) -> None:
    opened_weights(visitor, lab, "run=sds-0001")
    field, title = visitor.locator("#weights-tensor"), visitor.locator("#weights-effect")
    asked: list[str] = []
    visitor.on("request", lambda r: asked.append(r.url) if "/weights" in r.url else None)
    before = ink(visitor, "overlay")
    kept = visitor.locator(STAGE).get_attribute("aria-label") or ""
    visitor.mouse.move(*cell(visitor, 1, 3))
    expect(title).to_contain_text("Block 1, o_proj")
    expect(field).to_have_value(TYPICAL)  # it is only looked at
    assert ink(visitor, "overlay") != before
    visitor.mouse.move(0, 0)
    expect(title).to_contain_text("Block 1, up_proj")
    assert ink(visitor, "overlay") == before
    visitor.mouse.click(*cell(visitor, 1, 3))
    for key in ("ArrowRight", "ArrowDown", "ArrowRight"):  # there is no block 3
        visitor.keyboard.press(key)
    expect(field).to_have_value(TENSOR)
    visitor.mouse.move(0, 0)
    visitor.wait_for_url(f"**/weights?run=sds-0001&tensor={TENSOR}")  # what differs, no more
    visitor.locator("[data-log]").click()
    visitor.locator(STAGE).press("Home")
    visitor.wait_for_url("**stage=dense**")
    assert asked == [], "the browser holds all of it"
    with warm_tab(other_context, lab.url) as other:
        opened_weights(other, lab, visitor.url.split("?")[1])
        assert ink(other, "overlay") == ink(visitor, "overlay")
        expect(other.locator(STAGE)).to_have_accessible_name("Dense")
    visitor.go_back()
    expect(visitor.locator(STAGE)).to_have_accessible_name(kept)


def test_the_rail_moves_every_panel_and_title(visitor: Page, lab: Dashboard) -> None:
    opened_weights(visitor, lab, f"run=sds-0001&stage=dense&tensor={TENSOR}&stat=std")
    stage = visitor.locator(STAGE)
    expect(stage).to_have_accessible_name("Dense")
    expect(visitor.locator("#weights-heatmap h2")).to_contain_text("Std is largest")
    panels = ("heatmap", "overlay", "ridges")
    visitor.locator("#weights-heatmap summary", has_text="Data").click()
    seen = []
    for name, label in (("first", "First pruning"), ("redense", "Re-dense")):
        drawn = [ink(visitor, panel) for panel in panels]
        while stage.get_attribute("aria-label") != label:
            stage.press("ArrowRight")
        for panel, old in zip(panels, drawn, strict=True):
            assert ink(visitor, panel) != old, panel
        expect(visitor.locator("#weights-overlay h2")).to_contain_text(f"{label}: ")
        for panel in ("heatmap", "ridges"):
            expect(visitor.locator(f"#weights-{panel} .question")).to_contain_text(label)
        stored = frames.tensor_table(1).query(f"stage == '{name}' and tensor == '{TENSOR}'")
        row = visitor.locator("#weights-heatmap tr", has_text=TENSOR).locator("td").last
        exact = float(row.get_attribute("data-value") or "nan")
        assert exact == stored["std"].item()
        seen.append(visitor.locator(".weights-figures").inner_text())
    assert seen[0] != seen[1] and "50" in seen[0]
    visitor.wait_for_url("**stage=redense**")
    play = visitor.locator("[data-play]")
    play.click()
    expect(stage).to_have_accessible_name("Second pruning (SDS)")  # the last
    expect(play).to_have_text("▶ Play")
    visitor.wait_for_function("!location.search.includes('redense')")
    visitor.keyboard.press("2")
    expect(stage).to_have_accessible_name("First pruning")
    shown = ink(visitor, "overlay")
    play.evaluate("(button) => button.blur()")
    visitor.keyboard.down(" ")
    expect(stage).to_have_accessible_name("Dense")
    assert ink(visitor, "overlay") != shown and visitor.evaluate("scrollY") == 0
    visitor.keyboard.up(" ")
    expect(stage).to_have_accessible_name("First pruning")
    assert ink(visitor, "overlay") == shown


def test_everything_is_compared_to_one_choice(visitor: Page, lab: Dashboard) -> None:
    opened_weights(visitor, lab, f"run=sds-0001&tensor={TENSOR}&view=joint")
    stored = frames.tensor_table(1).query(f"tensor == '{TENSOR}'").set_index("stage")
    errors = {stage: 100 * stored["relative_error"][stage] for stage in ("first", "control")}
    effect, joint = visitor.locator("#weights-effect"), visitor.locator("#weights-more h2")
    said = effect.inner_text()
    assert all(f"{error:.3g}" in said for error in errors.values()), (said, errors)
    drawn = [ink(visitor, panel) for panel in ("heatmap", "overlay", "more")]
    visitor.get_by_label("Compare to").select_option("control")
    expect(effect).not_to_contain_text(f"{errors['first']:.3g}")
    expect(joint).to_contain_text("(control)")
    expect(visitor.locator(".weights-figures")).to_contain_text("adjustment alone")
    now = [ink(visitor, panel) for panel in ("heatmap", "overlay", "more")]
    assert all(a != b for a, b in zip(drawn, now, strict=True))
    visitor.wait_for_url("**vs=control**")
    offered = visitor.locator("#weights-vs option").evaluate_all("all => all.map((o) => o.value)")
    assert "sds-0002" in offered and "statistics-0007" not in offered, "runs of the same model"


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("tensor=model.layers.9.mlp.up_proj.weight", "no tensor model.layers.9.mlp.up_proj.weight"),
        ("stage=<img src=x>", "no stage <img src=x>"),
        ("vs=statistics-0007", "has another model"),
        ("vs=no-run", "no weights of no-run"),
        ("tensor=" + "x" * 3000, "no tensor xxx"),
        ("view=<i>&show=<b>&brush=x~y&step=9e9&group=-1&y=up&cells=no&spot=a,b", ""),
    ],
)
def test_what_an_address_asks_for_in_vain_is_told_in_place(
    warm_context: BrowserContext, lab: Dashboard, query: str, said: str
) -> None:
    page = warm_context.new_page()  # not watched: the console tells of a 404
    page.goto(f"{lab.url}/weights?run=sds-0001&{query}")
    expect(page.locator("#weights-notice")).to_contain_text(said)
    assert page.locator("#weights-notice img").count() == 0
    expect(page.locator("#weights-effect")).to_contain_text("Block 1, up_proj")
    page.close()


def test_group_magnitudes_are_reached_by_keyboard(visitor: Page, lab: Dashboard) -> None:
    opened_weights(visitor, lab, "run=dlqat-0005&stage=dlqat")
    visitor.get_by_role("button", name="Group magnitudes").press("Enter")
    panel = visitor.locator("#weights-groups")
    expect(panel.locator("h2")).to_contain_text("98 % stay within")
    groups = panel.locator("[data-worst] button")
    expect(groups.first).to_have_attribute("aria-pressed", "true")
    groups.nth(1).press("Enter")
    expect(panel.locator("[data-said]")).to_contain_text("number 2 by error")
    stage = visitor.locator(STAGE)
    stage.press("ArrowRight")
    expect(panel).to_contain_text("at step 0")
    stage.press("ArrowRight")
    expect(panel).to_contain_text("at step 1")
    visitor.wait_for_function("location.search.includes('step=1')")
    visitor.reload()
    expect(panel).to_contain_text("at step 1")
    expect(panel.locator("[data-said]")).to_contain_text("number 2 by error")
    visitor.goto(f"{lab.url}/weights?run=sds-0001&view=groups")
    expect(panel.locator(".empty")).to_contain_text("This run trains no group magnitudes")
    panel.get_by_role("button", name="Show dlqat-0005").click()
    expect(panel.locator("h2")).to_contain_text("98 % stay within")


def test_marked_magnitudes_light_up_where_they_live(visitor: Page, lab: Dashboard) -> None:
    opened_weights(visitor, lab, f"run=sds-0001&tensor={TENSOR}&stage=dense")
    title, before = visitor.locator("#weights-heatmap h2"), ink(visitor, "heatmap")
    visitor.locator("#weights-overlay canvas").first.scroll_into_view_if_needed()
    box = visitor.locator("#weights-overlay canvas").first.bounding_box()
    y, middle = box["y"] + 100, box["x"] + 44 + (box["width"] - 56) / 2
    visitor.mouse.move(middle - 30, y)
    visitor.mouse.down()
    visitor.mouse.move(middle + 60, y, steps=4)
    visitor.mouse.up()
    expect(title).to_contain_text("Weights with magnitudes below")
    assert ink(visitor, "heatmap") != before
    visitor.wait_for_url("**brush=0**")
    (snapshot,) = [s for s in tensors.tensor_snapshots(1, TENSOR) if s.stage == "dense"]
    edge = snapshot.lo + (snapshot.hi - snapshot.lo) * 160 / 256  # of bins, both sides of zero
    visitor.locator("[data-brush='0']").fill("0")
    visitor.locator("[data-brush='1']").fill(repr(edge))
    visitor.keyboard.press("Enter")
    visitor.locator("#weights-heatmap summary", has_text="Data").click()
    row = visitor.locator("#weights-heatmap tr", has_text=TENSOR).locator("td").last
    share = 100 * (snapshot.counts[96:160].sum() + snapshot.zeros) / snapshot.n
    assert float(row.get_attribute("data-value") or 0) == pytest.approx(share)
    visitor.locator("#weights-overlay canvas").first.press("Escape")
    expect(title).not_to_contain_text("with magnitudes")
    assert ink(visitor, "heatmap") == before


def test_modules_say_and_count_what_python_does(visitor: Page, lab: Dashboard) -> None:
    """Without a page: bins, and what an address asks for."""
    opened_weights(visitor, lab, "run=sds-0001")
    stored = {s.stage: s for s in tensors.tensor_snapshots(1, TENSOR)}
    heights = visitor.evaluate(
        f"""async tensor => {{ const {{ load }} = await ({MODULE})('histograms');
        const data = await load('sds-0001'), t = data.tensor(tensor);
        return data.stages.map((each, s) => [each.name, [...data.heights(t, s)]]); }}""",
        TENSOR,
    )
    ordered = [Series(stored[name], name, stage_style(name)) for name, _ in heights]
    for one, (name, drawn) in zip(on_shared_bins(ordered), heights, strict=True):
        assert drawn == pytest.approx(one.heights.tolist()), name
    read: list[list[str]] = visitor.evaluate(
        f"""async all => {{ const {{ asked }} = await ({MODULE})('state');
        return all.map(asked).map(({{ stage, view, y, show }}) => [stage, view, y, show]); }}""",
        ["stage=redense", "view=joint&y=log", "view=tree&show=dense,first"],
    )
    assert read == [
        ["redense", "ridges", "linear", ""],
        ["", "joint", "log", ""],
        ["", "ridges", "linear", "dense,first"],
    ]


def saved(page: Page, panel: str, format: str, folder: Path) -> Path:
    with page.expect_download() as coming:
        page.locator(f"#weights-{panel} .save summary").click()
        page.locator(f'#weights-{panel} [data-save="{format}"]').click()
    target = folder / coming.value.suggested_filename
    coming.value.save_as(target)
    return target


def rows_of(file: Path) -> list[dict[str, Any]]:
    with file.open(newline="") as lines:
        return list(csv.DictReader(lines))


def test_charts_are_saved_as_pictures_and_figures_and_everything_exactly(
    visitor: Page, lab: Dashboard, tmp_path: Path
) -> None:
    opened_weights(visitor, lab, f"run=sds-0001&stage=sds&stat=std&tensor={FIRST_TENSOR}{SHOWN}")
    for panel in ("overlay", "heatmap", "ridges"):
        png = saved(visitor, panel, "png", tmp_path)
        assert png.read_bytes().startswith(b"\x89PNG") and png.stat().st_size > 5000
    rows = rows_of(saved(visitor, "heatmap", "csv", tmp_path))
    stored = frames.tensor_table(1).query("stage == 'sds'").set_index("tensor")["std"]
    assert {row["Tensor"]: float(row["Std"]) for row in rows} == stored.to_dict()
    bins = rows_of(saved(visitor, "overlay", "csv", tmp_path))
    taken = {s.stage: s for s in tensors.tensor_snapshots(1, FIRST_TENSOR)}
    assert [*bins[0]] == [
        "From",
        "To",
        "Dense",
        "First pruning",
        "Re-dense",
        "Second pruning (SDS)",
    ]
    for label, stage in (("Dense", "dense"), ("Re-dense", "redense")):
        assert sum(int(row[label]) for row in bins) == taken[stage].counts.sum()
    ridges = rows_of(saved(visitor, "ridges", "csv", tmp_path))
    assert [row["Block"] for row in ridges] == ["0", "1", "2"]
    assert int(ridges[0]["Exact zeros"]) == taken["sds"].zeros
    visitor.locator("#weights-table summary").click()
    with visitor.expect_download() as coming:
        visitor.locator("#weights-table").get_by_text("Download CSV").click()
    figures = {row["Figure"]: row for row in rows_of(Path(coming.value.path()))}
    assert float(figures["Kurtosis"]["Re-dense"]) == taken["redense"].stats["kurtosis"]
    assert float(figures["Exact zeros, %"]["First pruning"]) == 50.0
    with visitor.expect_download() as coming:
        visitor.locator("#weights-save").click()
    rows = rows_of(Path(coming.value.path()))
    assert coming.value.suggested_filename == "sds-0001-statistics.csv" and len(rows) == 126
    (row,) = [r for r in rows if (r["tensor"], r["stage"]) == (FIRST_TENSOR, "redense")]
    assert float(row["kurtosis"]) == taken["redense"].stats["kurtosis"]


def test_every_view_is_drawn_and_fits_a_phone(visitor: Page, lab: Dashboard) -> None:
    opened_weights(visitor, lab, "run=sds-0001&vs=sds-0002")
    visitor.set_viewport_size(PHONE)
    for view, label in VIEWS.items():
        visitor.get_by_role("button", name=label, exact=True).click()
        visitor.wait_for_function(
            "view => location.search.includes(view) || view === 'ridges'", arg=view
        )
        if view not in ("ridges", "groups"):
            expect(visitor.locator("#weights-more .question")).to_contain_text("n = ")
            visitor.locator("#weights-more summary", has_text="Data").click()
            expect(visitor.locator("#weights-more tbody tr").nth(2)).to_be_attached()
            visitor.locator("#weights-more summary", has_text="Data").click()
        root = "document.documentElement"
        assert visitor.evaluate(f"{root}.scrollWidth - {root}.clientWidth") == 0, view
    visitor.get_by_role("button", name="Matrix", exact=True).click()
    title = visitor.locator("#weights-more h2")
    expect(title).to_contain_text("|weight|")  # the view before it has a canvas, too
    visitor.locator("#weights-more canvas").click(position={"x": 120, "y": 120})
    expect(title).to_contain_text("these weights are exactly zero")
    visitor.wait_for_url("**spot=**")
    visitor.locator("[data-whole]").click()
    expect(visitor.locator("#weights-more .question")).to_contain_text("outputs ×")


def test_dense_is_the_reference_of_its_map(visitor: Page, lab: Dashboard) -> None:
    opened_weights(visitor, lab, "run=sds-0001&stage=dense")
    expect(visitor.locator("#weights-stat")).to_have_value("relative_error")
    expect(visitor.locator("#weights-heatmap h2")).to_contain_text("0 % in all layers")


def test_a_run_without_statistics_says_so_and_another_can_be_chosen(
    warm_context: BrowserContext, lab: Dashboard
) -> None:
    page = warm_context.new_page()  # not watched: the console tells of the 404
    page.goto(f"{lab.url}/weights?run=count-0004")
    expect(page.locator("#weights-notice")).to_contain_text("has stored no weight statistics")
    page.locator("#weights-run").select_option("sds-0002")
    expect(page.locator("#weights-effect")).to_contain_text("Block 1")
    page.wait_for_url("**run=sds-0002**")
    page.close()


def test_sixteen_million_weights_travel_as_their_bins(visitor: Page, lab: Dashboard) -> None:
    answers: list[Response] = []
    visitor.on("response", lambda r: answers.append(r) if "slimscope/weights?" in r.url else None)
    opened_weights(visitor, lab, f"run=statistics-0007&tensor={FIRST_TENSOR}")
    (snapshot,) = tensors.tensor_snapshots("statistics-0007", FIRST_TENSOR)
    assert snapshot.n == WIDTH**2
    assert 1000 < sum(len(answer.body()) for answer in answers) < 100_000

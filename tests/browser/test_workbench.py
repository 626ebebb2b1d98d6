"""The Workbench on the toy model: knobs, budget, map and address are one state, by mouse and
keyboard; predictions equal those of Python; runs get the formats of the state."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import BrowserContext, Page, expect

from backend.budget import Budget
from backend.live.address import state_at
from backend.live.dense import DenseModel
from backend.live.measurements import layer_histogram
from backend.live.model import LiveModel
from backend.models.families.stored import LinearShape
from backend.models.loading import load
from backend.queue import service
from backend.sensitivity.profile import Format
from backend.store import queries
from jobs.fields.models import resolve_model
from jobs.operations.live import planned_steps
from jobs.profile.profiles import budget_solver, read_profile
from tests.browser.conftest import HOST, PHONE, SCREEN, Dashboard, code_to_follow, opened, warm_tab
from tests.conftest import ALL
from tests.waiting import until

FACTS = resolve_model("toy", reads=False).facts
LAYERS = (*FACTS.linears, *FACTS.embeddings)
MODULE = "(name) => slimscope.module(`workbench/${name}`)"
LEFT, TOP, RIGHT, BOTTOM = 76, 34, 4, 36  # of the map
BACK = """query => {
  history.pushState(null, "", `?${new URLSearchParams({ model: "toy", ...query })}`);
  dispatchEvent(new PopStateEvent("popstate")); }"""


def opened_workbench(page: Page, lab: Dashboard, query: str = "") -> None:
    opened(page, f"{lab.url}/workbench?model=toy&{query}")
    expect(page.locator("#workbench-histogram h2")).to_contain_text("Block")


def go_back_to(page: Page, **query: str) -> None:
    """Opens a state by the browser's Back, which loads nothing."""
    page.evaluate(BACK, query)


def state_of(page: Page) -> dict[str, str]:
    """The formats that the address holds."""
    found: str = page.evaluate("new URLSearchParams(location.search).get('state')")
    state = state_at(found, LAYERS)
    return {name: str(form) for name, form in state.formats.items()}


def gauge(page: Page, name: str) -> Any:
    return page.locator(f"[data-gauge='{name}']")


def ratio(page: Page, how: str) -> Any:
    """The perplexity over dense that is "predicted", "live" or "final"."""
    return page.locator(f"[data-how='{how}']")


def cell(page: Page, block: int, module: int) -> tuple[float, float]:
    """The middle of a cell of the map, of three blocks, seven modules and the embedding; of block
    -1 the name of the row."""
    box = page.locator("#workbench-map canvas").bounding_box()
    across, down = (box["width"] - LEFT - RIGHT) / 3, (box["height"] - TOP - BOTTOM) / 8
    x = LEFT + (block + 0.5) * across if block >= 0 else LEFT / 2
    return box["x"] + x, box["y"] + TOP + (module + 0.5) * down


def test_knobs_map_and_histogram_change_one_state(visitor: Page, lab: Dashboard) -> None:
    opened_workbench(visitor, lab)
    a_slider_moves_histogram_map_and_gauges_and_undo_takes_all_of_it_back(visitor)
    cells_rows_and_rectangles_are_chosen(visitor)
    a_group_snaps_to_its_grid_with_the_error_that_python_finds(visitor)
    a_budget_fills_the_map_around_what_is_pinned(visitor)


def a_slider_moves_histogram_map_and_gauges_and_undo_takes_all_of_it_back(page: Page) -> None:
    slider = page.locator("#workbench-sparsity")
    expect(page.get_by_role("button", name="Undo")).to_be_disabled()
    slider.fill("50")
    page.wait_for_url(re.compile("state="))
    assert set(state_of(page).values()) == {"50%", "dense"}
    profile = read_profile("profile-0008")
    mix = budget_solver(profile, "pruned").uniform(Format.parse("50%"))
    shown = ratio(page, "predicted").locator("b").inner_text()
    assert float(shown.split()[0]) == pytest.approx(mix.ratio, rel=0.006)
    expect(ratio(page, "predicted").locator("small")).to_contain_text("8 × 64 tokens")
    shown = gauge(page, "size").locator("dd").first.inner_text()
    assert float(shown.split()[0]) == pytest.approx(mix.nbytes / 1e6, rel=0.006)
    expect(page.locator("#workbench-histogram h2")).to_contain_text("50\u00a0%")
    expect(page.locator("#workbench-map h2")).to_contain_text("50\u00a0% zeros in 21 layers")
    page.get_by_role("button", name="4", exact=True).click()
    expect(page.locator("#workbench-histogram h2")).to_contain_text("50\u00a0%, 4 bits")
    page.keyboard.press("Control+z")
    expect(page.locator("#workbench-map h2")).not_to_contain_text("4 bits")
    page.keyboard.press("Control+z")
    expect(page.locator("#workbench-histogram h2")).to_contain_text("16 bits")
    page.keyboard.press("Control+Shift+z")
    expect(page.locator("#workbench-map h2")).to_contain_text("50\u00a0%")
    page.locator("#workbench-map canvas").focus()
    page.keyboard.down(" ")
    expect(page.locator("#workbench-map h2")).to_contain_text("16 bits")
    page.keyboard.up(" ")
    page.reload()
    expect(page.locator("#workbench-map h2")).to_contain_text("50\u00a0% zeros in 21 layers")


def cells_rows_and_rectangles_are_chosen(page: Page) -> None:
    chosen = page.locator("#workbench-knobs h2")
    expect(chosen).to_have_text("21 layers")
    page.mouse.click(*cell(page, 1, 0))
    expect(chosen).to_have_text("Block 1, q_proj")
    expect(page.locator("#workbench-histogram h2")).to_contain_text("Block 1, q_proj")
    page.keyboard.press("Shift+ArrowDown")
    expect(chosen).to_have_text("2 layers")
    page.get_by_role("button", name="2:4", exact=True).click()
    page.wait_for_url(re.compile("state="))
    changed = {name for name, form in state_of(page).items() if form == "2:4"}
    assert changed == {f"model.layers.1.self_attn.{x}_proj" for x in "qk"}
    page.mouse.click(*cell(page, -1, 6))
    expect(chosen).to_have_text("3 layers")
    expect(page.locator("#workbench-choice-scope")).to_have_value("mlp.down_proj")
    page.mouse.move(*cell(page, 0, 0))
    page.mouse.down()
    page.mouse.move(*cell(page, 1, 3))
    page.mouse.up()
    expect(chosen).to_have_text("8 layers")
    page.locator("#workbench-map canvas").focus()
    page.keyboard.press("a")
    expect(chosen).to_have_text("21 layers")


def a_group_snaps_to_its_grid_with_the_error_that_python_finds(page: Page) -> None:
    go_back_to(page)
    card = page.locator("#workbench-histogram")
    card.get_by_role("button", name="Group", exact=True).click()
    place = card.locator("output").last
    expect(place).to_have_text(re.compile("^Row"))
    page.locator('[data-group="bits"] button[value="3"]').click()
    expect(card.locator("h2")).to_contain_text("error at 3 bits")
    row, first, last = map(int, re.findall(r"\d+", place.inner_text()))
    weights = load("toy").model.get_parameter("model.layers.1.mlp.down_proj.weight")
    dense = weights[row, first : last + 1].float()
    scale = dense.abs().max() / 3.5
    rounded = scale * ((dense / scale + 4).round().clamp(0, 7) - 4)
    error = ((rounded - dense).norm() / dense.norm()).item()
    said = f"{100 * error:.1f}\u00a0% error at 3 bits, {len(rounded.unique())} values used"
    expect(card.locator("h2")).to_have_text(said)
    card.locator("canvas").last.press("ArrowRight")
    expect(place).not_to_have_text(re.compile(rf"^Row {row}, inputs {first} "))


def a_budget_fills_the_map_around_what_is_pinned(page: Page) -> None:
    go_back_to(page, color="format")
    page.mouse.click(*cell(page, 0, 6))
    page.get_by_role("button", name="Pin", exact=True).click()
    page.locator("#workbench-choice-scope").select_option("all")
    page.locator("#workbench-budget").fill("0")
    page.wait_for_url(re.compile("state="))
    state = state_of(page)
    assert state.pop("model.layers.0.mlp.down_proj") == "dense"
    assert {form for name, form in state.items() if "layers" in name} == {"int3-g64"}
    expect(page.locator(".workbench-why")).to_contain_text("Pinned")
    page.get_by_role("button", name="Keep").click()
    kept = page.get_by_role("button", name="Open state 1")
    expect(kept).to_be_visible()
    page.keyboard.press("Control+z")
    kept.click()
    expect(page.locator("#workbench-map h2")).to_contain_text("3 bits in 20 layers")


def test_budgets_tables_and_measurements_belong_to_the_state_of_the_address(
    visitor: Page, lab: Dashboard
) -> None:
    opened_workbench(visitor, lab, "budget=3.5 bits")
    a_budget_is_typed_or_refused_beside_its_field(visitor)
    a_layer_is_picked_and_a_budget_becomes_a_run_with_the_keyboard_alone(visitor)
    the_table_has_all_layers_and_the_map_figures_of_a_chosen_format(visitor)
    one_screen_shows_all_and_a_phone_is_not_wider(visitor)
    what_is_measured_follows_a_knob_and_a_block_is_restored_by_a_click(visitor)
    an_odd_address_says_so_and_shows_the_dense_model(visitor)
    a_state_of_another_model_is_refused_with_the_reason(visitor)
    an_address_of_many_layers_is_short(visitor)
    what_a_profile_has_not_tried_is_counted(visitor)
    a_layer_is_the_one_that_the_live_model_makes(visitor)


def a_budget_is_typed_or_refused_beside_its_field(page: Page) -> None:
    field, refusal = (page.locator(f"#workbench-budget-{x}") for x in ("text", "refusal"))
    expect(field).to_have_value(re.compile(r"^3\.[2-5]\d* bits$"))
    page.wait_for_url(re.compile("state="))
    assert "budget=" not in page.url
    best = budget_solver(read_profile("profile-0008"), "quantized").solve(Budget.parse("3.5bits"))
    assert state_of(page) == {name: str(form) for name, form in best.formats.items()}
    for text, said in (
        ("1 bits", "No mix of formats satisfies a budget of 1bits"),
        ("500 GB", "more than the model takes"),
        ("<img src=x>", "is not a budget"),
    ):
        before = state_of(page)
        field.fill(text)
        field.press("Enter")
        expect(refusal).to_contain_text(said)
        expect(field).to_have_value(text)
        assert state_of(page) == before
    field.fill("loss 1.5 ×")
    field.press("Enter")
    expect(refusal).to_be_hidden()
    expect(page.locator("#workbench-choice-budget")).to_have_value("quantized loss")
    expect(field).to_have_value(re.compile(r"^loss 1\.[0-5]\d* ×$"))
    field.fill("40 %")
    field.press("Enter")
    expect(page.locator("#workbench-choice-budget")).to_have_value("pruned sparsity")
    assert set(state_of(page).values()) == {"50%", "dense"}
    page.locator("#workbench-choice-group").select_option("128")
    page.locator('[data-group="bits"] button[value="4"]').click()
    expect(page.locator(".workbench-misfit")).to_contain_text("does not divide")


def a_layer_is_picked_and_a_budget_becomes_a_run_with_the_keyboard_alone(page: Page) -> None:
    go_back_to(page, focus="model.layers.0.self_attn.q_proj")
    chosen = page.locator("#workbench-histogram h2")
    expect(chosen).to_contain_text("Block 0, q_proj")
    page.locator("#workbench-map canvas").press("ArrowDown")
    expect(chosen).to_contain_text("Block 0, k_proj")
    page.wait_for_function("location.search.includes('k_proj')")
    budget = page.get_by_role("textbox", name="Budget")
    budget.fill("50%")
    budget.press("Enter")
    page.wait_for_url(re.compile("state="))
    page.locator("[data-menu='run'] summary").press("Enter")
    link = page.locator("[data-effort='sds']").get_by_role("link", name="Open in New run")
    form = re.compile(r"^new-run\?kind=sds&model=toy&pattern=50%25")
    expect(link).to_have_attribute("href", form)


def the_table_has_all_layers_and_the_map_figures_of_a_chosen_format(page: Page) -> None:
    go_back_to(page)
    page.locator("#workbench-choice-at").select_option("50%")
    expect(page.locator("#workbench-map h2")).to_contain_text("Pruning only")
    page.wait_for_url("**at=50%25**")
    page.locator("#workbench-choice-color").select_option("error")
    expect(page.locator("#workbench-map h2")).to_contain_text("Output error at 50")
    page.get_by_role("button", name="Table").click()
    table = page.get_by_role("dialog").locator("table")
    expect(table.locator("tbody tr")).to_have_count(22)
    with page.expect_download() as saved:
        page.get_by_role("button", name="Download CSV").click()
    lines = Path(saved.value.path()).read_text().splitlines()
    assert len(lines) == 23 and "Loss at 50%, nats" in lines[0]
    page.keyboard.press("Escape")


def one_screen_shows_all_and_a_phone_is_not_wider(page: Page) -> None:
    page.set_viewport_size({"width": 1440, "height": 900})
    go_back_to(page, state="~magnitude~rtn~50p_dense~0x21_1")
    expect(page.locator("#workbench-map h2")).to_contain_text("50\u00a0% zeros in 21 layers")
    root = "document.documentElement"
    assert page.evaluate(f"{root}.scrollHeight - innerHeight") <= 0
    page.set_viewport_size(PHONE)
    assert page.evaluate(f"{root}.scrollWidth - {root}.clientWidth") == 0
    page.set_viewport_size(SCREEN["viewport"])


def what_is_measured_follows_a_knob_and_a_block_is_restored_by_a_click(page: Page) -> None:
    go_back_to(page, prompt="Once upon a time")
    page.locator("#workbench-choice-scope").select_option("all")
    texts = page.locator(".workbench-texts p")
    page.get_by_role("button", name="Write").click()
    expect(texts.first).to_contain_text(re.compile(r"\w+ \w+"))
    expect(ratio(page, "live").locator("small")).to_contain_text("× 256 tokens")
    alike = "([one, other]) => one.textContent === other.textContent"
    until(lambda: texts.evaluate_all(alike))
    expect(gauge(page, "speed").locator("i")).to_have_text("live")
    page.locator("#workbench-sparsity").fill("90")
    live = ratio(page, "live")
    expect(live.locator("b")).to_have_text(re.compile(r"^([2-9]|\d[\d,])"))
    expect(live.locator("small")).not_to_contain_text("preview")  # when it is as a run makes it
    expect(texts.last.locator("mark").first).to_be_visible()
    page.wait_for_url(re.compile(r"state=[0-9a-f]{12}"))
    page.get_by_role("button", name="Why does it break?").click()
    expect(page.locator(".workbench-said")).to_contain_text(re.compile(r"Block \d spoils"))
    page.wait_for_url("**view=why**")
    box = page.locator("#workbench-words canvas").bounding_box()
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    expect(page.locator("#workbench-map h2")).to_contain_text("90\u00a0% zeros in 14 layers")


NO_STATES = {  # address -> what is said of it
    "~magnitude~rtn~int9-g64~0x22": "9 bits are not offered",
    "~magnitude~rtn~dense~0x99": "Its layers do not match those of this model",
    "~magnitude~rtn~int4-g7~0x22": "cannot be stored as int4-g7",
    "~magnitude~rtn~50p~0x22": "cannot be stored as 50%",
    "~none~rtn~dense~0x22": "The method 'none' or 'rtn' does not exist",
    "~magnitude~rtn~50p_dense~0x21": "Its layers do not match those of this model",  # cut
    "<img src=x>": "The text is not an address of a state",
    "~magnitude~rtn~50p_de": "The text is not an address of a state",
}


def an_odd_address_says_so_and_shows_the_dense_model(page: Page) -> None:
    notice, title = (page.locator(f"#workbench-{x}") for x in ("notice", "histogram h2"))
    for state, said in NO_STATES.items():
        go_back_to(page, state=state)
        expect(notice).to_contain_text(said)
        expect(title).to_contain_text("16 bits")
    go_back_to(page, state="~magnitude~rtn~33.3pandint4-g32_dense~0x21_1")
    expect(title).to_contain_text("33.3\u00a0%, 4 bits")


def a_state_of_another_model_is_refused_with_the_reason(page: Page) -> None:
    go_back_to(page, state="123456789abc~magnitude~rtn~50p_dense~0x21_1")
    expect(page.locator(".workbench-status")).to_contain_text("It belongs to another model")


KNOWN = f"""async () => {{
    const {{ Formats }} = await ({MODULE})('formats');
    const start = await (await fetch('slimscope/workbench/start?model=toy')).json();
    return new Formats(start.parts, start.colors.formats); }}"""


def an_address_of_many_layers_is_short(page: Page) -> None:
    """315 layers, each unlike its neighbors, in 13 formats with both a pattern and a width."""
    names = [f"{percent}%" for percent in range(77, 90)]
    address = page.evaluate(
        f"""async names => {{ const {{ addressOf }} = await ({MODULE})('formats');
        const known = await ({KNOWN})(), width = known.width(4, 128);
        const formats = Array.from({{ length: 315 }}, (_, i) => known.of(names[i % 13], width));
        const methods = {{ pruner: 'sparsegpt', quantizer: 'gptq' }};
        return addressOf({{ identity: '0123456789ab', ...methods, formats }}); }}""",
        names,
    )
    assert len(address) <= 2000
    layers = [LinearShape(str(n), 0, "m", 128, 128) for n in range(315)]
    assert str(state_at(address, layers).formats["314"]) == f"{names[314 % 13]}+int4-g128"


def what_a_profile_has_not_tried_is_counted(page: Page) -> None:
    names = [("", ""), ("50%", ""), ("40%", ""), ("", "int4-g64"), ("10%", ""), ("50%", "int4-g64")]
    found = page.evaluate(
        f"""async names => {{ const {{ Predictions }} = await ({MODULE})('predictions');
        const layer = {{ name: 'a', module: 'm', block: 0, rows: 2, columns: 64 }};
        const formats = [['30%', ''], ['50%', ''], ['', 'int4-g64']];
        const head = {{ run: 'r', parts: {{}}, fronts: [], layers: ['a'], formats }};
        const arrays = {{ predicted: {{ data: [.1, .2, .3] }} }};
        const known = await ({KNOWN})();
        const predictions = new Predictions([layer], 0, known, {{ head, arrays }});
        return known.all(names).map((form) => predictions.totals([form]).untried); }}""",
        names,
    )
    assert found == [0, 0, 0, 0, 1, 1]


def a_layer_is_the_one_that_the_live_model_makes(page: Page) -> None:
    """Bin by bin where it is pruned; rounded, scales are stored in 16 bits there."""
    live, name = LiveModel(DenseModel(load("toy").model)), "model.layers.1.mlp.down_proj"
    for pattern, width, near in (
        ("50%", "", 0),
        ("7%", "", 0),
        ("2:4", "", 0),
        ("", "int3-g64", 0.04),
        ("2:4", "int4-g64", 0.04),
    ):
        form = "+".join(filter(None, (pattern, width)))
        live.apply({name: form})
        counts, zeros, *_ = layer_histogram(live.dense, name, live.stored_weight(name))
        made = page.evaluate(
            f"""async ([name, pattern, width]) => {{ const {{ dense }} = await ({MODULE})('tensor');
            const form = (await ({KNOWN})()).of(pattern, width);
            const made = (await dense('toy', name)).histogram(form, 'magnitude');
            return [[...made.counts], made.tails]; }}""",
            [name, pattern, width],
        )
        n = live.weight(name).numel()
        differ = sum(abs(a - b) for a, b in zip(made[0], counts.tolist(), strict=True))
        assert differ <= near * n, form
        assert made[1][1] == pytest.approx(zeros, abs=near * 100)
        assert made[1][0] == n


def test_a_model_without_a_profile_says_how_to_get_one(
    warm_context: BrowserContext, lab: Dashboard
) -> None:
    page = warm_context.new_page()
    page.goto(f"{lab.url}/workbench?model=smollm2-135m")
    expect(page.locator("#workbench-notice")).to_contain_text("No profile yet")
    expect(page.get_by_role("button", name="Make a profile (about")).to_be_visible()
    expect(ratio(page, "predicted").locator("small")).to_have_text("needs a profile")
    go_back_to(page, model="nowhere")
    expect(page.locator("#workbench-notice")).to_contain_text("nowhere")
    page.locator("#workbench-choice-model").select_option("toy")
    expect(page.locator("#workbench-map h2")).to_contain_text("Rounding only")
    page.close()


def test_a_phone_follows_the_knobs_of_a_presented_state(
    other_context: BrowserContext, visitor: Page, lab: Dashboard
) -> None:
    opened_workbench(visitor, lab)
    visitor.keyboard.press("p")
    visitor.wait_for_url("**/slimscope/story**", wait_until="commit")
    shown = visitor.frame_locator("iframe")
    code = code_to_follow(visitor)
    with warm_tab(other_context, lab.url) as phone:
        phone.goto(f"{lab.url}/slimscope/follow?code={code}")
        title = phone.frame_locator("iframe").locator("#workbench-histogram h2")
        expect(title).to_contain_text("16 bits")
        followed = phone.frames[-1]
        followed.evaluate("window.kept = true")
        shown.locator("#workbench-sparsity").fill("40")
        expect(title).to_contain_text("40")
        assert followed.evaluate("window.kept")  # without another load


def test_the_toy_gets_a_profile_and_the_run_of_a_state_stands_beside_it(
    warm_context: BrowserContext, workshop: Dashboard
) -> None:
    state = "~magnitude~rtn~50p_2of4_dense~0x20_1_2"
    with warm_tab(warm_context, workshop.url) as page:
        opened_workbench(page, workshop)
        notice = page.locator("#workbench-notice")
        expect(notice.get_by_role("link", name="profile-")).to_be_visible()
        (made,) = queries.jobs(kind="profile")
        assert made.config["model"] == "toy"
        if ALL:
            known = page.locator(".workbench-known")
            expect(known).to_contain_text(re.compile(r"profile-\d+: .*layers"))
            expect(page.locator("#workbench-budget-text")).to_have_value(re.compile(r"MB$"))
        else:
            service.cancel([made.run], HOST)
        go_back_to(page, state=state)
        expect(gauge(page, "kl").locator("dd").last).to_contain_text("5 × 256 tokens")
        menu = page.locator("[data-menu='run']")
        menu.locator("summary").click()
        row = menu.locator("[data-effort='one-shot']")
        row.get_by_role("button", name="Queue").click()
        expect(row).to_be_hidden()
        queued = page.locator("#workbench-notice").get_by_role("link", name="sds-")
        job = queries.job(queued.inner_text())
        ((kind, config),) = planned_steps(FACTS, state, "one-shot")
        assert kind == "sds" and {"model": "toy", **config}.items() <= job.config.items()
        kept = job.environment["workbench"]
        assert kept["state"].endswith(state) and kept["tokens"] == 5 * 256 and kept["live"] > 1
        expect(page.locator(".workbench-kept")).to_contain_text(
            re.compile(rf"{job.run} · .*live [\d.]+, final [\d.]+ × dense")
        )
        expect(ratio(page, "final").locator("b")).to_have_text(re.compile(r"\d"))
        link = ratio(page, "final").get_by_role("link", name=job.run)
        expect(link).to_have_attribute("href", f"run?id={job.run}")
        page.locator("#workbench-sparsity").fill("40")
        expect(ratio(page, "final").locator("b")).to_have_text("–")
        opened(page, f"{workshop.url}/run?id={job.run}")
        rows = page.locator("#run-figures tbody tr", has_text=re.compile("5 × 256 tokens"))
        expect(rows).to_contain_text(["Live", "Final, same text as live"])


def test_compare_traces_which_block_breaks_which_word(visitor: Page, lab: Dashboard) -> None:
    opened(visitor, f"{lab.url}/compare?ids=sds-0001,sds-0002")
    visitor.get_by_role("button", name="Trace").click()
    said = visitor.locator(".workbench-said")
    expect(said).to_contain_text(re.compile(r"Block \d spoils .* of the dense toy model"))
    visitor.locator("[data-trace] [name='model']").select_option("sds-0002")
    visitor.locator("[data-trace] [name='against']").select_option("sds-0002")
    visitor.get_by_role("button", name="Trace").click()
    expect(said).to_have_text("No block alone makes a word of this text worse.")

"""The Quant page: what each event shows, and its charts."""

from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest

from backend.statistics.tensors import TensorProfile
from backend.store.session import writing
from backend.store.tables import Job, MetricPoint, TensorRow
from jobs.runtime.row_buffer import profile_row
from tests.ui.conftest import Fill, mapped
from tests.ui.lab import asked, job, point, result, store
from ui.pages.quantization import page, panels
from ui.pages.quantization.charts import (
    GroupWeights,
    code_usage,
    code_usage_note,
    group_weights_note,
    magnitude_bands,
)
from ui.pages.quantization.group_map import (
    MAX_CELLS,
    GroupMap,
    group_cells,
    group_map,
    group_map_note,
)
from ui.pages.quantization.selection import QuantSelection, QuantView, quant_of

ROWS, GROUPS, SIZE, BITS = 8, 4, 16, 3
STEPS = (0, 10, 20)
TENSORS = [f"model.layers.{b}.mlp.{m}_proj.weight" for b in (0, 1) for m in ("up", "down")]
HOSTILE = "<img src=x onerror=alert(1)>"


def figures(stage: str, step: int, seed: int) -> dict[str, np.ndarray]:
    """Of one tensor; the error of group 1 of row 5 is the largest."""
    random = np.random.default_rng(seed)
    m = 1 + step / 1000 * random.standard_normal((ROWS, GROUPS))
    used = random.multinomial(ROWS * GROUPS * SIZE, [1 / 2**BITS] * 2**BITS)
    found = {"magnitude": m, "codes": used}
    if step in (STEPS[0], STEPS[-1]):
        error = random.random((ROWS, GROUPS)) * 0.01
        error[5, 1] = 0.5
        if step:
            found["worst"] = worst_weights(0.1 * m)
        found |= {"scale": 0.1 * m, "error": error, "clipped": np.full_like(m, 0.02)}
    return {name: values.astype(np.float32) for name, values in found.items()}


def worst_weights(scale: np.ndarray) -> np.ndarray:
    """Group 1 of row 5, weight by weight; one weight is far beyond the grid."""
    dense = np.linspace(-0.3, 0.9, SIZE)
    step = scale[5, 1]
    moved = step * np.clip(np.round(dense / step), -4, 3)
    return np.array([[5, 1, 4, *dense, *moved]])


def profiles(job_id: int, stages: tuple[str, ...]) -> list[Any]:
    return [
        mapped(
            profile_row(
                job_id,
                TensorProfile(
                    tensor, int(tensor.split(".")[2]), tensor[15:-7], stage, name, v, step
                ),
            )
        )
        for stage in stages
        for n, tensor in enumerate(TENSORS)
        for step in STEPS
        for name, v in figures(stage, step, n).items()
    ]


def tensors(job_id: int) -> list[TensorRow]:
    return [
        TensorRow(
            job_id=job_id,
            tensor=t,
            stage="dlqat",
            step=0,
            block=int(t.split(".")[2]),
            module=t[15:-7],
            n=ROWS * GROUPS * SIZE,
            zeros=0,
            below=0,
            above=0,
            lo=-1.0,
            hi=1.0,
            counts=b"",
            stats={"relative_error": 0.1 * (n + 1)},
            quantiles=[],
        )
        for n, t in enumerate(TENSORS)
    ]


def curves(job_id: int) -> list[MetricPoint]:
    names = ["loss@dlqat", "loss@lora", "loss@dlqat-kd", "rate@dlqat", "changed@dlqat"]
    names += [f"m/p{n}@dlqat" for n in ("01", "05", "25", "50", "75", "95", "99")]
    return [point(job_id, name, step, 1 + n / 10) for n, name in enumerate(names) for step in STEPS]


@pytest.fixture(autouse=True)
def lab(filled: Fill) -> None:
    filled(store_runs)


def store_runs() -> None:
    """dlqat-0001 has ended, dlqat-0002 trains, dlqat-0003 waits, sds-0004 has no groups."""
    config = {"model": "toy", "bits": BITS, "group_size": SIZE, "grid": "symmetric"}
    kind = {"kind": "dlqat", "config": config}
    store(
        job(1, **kind, name=HOSTILE),
        job(2, **kind, state="running"),
        job(3, **kind, state="queued"),
        job(4),
        *profiles(1, ("dlqat", "dlqat-kd")),
        *profiles(2, ("dlqat",)),
        *tensors(1),
        *curves(1),
        result(1, "dlqat", "bits_per_weight", 4.0),
        result(1, "dlqat", "bytes/gptq", 2_000_000.0),
        result(1, "dlqat", "perplexity", 1.52),
        result(1, "dense", "perplexity", 1.5),
    )


def opened(**query: str) -> dict[str, Any]:
    return page.SHARED.open(asked(**query))


def given(**values: Any) -> QuantSelection:
    """What the browser sends."""
    first = {
        "run": "dlqat-0001",
        "stage": "dlqat",
        "tensor": TENSORS[0],
        "figure": "magnitude",
        "step": 20,
        "group": "5,1",
    }
    return QuantSelection.from_controls([(first | values)[n] for n in QuantSelection.names()])


def view(**values: Any) -> QuantView:
    """What is looked at then."""
    return QuantView.at(given(**values))


def test_a_run_opens_with_its_method_and_the_worst_group() -> None:
    shown = opened(run="dlqat-0001")
    assert shown["stage"]["value"] == "dlqat" and shown["step"]["value"] == 20
    assert shown["group"] == "5,1" and "number 1 of 32 by error" in shown["weights_note"]
    assert "Row 5, inputs 16 to 31" in shown["weights_note"]
    assert "3 bits</dd><dd>groups of 16, symmetric" in shown["head"]
    assert "2.0\u00a0MB</dd><dd>gptq" in shown["head"]
    assert "1.520</dd><dd>dense 1.500" in shown["head"] and "run?id=dlqat-0001" in shown["head"]
    more = {panels.ENERGY: "This run has stored no input statistics; runs started from now on do."}
    for panel in panels.CHARTS:
        figure = shown[panel.parts[0]]
        drawn = isinstance(figure, go.Figure)
        assert drawn if panel not in more else figure.startswith(more[panel])
    assert [words for words, _ in shown["tensor"]["choices"]][:2] == [
        "Block 0, up_proj",
        "Block 0, down_proj",
    ]


@pytest.mark.parametrize(("gain", "small"), [(2.6, False), (1.2, True)])
def test_what_packed_decoding_gains_is_said_and_why_it_is_little(gain: float, small: bool) -> None:
    assert "Packed decoding" not in opened(run="dlqat-0001")["head"]
    store(result(1, "dlqat", "speed_up", gain))
    head = opened(run="dlqat-0001")["head"]
    said = f"{gain:.2f}\u00a0×</dd><dd>over dense bfloat16"
    assert said in head and (panels.OVERHEAD in head) is small


def test_an_address_is_taken_as_far_as_it_is_right() -> None:
    shown = opened(
        run="dlqat-0001",
        stage="dlqat-kd",
        figure="error",
        step="12",
        group="3,2",
        tensor=TENSORS[3],
    )
    chosen = QuantView.at(QuantSelection(run="dlqat-0001", step="12", group="3,2"))
    assert chosen and chosen.selection.step == "10" and chosen.group == (3, 2)
    assert (
        shown["stage"]["value"] == "dlqat-kd" and "Row 3, inputs 32 to 47" in shown["weights_chart"]
    )
    odd = opened(run="dlqat-0001", stage="none", figure="x", step="-", group="99,99", tensor="y")
    assert odd["stage"]["value"] == "dlqat" and odd["group"] == "5,1"
    assert opened()["run"]["value"] == "dlqat-0002"
    assert opened(run="dlqat-0002")["magnitudes_chart"].startswith("DL-QAT has recorded no")


@pytest.mark.parametrize(
    ("run", "said"),
    [
        ("dlqat-0003", "has recorded no groups yet"),
        ("sds-0004", "has recorded no groups."),
        ("none", "There is no run none."),
    ],
)
def test_a_run_without_groups_says_why(run: str, said: str) -> None:
    shown = opened(run=run)
    assert said in shown["notice"]["value"] and shown["charts"]["visible"] is False


def test_worst_first_navigation() -> None:
    first = page.move_group(view(), 1)
    second = page.move_group(view(group=first["group"]), 1)
    places = [each["weights_chart"] for each in (first, second)]
    assert "number 2 of 32" in places[0] and "number 3 of 32" in places[1]
    assert page.move_group(view(group=first["group"]), -1)["group"] == "5,1"
    assert page.move_group(view(), -1)["group"] == "5,1"  # there is no worse one
    assert page.worst_group(view(group="0,0"))["group"] == "5,1"


def test_the_worst_groups_are_shown_weight_by_weight() -> None:
    shown = page.worst_group(view(group="0,0"))
    dots = shown["weights_chart"].data[0]
    band, *lines = shown["weights_chart"].layout.shapes
    assert len(dots.x) == SIZE and len(lines) == 2**BITS
    points = np.array([line.x0 for line in lines])
    moved = np.array(dots.customdata)
    assert np.abs(moved[:, None] - points).min(axis=1) == pytest.approx(0, abs=1e-6)
    assert np.array(dots.x) + np.array(dots.y) == pytest.approx(moved, abs=1e-6)
    beyond = int((np.array(dots.x) > points[-1] + (points[1] - points[0]) / 2).sum())
    assert f"{beyond} of the dense ones beyond the ends" in shown["weights_note"] and beyond > 0
    low, high = shown["weights_chart"].layout.xaxis.range
    assert low < min(points.min(), *dots.x) and max(points.max(), *dots.x) < high
    assert [abs(y) <= band.y1 + 1e-9 for y in dots.y].count(False) == beyond
    assert "0 not at the nearest" in shown["weights_note"]
    other = page.choose_group(view(group="0,0"))
    assert "the worst groups" in other["weights_chart"]
    shown = GroupWeights(np.array([0.1, 0.9, 5.0]), np.array([1.0, 1.0, 2.0]), np.arange(-2.0, 3.0))
    assert "1 of the dense ones beyond the ends, 1 not at the nearest" in group_weights_note(shown)


def test_steps_of_training_go_round() -> None:
    assert [page.next_step(view(step=s))["step"] for s in (0, 10, 20)] == [10, 20, 0]
    moved = page.change_map(view(step=13))
    assert moved["step"] == 10 and "As of step 10." in moved["map_note"]
    assert "As of step 20." in page.change_map(view(step=13, figure="error"))["map_note"]
    moved = page.preview_step(view(step=13))
    assert "step" not in moved and "As of step 10." in moved["map_note"]


def test_another_tensor_or_group_redraws_what_it_changes() -> None:
    shown = page.choose_tensor(view(tensor=TENSORS[2], group="0,0"))
    assert shown["group"] == "5,1" and "magnitudes_chart" not in shown
    names = {name.partition("_")[0] for name in page.choose_group(view(group="2,3"))}
    assert names == {"group", "weights"}


def test_magnitudes_of_all_groups_are_a_fan_of_the_chosen_stage() -> None:
    shown = opened(run="dlqat-0001")
    names = {trace.name for trace in shown["magnitudes_chart"].data}
    assert names == {
        "Median",
        "1 to 99 % of groups",
        "5 to 95 % of groups",
        "25 to 75 % of groups",
    }
    assert "98 % of the group scales by at most 110.0\u00a0%" in shown["magnitudes_title"]
    assert "n = 21 points" in shown["magnitudes_note"]
    assert (
        "DL-QAT, distilled has recorded no"
        in opened(run="dlqat-0001", stage="dlqat-kd")["magnitudes_chart"]
    )


def test_while_it_works_nothing_is_drawn_until_more_is_recorded_and_once_more_at_its_end() -> None:
    seen = opened(run="dlqat-0002")["seen"]
    assert page.refresh(seen, given(run="dlqat-0002")) == {}
    with writing() as session:
        session.get_one(Job, 2).state = "succeeded"
    last = page.refresh(seen, given(run="dlqat-0002"))
    assert last["head"] and last["magnitudes_chart"]
    assert page.refresh(last["seen"], given(run="dlqat-0002")) == {}


@pytest.mark.parametrize(("step", "then"), [(20, 30), (10, 10)])
def test_who_looks_at_the_newest_picture_sees_the_next(step: int, then: int) -> None:
    seen = opened(run="dlqat-0002")["seen"]
    m = np.ones((ROWS, GROUPS), np.float32)
    more = [
        TensorProfile(t, n // 2, t[15:-7], "dlqat", "magnitude", m, 30)
        for n, t in enumerate(TENSORS)
    ]
    store(*(mapped(profile_row(2, profile)) for profile in more))
    shown = page.refresh(seen, given(run="dlqat-0002", step=step))
    assert f"As of step {then}." in shown["map_note"] and shown["step"]["maximum"] == 30
    assert shown["step"].get("value", step) == then
    assert "choices" not in shown["tensor"]  # an open list is not taken out of a person's hand


def test_texts_of_people_are_shown_as_text() -> None:
    shown = opened(run="dlqat-0001")
    assert HOSTILE not in "".join(str(v) for n, v in shown.items() if n == "head")


def test_what_a_run_recorded_is_read_once_until_it_moves_on() -> None:
    first = quant_of("dlqat-0002")
    assert quant_of("dlqat-0002") is first and first is not None
    assert first.steps["dlqat", "magnitude"] == list(STEPS)
    assert first.steps["dlqat", "error"] == [0, 20]
    store(*profiles(2, ("dlqat-kd",)))
    again = quant_of("dlqat-0002")
    assert again is not None and again.stages == ["dlqat", "dlqat-kd"]


# charts -------------------------------------------------------------------------------------------


def test_magnitudes_are_log_ratios_of_one_color_at_every_step() -> None:
    m = np.array([[1.0, 2.0], [0.5, 1.0]])
    heat = group_map(GroupMap.of(m, "magnitude", m), "v", (1, 0)).data[0]
    assert [list(row) for row in heat.z] == [[0, 1], [-1, 0]]
    assert heat.zmin == -heat.zmax
    m = np.array([[1.0, -0.5], [1.0, 1.1]])
    assert group_map(GroupMap.of(m, "magnitude", m), "v", None).data[0].z[0][1] is None
    assert "1 without a value" in group_map_note(GroupMap.of(m, "magnitude", m))
    last = np.array([[1.0, 2.0], [0.5, 1.0]])
    first, other = (
        group_map(GroupMap.of(values, "magnitude", last), "v", None).data[0]
        for values in (np.ones((2, 2)), last)
    )
    assert (first.zmin, first.zmax) == (-first.zmax, other.zmax)


def test_a_large_map_is_means_that_lead_to_their_farthest_group() -> None:
    values = np.zeros((3 * MAX_CELLS + 1, 5))
    values[200, 3] = 9
    shown = group_cells(values)
    assert shown.mean.shape[0] <= MAX_CELLS and shown.rows[-1][1] == 3 * MAX_CELLS
    i, j = shown.cell_of((200, 3))
    assert shown.farthest[i][j] == (200, 3) and shown.high[i, j] == 9 and shown.low[i, j] == 0
    assert shown.mean[i, j] == pytest.approx(9 / (shown.rows[i][1] - shown.rows[i][0] + 1))
    figure = group_map(GroupMap.of(values, "error", values), "v", (200, 3))
    assert figure.data[0].customdata[i][j] == "200,3"
    assert figure.layout.meta["picked"] == [str(j), figure.data[0].y[i]]


def test_code_usage_in_shares_and_bits() -> None:
    usage = {0: np.full(4, 25.0), 5: np.array([50.0, 50.0, 0.0, 0.0])}
    bars = code_usage(usage, "dlqat").data
    assert [bar.name for bar in bars] == ["Step 0", "Step 5"]
    assert list(bars[1].y) == [50, 50, 0, 0]
    said = code_usage_note(usage)
    assert "2 of 4 codes are used and carry 1.00 of 2 bits" in said


def test_the_fan_has_bands_inside_each_other() -> None:
    held = {f"p{n}": {0: float(n), 1: float(n)} for n in ("01", "05", "25", "50", "75", "95", "99")}
    names = [trace.name for trace in magnitude_bands(held, "dlqat").data]
    assert names[::2] == [
        "1 to 99 % of groups",
        "5 to 95 % of groups",
        "25 to 75 % of groups",
        "Median",
    ]

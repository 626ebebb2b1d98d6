"""Quantisation: errors beside the inputs they meet, and the codes of a saved model as an image."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import save_file

from backend.export.code_tiles import CodeTile
from backend.export.formats import Layout
from backend.settings import Settings
from backend.statistics.names import INPUT_ENERGY
from backend.statistics.regions import Region
from backend.statistics.tensors import TensorProfile
from jobs.runtime.rows import profile_row
from tests.export.test_code_tiles import COLUMNS, GROUP, NAME, ROWS, layer, save
from tests.ui.conftest import mapped
from tests.ui.lab import job, store
from ui.pages.quantization import selection as quant_selection
from ui.pages.quantization.code_image import CodeImage, code_image_chart
from ui.pages.quantization.input_energy import InputGroups, input_energy_chart, rank_correlation
from ui.pages.quantization.panels import NO_INPUTS, codes_chart, energy_chart
from ui.pages.quantization.selection import QuantSelection, QuantView

GROUPS = COLUMNS // GROUP
TENSOR, OTHER = f"{NAME}.weight", f"{NAME.replace('layers.0', 'layers.1')}.weight"


def groups(inputs: list[float], errors: list[float], block: int = 0) -> InputGroups:
    """Groups of two inputs each, of a layer with three outputs."""
    energy = np.repeat(np.square(inputs), 2)
    return InputGroups.of(f"t{block}", block, energy, np.tile(errors, (3, 1)))


def test_groups_say_what_they_carry_of_the_output_error() -> None:
    one = groups([1.0, 2.0, 1.0], [0.1, 0.1, 0.2])
    assert np.allclose(one.inputs, [1, 2, 1]) and np.allclose(one.errors, [0.1, 0.1, 0.2])
    assert np.allclose(one.shares, [1 / 9, 4 / 9, 4 / 9])
    uneven = InputGroups.of("t", 0, np.array([1.0, 9.0]), np.array([[0.3], [0.4]]))
    assert np.allclose([uneven.inputs[0], uneven.errors[0]], [5**0.5, 0.125**0.5])
    x = np.array([1.0, 2.0, 30.0, 4.0])
    assert rank_correlation(x, np.exp(x)) == pytest.approx(1)
    assert rank_correlation(x, -x) == pytest.approx(-1)
    assert np.isnan(rank_correlation(x[:2], x[:2]))


def test_the_chart_marks_the_tensor_among_its_module() -> None:
    every = [groups([1, 3, 1], [0.1, 0.3, 0.1]), groups([2, 4, 6], [0.1, 0.2, 0.3], block=1)]
    chart = input_energy_chart(every, "t0", "Block 0, q_proj", "dlqat")
    others, own = chart.figure.data
    assert set(others.customdata) == {"t1"} and set(own.customdata) == {"t0"}
    assert chart.headline.startswith("Block 0, q_proj: inputs of group 1, 3.0 × the median, carry")
    assert "98 %" in chart.headline and "n = 6 groups of 2 blocks" in chart.note
    alone = input_energy_chart(every[:1], "t0", "", "dlqat")
    assert len(alone.figure.data) == 1


def image(before: list[list[float]] | None, levels: list[list[int]]) -> CodeImage:
    zeros = np.full_like(np.array(levels), 4)
    tile = CodeTile(Region((8, 10), (16, 18)), np.array(levels) + 4, zeros, 3)
    return CodeImage(tile, None if before is None else np.array(before))


@pytest.mark.parametrize(
    ("before", "levels", "headline", "traces"),
    [
        (None, [[0, 1], [2, -4]], "25 % of these weights are stored as zero", 1),
        ([[1, 2], [3, 4]], [[0, 1], [2, 3]], "25 % of these weights are stored as zero", 1),
        ([[0, 2], [0, 4]], [[0, 1], [0, 3]], "All 2 pruned weights here are still zero", 2),
        ([[0, 2], [0, 4]], [[0, 1], [1, 0]], "1 of 2 pruned weights here are no longer zero", 3),
    ],
)
def test_an_image_says_what_became_of_the_zeros(
    before: Any, levels: Any, headline: str, traces: int
) -> None:
    chart = code_image_chart(image(before, levels))
    assert chart.headline == headline and len(chart.figure.data) == traces
    assert chart.figure.data[0].z[1][0] == levels[1][0]
    assert "outputs 8 to 9, inputs 16 to 17" in chart.note
    if traces == 3:
        cross = chart.figure.data[2]
        assert (list(cross.x), list(cross.y)) == ([16], [9])


@pytest.fixture
def view(tables: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> QuantView:
    """A run whose codes lie in one folder, and its dense model in another, half of it pruned."""
    made, error = layer(3, grid_type="zero-point"), np.full((ROWS, GROUPS), 0.1, np.float32)
    error[40, 2] = 0.5
    figures = {
        "magnitude": np.ones((ROWS, GROUPS)), "scale": made.grid.scale.numpy(), "error": error,
        "clipped": np.zeros((ROWS, GROUPS)), "codes": np.full(8, ROWS * COLUMNS / 8),
    }  # fmt: skip
    rows = [
        mapped(profile_row(1, TensorProfile(
            tensor, block, "mlp.up_proj", stage, name, np.asarray(values, np.float32), 0
        )))
        for block, tensor in enumerate((TENSOR, OTHER))
        for stage, each in (("dlqat", figures), ("dense", {INPUT_ENERGY: np.ones(COLUMNS)}))
        for name, values in each.items()
    ]  # fmt: skip
    config = {"model": "toy", "bits": 3, "group_size": GROUP}
    store(job(1, kind="dlqat", config=config, kept_stage="dlqat"), *rows)
    packed, dense = tmp_path / "packed", tmp_path / "dense"
    packed.mkdir(), dense.mkdir()
    save(packed, made, Layout("compressed-tensors", 3, GROUP, False))
    weights = made.dense().clone()
    weights[:, ::2] = 0
    save_file({TENSOR: weights}, dense / "model.safetensors")
    folders = {"dense": dense, "dlqat": packed}
    monkeypatch.setattr(quant_selection, "saved_folders", lambda job: folders)
    found = QuantView.at(QuantSelection("dlqat-0001", tensor=TENSOR))
    assert found is not None
    return found


def test_the_codes_around_the_worst_group_are_read_from_the_file(
    view: QuantView, monkeypatch: pytest.MonkeyPatch
) -> None:
    chart = codes_chart(view)
    assert view.group == (40, 2)
    assert "outputs 16 to 63, inputs 64 to 95" in chart.note
    codes = layer(3, grid_type="zero-point").codes[16:64, 64:96].numpy()
    assert np.array_equal(chart.frame.iloc[:, 1:].to_numpy(), codes)
    assert chart.question.startswith("Are the zeros of the pruned model still zero?")
    monkeypatch.setattr(quant_selection, "saved_folders", lambda job: {})
    assert "only of the stage that was kept (DL-QAT)" in codes_chart(view).figure


def test_errors_and_inputs_come_from_what_is_stored(view: QuantView) -> None:
    chart = energy_chart(view)
    assert "n = 6 groups of 2 blocks" in chart.note
    assert "inputs of group 2, 1.0 × the median" in chart.headline
    assert view.input_groups[1].tensor == OTHER
    empty = QuantView(view.selection, view.quant)
    empty.__dict__["input_groups"] = []
    assert energy_chart(empty).figure == NO_INPUTS

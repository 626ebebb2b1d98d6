"""Quantization: errors beside the inputs they meet."""

import numpy as np
import pytest

from backend.settings import Settings
from backend.statistics.tensors import INPUT_ENERGY, TensorProfile
from jobs.runtime.row_buffer import profile_row
from tests.ui.conftest import mapped
from tests.ui.lab import job, store
from ui.pages.quantization.charts import InputGroups, input_energy_chart
from ui.pages.quantization.panels import energy_chart
from ui.pages.quantization.selection import QuantSelection, QuantView

ROWS, COLUMNS, GROUP = 64, 96, 32
GROUPS = COLUMNS // GROUP
TENSOR, OTHER = (f"model.layers.{n}.mlp.up_proj.weight" for n in range(2))


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


def test_the_chart_marks_the_tensor_among_its_module() -> None:
    every = [groups([1, 3, 1], [0.1, 0.3, 0.1]), groups([2, 4, 6], [0.1, 0.2, 0.3], block=1)]
    chart = input_energy_chart(every, "t0", "Block 0, q_proj", "dlqat")
    others, own = chart.figure.data
    assert set(others.customdata) == {"t1"} and set(own.customdata) == {"t0"}
    assert chart.headline.startswith(
        "Block 0, q_proj: 98\u00a0% of the expected output error comes from group 1, "
    )
    assert chart.headline.endswith("inputs are 3.0\u00a0× the median")
    assert "n = 6 groups of 2 blocks" in chart.note
    alone = input_energy_chart(every[:1], "t0", "", "dlqat")
    assert len(alone.figure.data) == 1


@pytest.fixture
def view(tables: Settings) -> QuantView:
    """A run whose worst group is group 2 of row 40."""
    error = np.full((ROWS, GROUPS), 0.1, np.float32)
    error[40, 2] = 0.5
    figures = {
        "magnitude": np.ones((ROWS, GROUPS)),
        "scale": np.ones((ROWS, GROUPS)),
        "error": error,
        "clipped": np.zeros((ROWS, GROUPS)),
        "codes": np.full(8, ROWS * COLUMNS / 8),
    }
    rows = [
        mapped(
            profile_row(
                1,
                TensorProfile(
                    tensor, block, "mlp.up_proj", stage, name, np.asarray(values, np.float32), 0
                ),
            )
        )
        for block, tensor in enumerate((TENSOR, OTHER))
        for stage, each in (("dlqat", figures), ("dense", {INPUT_ENERGY: np.ones(COLUMNS)}))
        for name, values in each.items()
    ]
    config = {"model": "toy", "bits": 3, "group_size": GROUP}
    store(job(1, kind="dlqat", config=config, kept_stage="dlqat"), *rows)
    return QuantView.at(QuantSelection("dlqat-0001", tensor=TENSOR))


def test_errors_and_inputs_come_from_what_is_stored(view: QuantView) -> None:
    chart = energy_chart(view)
    assert "n = 6 groups of 2 blocks" in chart.note
    assert "from group 2, whose inputs are 1.0\u00a0× the median" in chart.headline
    assert view.input_groups[1].tensor == OTHER
    empty = QuantView(view.selection, view.quant)
    empty.__dict__["input_groups"] = []
    assert "no input statistics" in energy_chart(empty).figure

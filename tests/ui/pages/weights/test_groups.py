"""The lens of group magnitudes: what the server sends of runs that train inside a grid."""

from typing import Any

import numpy as np
import pytest
from sqlalchemy import delete
from starlette.testclient import TestClient

from backend.statistics.tensors import TensorProfile
from backend.store.session import writing
from backend.store.tables import ProfileRow
from jobs.runtime.row_buffer import profile_row
from tests.ui.conftest import mapped
from tests.ui.visits import Visit, unpacked
from ui.pages.weights import groups, histograms
from ui.runs.weights import weights_of

TENSOR = "model.layers.2.mlp.up_proj.weight"
BARE = "model.layers.0.mlp.up_proj.weight"
ROWS, GROUPS, SIZE, BITS, STEPS = 300, 4, 16, 3, (0, 10, 20)
rng = np.random.default_rng(0)
MAGNITUDES = {step: 1 + step / 1000 * rng.standard_normal((ROWS, GROUPS)) for step in STEPS}
CODES = np.arange(1, 2**BITS + 1) * 100.0


def stored_profiles() -> list[tuple[str, int, np.ndarray]]:
    """Name, step and values of what a run records; group 1 of row 5 has the largest error."""
    last, scale = STEPS[-1], np.full((ROWS, GROUPS), 0.1)
    error = np.full((ROWS, GROUPS), 0.01)
    error[:, 1] = 0.4
    error[5, 1] = 0.5
    dense = np.linspace(-0.3, 0.9, SIZE)
    quantized = 0.1 * np.clip(np.round(dense / 0.1), -4, 3)
    return [
        *(("magnitude", step, MAGNITUDES[step]) for step in STEPS),
        *(("codes", step, CODES) for step in STEPS),
        ("scale", last, scale),
        ("error", last, error),
        ("clipped", last, np.full((ROWS, GROUPS), 0.02)),
        ("worst", last, np.array([[5, 1, 4, *dense, *quantized]])),
    ]


@pytest.fixture
def client(visit: Visit) -> TestClient:
    with writing() as session:
        session.add_all(
            mapped(
                profile_row(
                    1,
                    TensorProfile(
                        TENSOR, 2, "mlp.up_proj", "sds", name, values.astype(np.float32), step
                    ),
                )
            )
            for name, step, values in stored_profiles()
        )
    return visit()


def got(client: TestClient, **query: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    asked = {"run": "sds-0001", "tensor": TENSOR, "groups": "sds"} | query
    answer = client.get(histograms.PATH, params=asked)
    assert answer.status_code == 200
    return unpacked(answer.content)


def test_magnitudes_are_sent_in_percent_and_in_order(client: TestClient) -> None:
    head, arrays = got(client)
    change = 100 * (MAGNITUDES[20] - 1)
    assert head["steps"] == [*STEPS] and (head["rows"], head["groups"]) == (ROWS, GROUPS)
    assert (arrays["sorted"][0] == 0).all()
    assert arrays["sorted"][-1][[0, -1]] == pytest.approx([change.min(), change.max()], rel=1e-3)
    assert (np.diff(arrays["sorted"][-1]) >= 0).all()
    cells = arrays["cells"]
    assert cells.shape == (3, groups.MAX_CELLS, GROUPS) and (cells[0] == 0).all()
    assert (np.diff(cells[-1].mean(1)) >= -1e-6).all(), "rows are sorted by their last change"
    most = np.abs(np.percentile(change, [1, 99])).max()
    assert f"±{most:.1f}" in head["title"]
    assert arrays["codes"][0] == pytest.approx(CODES / CODES.sum())
    assert arrays["bell"][:, 1].sum() * np.diff(arrays["bell"][:2, 0]) == pytest.approx(1, rel=0.05)


def test_the_worst_group_is_sent_weight_by_weight(client: TestClient) -> None:
    head, arrays = got(client)
    (worst,) = head["listed"]
    assert (worst["row"], worst["group"], worst["error"]) == (5, 1, 0.5)
    assert worst["change"] == pytest.approx(100 * (MAGNITUDES[20][5, 1] - 1), rel=1e-3)
    assert arrays["grids"][0] == pytest.approx(0.1 * np.arange(-4, 4), abs=1e-6)
    nearest = abs(arrays["quantized"][0][:, None] - arrays["grids"][0]).min(1)
    assert nearest.max() < 1e-6 and arrays["dense"].shape == (1, SIZE)
    assert "of the output error comes from input group 1" in head["harm"]


def test_a_run_that_still_trains_and_one_cut_short(client: TestClient) -> None:
    with writing() as session:
        names = ("scale", "error", "clipped", "worst", "codes")
        session.execute(delete(ProfileRow).where(ProfileRow.name.in_(names)))
    head, arrays = got(client)
    assert head["listed"] == [] and arrays["dense"].size == 0 and arrays["codes"].size == 0
    assert "98 %" in head["title"].replace("\xa0", " ")


def test_a_tensor_or_a_run_without_groups_says_where_some_are(client: TestClient) -> None:
    head, arrays = got(client, tensor=BARE)
    assert head["missing"] == groups.NOT_HERE and head["other"] == TENSOR and not arrays
    head, _ = got(client, run="sds-0002")
    assert head["missing"] == groups.NONE_RECORDED and head["run"] == "sds-0001"
    for odd in ("<img src=x>", "../x", "x" * 5000):
        head, _ = got(client, tensor=odd)
        assert odd not in str(head), "the browser is told nothing that it has asked"
        assert got(client, groups=odd)[0]["stage"] == "sds"


def test_large_layers_are_merged(client: TestClient) -> None:
    values = rng.standard_normal((1000, 513))
    cells = groups.merged(values)
    assert cells.shape == (128, 128) and cells.mean() == pytest.approx(values.mean(), abs=1e-3)
    weights_of.clear()

"""Descent in C++ compared with PyTorch, and its memory safety."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from backend.calibration.second_moments import InputStatistics
from backend.pruning import redense as room
from backend.pruning.masks import keep_mask, top_per_row
from backend.pruning.pattern import Pattern
from backend.pruning.redense import redense
from backend.pruning.weight_adjustment import adjust


def inputs_of(H: Tensor) -> InputStatistics:
    return InputStatistics(len(H), H.diagonal(), H, torch.bfloat16)


pytestmark = pytest.mark.skipif(
    not room.is_supported(inputs_of(torch.eye(2)), room.SHRINK),
    reason="no AVX-512 with bfloat16",
)


def layer_of(rows: int, columns: int, seed: int = 0) -> tuple[Tensor, InputStatistics]:
    """Make dense weights and correlated inputs."""
    torch.manual_seed(seed)
    mix = torch.randn(columns, columns) / (2 * columns**0.5) + torch.eye(columns)
    X = (torch.randn(3 * columns + 20, columns) @ mix).bfloat16().float()
    return torch.randn(rows, columns) * 0.02, inputs_of(X.T @ X / len(X))


def errors(W: Tensor, dense: Tensor, inputs: InputStatistics) -> Tensor:
    D, H = (W - dense).double(), inputs.gram.double()
    return torch.linalg.vecdot(D @ H, D)


@pytest.fixture
def in_pytorch(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], Tensor]], Tensor]:
    def compute(call: Callable[[], Tensor]) -> Tensor:
        with monkeypatch.context() as patch:
            patch.setattr(room, "is_fast", lambda *_: False)
            return call()

    return compute


SHAPES = [(1, 48, "2:4"), (5, 50, "1:2"), (13, 96, "4:8"), (8, 33, "50%"), (300, 144, "8:16")]


@pytest.mark.parametrize(("rows", "columns", "pattern"), [*SHAPES, (200, 576, "2:4")])
@pytest.mark.parametrize("step", ["redense", "fixed", "soft"])
def test_the_error_equals_that_of_pytorch(
    rows: int, columns: int, pattern: str, step: str, in_pytorch
) -> None:
    dense, inputs = layer_of(rows, columns)
    p = Pattern.parse(pattern)
    start = dense * keep_mask(dense.abs(), p)

    def solve() -> Tensor:
        if step == "redense":
            return redense(start, dense, inputs, 10)
        return adjust(start, dense, inputs, p, 10, step == "soft")

    actual, expected = solve(), in_pytorch(solve)
    assert not torch.equal(actual, start)
    error_ratio = errors(actual, dense, inputs).sum() / errors(expected, dense, inputs).sum()
    assert error_ratio.item() == pytest.approx(1, abs=1e-3 if rows >= 200 else 5e-3)


@pytest.mark.parametrize("kind", room.KINDS)
def test_the_number_of_threads_changes_no_bit(kind: int, monkeypatch: pytest.MonkeyPatch) -> None:
    dense, inputs = layer_of(141, 80)
    start = dense * keep_mask(dense.abs(), Pattern.parse("1:2"))
    actual = []
    for threads in (1, 2, 5):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        actual.append(room.descend(start, dense, inputs, 4, kind, max(1, kind // 2)))
    for W, lowest in actual[1:]:
        assert torch.equal(W, actual[0][0]) and torch.equal(lowest, actual[0][1])


def identity(columns: int) -> InputStatistics:
    """Make inputs for which one step ends at the dense weights from any start."""
    inputs = inputs_of(torch.eye(columns))
    inputs.__dict__["largest_eigenvalue"] = 1.0
    return inputs


@given(st.integers(0, 10**6), st.sampled_from(room.GROUPS), st.integers(1, 15))
@settings(max_examples=60, deadline=None)
def test_ties_in_a_group_are_broken_as_by_masks(seed: int, group: int, keep: int) -> None:
    torch.manual_seed(seed)
    keep = min(keep, group - 1)
    dense = torch.randint(-2, 3, (9, 64)).float()
    start = torch.full_like(dense, 64.0)  # exact in bfloat16 and far from the start
    W, _ = room.descend(start, dense, identity(64), 1, group, keep)
    assert torch.equal(W, dense * keep_mask(dense.abs(), Pattern(keep, group, 0.5)))


@given(st.integers(0, 10**6), st.integers(1, 70))
@settings(max_examples=60, deadline=None)
def test_ties_in_a_row_are_broken_as_by_masks(seed: int, columns: int) -> None:
    torch.manual_seed(seed)
    dense = torch.randint(-2, 3, (9, columns)).float()
    start = 64.0 * (torch.rand(9, columns) < torch.rand(9, 1))
    W, _ = room.descend(start, dense, identity(columns), 1, room.ROWS)
    assert torch.equal(W, dense * top_per_row(dense.abs(), (start != 0).sum(1)))


def test_weights_shrink_by_the_penalty() -> None:
    dense = torch.tensor([[-2.0, -1.0, -0.25, 0.0, 0.25, 1.0, 2.0]])
    W, _ = room.descend(0 * dense, dense, identity(7), 1, room.SHRINK, 0.5)
    assert W.tolist() == [[-1.5, -0.5, 0, 0, 0, 0.5, 1.5]]


@pytest.mark.parametrize("kind", room.KINDS)
def test_nan_stays_in_its_row(kind: int) -> None:
    dense, inputs = layer_of(11, 48)
    start = dense * keep_mask(dense.abs(), Pattern.parse("1:2"))
    keep = max(1, kind // 2)
    expected, _ = room.descend(start, dense, inputs, 5, kind, keep)
    for bad in (torch.nan, torch.inf):
        start[3, 7] = bad
        actual, _ = room.descend(start, dense, inputs, 5, kind, keep)
        other_rows = torch.arange(11) != 3
        assert torch.equal(actual[other_rows], expected[other_rows])


@pytest.mark.parametrize("scale", [0.0, torch.nan])
@pytest.mark.parametrize("is_fast", [True, False], ids=["kernels", "PyTorch"])
def test_without_input_energy_weights_do_not_change(
    scale: float, is_fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "is_fast", lambda *_: is_fast)
    dense, p = torch.randn(9, 32), Pattern.parse("2:4")
    inputs = inputs_of(scale * torch.eye(32))
    inputs.__dict__["largest_eigenvalue"] = scale
    start = dense * keep_mask(dense.abs(), p)
    assert torch.equal(redense(start, dense, inputs, 5), start)
    assert torch.equal(adjust(start, dense, inputs, p, 5, True), start)


def test_arguments_that_do_not_fit_are_refused() -> None:
    dense, inputs = layer_of(6, 20)
    wide = torch.zeros(6, 40)
    for start, other, about, more in (
        (dense.double(), dense, inputs, {}),
        (dense, dense.bfloat16(), inputs, {}),
        (dense, dense[:5], inputs, {}),
        (wide[:, ::2], dense, inputs, {}),
        (dense, wide[:, 20:], inputs, {}),
        (dense[0], dense[0], inputs, {}),
        (wide, wide, inputs, {}),
        (dense, dense, replace(inputs, dtype=torch.float32), {}),
        (dense, dense, replace(inputs, gram=torch.eye(21)), {}),
        (dense, dense, replace(inputs, gram=torch.ones(20, 22)), {}),
        (dense, dense, inputs, {"kind": 8}),  # does not divide 20
        (dense, dense, inputs, {"kind": 5}),
        (dense, dense, inputs, {"steps": -1}),
        (dense, dense, inputs, {"steps": 2**31 - 1}),
    ):
        words = {"steps": 1, "kind": room.SHRINK, **more}
        with pytest.raises(ValueError, match=r"do not fit|not computed here"):
            room.descend(start, other, about, **words)


def test_noncontiguous_weights_are_copied() -> None:
    dense, inputs = layer_of(6, 20)
    start, gaps = dense * (dense > 0), torch.zeros(6, 40)
    gaps[:, ::2] = start
    actual = redense(gaps[:, ::2], dense, inputs, 3)
    assert torch.equal(actual, redense(start, dense, inputs, 3))


def test_pytorch_replaces_a_library_that_cannot_be_built(monkeypatch: pytest.MonkeyPatch) -> None:
    dense, inputs = layer_of(4, 16)
    assert not room.is_supported(replace(inputs, dtype=torch.float32), room.SHRINK)
    assert not room.is_supported(inputs, 5)
    monkeypatch.setattr(room, "kernels_or_none", lambda: None)
    assert not room.is_supported(inputs, room.SHRINK)
    with pytest.raises(ValueError, match="not computed here"):
        room.descend(dense, dense, inputs, 1, room.SHRINK)

"""What the benchmark of sparse products computes of the times it takes; no test asserts a time."""

from types import SimpleNamespace

import pytest
import torch

from backend.decoding.native.compiler import CompilerError
from backend.errors import CancelledError
from backend.reporter import SilentReporter
from benchmarks import acceleration as room
from benchmarks.acceleration import SparseProductCurve, sparse_product_curve
from tests.evaluation.conftest import Impatient


@pytest.mark.parametrize(
    ("speed_ups", "expected"),
    [
        ((0.5, 0.8, 0.9), None),  # never
        ((1.0, 2.0, 4.0), 0.5),  # always
        ((0.5, 2.0, 4.0), 0.6),  # half way between 0.5 and 0.7, on a log scale
        ((2.0, 0.5, 2.0), 0.8),  # one lucky timing below does not count
    ],
)
def test_where_it_breaks_even(speed_ups: tuple[float, ...], expected: float | None) -> None:
    found = SparseProductCurve((1, 1), (0.5, 0.7, 0.9), speed_ups).break_even
    assert found == (None if expected is None else pytest.approx(expected))


@pytest.mark.skipif(not room.skips_zeros(48), reason="this processor leaves out no zeros")
def test_the_curve_has_a_figure_for_each_share_and_can_be_stopped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(room, "MIN_PRODUCT_WEIGHTS", 2**14)
    threads = torch.get_num_threads()
    curve = sparse_product_curve(32, 48, SilentReporter(), (0.5, 0.9))
    assert curve.shape == (32, 48) and curve.zeros == (0.5, 0.9)
    assert all(x > 0 for x in curve.speed_up)
    assert torch.get_num_threads() == threads
    with pytest.raises(CancelledError):
        sparse_product_curve(32, 48, Impatient(), (0.5,))


@pytest.mark.skipif(not room.skips_zeros(48), reason="this processor leaves out no zeros")
def test_both_products_of_a_curve_are_those_of_the_matrix() -> None:
    dice = torch.Generator().manual_seed(0)
    W = torch.randn(32, 48, generator=dice) * (torch.rand(32, 48, generator=dice) > 0.5)
    x = torch.randn(1, 48, generator=dice)
    for product in room._products(W):
        assert torch.allclose(product(x).flatten(), W @ x[0], atol=0.1)


def test_the_ratio_is_that_of_the_best_times_taken_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    times = {"slow": iter([9.0, 6.0, 8.0] * 5), "fast": iter([3.0, 4.0, 2.0] * 5)}
    order: list[str] = []

    def timed(work, _count: int) -> float:
        order.append(work())
        return next(times[work()])

    monkeypatch.setattr(room, "_calls", lambda *_: 1)
    monkeypatch.setattr(room, "_seconds", timed)
    assert room._ratio(lambda: "slow", lambda: "fast") == 3.0  # type: ignore[arg-type]
    assert order == ["slow", "fast"] * room.ROUNDS


@pytest.mark.parametrize(("columns", "answer"), [(48, True), (47, False)])
def test_zeros_are_left_out_where_the_processor_and_the_layer_allow_it(
    columns: int, answer: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = SimpleNamespace(slimscope_supports=lambda format: 1)
    monkeypatch.setattr(room, "library", lambda: built)
    assert room.skips_zeros(columns) is answer

    def broken() -> None:
        raise CompilerError("no compiler")

    monkeypatch.setattr(room, "library", broken)
    assert not room.skips_zeros(columns)

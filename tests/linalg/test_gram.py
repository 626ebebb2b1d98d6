"""Gram matrices in the instructions for bfloat16."""

import pytest
import torch

from backend.calibration.second_moments import StatisticsLevel, _Sums
from backend.linalg import gram

pytestmark = pytest.mark.skipif(
    not gram.is_supported(torch.zeros(1, 1, dtype=torch.bfloat16)),
    reason="no AVX-512 with bfloat16",
)


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: request.param)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize(("tokens", "inputs"), [(1, 1), (2, 16), (7, 50), (65, 96), (1500, 145)])
def test_sums_of_products_are_float32_and_nothing_else_is_written(tokens: int, inputs: int) -> None:
    x = torch.randn(tokens, 2 * inputs).bfloat16()[:, ::2]  # with gaps between its columns
    edge = torch.full((inputs + 2, inputs), 7.0)
    H = edge[1:-1].zero_()
    gram.add_gram(H, x)
    gram.add_gram(H, x)
    exact = 2 * x.double().T @ x.double()
    torch.testing.assert_close(H.triu().double(), exact.triu(), rtol=1e-5, atol=1e-4)
    assert bool((edge[[0, -1]] == 7).all())


def test_statistics_are_those_of_float32_products(monkeypatch: pytest.MonkeyPatch) -> None:
    batches = torch.randn(3, 2, 40, 96).bfloat16()
    found = []
    for fast in (True, False):
        monkeypatch.setattr("backend.calibration.second_moments.is_fast", lambda _, fast=fast: fast)
        sums = _Sums(StatisticsLevel.GRAM)
        for batch in batches:
            sums.add(batch)
        found.append(sums.finish())
    torch.testing.assert_close(found[0].gram, found[1].gram, rtol=1e-5, atol=1e-6)
    assert torch.equal(found[0].gram, found[0].gram.T)


def test_inputs_that_are_not_finite_are_seen() -> None:
    x = torch.ones(4, 32).bfloat16()
    x[2, 5] = torch.inf
    H = torch.zeros(32, 32)
    gram.add_gram(H, x)
    assert not H[5, 5].isfinite() and H[4, 4] == 4


@pytest.mark.parametrize("shape", [(3, 5), (5, 3), (4, 5, 5)])
def test_shapes_that_do_not_fit_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="do not fit"):
        gram.add_gram(torch.zeros(4, 4), torch.ones(shape, dtype=torch.bfloat16))


@pytest.mark.parametrize(
    ("of_inputs", "of_gram"),
    [(torch.float32, torch.float32), (torch.bfloat16, torch.bfloat16)],
)
def test_other_precisions_are_refused(of_inputs: torch.dtype, of_gram: torch.dtype) -> None:
    with pytest.raises(ValueError, match="do not fit"):
        gram.add_gram(torch.zeros(4, 4, dtype=of_gram), torch.ones(3, 4, dtype=of_inputs))

"""Tests that parts of the methods compute the same numbers on the stand-in accelerator."""

from typing import Any

import pytest

from tests.accelerator.methods import CASES, on_both_devices
from tests.fork_server import elsewhere


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    return elsewhere(on_both_devices)


@pytest.mark.parametrize("case", CASES)
def test_the_numbers_are_those_of_the_cpu(case: str, results: dict[str, Any]) -> None:
    assert not isinstance(results[case], str), results[case]
    on_cpu, on_device = results[case]
    assert on_device == pytest.approx(on_cpu, rel=1e-4, abs=1e-5)

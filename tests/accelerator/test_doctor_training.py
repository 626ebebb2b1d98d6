"""Whole runs of the kinds that train, on the stand-in accelerator. They take as long as the others,
so another process of the tests may run them."""

from typing import Any

import pytest

from tests.accelerator.trials import assert_equal_figures, trials

TRAINING = ("dlqat", "amphista", "benchmark")  # the last one uses a trained drafter


@pytest.fixture(scope="module")
def checks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    return trials(tmp_path_factory.mktemp("trial"), TRAINING)


@pytest.mark.parametrize("kind", TRAINING)
def test_a_run_ends_on_the_accelerator_with_the_figures_of_the_cpu(
    kind: str, checks: dict[str, dict[str, Any]]
) -> None:
    assert_equal_figures(checks[kind])

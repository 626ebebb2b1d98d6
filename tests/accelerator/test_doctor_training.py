"""Whole runs of the kinds that train, on the stand-in accelerator. They take as long as the others,
so another process of the tests may run them."""

from typing import Any

import pytest

from tests.accelerator.trials import OUTPUT, assert_equal_figures, trials

TRAINING = ("dlqat", "amphista", "benchmark")  # the last one uses a trained drafter
SMALL_BYTES = 720 * 10**6  # memory of an accelerator into which the model just does not fit


@pytest.fixture(scope="module")
def checks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The run of DL-QAT streams its blocks on the accelerator, but not on the CPU."""
    folder = tmp_path_factory.mktemp("streamed")
    streamed = trials(folder, ["dlqat"], SMALL_BYTES)
    output = (folder / OUTPUT).read_text()
    assert "on sim:0, block by block" in output and "on cpu, at once" in output
    return streamed | trials(tmp_path_factory.mktemp("trial"), TRAINING[1:])


@pytest.mark.parametrize("kind", TRAINING)
def test_a_run_ends_on_the_accelerator_with_the_figures_of_the_cpu(
    kind: str, checks: dict[str, dict[str, Any]]
) -> None:
    assert_equal_figures(checks[kind])

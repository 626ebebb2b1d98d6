"""Whole runs of the kinds that train nothing on the stand-in accelerator."""

from typing import Any

import pytest

from jobs.cli.doctor.methods import METHODS
from tests.accelerator.test_doctor_training import TRAINING
from tests.accelerator.trials import assert_equal_figures, trials

KINDS = [method.kind for method in METHODS if method.kind not in TRAINING]


@pytest.fixture(scope="module")
def checks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    return trials(tmp_path_factory.mktemp("trial"), KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_ends_on_the_accelerator_with_the_figures_of_the_cpu(
    kind: str, checks: dict[str, dict[str, Any]]
) -> None:
    assert_equal_figures(checks[kind])

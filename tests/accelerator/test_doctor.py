"""Whole runs of every kind on the stand-in accelerator, as `slimscope doctor --gpu` starts them."""

import os
from typing import Any

import pytest

from backend.settings import settings
from backend.store.session import engine_for
from jobs.cli.doctor import methods
from jobs.cli.doctor.methods import METHODS
from tests.accelerator.device import install
from tests.fork_server import elsewhere


def run_methods(folder: str) -> list[dict[str, Any]]:
    """Run the methods in this process, which ends with the test."""
    install()
    os.environ |= {"SLIMSCOPE_DATA_DIR": folder, "SLIMSCOPE_EXAMPLES": "0"}
    settings.cache_clear()
    engine_for.cache_clear()
    return [vars(check) for check in methods.run_methods()]


@pytest.fixture(scope="module")
def checks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    folder = str(tmp_path_factory.mktemp("trial"))
    return {check["name"]: check for check in elsewhere(run_methods, folder)}


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.kind)
def test_a_run_ends_on_the_accelerator_with_the_figures_of_the_cpu(
    method: methods.Method, checks: dict[str, dict[str, Any]]
) -> None:
    check = checks[method.title]
    assert check["ok"], check["text"]
    assert "deviates by" in check["text"]

"""Fixtures and helpers for saved models and user texts."""

from collections.abc import Callable
from pathlib import Path

import pytest

from backend.models.loading import load
from backend.queue.artifacts import run_folder
from backend.text.slices import evaluation_slice
from tests.conftest import Given

Reload = Callable[[str, int], dict[str, float]]


@pytest.fixture
def reloaded(plain_transformers: Callable[..., dict[str, float]]) -> Reload:
    """Return perplexity and share of zeros of a run's model, measured in a process without our
    code."""

    def measured(run: str, windows: int) -> dict[str, float]:
        text = evaluation_slice("toystories", load("toy").tokenizer, windows, 64)
        folder = str(run_folder(run) / "model")
        return plain_transformers(folder=folder, ids=text.input_ids.tolist())

    return measured


@pytest.fixture
def texts(queue: Path, tmp_path: Path, given: Given) -> Path:
    """The folder of user texts and prompts."""
    given(TEXT_DIR=str(tmp_path))
    return tmp_path

"""The models of runs as others read them, and texts of one's own."""

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
    """Perplexity in so many windows and share of zeros of a run's model, by a process that knows
    nothing of us."""

    def measured(run: str, windows: int) -> dict[str, float]:
        text = evaluation_slice("toystories", load("toy").tokenizer, windows, 64)
        folder = str(run_folder(run) / "model")
        return plain_transformers(folder=folder, ids=text.input_ids.tolist())

    return measured


@pytest.fixture
def texts(queue: Path, tmp_path: Path, given: Given) -> Path:
    """The folder of one's own texts and prompts."""
    given(TEXT_DIR=str(tmp_path))
    return tmp_path

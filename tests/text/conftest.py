"""Fixtures: the built-in model and tokenizer, and a folder of local texts."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import backend.models.sources.toy
from backend.settings import settings

TOY = Path(backend.models.sources.toy.__file__).parent


def write(folder: Path, name: str, rows: Sequence[object]) -> str:
    """A corpus of these rows, or of rows of these texts."""
    lines = [json.dumps({"text": row} if isinstance(row, str) else row) for row in rows]
    (folder / name).write_text("\n".join([*lines, ""]))
    return f"file:{name}"


@pytest.fixture(scope="session")
def tokenizer():
    return AutoTokenizer.from_pretrained(TOY)


@pytest.fixture(scope="session")
def model():
    return AutoModelForCausalLM.from_pretrained(TOY, dtype=torch.float32).eval()


@pytest.fixture
def text_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty SLIMSCOPE_TEXT_DIR; the cache is empty, too."""
    folder = tmp_path / "texts"
    folder.mkdir()
    monkeypatch.setenv("SLIMSCOPE_TEXT_DIR", str(folder))
    monkeypatch.setenv("SLIMSCOPE_CACHE_DIR", str(tmp_path / "cache"))
    settings.cache_clear()
    yield folder
    settings.cache_clear()

"""Fixtures: the built-in model and tokenizer, and a folder of local texts."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import backend.models.sources.toy
from tests.conftest import Given

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
def text_dir(tmp_path: Path, given: Given) -> Path:
    """An empty SLIMSCOPE_TEXT_DIR; the cache is empty, too."""
    (folder := tmp_path / "texts").mkdir()
    given(TEXT_DIR=str(folder), CACHE_DIR=str(tmp_path / "cache"))
    return folder

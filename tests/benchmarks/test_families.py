"""Families that differ from LLaMA in ways that have failed: every method works, or is refused with
the reason before anything is queued."""

from __future__ import annotations

from pathlib import Path

import pytest

from backend.settings import settings
from benchmarks.families import METHODS, WORKS, examine, markdown

TRICKY = {  # family -> columns that are refused, and a word of the reason
    "falcon": {},  # its blocks return tuples
    "gemma2": {},  # capped logits, sliding windows in half of its layers, no SDPA
    "mixtral": {},  # experts in one tensor
    "opt, as 350m": {},  # a narrow embedding
    "gpt_neo": {"Decoding": "local attention", "Drafter": "local attention"},
    "bloom": {"Decoding": "ALiBi", "Drafter": "ALiBi"},
    "qwen3_5_text": {"Decoding": "one state", "Drafter": "one state"},
    "mamba": {"SDS": "no attention", "DL-QAT": "no attention", "Decoding": "one state",
              "Drafter": "one state"},
}  # fmt: skip


@pytest.mark.parametrize("family", TRICKY)
def test_a_family_works_or_is_refused_before_queueing(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLIMSCOPE_DATA_DIR", str(tmp_path))
    settings.cache_clear()
    found = examine([family], tmp_path)
    for column in METHODS:
        if reason := TRICKY[family].get(column):
            assert reason in found[family][column]
        else:
            assert found[family][column].startswith(WORKS)
    assert family in markdown(found)

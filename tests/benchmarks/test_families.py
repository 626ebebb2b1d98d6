"""Families that differ from LLaMA in ways that have failed: every method works, or is refused with
the reason before anything is queued."""

from __future__ import annotations

from pathlib import Path

import pytest

from backend.errors import SlimscopeError
from backend.settings import settings
from benchmarks.families import METHODS, WORKS, examine, markdown
from benchmarks.shared.tiny_models import write_tiny
from jobs.kind import kinds

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


SETTINGS = {
    "opt, as 350m": ("amphista", {}, "cannot be cloned", "architecture"),
    "mixtral": ("dlqat", {"format": "compressed-tensors"}, "one tensor", "format"),
    "qwen3_moe": ("sds", {"weights": "streamed"}, "block by block", "weights"),
    "bloom": ("generate", {}, "ALiBi", "sides"),
}


@pytest.mark.parametrize("family", SETTINGS)
def test_a_setting_that_a_family_does_not_support_is_refused(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLIMSCOPE_DATA_DIR", str(tmp_path))
    settings.cache_clear()
    write_tiny(family, tmp_path / "models" / "tiny")
    kind, more, why, field = SETTINGS[family]
    fields = {column[0]: column[1] for column in METHODS.values()}.get(kind, {"max_new_tokens": 8})
    model = {"sides" if kind == "generate" else "model": str(tmp_path / "models" / "tiny")}
    with pytest.raises(SlimscopeError, match=why) as refused:
        kinds()[kind].requirements(kinds()[kind].config(**{**fields, **model, **more}))
    assert refused.value.field == field

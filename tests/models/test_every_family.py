"""Families whose models differ most from LLaMA's: methods work, or are refused before queueing."""

from pathlib import Path

import pytest

from backend.errors import SlimscopeError
from jobs.kind import kinds
from tests.conftest import representatives
from tests.models.every_family import METHODS, WORKS, examine, markdown
from tests.models.tiny_models import write_tiny

TRICKY = {  # family -> columns that are refused, and a word of the reason
    "falcon": {},  # its blocks return tuples
    "gemma2": {},  # capped logits, sliding windows in half of its layers, no SDPA
    "mixtral": {},  # experts in one tensor
    "opt, as 350m": {},  # a narrow embedding
    "gpt_neo": {"Decoding": "local attention", "Drafter": "local attention"},
    "qwen3_5_text": {"Decoding": "one state", "Drafter": "one state"},
    "mamba": {
        "SDS": "no attention",
        "DL-QAT": "no attention",
        "Decoding": "one state",
        "Drafter": "one state",
    },
}


@pytest.mark.parametrize(
    "family", representatives(TRICKY, "mixtral", "opt, as 350m", "gpt_neo", "mamba")
)
def test_a_family_works_or_is_refused_before_queueing(family: str, data_dir: Path) -> None:
    found = examine([family], data_dir)
    for column in METHODS:
        if reason := TRICKY[family].get(column):
            assert reason in found[family][column]
        else:
            assert found[family][column].startswith(WORKS)
    assert family in markdown(found)


SETTINGS = {
    "opt, as 350m": ("amphista", {}, "cannot be cloned", "architecture"),
    "granitemoe": ("dlqat", {"format": "compressed-tensors"}, "one tensor", "format"),
    "qwen3_moe": ("sds", {"weights": "streamed"}, "block by block", "weights"),
    "bloom": ("benchmark", {}, "ALiBi", "model"),
}


@pytest.mark.parametrize("family", SETTINGS)
def test_a_setting_that_a_family_does_not_support_is_refused(family: str, data_dir: Path) -> None:
    write_tiny(family, data_dir / "models" / "tiny")
    kind, more, why, field = SETTINGS[family]
    fields = {column[0]: column[1] for column in METHODS.values()}.get(kind, {"max_new_tokens": 8})
    model = {"model": str(data_dir / "models" / "tiny")}
    with pytest.raises(SlimscopeError, match=why) as refused:
        kinds()[kind].requirements(kinds()[kind].config(**{**fields, **model, **more}))
    assert refused.value.field == field

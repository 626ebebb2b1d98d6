"""Model cards: what the Hub reads of them, and the terms that go with a model."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import metadata_load

from backend.export.card import figures, pruned_card
from backend.export.origin import CARD, ModelOrigin, copy_terms, front_matter, origin_of

BASE = """---
base_model: org/base
license: other
license_name: base-terms
license_link: https://example.org/terms
---
# A model
"""


@pytest.fixture
def base(tmp_path: Path) -> Path:
    (folder := tmp_path / "base").mkdir()
    (folder / CARD).write_text(BASE)
    (folder / "LICENSE.txt").write_text("the terms")
    (folder / "NOTICE").write_text("a notice")
    return folder


def test_licence_and_terms_are_carried_over(base: Path, tmp_path: Path) -> None:
    origin = origin_of(str(base))
    (new := tmp_path / "new").mkdir()
    measured = {"perplexity": {"Dense": 12.0, "SDS": 15.5}, "zero_share": {"SDS": 0.5}}
    card = pruned_card(
        "Base", "sds-0001", "SDS", "SDS", "2:4", origin, "", measured, {"pattern": "2:4"}, {}
    )
    (new / CARD).write_text(card)
    copy_terms(origin, new)
    assert {file.name for file in new.iterdir()} == {CARD, "LICENSE.txt", "NOTICE"}
    read = metadata_load(new / CARD)
    assert (read["base_model"], read["license"]) == ("org/base", "other")
    assert read["license_name"] == "base-terms" and "sparse" in read["tags"]
    assert "| SDS | 15.500 | 0.5 |" in card and "| Dense | 12.000 |  |" in card
    assert origin_of(str(new)) == ModelOrigin(
        "org/base", "other", "base-terms", "https://example.org/terms", new
    )


def test_the_default_model_is_named_as_the_hub_names_it(current: object) -> None:
    origin = origin_of("smollm2-135m")
    assert origin.base_model == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert "license: apache-2.0" in front_matter(origin, [])
    assert figures({"perplexity": {"Dense": 2.0}}).endswith("| Dense | 2.000 |")

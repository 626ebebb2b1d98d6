"""Which texts can be named, and why others cannot."""

from pathlib import Path

import pytest

from backend.errors import DatasetError
from backend.text.corpora import corpora, require_corpus


def test_what_is_listed(text_dir: Path) -> None:
    (text_dir / "mine.txt").write_text("text")
    listed = {corpus.name: corpus for corpus in corpora()}
    assert list(listed) == ["toystories", "wikipedia", "wikitext2", "c4", "file:mine.txt", "self"]
    ready = {name for name, corpus in listed.items() if corpus.ready}
    assert ready == {"toystories", "file:mine.txt", "self"}
    assert listed["self"].roles == ("calibration",)


@pytest.mark.parametrize("field", ["calibration_text", "evaluation_text"])
@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("wikitext2", "hub"), ("c4", "hub"), ("wikipedia", "slimscope setup"),
        ("nothing", "Choose one of: toystories"), ("file:", "SLIMSCOPE_TEXT_DIR"),
        ("file:../secret.txt", "SLIMSCOPE_TEXT_DIR"), ("../secret.txt", "SLIMSCOPE_TEXT_DIR"),
    ],
)  # fmt: skip
def test_refusals_name_the_field_and_the_way_out(
    text_dir: Path, name: str, says: str, field: str
) -> None:
    (text_dir.parent / "secret.txt").write_text("secret")
    with pytest.raises(DatasetError, match=says) as refused:
        require_corpus(name, field)
    assert refused.value.field == field
    assert refused.value.what and refused.value.why and refused.value.do


def test_a_model_is_not_judged_by_its_own_words(text_dir: Path) -> None:
    assert require_corpus("self", "calibration_text").name == "self"
    with pytest.raises(DatasetError, match="cannot be the evaluation text"):
        require_corpus("self", "evaluation_text")


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [("a.jsonl", b"no json\n", "Line 1"), ("a.jsonl", b'{"title": 1}\n', "neither"),
     ("a.jsonl", b'{"messages": [3]}\n', "message"), ("a.txt", b"caf\xe9 au lait", "utf-8")],
)  # fmt: skip
def test_a_wrong_file_is_refused_at_once(
    text_dir: Path, name: str, content: bytes, why: str
) -> None:
    (text_dir / name).write_bytes(content)
    with pytest.raises(DatasetError, match=why) as refused:
        require_corpus(f"file:{name}", "calibration_text")
    assert refused.value.field == "calibration_text"

"""Splits of a corpus share no document; WikiText's marks become plain text."""

from itertools import islice
from pathlib import Path

import datasets
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.errors import DatasetError
from backend.models.sources.toy.stories import stories
from backend.text import corpora
from backend.text.corpora import documents, preprocessing, select_split
from backend.text.files import detokenize
from benchmarks.toy import TRAIN_SEED


@given(st.integers(2, 60))
def test_two_or_more_documents_are_divided_between_the_splits(count: int) -> None:
    texts = [f"text {n}" for n in range(count)]
    calibration, evaluation = (
        list(select_split(texts, "calibration")),
        list(select_split(texts, "evaluation")),
    )
    assert sorted(calibration + evaluation) == sorted(texts)
    assert evaluation == texts[::12]


words = st.text("ab \n", min_size=40, max_size=400).filter(str.strip)


@given(words)
def test_a_single_document_is_cut_in_two(text: str) -> None:
    (calibration,), (evaluation,) = (
        select_split([text], "calibration"),
        select_split([text], "evaluation"),
    )
    assert text.startswith(calibration)
    assert text.endswith(evaluation)
    assert text[len(calibration) : len(text) - len(evaluation)].strip() == ""
    assert len(text) // 2 <= len(calibration) <= 0.85 * len(text)


def test_stories_differ_from_the_training_stories() -> None:
    learned = set(stories(TRAIN_SEED, 8000))
    calibration, evaluation = (
        set(islice(documents("toystories", role), 3000)) for role in ("calibration", "evaluation")
    )
    assert not learned & calibration and not learned & evaluation and not calibration & evaluation
    assert evaluation == set(stories(999, 3000))


@pytest.mark.parametrize("line", ['{"text": ', '{"txt": "a"}', "3"])
def test_a_line_without_text_is_reported_when_it_is_read(text_dir: Path, line: str) -> None:
    (text_dir / "a.jsonl").write_text(f'{{"text": "A cat."}}\n\n{line}\n')
    with pytest.raises(DatasetError, match="could not be read") as refused:
        list(documents("file:a.jsonl", "evaluation"))
    assert refused.value.field == "evaluation_text" and "line 3" in refused.value.why.lower()


@pytest.fixture
def hub(text_dir: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """A hub that is online and answers with its arguments; what it was asked."""
    asked: list[tuple] = []

    def load_dataset(*names: str, **options: object) -> datasets.Dataset:
        asked.append((*names, options.get("split"), options.get("data_files")))
        return datasets.Dataset.from_dict({"text": [" = A = \n", "", " long @-@ term \n"]})

    monkeypatch.setattr(corpora, "is_offline_mode", lambda: False)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked


def test_wikitext_is_joined_as_published(hub: list[tuple]) -> None:
    (text,) = documents("wikitext2", "evaluation")
    assert text == " = A = \n\n\n\n\n long @-@ term \n" and preprocessing("wikitext2") == ""
    list(documents("wikitext2", "calibration"))
    assert [split for *_, split, _ in hub] == ["test", "validation"]


def test_c4_reads_other_shards_for_each_role(hub: list[tuple]) -> None:
    for role in ("calibration", "evaluation"):
        assert len(list(documents("c4", role))) == 3
    assert "c4-train.00000" in hub[0][-1] and "c4-validation.00000" in hub[1][-1]


def test_an_unreachable_hub_is_reported(text_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*_: str, **__: object) -> None:
        raise ConnectionError("Couldn't reach the hub")

    monkeypatch.setattr(corpora, "is_offline_mode", lambda: False)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(DatasetError, match="Couldn't reach the hub"):
        list(documents("c4", "calibration"))


@pytest.mark.parametrize(
    ("tokenized", "plain"),
    [
        (" A guest @-@ starring role , 1 @,@ 500 m . \n", "A guest-starring role, 1,500 m.\n"),
        (" 0 @.@ 7 kg ( 1 @.@ 5 lb ) ; more : yes ! ", "0.7 kg (1.5 lb); more: yes!"),
        (' as " Craig " in " Teddy \'s Story " of', 'as "Craig" in "Teddy\'s Story" of'),
        (" they don 't and I 've , the Knights ' coach", "they don't and I've, the Knights' coach"),
        (" costs $ 5 or £ 3 , [ sic ] 50 % ", "costs $5 or £3, [sic] 50%"),
        (" Robert <unk> 's son \n", "Robert <unk>'s son\n"),
    ],
)
def test_lines_of_wikitext(tokenized: str, plain: str) -> None:
    assert detokenize(tokenized) == plain

"""Corpora: listing, refusals, local files, documents, and splits that share none."""

from itertools import islice
from pathlib import Path

import datasets
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.errors import DatasetError
from backend.models.sources.toy.stories import stories
from backend.text import corpora as corpora_module
from backend.text import files
from backend.text.corpora import corpora, documents, preprocessing, require_corpus, select_split
from backend.text.files import detokenize
from benchmarks.toy import TRAIN_SEED
from tests.text.conftest import write


def test_the_list_of_corpora(text_dir: Path) -> None:
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
        ("wikitext2", "hub"),
        ("c4", "hub"),
        ("wikipedia", "slimscope setup"),
        ("nothing", "Choose one of: toystories"),
        ("file:", "SLIMSCOPE_TEXT_DIR"),
        ("file:../secret.txt", "SLIMSCOPE_TEXT_DIR"),
        ("../secret.txt", "SLIMSCOPE_TEXT_DIR"),
    ],
)
def test_refusals_name_field_and_way_out(text_dir: Path, name: str, says: str, field: str) -> None:
    (text_dir.parent / "secret.txt").write_text("secret")
    with pytest.raises(DatasetError, match=says) as refused:
        require_corpus(name, field)
    assert refused.value.field == field
    assert refused.value.what and refused.value.why and refused.value.do


def test_self_generated_text_is_not_for_evaluation(text_dir: Path) -> None:
    assert require_corpus("self", "calibration_text").name == "self"
    with pytest.raises(DatasetError, match="cannot be the evaluation text"):
        require_corpus("self", "evaluation_text")


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("a.jsonl", b"no json\n", "Line 1"),
        ("a.jsonl", b'{"title": 1}\n', "neither"),
        ("a.jsonl", b'{"messages": [3]}\n', "message"),
        ("a.jsonl", b'{"text": "a"}\n' * 3000 + b'{"text": "b\\ud83d"}\n', "Line 3001"),
        ("a.txt", b"caf\xe9 au lait", "utf-8"),
    ],
)
def test_an_invalid_file_is_refused(text_dir: Path, name: str, content: bytes, why: str) -> None:
    (text_dir / name).write_bytes(content)
    with pytest.raises(DatasetError, match=why) as refused:
        require_corpus(f"file:{name}", "calibration_text")
    assert refused.value.field == "calibration_text"


def test_a_pair_of_surrogates_is_one_character(text_dir: Path) -> None:
    (text_dir / "a.jsonl").write_bytes(b'{"text": "a \\ud83d\\ude00 \\\\ud83d"}\n')
    require_corpus("file:a.jsonl", "calibration_text")
    assert read("a.jsonl") == ["a \U0001f600 \\ud83d"]


def read(name: str) -> list[str]:
    return list(files.documents(files.corpus_paths(name)))


def test_titles_start_documents(text_dir: Path) -> None:
    (text_dir / "a.txt").write_text("# One\n\n## Part\n\nText.\n# Two\nMore.\n")
    assert read("a.txt") == ["# One\n\n## Part\n\nText.\n", "# Two\nMore.\n"]
    (text_dir / "w.txt").write_text(
        " \n = One = \n \n = = Part = = \n long @-@ term . \n = Two = \n"
    )
    assert read("w.txt") == ["= One =\n\n= = Part = =\nlong-term.\n", "= Two =\n"]


def test_a_folder_is_read_file_by_file_in_order(text_dir: Path) -> None:
    folder = text_dir / "many"
    folder.mkdir()
    (folder / "b.txt").write_text("second")
    (folder / "a.txt").write_text("first")
    (folder / "c.md").write_text("no text")
    write(folder, "c.jsonl", [{"text": "third", "id": 1}])
    assert read("many") == ["first", "second", "third"]
    assert files.local_names() == ["many"]
    assert read("many/b.txt") == ["second"]


@pytest.mark.parametrize(
    "name",
    [
        "../secret.txt",
        "link.txt",
        "linked",
        "linked/secret.txt",
        "/etc/hosts",
        "",
        "a\0b.txt",
        "x" * 300 + ".txt",
        "empty.txt",
        "notes.md",
        ".hidden.txt",
        "absent.txt",
        "full/link.txt",
    ],
)
def test_other_files_are_never_read(text_dir: Path, name: str) -> None:
    outside = text_dir.parent / "outside"
    outside.mkdir()
    for secret in (text_dir.parent / "secret.txt", outside / "secret.txt"):
        secret.write_text("secret")
    (text_dir / "full").mkdir()
    for link in (text_dir / "link.txt", text_dir / "full" / "link.txt"):
        link.symlink_to(text_dir.parent / "secret.txt")
    (text_dir / "linked").symlink_to(outside)
    (text_dir / "empty.txt").touch()
    for own in ("notes.md", ".hidden.txt"):
        (text_dir / own).write_text("text")
    assert files.corpus_paths(name) == []
    assert files.local_names() == []


def test_a_link_in_a_circle_hides_only_itself(text_dir: Path) -> None:
    (text_dir / "a.txt").write_text("text")
    (text_dir / "folder").mkdir()
    (text_dir / "folder" / "a.txt").write_text("text")
    for link in ("loop.txt", "loop", "folder/loop.txt", "gone.txt"):
        (text_dir / link).symlink_to(text_dir / ("nothing" if link == "gone.txt" else link))
    assert files.local_names() == ["a.txt", "folder"]
    assert read("folder") == ["text"]
    assert {corpus.name for corpus in corpora()} >= {"file:a.txt", "file:folder"}
    for name in ("loop.txt", "loop", "loop/a.txt", "folder/loop.txt", "gone.txt"):
        with pytest.raises(DatasetError, match="in a circle"):
            require_corpus(f"file:{name}", "evaluation_text")


def test_preprocessing_is_recorded_and_applies_to_all_files(text_dir: Path) -> None:
    folder = text_dir / "wiki"
    folder.mkdir()
    (folder / "a.txt").write_text("long @-@ term , yes")
    (folder / "b.txt").write_text("short , no")
    assert files.preprocessing(files.corpus_paths("wiki")) == "WikiText detokenized"
    assert read("wiki") == ["long-term, yes", "short, no"]
    assert files.preprocessing(files.corpus_paths("wiki/b.txt")) == ""


# documents ----------------------------------------------------------------------------------------


@given(st.integers(2, 60))
def test_two_or_more_documents_are_divided_between_the_splits(count: int) -> None:
    texts = [f"text {n}" for n in range(count)]
    calibration, evaluation = (
        [*select_split(texts, role)] for role in ("calibration", "evaluation")
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

    monkeypatch.setattr(corpora_module, "is_offline_mode", lambda: False)
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

    monkeypatch.setattr(corpora_module, "is_offline_mode", lambda: False)
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

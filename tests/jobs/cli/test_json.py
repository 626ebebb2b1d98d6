"""Tests of `--json`: every command with this option prints one JSON value and nothing else."""

import json
from pathlib import Path
from typing import Any

import pytest
import typer

from backend.queue.artifacts import work_folder
from backend.queue.service import cancel, enqueue
from jobs.cli.app import app
from tests.queue.conftest import HOST
from tests.shell import slimscope

RUN, FILE = "count-0001", "FILE"  # a run that was cancelled, and a file to write
ARGUMENTS: dict[str, list[list[str]]] = {  # the last line of each is what is looked at
    "list": [[]],
    "models": [[]],
    "doctor": [[]],
    "disk": [[]],
    "show": [[RUN]],
    "reproduce": [[RUN]],
    "resume": [[RUN]],
    "next": [["resume", RUN], [RUN]],
    "cancel": [["resume", RUN], [RUN]],
    "free": [[RUN, "--yes"]],
    "delete": [["delete", RUN, "--yes"], [RUN, "--undo"]],
    "archive": [[RUN]],
    "edit": [["edit", RUN, "--tag", "a b"], [RUN, "--name", "another name", "--untag", "a"]],
    "import": [["export", RUN, FILE], [FILE]],
    "export": [[RUN, FILE]],
    "backup": [[FILE]],
    "wait": [[RUN]],
    "logs": [[RUN]],
    "kinds": [[]],
    "texts": [[]],
    "results": [[RUN]],
    "pipeline": [["--preset", "prune, quantize", "--model", "toy"]],
    "submit": [["count", "--steps", "1"]],
}
ELSEWHERE = {
    "restore",
    "move",
    "setup",
    "vote",
    "budget",
    "chat",
    "token",
}  # need more than a run that was cancelled
EMPTY = {"results"}  # of a run that did nothing
FILE_ONLY = pytest.mark.sqlite("backups are of a file")
CODES = {"doctor": (0, 1), "wait": (3,)}


def test_every_command_but_the_servers_has_the_option() -> None:
    commands: dict[str, Any] = vars(typer.main.get_command(app))["commands"]
    options = {name: [o for p in c.params for o in p.opts] for name, c in commands.items()}
    without = {name for name, flags in options.items() if "--json" not in flags}
    assert without == {"serve", "mcp", "submit"}  # which has a command for each kind
    assert options.keys() - without == ARGUMENTS.keys() - {"submit"} | ELSEWHERE


@pytest.mark.parametrize(
    "command",
    [pytest.param(each, marks=FILE_ONLY) if each == "backup" else each for each in ARGUMENTS],
)
def test_one_value_is_printed(queue: Path, tmp_path: Path, command: str) -> None:
    run = enqueue("count", {"steps": 1}, HOST).run
    cancel([run], HOST)
    (work_folder(run) / "step-0").mkdir(parents=True)
    (work_folder(run) / "step-0" / "done.txt").write_text("x")
    *before, words = [
        [word.replace(FILE, str(tmp_path / "run.tar")) for word in line]
        for line in ARGUMENTS[command]
    ]
    for line in before:
        assert slimscope(*line).returncode == 0, line
    completed = slimscope(command, *words, "--json")
    assert json.loads(completed.stdout) or command in EMPTY, completed
    assert completed.stderr == "" and completed.returncode in CODES.get(command, (0,)), completed


@pytest.mark.sqlite("its backups")
def test_a_restoration_and_a_move_are_one_value_each(
    queue: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    enqueue("count", {"steps": 1}, HOST)
    backup = json.loads(slimscope("backup", str(tmp_path / "it.tar"), "--json").stdout)
    assert backup["file"] == str(tmp_path / "it.tar") and backup["bytes"] > 0
    monkeypatch.setenv("SLIMSCOPE_DATA_DIR", str(tmp_path / "other"))
    restored = json.loads(slimscope("restore", backup["file"], "--json").stdout)
    assert restored["runs"] == 1 and restored["queued"] == [RUN]
    assert slimscope("cancel", RUN).returncode == 0
    moved = slimscope("move", "--to", f"sqlite:///{tmp_path}/moved.db", "--json")
    assert json.loads(moved.stdout)["rows"] > 0, moved.stderr

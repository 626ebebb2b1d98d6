"""`--json`: one JSON value and nothing else, of every command that has it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer

from backend.queue.folders import work_folder
from backend.queue.service import cancel, enqueue
from backend.queue.supervisor import SupervisorLoop
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
    "sweep": [["submit", "count", "--sweep", "steps=1,2"], ["count-0002"]],
    "reproduce": [[RUN]],
    "resume": [[RUN]],
    "next": [["resume", RUN], [RUN]],
    "cancel": [["resume", RUN], [RUN]],
    "free": [[RUN, "--yes"]],
    "delete": [[RUN, "--yes"]],
    "undelete": [["delete", RUN, "--yes"], [RUN]],
    "archive": [[RUN]],
    "rename": [[RUN, "another name"]],
    "import": [["export", RUN, FILE], [FILE]],
    "pipeline": [["--preset", "prune, quantise", "--model", "toy"]],
    "benchmark": [["--model", "toy", "--preset", "quick look"]],
    "generate": [["Why?", "--model", "toy", "--max-new-tokens", "2"]],
    "submit": [["count", "--steps", "1"]],
}


def with_json() -> list[str]:
    """The commands that have the option; `submit` has those of the kinds."""
    commands: dict[str, Any] = vars(typer.main.get_command(app))["commands"]
    options = {name: [o for p in c.params for o in p.opts] for name, c in commands.items()}
    return [name for name, found in options.items() if "--json" in found or name == "submit"]


@pytest.mark.parametrize("command", with_json())
def test_one_value_is_printed(supervised: SupervisorLoop, tmp_path: Path, command: str) -> None:
    run = enqueue("count", {"steps": 1}, HOST).run
    cancel(run, HOST)
    (work_folder(run) / "step-0").mkdir(parents=True)
    (work_folder(run) / "step-0" / "done.txt").write_text("x")
    *before, words = [
        [str(tmp_path / "run.tar") if word == FILE else word for word in line]
        for line in ARGUMENTS[command]
    ]
    for line in before:
        assert slimscope(*line).returncode == 0, line
    turn = supervised.turn if command in ("benchmark", "generate") else None
    done = slimscope(command, *words, "--json", meanwhile=turn)
    assert json.loads(done.stdout) and done.stderr == "", done
    assert done.returncode == 0 or command == "doctor", done


def test_a_pipeline_that_is_only_shown_is_one_value_too(queue: Path) -> None:
    shown = slimscope("pipeline", "--preset", "prune, quantise", "--show", "--json")
    assert json.loads(shown.stdout).startswith("name: prune, quantise\n")


def test_a_refusal_prints_no_value(queue: Path) -> None:
    refused = slimscope("show", RUN, "--json")
    assert refused.returncode == 2 and refused.stdout == "" and RUN in refused.stderr

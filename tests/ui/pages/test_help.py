"""The page Help says what is true: its examples are carried out here."""

import contextlib
import io
import shlex
from typing import Any

import pytest
import typer.main

from backend.settings import Settings
from jobs.cli import app as cli
from tests.ui.lab import job, measured
from ui.api import build
from ui.format import esc
from ui.pages.help import page
from ui.runs.columns import columns
from ui.runs.rows import rows
from ui.runs.view import parse_filter


def test_every_model_and_text_is_named_with_its_license(seeded: Settings) -> None:
    html = page.HTML.licenses(page.sources())
    for name, license in (
        ("toy", "same as Slimscope"),
        ("smollm2-135m", "Apache-2.0"),
        ("wikipedia", "CC BY-SA 3.0 / GFDL"),
        ("c4", "ODC-By 1.0"),
    ):
        assert f"<code>{name}</code>" in html and esc(license) in html
    assert "<code>/" not in html and "file:" not in html


@pytest.mark.parametrize("text", page.FILTERS)
def test_every_filter_is_understood(text: str) -> None:
    known = columns(rows([job(1)], measured(1, 12.0)))
    found = parse_filter(text, known)
    assert found.terms and not found.problems


@pytest.mark.parametrize("line", page.COMMANDS)
def test_every_shell_line_is_one_the_command_line_takes(line: str) -> None:
    program, *words = shlex.split(line)
    assert program == "slimscope"
    command: Any = typer.main.get_command(cli.app)
    while commands := getattr(command, "commands", None):
        command = commands[words.pop(0)]
    command.make_context(program, words)  # raises where an option or a value is none


def test_every_request_is_one_the_api_answers() -> None:
    paths = build().openapi()["paths"]
    for example in page.REQUESTS:
        method, where = example.split(" ")
        where = where.partition("?")[0].replace("sds-0001", "{run}")
        assert method.lower() in paths[where], example


def test_the_python_example_runs(seeded: Settings) -> None:
    with contextlib.redirect_stdout(io.StringIO()) as said:
        exec(page.PYTHON, {})
    assert "sds-0001 succeeded toy" in said.getvalue() and "perplexity" in said.getvalue()

"""Tests that a page of the docs names."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def rows_of(page: str, section: str) -> list[str]:
    """The rows of the table in a section ("## Faults") of a page in docs/."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    lines = re.split("\n##+ ", text.split(f"\n{section}\n")[1])[0].splitlines()
    return [line for line in lines if line.startswith("|")][2:]  # below the heads


def named_tests(row: str) -> set[str]:
    """The names of tests in a row."""
    return set(re.findall(r"`(test_\w+)`", row))


def existing_tests() -> set[str]:
    """The names of all tests there are."""
    code = "\n".join(path.read_text(encoding="utf-8") for path in ROOT.glob("tests/**/test_*.py"))
    return set(re.findall(r"^def (test_\w+)\(", code, re.MULTILINE))

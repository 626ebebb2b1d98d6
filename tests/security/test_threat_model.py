"""The page on security names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_attack_names_a_test_there_is() -> None:
    table = (ROOT / "docs" / "security.md").read_text(encoding="utf-8").split("## Attacks")[1]
    named = set(re.findall(r"`(test_\w+)`", table))
    code = "\n".join(path.read_text(encoding="utf-8") for path in ROOT.glob("tests/**/test_*.py"))
    assert named and named - set(re.findall(r"^def (test_\w+)\(", code, re.MULTILINE)) == set()

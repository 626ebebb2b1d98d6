"""The benchmark of drafters, with a few steps for every arm."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from backend.drafters.config import ARMS
from benchmarks import amphista

SMALL = ("--answers=20", "--answer-tokens=12", "--steps=2", "--batch=2", "--seeds=2",
         "--judged=3", "--prompts=1", "--rounds=1", "--threads=1")  # fmt: skip


def test_every_arm_is_trained_and_decodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["bench", f"--folder={tmp_path}", *SMALL])
    amphista.main()
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["accepted"].keys() == ARMS.keys()
    for seeds in found["accepted"].values():
        assert len(seeds) == 2
        assert all(len(each) == 4 and min(each) >= 1 for of in seeds for each in of.values())
    assert found["predicted"].keys() == found["decoded"].keys()
    for exact in ("vanilla", "Prompt lookup"):  # cached states of 16 bits may tip a tree
        assert found["predicted"][exact] == pytest.approx(found["decoded"][exact])
    combined = {f"Prompt lookup + {arm}" for arm in ARMS}
    assert found["speed_up"].keys() == ARMS.keys() | combined | {"vanilla", "Prompt lookup"}
    assert found["generate_ratio"] > 0

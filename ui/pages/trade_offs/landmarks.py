"""Files that llama.cpp makes of the same model, as `make bench-budget` has measured them."""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Landmark:
    """A file: its megabytes, and its perplexity over dense with the 95 % interval."""

    file: str
    megabytes: float
    ratio: float
    low: float
    high: float


def landmarks_of(mark: str) -> list[Landmark]:
    """Those of the model with these weights, by their fingerprint; of others there are none."""
    return [Landmark(**one) for one in _stored()["models"].get(mark, [])]


def source() -> str:
    """How and on what text they were measured."""
    return str(_stored()["source"])


@cache
def _stored() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(__file__).with_suffix(".json").read_text())
    return found

"""The prompts of a job: fields shared by the kinds that decode."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from backend.models.facts import ModelFacts
from backend.options import Options, option
from backend.text.prompts import BUILT_IN, STORIES
from jobs.fields.types import PromptSet


class PromptConfig(Options):
    """Where prompts come from."""

    prompts: PromptSet = option("auto", examples=["auto", BUILT_IN, STORIES])
    """auto: the built-in ones that suit the model. file:NAME.jsonl: your own, such as the questions
    of MT-Bench or Spec-Bench; only the first turn is used."""


def default_prompts(facts: ModelFacts) -> str:
    """The name of the prompt set that suits the model."""
    return STORIES if facts.default_text == STORIES else BUILT_IN


def prompt_set(config: PromptConfig, facts: ModelFacts) -> str:
    """The name of the prompt set; auto is the one that suits the model."""
    return default_prompts(facts) if config.prompts == "auto" else config.prompts


def prompt_facts(name: str, rows: Sequence[Sequence[int]]) -> dict[str, Any]:
    """What identifies prompts, given as token ids: their set, number and sha256."""
    digest = hashlib.sha256(json.dumps([list(row) for row in rows]).encode())
    return {"corpus": name, "sha256": digest.hexdigest(), "count": len(rows)}

"""The prompts a job asks: fields shared by the kinds that write, time or show answers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, Field

from backend.models.facts import ModelFacts
from backend.text.prompts import BUILT_IN, STORIES, require_prompts


class PromptConfig(BaseModel):
    """Where prompts come from."""

    prompts: str = Field(
        "auto",
        min_length=1,
        max_length=300,
        title="Prompts",
        description="auto: the built-in ones that suit the model. file:NAME.jsonl: your own, such "
        "as the questions of MT-Bench or Spec-Bench; of several turns the first is asked.",
        examples=["auto", BUILT_IN, STORIES],
    )


def prompt_set(config: PromptConfig, facts: ModelFacts) -> str:
    """The set meant: auto is the one that suits the model."""
    suits = STORIES if facts.default_text == STORIES else BUILT_IN
    return suits if config.prompts == "auto" else config.prompts


def check_prompts(config: PromptConfig, facts: ModelFacts) -> str:
    """The set meant, if it is there.

    Raises:
        TextRefused: it is not.
    """
    name = prompt_set(config, facts)
    require_prompts(name, "prompts")
    return name


def prompt_facts(name: str, rows: Sequence[Sequence[int]]) -> dict[str, Any]:
    """What identifies prompts, given as token ids: their set, their number, and their sha256."""
    digest = hashlib.sha256(json.dumps([list(row) for row in rows]).encode())
    return {"corpus": name, "sha256": digest.hexdigest(), "count": len(rows)}

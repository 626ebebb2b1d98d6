"""Prompts: what a model is asked, to write training answers or to be timed.

- built-in, both written for this program (`prompts.json`): a benchmark of eight prompts in each of
  six task kinds, and templates with slots from which any number of training prompts is filled, none
  of them one of the benchmark: the same kinds, and two that ask about a passage or for a
  translation. The passages are ours as well, or from the Wikipedia sample where it is set up.
  Of the templates every sixth of a task, and of the texts in them as many, are for prompts that
  are held out: a drafter is judged on wordings and texts it has not learnt from.
- `file:NAME`: lines of a .jsonl file under SLIMSCOPE_TEXT_DIR, each with "turns" (its first is
  taken), "prompt", "instruction", "question" or "text", and perhaps "category": the question files
  of MT-Bench and Spec-Bench can be read as they are.
- toystories: beginnings of stories, for models without a chat template.

A prompt is put into the tokenizer's chat template where it has one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import Any

from backend.errors import DatasetError
from backend.models.sources.toy.stories import stories
from backend.text import files
from backend.text.corpora import WIKIPEDIA, prepared
from backend.text.documents import documents

BUILT_IN, STORIES = "built-in", "toystories"
SELF = "self-written"  # by the model that answers them; only to learn from
KEYS = ("turns", "prompt", "instruction", "question", "text")
SPEC_BENCH = frozenset(  # the eight categories of MT-Bench are one task of Spec-Bench
    ["writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities"]
)
TRAIN_SEED, BENCHMARK_SEED = 5, 6  # of story beginnings; the toy learnt from 1
BEGINNING = 2  # sentences of a story that are given
HELD_EVERY = 6  # one template, or text, of so many is for held-out prompts
PAGES_SHARE = 0.75  # of passages that are taken from the Wikipedia sample
PASSAGE = 150, 900  # characters of such a passage
SENTENCE = re.compile(r"(?<=[a-z0-9)]{2}[.!?]) (?=[A-Z])")  # where the next begins; not "U.S. "


@dataclass(frozen=True)
class Prompt:
    """One prompt.

    Attributes:
        id: unique in its set; task: the kind of task, to group results by; category: part of it.
    """

    id: str
    task: str
    text: str
    category: str = ""


@lru_cache
def _built_in() -> dict[str, Any]:
    data: dict[str, Any] = json.loads((Path(__file__).parent / "prompts.json").read_text("utf-8"))
    return data


def benchmark_prompts(name: str, count: int = 0) -> list[Prompt]:
    """The prompts of set `name`, in turn from each task and in it from each category, `count` at
    most (0: all).

    Raises:
        DatasetError: there is no such set, or a line of it is no prompt.
    """
    if name == BUILT_IN:
        tasks = _built_in()["benchmark"]
        found = [
            Prompt(f"{task}-{n}", task, text)
            for task, texts in tasks.items()
            for n, text in enumerate(texts)
        ]
    elif name == STORIES:
        found = _beginnings(BENCHMARK_SEED, count or 48)
    else:
        found = _from_file(name)
    by_category = in_turn(found, lambda prompt: prompt.category)
    return in_turn(by_category, lambda prompt: prompt.task)[: count or None]


def training_prompts(
    name: str, count: int, seed: int = 0, heldout: int = 0
) -> tuple[list[Prompt], list[Prompt]]:
    """Distinct prompts to write answers to, fixed by `seed` and by whether the Wikipedia sample is
    set up: `count` in all, of which `heldout` to judge by; fewer to learn from where a file has
    fewer.

    Raises:
        DatasetError: there is no such set.
    """
    if name == BUILT_IN:
        return _filled(count - heldout, seed, held=False), _filled(heldout, seed, held=True)
    if name == STORIES:
        found = _beginnings(TRAIN_SEED + 1000 * (seed + 1), count)
    else:
        found = _from_file(name)
        Random(seed).shuffle(found)
    distinct = [*{prompt.text: prompt for prompt in found}.values()]
    return distinct[heldout:count], distinct[:heldout]


def in_turn(prompts: list[Prompt], kind: Callable[[Prompt], str]) -> list[Prompt]:
    """The first prompt of each kind, then the second of each, and so on."""
    seen: dict[str, int] = {}
    places = []
    for prompt in prompts:
        places.append(seen.get(kind(prompt), 0))
        seen[kind(prompt)] = places[-1] + 1
    return [p for _, p in sorted(zip(places, prompts, strict=True), key=lambda pair: pair[0])]


def _filled(count: int, seed: int, held: bool) -> list[Prompt]:
    """Templates of all tasks in turn, their slots filled by chance; no prompt twice.

    Args:
        held: from the templates and texts kept for held-out prompts, else from the others.
    """
    dice, data = Random(f"{seed} {held}"), _built_in()
    templates = {task: _kept(each, held) for task, each in data["templates"].items()}
    texts = PromptTexts(data["slots"], _kept(data["passages"], held), _kept(_pages(), held))
    tales = _kept(stories(TRAIN_SEED + seed, max(64, count // 4)), held)
    foreign, tasks = _kept(data["foreign"], held), list(templates)
    benchmark = {text for each in data["benchmark"].values() for text in each}
    found: dict[str, Prompt] = {}
    for number in range(20 * count):
        if len(found) == count:
            break
        task, passage = tasks[number % len(tasks)], texts.passage(dice)
        given = {
            "passage": passage,
            "sentence": SENTENCE.split(passage)[0],
            "foreign": dice.choice(foreign),
            "story": dice.choice(tales),
        }
        text = _fill(dice.choice(templates[task]), data["slots"], dice, **given)
        if text not in benchmark:
            found.setdefault(text, Prompt(f"{task}-{len(found)}", task, text))
    return list(found.values())


@dataclass(frozen=True)
class PromptTexts:
    """What prompts ask about: notices with slots, and pages of paragraphs."""

    slots: dict[str, list[str]]
    notices: list[str]
    pages: list[str]

    def passage(self, dice: Random) -> str:
        """A notice, or whole sentences from the beginning of a paragraph."""
        if not self.pages or dice.random() >= PAGES_SHARE:
            return _fill(dice.choice(self.notices), self.slots, dice)
        first, *more = SENTENCE.split(dice.choice(dice.choice(self.pages).split("\n\n")))
        longest, passage = dice.randint(*PASSAGE), first
        for sentence in more:
            if len(passage) + len(sentence) >= longest:
                break
            passage += " " + sentence
        return passage


def has_pages() -> bool:
    """Whether the Wikipedia sample is set up, of which prompts ask about passages."""
    return prepared().find(WIKIPEDIA) is not None


def _pages() -> list[str]:
    """Articles of the Wikipedia sample, none of those kept to measure perplexity; none where it
    is not set up."""
    return list(documents(WIKIPEDIA, "calibration")) if has_pages() else []


def _kept(texts: list[str], held: bool) -> list[str]:
    """The texts kept for held-out prompts, which is the last of `HELD_EVERY` or fewer; or the
    others."""
    every = min(HELD_EVERY, len(texts))
    return [text for n, text in enumerate(texts) if (n % every == every - 1) == held]


def _fill(template: str, slots: dict[str, list[str]], dice: Random, **more: str) -> str:
    chosen = {name: dice.choice(values) for name, values in slots.items()}
    chosen |= {f"{name}2": dice.choice(slots[name]) for name in ("person", "name", "concept")}
    return template.format_map(chosen | more)


def _beginnings(seed: int, count: int) -> list[Prompt]:
    """The first sentences of generated stories."""
    found = []
    for n, story in enumerate(stories(seed, count)):
        sentences = story.split(". ")
        found.append(Prompt(f"story-{n}", "story", ". ".join(sentences[:BEGINNING]) + "."))
    return found


def require_prompts(name: str, field: str) -> None:
    """Reject a set of prompts that is not there, naming the config's field."""
    if name in (BUILT_IN, STORIES):
        return
    try:
        _from_file(name)
    except DatasetError as error:
        raise DatasetError(error.what, error.why, error.do, field) from error


def _from_file(name: str) -> list[Prompt]:
    found: list[Prompt] = []
    if name == SELF:
        raise DatasetError(
            "There are no self-written prompts to be asked.",
            "The model writes them only to learn from its answers.",
            f"Choose {BUILT_IN}, {STORIES} or file:NAME.jsonl.",
        )
    inner = name.removeprefix(files.PREFIX)
    for path in files.paths(inner) if inner != name else []:
        if path.suffix == ".jsonl":
            with path.open(encoding="utf-8") as lines:
                found += [
                    _read(line, path.name, n) for n, line in enumerate(lines, 1) if line.strip()
                ]
    if not found:
        raise DatasetError(
            f"There are no prompts called {name[:80]!r}.",
            "Prompts are .jsonl files inside SLIMSCOPE_TEXT_DIR.",
            f"Choose {BUILT_IN}, {STORIES} or file:NAME.jsonl.",
        )
    return found


def _read(line: str, file: str, number: int) -> Prompt:
    """One line as a prompt.

    Raises:
        DatasetError: it holds no text under a known key.
    """
    try:
        row = json.loads(line)
        value = next(row[key] for key in KEYS if row.get(key))
        text = value[0] if isinstance(value, list) else value
        if not isinstance(text, str):
            raise ValueError
    except (ValueError, StopIteration, AttributeError, IndexError) as error:
        raise DatasetError(
            f"Line {number} of {file} is no prompt.",
            f"It holds no text under {', '.join(KEYS)}.",
            "Give one JSON object a line.",
        ) from error
    category = str(row.get("category", "prompts"))
    task = "mt_bench" if category in SPEC_BENCH else category
    return Prompt(str(row.get("question_id", number)), task, text, category)

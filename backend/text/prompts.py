"""Prompt sets for training and benchmarks. No training prompt equals a built-in benchmark prompt.

- built-in (`prompts.json`): a benchmark of eight prompts in each of six tasks, and templates that
  generate training prompts from slots and passages (built in, or from the Wikipedia sample). Every
  sixth template and text is used for held-out prompts only.
- `file:NAME`: a .jsonl file; each line is a conversation, whose first user message is the prompt,
  or has a field "text"; optionally a "category", as in MT-Bench and Spec-Bench.
- toystories: openings of stories, for models without a chat template."""

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
from backend.text.corpora import WIKIPEDIA, corpus_cache, corpus_files, documents
from backend.text.files import USER, conversation, line_text

BUILT_IN, STORIES = "built-in", "toystories"
SELF = "self-written"  # written by the target model; for training only
SPEC_BENCH = frozenset(  # the eight categories of MT-Bench form one task of Spec-Bench
    ["writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities"]
)
TRAIN_SEED, BENCHMARK_SEED = 5, 6  # seeds of stories; the built-in model was trained on seed 1
HELDOUT_INTERVAL = 6  # templates and texts; the last of each interval is held out
PAGES_SHARE = 0.75  # share of passages from the Wikipedia sample
PASSAGE_CHARACTERS = 150, 900  # range of the maximum length of a Wikipedia passage
SENTENCE = re.compile(r"(?<=[a-z0-9)]{2}[.!?]) (?=[A-Z])")  # sentence boundary; not "U.S. "

Slots = dict[str, list[str]]


@dataclass(frozen=True)
class Prompt:
    """Prompt of a set.

    Attributes:
        id: unique in its set.
        task: group of its results.
        category: subset of the task.
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
    """Return at most `count` prompts of set `name` (0: all), round-robin over tasks and their
    categories. Raises DatasetError: there is no such set, or one of its lines is not a prompt."""
    if name == BUILT_IN:
        tasks = _built_in()["benchmark"]
        prompts = [
            Prompt(f"{task}-{n}", task, text)
            for task, texts in tasks.items()
            for n, text in enumerate(texts)
        ]
    elif name == STORIES:
        prompts = _story_openings(BENCHMARK_SEED, count or 48)
    else:
        prompts = _from_file(name)
    by_category = round_robin(prompts, lambda prompt: prompt.category)
    return round_robin(by_category, lambda prompt: prompt.task)[: count or None]


def training_prompts(
    name: str, count: int, seed: int = 0, heldout: int = 0
) -> tuple[list[Prompt], list[Prompt]]:
    """Return `count` distinct prompts: those for training, and `heldout` held-out ones.

    Reproducible for the same `seed` and Wikipedia sample. A file with fewer prompts gives fewer
    training prompts. Raises DatasetError: there is no such set."""
    if name == BUILT_IN:
        training = _generate(count - heldout, seed, heldout=False)
        return training, _generate(heldout, seed, heldout=True)
    if name == STORIES:
        prompts = _story_openings(TRAIN_SEED + 1000 * (seed + 1), count)
    else:
        prompts = _from_file(name)
        Random(seed).shuffle(prompts)
    distinct = [*{prompt.text: prompt for prompt in prompts}.values()]
    return distinct[heldout:count], distinct[:heldout]


def round_robin(prompts: list[Prompt], kind: Callable[[Prompt], str]) -> list[Prompt]:
    """Sort prompts round-robin: the first prompt of each kind, then the second of each, and so
    on."""
    counts: dict[str, int] = {}
    ranks = []  # position of each prompt among the prompts of its kind
    for prompt in prompts:
        ranks.append(counts.get(kind(prompt), 0))
        counts[kind(prompt)] = ranks[-1] + 1
    return [p for _, p in sorted(zip(ranks, prompts, strict=True), key=lambda pair: pair[0])]


def _generate(count: int, seed: int, heldout: bool) -> list[Prompt]:
    """Generate distinct prompts from the templates, round-robin over tasks, with random slot
    values. `heldout`: True for the held-out templates and texts, else the others."""
    rng, data = Random(f"{seed} {heldout}"), _built_in()
    templates = {task: _split(texts, heldout) for task, texts in data["templates"].items()}
    pages = list(documents(WIKIPEDIA, "calibration")) if has_wikipedia_sample() else []
    notices, pages = _split(data["passages"], heldout), _split(pages, heldout)
    openings = _split(stories(TRAIN_SEED + seed, max(64, count // 4)), heldout)
    foreign, tasks = _split(data["foreign"], heldout), list(templates)
    benchmark = {text for texts in data["benchmark"].values() for text in texts}
    prompts: dict[str, Prompt] = {}
    for number in range(20 * count):
        if len(prompts) == count:
            break
        task = tasks[number % len(tasks)]
        passage = _passage(rng, data["slots"], notices, pages)
        fields = {
            "passage": passage,
            "sentence": SENTENCE.split(passage)[0],
            "foreign": rng.choice(foreign),
            "story": rng.choice(openings),
        }
        text = _fill(rng.choice(templates[task]), data["slots"], rng, **fields)
        if text not in benchmark:
            prompts.setdefault(text, Prompt(f"{task}-{len(prompts)}", task, text))
    return list(prompts.values())


def _passage(rng: Random, slots: Slots, notices: list[str], pages: list[str]) -> str:
    """Return a notice, or the first sentences of a paragraph of a Wikipedia page."""
    if not pages or rng.random() >= PAGES_SHARE:
        return _fill(rng.choice(notices), slots, rng)
    first, *more = SENTENCE.split(rng.choice(rng.choice(pages).split("\n\n")))
    max_characters, passage = rng.randint(*PASSAGE_CHARACTERS), first
    for sentence in more:
        if len(passage) + len(sentence) >= max_characters:
            break
        passage += " " + sentence
    return passage


def has_wikipedia_sample() -> bool:
    """Return True if the Wikipedia sample is set up; prompts then use its passages."""
    return corpus_cache().find(WIKIPEDIA) is not None


def _split(texts: list[str], heldout: bool) -> list[str]:
    """Return the held-out texts, every `HELDOUT_INTERVAL`-th, or the others."""
    interval = min(HELDOUT_INTERVAL, len(texts))
    return [text for n, text in enumerate(texts) if (n % interval == interval - 1) == heldout]


def _fill(template: str, slots: Slots, rng: Random, **more: str) -> str:
    fields = {name: rng.choice(values) for name, values in slots.items()}
    fields |= {f"{name}2": rng.choice(slots[name]) for name in ("person", "name", "concept")}
    return template.format_map(fields | more)


def _story_openings(seed: int, count: int) -> list[Prompt]:
    """Return openings of generated stories, two sentences each."""
    parts = (story.split(". ")[:2] for story in stories(seed, count))
    return [Prompt(f"story-{n}", "story", ". ".join(part) + ".") for n, part in enumerate(parts)]


def require_prompts(name: str, field: str) -> None:
    """Check that prompt set `name` exists. Raises DatasetError: it does not, or a line is not a
    prompt; with the config field `field`."""
    try:
        if name not in (BUILT_IN, STORIES):
            _from_file(name)
    except DatasetError as error:
        raise DatasetError(error.what, error.why, error.do, field) from error


def _from_file(name: str) -> list[Prompt]:
    prompts: list[Prompt] = []
    if name == SELF:
        raise DatasetError(
            "Self-written prompts are not available here.",
            "The model generates them for training only.",
            f"Choose {BUILT_IN}, {STORIES} or file:NAME.jsonl.",
        )
    for path in corpus_files(name) if name != WIKIPEDIA else []:
        if path.suffix == ".jsonl":
            with path.open("rb") as lines:
                prompts += [
                    _parse_line(line, path.name, n)
                    for n, line in enumerate(lines, 1)
                    if line.strip()
                ]
    if not prompts:
        raise DatasetError(
            f"There are no prompts named {name[:80]!r}.",
            "Prompts are .jsonl files in SLIMSCOPE_TEXT_DIR.",
            f"Choose {BUILT_IN}, {STORIES} or file:NAME.jsonl.",
        )
    return prompts


def _parse_line(line: bytes, file: str, number: int) -> Prompt:
    """Parse a line as a prompt. Raises DatasetError: it has no text in a known field."""
    try:
        row = json.loads(line)
        questions = (m.content for m in conversation(row) if m.role == USER)
        text = next(questions, None) or line_text(row)
        if not text.strip():
            raise ValueError
    except (ValueError, RecursionError) as error:
        raise DatasetError(
            f"Line {number} of {file} is not a prompt.",
            "It has neither a user message nor a text.",
            'Write one JSON object per line, such as {"prompt": "Why?"} or {"messages": […]}.',
        ) from error
    category = str(row.get("category", "prompts"))
    task = "mt_bench" if category in SPEC_BENCH else category
    return Prompt(str(row.get("question_id", number)), task, text, category)

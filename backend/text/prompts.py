"""Prompt sets for training data and benchmarks, for which no benchmark prompt is generated.

- built-in (`prompts.json`): a benchmark of eight prompts in each of six tasks, and templates that
  generate training prompts from slots and passages (built in, or of the Wikipedia sample). Every
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
from backend.text.corpora import WIKIPEDIA, documents, prepared, sources
from backend.text.files import USER, conversation, text_of

BUILT_IN, STORIES = "built-in", "toystories"
SELF = "self-written"  # written by the model that answers them; for training only
SPEC_BENCH = frozenset(  # the eight categories of MT-Bench form one task of Spec-Bench
    ["writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities"]
)
TRAIN_SEED, BENCHMARK_SEED = 5, 6  # of story openings; the toy model was trained on seed 1
HELDOUT_INTERVAL = 6  # every n-th template and text is for held-out prompts
PAGES_SHARE = 0.75  # share of passages from the Wikipedia sample
PASSAGE = 150, 900  # characters of a Wikipedia passage
SENTENCE = re.compile(r"(?<=[a-z0-9)]{2}[.!?]) (?=[A-Z])")  # sentence boundary; not "U.S. "

Slots = dict[str, list[str]]


@dataclass(frozen=True)
class Prompt:
    """One prompt."""

    id: str  # unique in its set
    task: str  # results are grouped by it
    text: str
    category: str = ""  # subset of the task


@lru_cache
def _built_in() -> dict[str, Any]:
    data: dict[str, Any] = json.loads((Path(__file__).parent / "prompts.json").read_text("utf-8"))
    return data


def benchmark_prompts(name: str, count: int = 0) -> list[Prompt]:
    """At most `count` prompts of set `name` (0: all), round-robin over tasks and their categories.
    Raises DatasetError: there is no such set, or one of its lines is not a prompt."""
    if name == BUILT_IN:
        tasks = _built_in()["benchmark"]
        prompts = [
            Prompt(f"{task}-{n}", task, text)
            for task, texts in tasks.items()
            for n, text in enumerate(texts)
        ]
    elif name == STORIES:
        prompts = _beginnings(BENCHMARK_SEED, count or 48)
    else:
        prompts = _from_file(name)
    by_category = in_turn(prompts, lambda prompt: prompt.category)
    return in_turn(by_category, lambda prompt: prompt.task)[: count or None]


def training_prompts(
    name: str, count: int, seed: int = 0, heldout: int = 0
) -> tuple[list[Prompt], list[Prompt]]:
    """`count` distinct prompts: those for training, and `heldout` held-out ones.

    Reproducible for the same `seed` and Wikipedia sample. A file with fewer prompts gives fewer
    training prompts. Raises DatasetError: there is no such set."""
    if name == BUILT_IN:
        return _filled(count - heldout, seed, held=False), _filled(heldout, seed, held=True)
    if name == STORIES:
        prompts = _beginnings(TRAIN_SEED + 1000 * (seed + 1), count)
    else:
        prompts = _from_file(name)
        Random(seed).shuffle(prompts)
    distinct = [*{prompt.text: prompt for prompt in prompts}.values()]
    return distinct[heldout:count], distinct[:heldout]


def in_turn(prompts: list[Prompt], kind: Callable[[Prompt], str]) -> list[Prompt]:
    """Round-robin order: the first prompt of each kind, then the second of each, and so on."""
    seen: dict[str, int] = {}
    places = []
    for prompt in prompts:
        places.append(seen.get(kind(prompt), 0))
        seen[kind(prompt)] = places[-1] + 1
    return [p for _, p in sorted(zip(places, prompts, strict=True), key=lambda pair: pair[0])]


def _filled(count: int, seed: int, held: bool) -> list[Prompt]:
    """Distinct prompts from the templates, round-robin over tasks, with random slot values. `held`:
    use the held-out templates and texts; else use the others."""
    rng, data = Random(f"{seed} {held}"), _built_in()
    templates = {task: _split(each, held) for task, each in data["templates"].items()}
    pages = list(documents(WIKIPEDIA, "calibration")) if has_pages() else []
    texts = data["slots"], _split(data["passages"], held), _split(pages, held)
    openings = _split(stories(TRAIN_SEED + seed, max(64, count // 4)), held)
    foreign, tasks = _split(data["foreign"], held), list(templates)
    benchmark = {text for each in data["benchmark"].values() for text in each}
    prompts: dict[str, Prompt] = {}
    for number in range(20 * count):
        if len(prompts) == count:
            break
        task, passage = tasks[number % len(tasks)], _passage(rng, *texts)
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
    """A notice, or the first sentences of a paragraph of a page."""
    if not pages or rng.random() >= PAGES_SHARE:
        return _fill(rng.choice(notices), slots, rng)
    first, *more = SENTENCE.split(rng.choice(rng.choice(pages).split("\n\n")))
    longest, passage = rng.randint(*PASSAGE), first
    for sentence in more:
        if len(passage) + len(sentence) >= longest:
            break
        passage += " " + sentence
    return passage


def has_pages() -> bool:
    """Whether the Wikipedia sample is set up, a source of passages for prompts."""
    return prepared().find(WIKIPEDIA) is not None


def _split(texts: list[str], held: bool) -> list[str]:
    """The texts for held-out prompts, every `HELDOUT_INTERVAL`-th; or the others."""
    every = min(HELDOUT_INTERVAL, len(texts))
    return [text for n, text in enumerate(texts) if (n % every == every - 1) == held]


def _fill(template: str, slots: Slots, rng: Random, **more: str) -> str:
    chosen = {name: rng.choice(values) for name, values in slots.items()}
    chosen |= {f"{name}2": rng.choice(slots[name]) for name in ("person", "name", "concept")}
    return template.format_map(chosen | more)


def _beginnings(seed: int, count: int) -> list[Prompt]:
    """Openings of generated stories, two sentences each."""
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
    for path in sources(name) if name != WIKIPEDIA else []:
        if path.suffix == ".jsonl":
            with path.open("rb") as lines:
                prompts += [
                    _read(line, path.name, n) for n, line in enumerate(lines, 1) if line.strip()
                ]
    if not prompts:
        raise DatasetError(
            f"There are no prompts named {name[:80]!r}.",
            "Prompts are .jsonl files in SLIMSCOPE_TEXT_DIR.",
            f"Choose {BUILT_IN}, {STORIES} or file:NAME.jsonl.",
        )
    return prompts


def _read(line: bytes, file: str, number: int) -> Prompt:
    """Parse one line as a prompt. Raises DatasetError: it has no text under a known key."""
    try:
        row = json.loads(line)
        asked = (m.content for m in conversation(row) if m.role == USER)
        text = next(asked, None) or text_of(row)
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

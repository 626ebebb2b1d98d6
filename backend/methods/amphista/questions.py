"""The prompts whose answers a drafter learns from: sets that are there, and the base's own.

Heads that know the answers to a few kinds of prompts only guess those to others less well. A chat
model that is given its template up to the mark of a user goes on as a user would; sampled,
it asks something else every time. That needs no data and is the model's own idea of what people
ask (the way of Magpie, Xu et al. 2024, arXiv 2406.08464). A model without a template goes on from
its first token, and the beginning of what it writes is the prompt.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from backend.checkpoints import Checkpoints
from backend.methods.amphista.config import WRITERS
from backend.methods.amphista.target import Target
from backend.methods.amphista.writing import write_answers
from backend.reporter import REPLAY, Reporter
from backend.text.prompts import SELF, Prompt, end_ids, prompt_ids, training_prompts

LONGEST = 192  # tokens of a prompt; a longer one has lost its thread and is left out
BEGINNING = 24  # tokens of a prompt of a model without a template
TEMPERATURE = 0.8  # at 1 a small model wanders off
PATIENCE = 4  # times as many are tried as are wanted
ASK = "The base writes prompts"
USER = "\N{SYMBOL FOR RECORD SEPARATOR}"  # stands for what a user says, while a template is cut


@dataclass(frozen=True)
class Wanted:
    """Which prompts.

    Attributes:
        sets: names of sets; each gives an equal share.
        count: of them all; heldout: how many of these are to judge by.
        limit: tokens an answer may have; a prompt that leaves no room for them is left out.
    """

    sets: Sequence[str]
    count: int
    heldout: int
    limit: int
    seed: int = 0


def prompts_for(
    target: Target,
    tokenizer: PreTrainedTokenizerBase,
    wanted: Wanted,
    checkpoints: Checkpoints,
    reporter: Reporter,
) -> tuple[list[list[int]], list[list[int]]]:
    """Token ids of the prompts to learn from and of those held out, all sets mixed.

    Raises:
        TextRefused: a set is not there.
        Stopped: the reporter asked for it.
    """
    learnt: list[Prompt] = []
    heldout: list[Prompt] = []
    for number, name in enumerate(wanted.sets):
        count, held = (_share(n, number, len(wanted.sets)) for n in (wanted.count, wanted.heldout))
        if name == SELF:
            found = write_questions(target, tokenizer, count, wanted.seed, checkpoints, reporter)
            learnt, heldout = learnt + found[held:], heldout + found[:held]
        else:
            more, judges = training_prompts(name, count, wanted.seed, held)
            learnt, heldout = learnt + more, heldout + judges
    room = target.context - wanted.limit
    return _fitting(learnt, tokenizer, room), _fitting(heldout, tokenizer, room)


def _share(count: int, number: int, parts: int) -> int:
    """Of `count` things the `number`th of `parts` as equal shares as can be."""
    return count // parts + (number < count % parts)


def _fitting(
    prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase, room: int
) -> list[list[int]]:
    rows = [prompt_ids(prompt.text, tokenizer) for prompt in prompts]
    return [row for row in rows if 0 < len(row) <= room]


def write_questions(
    target: Target,
    tokenizer: PreTrainedTokenizerBase,
    count: int,
    seed: int,
    checkpoints: Checkpoints,
    reporter: Reporter,
) -> list[Prompt]:
    """`count` distinct prompts, fixed by `seed`; fewer where the base repeats itself.

    One checkpoint for each batch: an interrupted run does not begin anew.

    Raises:
        Stopped: the reporter asked for it.
    """
    texts: dict[str, None] = {}
    for number in range(-(-PATIENCE * count // WRITERS)):
        if len(texts) >= count:
            break
        place = f"prompts-{number:05d}"
        folder = checkpoints.find(place)
        if folder is None:
            batch = _batch(target, tokenizer, seed * 1_000_003 + number, reporter)
            with checkpoints.write(place) as draft:
                (draft / "prompts.json").write_text(json.dumps(batch))
        else:
            batch = json.loads((folder / "prompts.json").read_text())
        texts |= dict.fromkeys(batch)
        reporter.progress(min(len(texts), count), count, REPLAY if folder else ASK)
    return [Prompt(f"{SELF}-{n}", SELF, text) for n, text in enumerate(list(texts)[:count])]


def _batch(
    target: Target, tokenizer: PreTrainedTokenizerBase, seed: int, reporter: Reporter
) -> list[str]:
    """What a batch of users said, without those who found no end."""
    start, chat = opening(tokenizer), bool(tokenizer.chat_template)
    ends = end_ids(tokenizer, target.model.generation_config)
    limit = min(LONGEST if chat else BEGINNING, target.context // 2)
    wanted = [start] * WRITERS
    written = write_answers(target, wanted, limit, ends, TEMPERATURE, seed, reporter)
    rows = [each["ids"].tolist()[len(start) :] for each in written]
    if chat:
        rows = [row for row in rows if row and row[-1] in ends]
    texts = [str(tokenizer.decode(row, skip_special_tokens=True)).strip() for row in rows]
    return [text for text in texts if text]


def opening(tokenizer: PreTrainedTokenizerBase) -> Sequence[int]:
    """Token ids after which a user speaks, or a text begins."""
    if not tokenizer.chat_template:
        first = tokenizer.bos_token_id
        return [tokenizer.eos_token_id if first is None else first]
    message = [{"role": "user", "content": USER}]
    text = str(tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True))
    return list(tokenizer(text.split(USER)[0], add_special_tokens=False).input_ids)

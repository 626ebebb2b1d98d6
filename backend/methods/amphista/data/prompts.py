"""The prompts whose answers a drafter learns from: sets that are there, and the base's own.

Heads that know the answers to a few kinds of prompts only guess those to others less well. A chat
model that is given its template up to the mark of a user goes on as a user would; sampled, it asks
something else every time. That needs no data and is the model's own idea of what people
ask (the way of Magpie, Xu et al. 2024, arXiv 2406.08464). A model without a template goes on from
its first token, and the beginning of what it writes is the prompt.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from backend.checkpoints import Checkpoints
from backend.errors import DatasetError
from backend.methods.amphista.base_model import TargetModel
from backend.methods.amphista.config import LONGEST, WRITERS
from backend.methods.amphista.data.generation import write_answers
from backend.reporter import REPLAY, Reporter
from backend.text.prompt_ids import end_ids, readable_ids
from backend.text.prompts import SELF, Prompt, training_prompts
from backend.text.sampling import first_tokens

START = 24  # tokens of a text's beginning, the prompt of a model without a template
TEMPERATURE = 0.8  # at 1 a small model wanders off
PATIENCE = 4  # times as many are tried as are wanted
ASK = "The base writes prompts"
USER = "\N{SYMBOL FOR RECORD SEPARATOR}"  # stands for what a user says, while a template is cut
CUT = "\N{REPLACEMENT CHARACTER}"  # where a text ends within a character


@dataclass(frozen=True)
class PromptRequest:
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
    target: TargetModel,
    tokenizer: PreTrainedTokenizerBase,
    wanted: PromptRequest,
    checkpoints: Checkpoints,
    reporter: Reporter,
) -> tuple[list[list[int]], list[list[int]]]:
    """Token ids of the prompts to learn from and of those held out, all sets mixed. What the base
    does not come to ask itself, the other sets make up for.

    Raises:
        TextRefused: a set is not there, or nobody can say where a user speaks.
        Stopped: the reporter asked for it.
    """
    learnt: list[list[int]] = []
    heldout: list[list[int]] = []
    sets = sorted(wanted.sets, key=lambda name: name != SELF)

    def fitting(prompts: Sequence[Prompt]) -> list[list[int]]:
        most = target.context - wanted.limit
        return [ids for _, ids in readable_ids(prompts, tokenizer, most)]

    for number, name in enumerate(sets):
        missing = len(sets) - number
        held = (wanted.heldout - len(heldout)) // missing
        count = held + (wanted.count - wanted.heldout - len(learnt)) // missing
        if name == SELF:
            try:
                given = (count, wanted.seed, checkpoints, reporter)
                rows = fitting(write_questions(target, tokenizer, *given))
            except DatasetError as refused:
                if len(sets) == 1:
                    raise
                rows = []
                reporter.log(f"{refused.what} Other prompts take their place.")
            held = held * len(rows) // max(count, 1)
            learnt, heldout = learnt + rows[held:], heldout + rows[:held]
        else:
            more, judges = training_prompts(name, count, wanted.seed, held)
            learnt, heldout = learnt + fitting(more), heldout + fitting(judges)
    return learnt, heldout


def write_questions(
    target: TargetModel,
    tokenizer: PreTrainedTokenizerBase,
    count: int,
    seed: int,
    checkpoints: Checkpoints,
    reporter: Reporter,
) -> list[Prompt]:
    """`count` distinct prompts, fixed by `seed`; fewer where the base repeats itself.

    One checkpoint for each batch: an interrupted run does not begin anew.

    Raises:
        TextRefused: the chat template does not show where a user speaks.
        Stopped: the reporter asked for it.
    """
    turn, texts = user_turn(tokenizer), dict[str, None]()
    for number in range(-(-PATIENCE * count // WRITERS)):
        if len(texts) >= count:
            break
        place = f"prompts-{number:05d}"
        folder = checkpoints.find(place)
        if folder is None:
            batch = _batch(target, tokenizer, turn, seed * 1_000_003 + number, reporter)
            with checkpoints.write(place) as draft:
                (draft / "prompts.json").write_text(json.dumps(batch))
        else:
            batch = json.loads((folder / "prompts.json").read_text())
        if texts.keys() >= set(batch):
            break  # it has nothing new to ask
        texts |= dict.fromkeys(batch)
        reporter.progress(min(len(texts), count), count, REPLAY if folder else ASK)
    if len(texts) < count:
        reporter.log(f"The base wrote {len(texts)} of {count} prompts; it has no more to ask.")
    return [Prompt(f"{SELF}-{n}", SELF, text) for n, text in enumerate(list(texts)[:count])]


@dataclass(frozen=True)
class UserTurn:
    """Where a user speaks in a chat template.

    Attributes:
        opening: token ids before it.
        closing: the token that ends it; None where it ends with plain text.
        words: what follows it, as text.
    """

    opening: Sequence[int]
    closing: int | None
    words: str


def user_turn(tokenizer: PreTrainedTokenizerBase) -> UserTurn | None:
    """The turn of a user; None for a tokenizer without a chat template.

    Raises:
        TextRefused: the template hides it.
    """
    if not tokenizer.chat_template:
        return None
    message = [{"role": "user", "content": USER}]
    try:
        text = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
    except TemplateError as error:
        raise _hidden(f"{error}.") from error
    before, mark, after = str(text).partition(USER)
    if not mark or not after.strip():
        raise _hidden("It changes what a user says, or nothing follows it.")
    opening = tokenizer(before, add_special_tokens=False).input_ids
    first = tokenizer(after, add_special_tokens=False).input_ids[0]
    special = first in tokenizer.all_special_ids or first in tokenizer.added_tokens_decoder
    return UserTurn(opening, first if special else None, after.strip())


def _hidden(why: str) -> DatasetError:
    what = "The model's chat template does not show where a user speaks."
    return DatasetError(what, why, "Choose built-in prompts, or your own.", "prompts")


def _batch(
    target: TargetModel,
    tokenizer: PreTrainedTokenizerBase,
    turn: UserTurn | None,
    seed: int,
    reporter: Reporter,
) -> list[str]:
    """What a batch of users said, or how a batch of texts began."""
    ends = set(end_ids(tokenizer, target.model.generation_config))
    if turn:
        starts, limit = [list(turn.opening)] * WRITERS, LONGEST
        ends |= set() if turn.closing is None else {turn.closing}
    else:
        drawn = first_tokens(tokenizer, WRITERS, torch.Generator().manual_seed(seed))
        starts, limit = drawn.tolist(), START
    limit = min(limit, target.context // 2)
    written = write_answers(target, starts, limit, ends, TEMPERATURE, seed, reporter)
    rows = [each["ids"].tolist() for each in written]
    if turn:
        said = [_said(row[len(turn.opening) :], tokenizer, turn) for row in rows]
    else:
        said = [str(tokenizer.decode(row, skip_special_tokens=True)) for row in rows]
    return [text for text in (each.rstrip(CUT).strip() for each in said) if text]


def _said(row: list[int], tokenizer: PreTrainedTokenizerBase, turn: UserTurn) -> str:
    """What a user said; nothing where the turn found no end."""
    if row and row[-1] == turn.closing:
        return str(tokenizer.decode(row[:-1], skip_special_tokens=True))
    text, closed, _ = str(tokenizer.decode(row)).partition(turn.words)
    return text if closed else ""

"""Prompts to learn from: what the base asks itself, and how sets are mixed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from backend.checkpoints import Checkpoints
from backend.errors import Stopped
from backend.methods.amphista import questions
from backend.methods.amphista.questions import Wanted, opening, prompts_for, write_questions
from backend.models.loading import load
from backend.reporter import SilentReporter
from backend.text.prompts import SELF, STORIES, Prompt, prompt_ids
from tests.methods.amphista_toys import base

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerBase:
    return load("toy").tokenizer


def ask(folder: Path, tokenizer: PreTrainedTokenizerBase, count: int, seed: int) -> list[Prompt]:
    return write_questions(base(), tokenizer, count, seed, Checkpoints(folder), SilentReporter())


def test_the_base_writes_distinct_prompts_fixed_by_the_seed(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    one, again, other = (
        ask(tmp_path / name, tokenizer, 20, seed) for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert one == again != other
    assert len({prompt.text for prompt in one}) == 20 and {p.task for p in one} == {SELF}


def test_prompts_that_are_stored_are_not_written_again(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = ask(tmp_path, tokenizer, 20, 1)
    monkeypatch.setattr(questions, "write_answers", None)
    assert ask(tmp_path, tokenizer, 20, 1) == first


def test_a_user_speaks_behind_the_templates_mark(tokenizer: PreTrainedTokenizerBase) -> None:
    assert opening(tokenizer) == [tokenizer.bos_token_id]
    chat: Any = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer)
    chat.chat_template = TEMPLATE
    assert chat.decode(opening(chat)) == "<user>"


def test_a_user_without_an_end_is_left_out(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat: Any = type(tokenizer)(
        tokenizer_object=tokenizer.backend_tokenizer, eos_token=tokenizer.eos_token
    )
    chat.chat_template = TEMPLATE
    monkeypatch.setattr(questions, "end_ids", lambda *_: frozenset())
    assert ask(tmp_path, chat, 5, 1) == []


def test_sets_are_mixed_in_equal_shares_and_held_out_apart(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    wanted = Wanted((STORIES, SELF), 21, 6, limit=16)
    learnt, heldout = prompts_for(
        base(), tokenizer, wanted, Checkpoints(tmp_path), SilentReporter()
    )
    own = ask(tmp_path, tokenizer, 10, 0)
    ids = [prompt_ids(prompt.text, tokenizer) for prompt in own]
    assert (len(learnt), len(heldout)) == (15, 6)
    assert [row for row in heldout if row in ids] == ids[:3]
    assert [row for row in learnt if row in ids] == ids[3:]


def test_prompts_that_leave_no_room_are_left_out(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    wanted = Wanted((STORIES,), 12, 4, limit=base().context - 5)
    found = prompts_for(base(), tokenizer, wanted, Checkpoints(tmp_path), SilentReporter())
    assert found == ([], [])


def test_asking_stops_when_told(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    class Asked(SilentReporter):
        def should_stop(self) -> bool:
            return True

    with pytest.raises(Stopped):
        write_questions(base(), tokenizer, 20, 1, Checkpoints(tmp_path), Asked())

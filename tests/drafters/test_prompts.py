"""Training prompts: generated prompts, and mixtures of sets."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from backend.checkpoints import Checkpoints
from backend.drafters.training import prompts as questions
from backend.drafters.training.prompts import (
    PromptRequest,
    generate_prompts,
    prompts_for,
    user_turn,
)
from backend.errors import CancelledError, DatasetError
from backend.models.loading import load
from backend.reporter import SilentReporter
from backend.text.chat_template import prompt_ids
from backend.text.prompts import SELF, STORIES, Prompt
from tests.drafters.toys import base
from tests.refusals import refusal
from tests.toy_layers import Recorder

TOKENIZER = load("toy").tokenizer
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}<|endoftext|>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def ask(folder: Path, count: int, seed: int, tokenizer: Any = TOKENIZER) -> list[Prompt]:
    return generate_prompts(base(), tokenizer, count, seed, Checkpoints(folder), SilentReporter())


def test_generated_prompts_are_distinct_and_depend_on_the_seed(tmp_path: Path) -> None:
    one, again, other = (
        ask(tmp_path / name, 20, seed) for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert one == again != other
    assert len({prompt.text for prompt in one}) == 20 and {p.task for p in one} == {SELF}


def test_a_model_without_a_first_token_begins_with_any(tmp_path: Path) -> None:
    nameless = chats("")
    assert nameless.bos_token_id is None and not nameless.chat_template
    result = ask(tmp_path, 20, 1, nameless)
    assert len({prompt.text for prompt in result}) == 20
    assert len({prompt.text.split()[0] for prompt in result}) > 10
    assert result == ask(tmp_path / "again", 20, 1, nameless)


def test_stored_prompts_are_not_generated_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = ask(tmp_path, 20, 1)
    monkeypatch.setattr(questions, "write_answers", None)
    assert ask(tmp_path, 20, 1) == first


def chats(template: str = TEMPLATE) -> Any:
    """Return the toy's tokenizer with a chat template."""
    result: Any = type(TOKENIZER)(
        tokenizer_object=TOKENIZER.backend_tokenizer, eos_token=TOKENIZER.eos_token
    )
    result.chat_template = template
    return result


def scripted(monkeypatch: pytest.MonkeyPatch, tokenizer: Any, *said: str) -> None:
    """Let the target model generate the texts of `said` repeatedly."""

    def written(_: object, starts: Sequence[Sequence[int]], *__: object) -> list[dict[str, Tensor]]:
        ids = [tokenizer(text, add_special_tokens=False).input_ids for text in said]
        rows = [[*start, *ids[n % len(ids)]] for n, start in enumerate(starts)]
        return [{"ids": torch.tensor(row)} for row in rows]

    monkeypatch.setattr(questions, "write_answers", written)


def test_a_user_message_ends_at_the_closing_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat = chats()
    turn = user_turn(chat)
    assert turn is not None and chat.decode(turn.opening) == "<user>"
    assert turn.closing == TOKENIZER.eos_token_id
    scripted(monkeypatch, chat, "Who sang?<|endoftext|>", "It goes on and on")
    assert [prompt.text for prompt in ask(tmp_path, 5, 1, chat)] == ["Who sang?"]


@pytest.mark.parametrize(
    "template", ["Hello!", "{{ messages[0].content }}", "{{ raise_exception('Not here') }}"]
)
def test_other_sets_replace_a_template_without_a_user_turn(tmp_path: Path, template: str) -> None:
    chat = chats(template)
    with refusal("prompts", "user turn cannot be found", error=DatasetError):
        ask(tmp_path, 5, 1, chat)


def test_other_sets_replace_missing_prompts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages: list[str] = []
    monkeypatch.setattr(SilentReporter, "log", lambda _, text: messages.append(text))
    scripted(monkeypatch, TOKENIZER, "One day", "A cat", "The sun", "A bird")
    expected = PromptRequest((STORIES, SELF), 30, 8, limit=16)
    learned, heldout = prompts_for(
        base(), TOKENIZER, expected, Checkpoints(tmp_path), SilentReporter()
    )
    assert (len(learned), len(heldout)) == (22, 8)
    assert "only 4 distinct prompts of 15" in messages[0]
    chat = chats("Hello!")
    result = prompts_for(base(), chat, expected, Checkpoints(tmp_path / "b"), SilentReporter())
    assert (len(result[0]), len(result[1])) == (22, 8) and "user turn cannot be found" in messages[
        1
    ]


def test_interrupted_generation_resumes_with_the_same_prompts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(questions, "GENERATION_BATCH", 6)
    whole = ask(tmp_path / "whole", 15, 1)
    once = Recorder(stop=lambda told: bool(told.progressed))
    with pytest.raises(CancelledError):
        generate_prompts(base(), TOKENIZER, 15, 1, Checkpoints(tmp_path / "cut"), once)
    assert (
        len([*(tmp_path / "cut").iterdir()]) == 1
    )  # checked before the second batch, not after all batches
    assert ask(tmp_path / "cut", 15, 1) == whole and len(whole) == 15


def test_sets_are_mixed_in_equal_shares_and_held_out_apart(tmp_path: Path) -> None:
    expected = PromptRequest((STORIES, SELF), 21, 6, limit=16)
    learned, heldout = prompts_for(
        base(), TOKENIZER, expected, Checkpoints(tmp_path), SilentReporter()
    )
    own = ask(tmp_path, 10, 0)
    ids = [prompt_ids(prompt.text, TOKENIZER) for prompt in own]
    assert (len(learned), len(heldout)) == (15, 6)
    assert [row for row in heldout if row in ids] == ids[:3]
    assert [row for row in learned if row in ids] == ids[3:]

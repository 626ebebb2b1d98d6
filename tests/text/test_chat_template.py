"""Chat templates are programs of strangers: they end, and what they do wrong is told."""

from typing import Any

import pytest

from backend.drafters.training.prompts import user_turn
from backend.errors import DatasetError, ModelError
from backend.text import chat_template
from backend.text.chat_template import prompt_ids, render_chat

MESSAGES = [{"role": "user", "content": "A cat."}]
LONG = "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}"


@pytest.fixture
def speaking(tokenizer: Any) -> Any:
    """The toy's tokenizer, to be given a template."""
    return type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer)


@pytest.mark.parametrize(
    "template", [LONG, "{{ 9 ** (9 ** 9) > 3 }}", "{{ ('a' * 10 ** 8) | wordwrap(3) | length }}"]
)
def test_a_template_that_does_not_end_is_interrupted(
    speaking: Any, monkeypatch: pytest.MonkeyPatch, template: str
) -> None:
    monkeypatch.setattr(chat_template, "WORK_S", 0.2)
    speaking.chat_template = template
    with pytest.raises(ModelError, match=r"took more than 0\.2 s") as refused:
        prompt_ids("A cat.", speaking)
    assert refused.value.field == "model" and "tokenizer_config.json" in refused.value.do
    with pytest.raises(DatasetError, match=r"took more than 0\.2 s"):
        user_turn(speaking)


def test_a_template_that_fills_the_memory_is_stopped(
    speaking: Any,
) -> None:
    speaking.chat_template = (
        "{% set all = namespace(text='a' * 2 ** 20) %}{% for _ in range(30) %}"
        "{% set all.text = all.text ~ all.text %}{% endfor %}"
    )
    with pytest.raises(ModelError, match=r"took more than .* of memory"):
        render_chat(MESSAGES, speaking)


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("{{ raise_exception('Roles must alternate') }}", "Roles must alternate"),
        ("{% for", "unexpected"),
        ("{{ 'a' + 1 }}", "can only concatenate"),
        ("{{ messages.none.at_all }}", "has no attribute"),
        ("{% for a in range(10 ** 9) %}{% endfor %}", "Range too big"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
    ],
)
def test_a_template_that_fails_is_named(speaking: Any, template: str, why: str) -> None:
    speaking.chat_template = template
    with pytest.raises(ModelError, match=f"chat template of the model cannot be used. .*{why}"):
        render_chat(MESSAGES, speaking)


def test_another_template_works_after_one_that_was_ended(speaking: Any) -> None:
    speaking.chat_template = "{% for m in messages %}<{{ m.content }}>{% endfor %}!"
    for _ in range(2):
        assert render_chat(MESSAGES, speaking) == "<A cat.>!"

"""Prompts: built-in sets, files of questions; chat templates, which are untrusted programs."""

import json
import re
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from backend.drafters.training.prompts import user_turn
from backend.errors import DatasetError, ModelError
from backend.text import chat_template, prompts
from backend.text.chat_template import end_ids, prompt_ids, render_chat
from backend.text.corpora import ARTICLES, WIKIPEDIA, corpus_cache, require_corpus
from backend.text.prompts import (
    BUILT_IN,
    benchmark_prompts,
    require_prompts,
    training_prompts,
)

PROMPTS = Path(prompts.__file__).with_name("prompts.json")


@pytest.mark.parametrize("content", [b"\xff\xfe", b'{"prompt": "Why?"}\n\xff', b"[" * 100_000])
def test_a_file_that_is_binary_or_nested_too_deeply_is_refused(
    text_dir: Path, content: bytes
) -> None:
    (text_dir / "odd.jsonl").write_bytes(content)
    with pytest.raises(DatasetError, match=r"of odd\.jsonl is not a prompt"):
        require_prompts("file:odd.jsonl", "prompts")
    (text_dir / "odd.jsonl").write_bytes(content.splitlines()[-1])
    with pytest.raises(DatasetError, match="could not be read"):
        require_corpus("file:odd.jsonl", "evaluation_text")


def test_the_benchmark_has_eight_prompts_per_task_in_round_robin_order() -> None:
    found = benchmark_prompts(BUILT_IN)
    tasks = Counter(prompt.task for prompt in found)
    assert len(tasks) == 6 and set(tasks.values()) == {8}
    assert len({prompt.task for prompt in found[:6]}) == 6  # a short benchmark sees all of them
    assert benchmark_prompts(BUILT_IN, 5) == found[:5]
    assert len({prompt.id for prompt in found}) == len({p.text for p in found}) == 48


def test_training_prompts_are_distinct_and_not_in_the_benchmark() -> None:
    found = [prompt.text for prompt in training_prompts(BUILT_IN, 600)[0]]
    assert len(set(found)) == 600
    assert not set(found) & {prompt.text for prompt in benchmark_prompts(BUILT_IN)}
    assert not any("{" in text for text in found)  # every slot is filled


def test_held_out_prompts_use_separate_templates() -> None:
    learned, heldout = training_prompts(BUILT_IN, 400, heldout=60)
    assert (len(learned), len(heldout)) == (340, 60)
    assert {p.task for p in learned} == {p.task for p in heldout}
    templates = json.loads(PROMPTS.read_text())["templates"]
    openings = {t: text.split("{")[0] for t, texts in templates.items() for text in [texts[5]]}
    for task, opening in openings.items():
        assert not any(p.text.startswith(opening) for p in learned if p.task == task)
    passages = [{p.text.split("\n\n", 1)[-1] for p in part} for part in (learned, heldout)]
    assert not passages[0] & passages[1]


def test_passages_come_from_the_wikipedia_sample_if_it_is_set_up(text_dir: Path) -> None:
    assert not any("Article" in p.text for p in training_prompts(BUILT_IN, 200)[0])
    sentences = " ".join(f"It says so {n} times." for n in range(60))
    pages = [f"Article {n} stands here. {sentences}\n\nArticle {n} ends here." for n in range(36)]
    with corpus_cache().write(WIKIPEDIA) as folder:
        (folder / ARTICLES).write_text("\n".join(json.dumps({"text": page}) for page in pages))
    parts = training_prompts(BUILT_IN, 600, heldout=100)
    learned, heldout = ({*map(int, re.findall(r"Article (\d+)", str(part)))} for part in parts)
    kept_for_perplexity = {0, 12, 24}
    assert learned and heldout and not learned & heldout
    assert not (learned | heldout) & kept_for_perplexity
    longest = max(len(prompt.text) for prompt in parts[0] if "Article" in prompt.text)
    assert 500 < longest < prompts.PASSAGE_CHARACTERS[1] + 200


def test_a_duplicate_prompt_is_not_both_held_out_and_trained_on(text_dir: Path) -> None:
    (text_dir / "q.jsonl").write_text('{"text": "A."}\n{"text": "B."}\n{"text": "A."}\n' * 3)
    learned, heldout = training_prompts("file:q.jsonl", 9, heldout=1)
    assert len(learned) == 1 and {p.text for p in learned + heldout} == {"A.", "B."}


def test_question_files_are_read_unchanged(text_dir: Path) -> None:
    rows = [
        {"question_id": 81, "category": "writing", "turns": ["First.", "Second."]},
        {"question_id": 82, "category": "rag", "turns": ["Context."]},
        {"id": "seed_task_0", "instruction": "Do this."},
        {"question": "How many?", "answer": "Two."},
    ]
    (text_dir / "q.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    found = benchmark_prompts("file:q.jsonl")
    assert {(p.task, p.text) for p in found} == {
        ("mt_bench", "First."),
        ("rag", "Context."),
        ("prompts", "Do this."),
        ("prompts", "How many?"),
    }
    learned, heldout = training_prompts("file:q.jsonl", 9, heldout=1)
    assert len(heldout) == 1 and {p.text for p in learned + heldout} == {p.text for p in found}
    require_prompts("file:q.jsonl", "prompts")


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        (
            {
                "conversations": [
                    {"from": "system", "value": "Be kind."},
                    {"from": "human", "value": "Why?"},
                    {"from": "gpt", "value": "So."},
                ]
            },
            "Why?",
        ),
        (
            {
                "messages": [
                    {"role": "system", "content": "Be kind."},
                    {"role": "user", "content": [{"type": "text", "text": "How?"}]},
                ]
            },
            "How?",
        ),
        (
            {"instruction": "Sum up.", "input": "A cat sat.", "output": "Cat."},
            "Sum up.\n\nA cat sat.",
        ),
        ({"text": "A text."}, "A text."),
    ],
)
def test_conversations_are_prompts(text_dir: Path, row: dict, prompt: str) -> None:
    (text_dir / "q.jsonl").write_text(json.dumps(row))
    assert [p.text for p in benchmark_prompts("file:q.jsonl")] == [prompt]


@pytest.mark.parametrize("line", ["not json", "[1]", '{"turns": []}', '{"text": 3}', "{}"])
def test_a_line_without_a_prompt_is_named(text_dir: Path, line: str) -> None:
    (text_dir / "q.jsonl").write_text('{"text": "Good."}\n' + line + "\n")
    with pytest.raises(DatasetError, match=r"Line 2 of q\.jsonl") as refused:
        require_prompts("file:q.jsonl", "prompts")
    assert refused.value.field == "prompts"


def test_end_tokens_of_tokenizer_and_model(tokenizer: PreTrainedTokenizerBase) -> None:
    end = tokenizer.eos_token_id
    assert end_ids(tokenizer) == {end}
    assert end_ids(tokenizer, SimpleNamespace(eos_token_id=[7, 8])) == {end, 7, 8}


# chat template ------------------------------------------------------------------------------------


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


def test_a_template_that_fills_the_memory_is_stopped(speaking: Any) -> None:
    speaking.chat_template = (
        "{% set all = namespace(text='a' * 2 ** 20) %}{% for _ in range(30) %}"
        "{% set all.text = all.text ~ all.text %}{% endfor %}"
    )
    with pytest.raises(ModelError, match=r"took more than .* of memory"):
        render_chat(MESSAGES, speaking)
    speaking.chat_template = "{% for m in messages %}<{{ m.content }}>{% endfor %}!"
    for _ in range(2):  # another one works after one that was ended
        assert render_chat(MESSAGES, speaking) == "<A cat.>!"


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

"""Models whose tokenizer or chat template attacks the server: the attacking request ends with an
error that names the part, and other requests are answered meanwhile, including those of the same
model."""

import asyncio
import json
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from backend import limited
from backend.errors import ModelError
from backend.limited import LimitedChild
from backend.models import foreign_tokenizer
from backend.models.foreign_tokenizer import ForeignTokenizer
from backend.models.loading import load_tokenizer
from backend.models.sources import catalog
from backend.models.sources.catalog import inspect
from backend.models.sources.spec import TOY_FOLDER
from backend.models.sources.trust import has_shipped_tokenizer
from backend.text.chat_template import chat_ids
from jobs.serving.answering import AnswerWorker
from jobs.serving.one_answer import ResponseBuilder
from jobs.serving.openai_format import read_body
from jobs.serving.pool import ModelPool
from tests.conftest import Given
from tests.jobs.serving.test_live import LiveClient, address
from tests.security.conftest import folder

__all__ = ["folder"]
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
SPELL = "zq"  # at which an attack begins; validation does not know it
ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
TOLD = "{% for m in messages %}<{{ m.content }}>{% endfor %}"


def replacing(pattern: str, content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"String": pattern}, "content": content}


GROWING = [replacing(SPELL, SPELL * 50)] * 6
BACKTRACKING = {
    "type": "Split",
    "pattern": {"Regex": "(?:(?:z|zz|z+)+)+$(?<=w)|(z+)+(?=y)"},
    "behavior": "Isolated",
    "invert": False,
}
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
ATTACKS = {
    "normalizers that grow": {"normalizer": {"type": "Sequence", "normalizers": GROWING}},
    "an expression that backtracks": {
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [BACKTRACKING, BYTES]}
    },
    "a decoder that grows": {
        "decoder": {
            "type": "Sequence",
            "decoders": [BYTES, *[replacing(x, 400 * x) for x in ("aeinot" * 3)]],
        }
    },
    "a decoder of long texts": {
        "decoder": {"type": "Sequence", "decoders": [BYTES, replacing("e", "e" * 20_000)]}
    },
}
TEMPLATES = {
    "a template that fills the memory": "{{ '%1000000000d' % 1 }}",
    "a template without end": ENDLESS,
    "a template that makes a long text": "{{ 'The end. ' * 2000000 }}",
}
LONG = ("an expression that backtracks", "a template without end")  # others end in milliseconds


def change(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def spoil(folder: Path, attack: str) -> str:
    """Make the model malicious; return the part of it that attacks."""
    if attack in TEMPLATES:
        template = f"{{% if '{SPELL}' in messages[0].content %}}{TEMPLATES[attack]}{{% endif %}}"
        template += "{{ messages[0].content }}"
        change(folder / "tokenizer_config.json", chat_template=template)
        return "chat template"
    change(folder / "tokenizer.json", **ATTACKS[attack])
    return "decoder of the tokenizer" if "decoder" in attack else "tokenizer"


async def answer(pool: ModelPool, model: str, prompt: str, person: str, **values: Any) -> Any:
    said = {"messages": [{"role": "user", "content": prompt}], "max_tokens": 8, "temperature": 0}
    body = read_body(CHAT, json.dumps({"model": model, **said, **values}).encode())
    async with aclosing(AnswerWorker(body, person, pool).events()) as events:
        return await ResponseBuilder(body, events).response()


@pytest.fixture
def quick_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit that an attack reaches soon."""
    monkeypatch.setattr(foreign_tokenizer, "WORK_S", 1.0)


@pytest.mark.usefixtures("quick_limit")
@pytest.mark.parametrize("attack", [*TEMPLATES, *ATTACKS])
def test_other_requests_are_answered_during_an_attack(folder: Path, attack: str) -> None:
    """Of other models, and of the same, unless each of its answers attacks."""
    part, pool = spoil(folder, attack), ModelPool(lambda: 1)
    models = ("toy",) if "decoder" in attack else ("toy", str(folder))

    async def attacked() -> tuple[ModelError, bool]:
        for model in models:
            await answer(pool, model, "One day", "ada", max_tokens=1)
        prompt = SPELL * 20 + "z" * 60 + "!"
        attacking = asyncio.ensure_future(answer(pool, str(folder), prompt, "eve", max_tokens=60))
        written = await asyncio.gather(*(answer(pool, x, "One day", x) for x in models))
        meanwhile = not attacking.done()
        assert {x["usage"]["completion_tokens"] for x in written} == {8}
        with pytest.raises(ModelError) as refused:
            await attacking
        return refused.value, meanwhile

    error, meanwhile = asyncio.run(attacked())
    assert meanwhile or attack not in LONG
    assert f"The {part} of mine" in error.what and error.why and error.field == "model"
    assert "Use another model, or fix " in error.do and ".json" in error.do


@pytest.mark.usefixtures("quick_limit")
def test_a_malicious_live_model_ends_only_its_own_request(folder: Path) -> None:
    spoil(folder, "normalizers that grow")
    live_client, state = LiveClient(), address("50p")
    for prompt, last in (("One day", "done"), (SPELL * 20, "error"), ("One day", "done")):
        told = live_client.ask(state, "text", model=str(folder), prompt=prompt, tokens=4)
        assert told[-1]["event"] == last
        assert last == "done" or told[-1]["what"].startswith("The tokenizer of mine took more")


def test_a_tokenizer_that_grows_short_texts_is_refused_before_use(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(foreign_tokenizer, "LOAD_BYTES", 2**28)
    monkeypatch.setattr(limited, "PARSER_BYTES", 2**28)
    growing = [replacing("t", "t" * 50)] * 6
    change(folder / "tokenizer.json", normalizer={"type": "Sequence", "normalizers": growing})
    facts = inspect(str(folder))
    with pytest.raises(ModelError, match=r"Reading it takes more than|It encodes"):
        catalog.require_loadable(str(folder), facts.vocabulary)
    with pytest.raises(ModelError, match="It takes more than"):
        ForeignTokenizer(folder, facts)


@pytest.mark.usefixtures("fresh_root")
def test_a_limited_tokenizer_matches_the_original(folder: Path) -> None:
    """Prompts, streams of tokens, single tokens and properties match; also after the process
    died."""
    change(
        folder / "tokenizer_config.json",
        chat_template="{% for m in messages %}<{{ m.content }}>{% endfor %}",
    )
    facts = inspect(str(folder))
    ours, theirs = load_tokenizer(folder, facts), ForeignTokenizer(folder, facts)
    said, text = [{"role": "user", "content": "Größe 😀"}], "Größe 😀 of a cat"
    ids = ours(text).input_ids
    for _ in range(2):
        with theirs.session() as session:
            assert session(text).input_ids == ids and len(session) == len(ours)
            for template in (True, False):
                assert chat_ids(said, session, template) == chat_ids(said, ours, template)
            assert "".join(x or "" for x in map(session.stream(), ids)) == text
            assert session.batch_decode([ids, ids[:1]]) == ours.batch_decode([ids, ids[:1]])
            assert session.eos_token_id == ours.eos_token_id
        theirs.close()
        theirs._origin.close()


def test_child_processes_are_reused_and_end_with_their_tokenizer(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forked: list[int] = []
    begin = LimitedChild.__init__

    def counted(child: LimitedChild, *given: Any) -> None:
        begin(child, *given)
        forked.append(1)

    tokenizer = ForeignTokenizer(folder, inspect(str(folder)))
    monkeypatch.setattr(LimitedChild, "__init__", counted)
    for _ in range(5):  # one after the other: the same process
        with tokenizer.session() as session:
            assert session("One").input_ids
    assert len(forked) == 1
    tokenizer.close()
    with tokenizer.session() as session:  # from a process that is started again
        assert session("One").input_ids and len(forked) > 1


def test_a_shipped_model_needs_no_child(given: Given, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foreign_tokenizer, "LimitedChild", None)
    whole = asyncio.run(answer(ModelPool(lambda: 1), "toy", "One day", "ada"))
    assert whole["usage"]["completion_tokens"] == 8
    assert has_shipped_tokenizer(str(TOY_FOLDER)) and not has_shipped_tokenizer("/models/toy")


def test_a_model_cannot_claim_to_be_shipped(folder: Path) -> None:
    change(folder / "tokenizer_config.json", name_or_path=str(TOY_FOLDER), chat_template=TOLD)
    tokenizer = load_tokenizer(folder, inspect(str(folder)))
    assert not has_shipped_tokenizer(str(tokenizer.name_or_path))


SPOILS: dict[str, Callable[[Path], object]] = {
    "a template": lambda folder: (folder / "chat_template.jinja").write_text(TOLD),
    "a template in its config": lambda folder: change(
        folder / "tokenizer_config.json", chat_template=TOLD
    ),
    "another tokenizer": lambda folder: (folder / "tokenizer.json").write_text("{}"),
    "more templates": lambda folder: (folder / "additional_chat_templates").mkdir(),
}


@pytest.mark.parametrize("name", SPOILS)
def test_a_model_saved_by_a_run_keeps_the_trust_of_its_source(tmp_path: Path, name: str) -> None:
    AutoTokenizer.from_pretrained(TOY_FOLDER).save_pretrained(tmp_path)
    assert has_shipped_tokenizer(str(tmp_path))
    SPOILS[name](tmp_path)
    assert not has_shipped_tokenizer(str(tmp_path))

"""The Playground page: conversations, streamed answers, the token strip, votes."""

import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import gradio as gr
import httpx
import pytest
from starlette.applications import Starlette
from starlette.routing import Route
from starlette.testclient import TestClient

from backend.backup import examples
from backend.decoding.limits import LOOKUP_HEAD
from backend.errors import OverloadError, SlimscopeError
from backend.queue import conversations
from backend.queue.actor import Actor
from backend.settings import Settings
from backend.store import queries
from backend.store.session import writing
from backend.store.states import State
from backend.store.tables import Event, Job
from jobs.chat import ChatSettings, display_order, is_hidden
from jobs.imported import check_row
from jobs.serving.transcript import ENDS, Transcript, TranscriptStep
from tests.ui.lab import GUEST, HOST, asked, job, model_folder, pressed, result, saved_folder, store
from ui import openai_api
from ui.api import build
from ui.pages.playground import answers, board, page
from ui.pages.playground.answers import facts, tints, token_spans
from ui.pages.playground.heads import UNEQUAL, column_heads
from ui.runs.choices import answering
from ui.widgets.config_form import ConfigForm
from ui.widgets.html import WIDGETS

HOSTILE = "<img src=x onerror=alert(1)>"
ME = Actor("local", "host")
FIRST = [
    {"ms": 30.0, "tokens": [["A", 0]], "rejected": []},
    {"ms": 10.0, "tokens": [[" cat", 0]], "rejected": []},
    {"end": "limit", "rest": ""},
]
SECOND = [
    {"ms": 30.0, "tokens": [["A", 0]], "rejected": []},
    {"ms": 10.0, "tokens": [[f" {HOSTILE}", 1], [" dog", 0]], "rejected": [" sat"]},
    {"end": "end", "rest": ""},
]


def prompted(blind: bool = False, after: int | None = None, **settings: Any) -> int:
    """A prompt to two sides."""
    with writing() as session:
        if after is None:
            begun = conversations.begin(["toy", "amphista-0002"], blind, ME, session).id
        else:
            begun = conversations.turn(after).conversation.id
        text = f"Tell me. {HOSTILE}"
        return conversations.add_prompt(session, begun, after, text, settings, "local").id


def answer_both(number: int, *rows: list[dict[str, Any]]) -> int:
    with writing() as session:
        for side, transcript in enumerate(rows or (FIRST, SECOND), 1):
            prompt = conversations.turn(number).prompt
            conversations.save_answer(prompt, side, "A cat", transcript, session)
    return number


@pytest.fixture
def answered(tables: Settings) -> str:
    """A prompt that two sides have answered; their texts part at the second token."""
    return str(answer_both(prompted()))


@pytest.fixture
def blind(tables: Settings) -> str:
    return str(answer_both(prompted(blind=True)))


def draw(who: Any = HOST, **query: str) -> str:
    return page.draw(asked(who, **query))["board"]


def press(do: str, number: str, who: Any = HOST) -> str:
    """What is said when a button is pressed."""
    said, _ = page.act("", asked(who), pressed(do, number))
    return str(said["value"])


def strip(transcript: Transcript, differs: int | None = None) -> str:
    return WIDGETS.strip(token_spans(transcript, differs))


def legend(sources: set[int]) -> str:
    return WIDGETS.legend(tints(sources))


def test_answers_stand_side_by_side(answered: str) -> None:
    html = draw(chat=answered)
    assert html.count('data-testid="answer-') == 2
    assert HOSTILE not in html and "&lt;img" in html
    assert 'class="head-1"' in html and "<s title=" in html and "head 1" in html
    assert "tokens/s" not in html and "2.00 tokens per step" in html  # too few for a speed
    assert "first difference from A at character 3" in html and ENDS["end"] in html
    assert "data-begin" not in html and 'data-do="again"' not in html
    assert "At temperature 0 the answer would be the same." in html
    earlier = page.draw(asked(chat=answered))["earlier"]
    assert HOSTILE not in earlier and 'aria-current="true"' in earlier


@pytest.mark.parametrize(
    ("tokens", "unused", "told"),
    [
        (
            [["A", 0]],
            True,
            "33 tokens · 100.0\u00a0tokens/s · drafter unused: no draft tree is faster",
        ),
        ([["A", 0]], False, "33 tokens · 100.0\u00a0tokens/s · almost no draft token accepted"),
        ([["A", 0], ["B", 1]], False, "65 tokens · 200.0\u00a0tokens/s · 2.00 tokens per step"),
    ],
)
def test_a_drafter_that_is_good_for_nothing_is_told(
    tokens: list[tuple[str, int]], unused: bool, told: str
) -> None:
    steps = [TranscriptStep(tokens, [] if unused else ["x"], 10.0)] * 32
    written = Transcript([TranscriptStep([("A", 0)], [], 30.0), *steps], unused=unused)
    assert " · ".join(facts(written, hidden=False)).startswith(told)
    assert facts(written, hidden=True) == [told.split(" · ")[0]]


def timed(number: int, threads: Any) -> list[Any]:
    """A run that has timed its model and the dense one."""
    speeds = {"dense": 31.1, "dlqat": 75.0}
    config = {"model": "toy", "bits": 4}
    details = {"threads": threads}
    return [
        job(number, kind="dlqat", config=config, kept_stage="dlqat", environment={"threads": 2}),
        result(number, "dlqat", "bits_per_weight", 4.25),
        result(number, "dlqat", "bytes/slimscope", 113e6),
        *(result(number, s, "tokens_per_second", v, **details) for s, v in speeds.items()),
    ]


def test_a_column_begins_with_size_bits_and_speed_on_equal_threads(tables: Settings) -> None:
    store(*timed(2, 1), *timed(3, 2), *timed(4, [HOSTILE]), *timed(5, HOSTILE))
    heads = column_heads(["toy", "dlqat-0002"])
    assert heads["toy"].endswith("16 bits · 31.1\u00a0tokens/s alone on 1\u00a0thread")
    speed = "75.0\u00a0tokens/s alone"
    assert heads["dlqat-0002"] == f"113\u00a0MB · 4.25 bits · {speed} on 1\u00a0thread"
    for other in ("dlqat-0003", "dlqat-0004", "dlqat-0005"):
        unequal = column_heads(["dlqat-0002", other])
        assert all(head.endswith(UNEQUAL) for head in unequal.values())
    assert column_heads(["sds-0999", HOSTILE, "x" * 999]) == {
        "sds-0999": "",
        HOSTILE: "",
        "x" * 999: "",
    }
    with writing() as session:
        begun = conversations.begin(["toy", "dlqat-0002"], False, ME, session).id
        number = conversations.add_prompt(session, begun, None, "Why?", {}, "local").id
    assert speed in draw(chat=str(number))


@pytest.mark.parametrize(("threads", "unequal"), [(1, True), (2, False)])
def test_speeds_on_unequal_threads_are_not_to_be_compared(
    tables: Settings, threads: int, unequal: bool
) -> None:
    long = [{"ms": 10.0, "tokens": [["A", 0]], "rejected": []}] * 40
    begun = [
        [{"decoder": "native", "threads": count}, *long, {"end": "end", "rest": ""}]
        for count in (threads, 2)
    ]
    html = draw(chat=str(answer_both(prompted(), *begun)))
    assert html.count("tokens/s on") == 2 and (board.UNEQUAL in html) == unequal


def test_the_votes_name_letters_until_whoever_looks_has_voted(blind: str) -> None:
    def shown(**query: str) -> str:
        votes = page.draw_votes(asked(HOST, **query))
        assert votes["drawer"]["visible"] == votes["clock"].active == bool(votes["tally"])
        return str(votes["tally"])

    html = shown(chat=blind)
    assert f"chat%3D{blind}" in html and "0 votes" in html
    assert "<dt>A is better</dt>" in html and "toy" not in html
    press("vote1", blind)
    assert "toy is better" in shown(chat=blind) and "21\u00a0% to 100\u00a0%" in shown(chat=blind)
    for number in ("", "x", "9" * 300, HOSTILE, str(prompted())):
        assert shown(chat=number) == ""


@pytest.mark.parametrize(
    ("count", "total", "low", "high"), [(0, 0, 0, 1), (8, 10, 0.490, 0.943), (0, 4, 0, 0.490)]
)
def test_the_interval_of_votes(count: int, total: int, low: float, high: float) -> None:
    assert board.vote_interval(count, total) == pytest.approx((low, high), abs=1e-3)


def test_who_asked_has_it_answered_and_others_wait(tables: Settings) -> None:
    assert draw() == draw(chat="99") == draw(chat="x") == draw(run="sds-0001")
    assert draw().count("data-example=") == 3 and "None yet" in page.draw(asked())["earlier"]
    number = str(prompted())
    html = draw(chat=number)
    assert html.count(f'data-begin="prompt={number}&amp;side=') == 2 and 'data-do="stop"' in html
    html = draw(GUEST, chat=number)
    assert "data-begin" not in html and html.count("Being answered") == 2


def test_a_recorded_conversation_comes_with_the_examples(tables: Settings) -> None:
    examples.install_examples(check_row)
    (link,) = re.findall(r'href="playground[?]chat=([0-9]+)">Read a recorded comparison', draw())
    html = draw(chat=link)
    for model, said in {
        "smollm2-135m": "120 tokens · 98.6\u00a0tokens/s on 2\u00a0threads · max tokens reached",
        "dlqat-example": "120 tokens · 302.1\u00a0tokens/s on 2\u00a0threads · max tokens reached",
        "sds-example-2": "120 tokens · 144.6\u00a0tokens/s on 2\u00a0threads · max tokens reached",
    }.items():
        assert model in html and said in html
    assert "perplexity 21.1 → 29.1" in html and "perplexity 21.1 → 44.4" in html
    assert "native (AVX-512 with BF16 and VNNI, AMD EPYC) decoder" in html
    assert "recorded one model after the other" in html and "run at the same time" not in html
    assert html.count('title="chosen by the base model, step ') > 300
    config = page._shown_config(asked(chat=link))
    assert config["sides"] == "smollm2-135m, dlqat-example, sds-example-2"
    assert ChatSettings(prompt="Why?", **{k: v for k, v in config.items() if k != "blind"})
    assert "None yet" not in page.draw(asked())["earlier"]
    examples.remove_examples(ME)
    assert "None yet" in page.draw(asked())["earlier"] and "recorded" not in draw()


def test_drafters_can_be_chosen(tables: Settings) -> None:
    config = {"model": "toy", "minutes": 12.5, "answers": 2000, "ablation": "adaptation only"}
    store(job(2, kind="amphista", state=State.SUCCEEDED, config=config))
    told = "amphista-0002 for toy: Staged adaptation only, 12.5 min, 2,000 answers"
    assert (told, "amphista-0002") not in answering()  # nothing of it is here
    saved_folder("amphista-0002", "drafter")
    assert (told, "amphista-0002") in answering()


# asking -------------------------------------------------------------------------------------------


class Form:
    """What the page sends when a prompt is sent."""

    def __init__(self) -> None:
        with gr.Blocks():
            form = ConfigForm(ChatSettings, {}, "playground-", without=page.ELSEWHERE)
            self.prompt, self.chat, self.message = gr.Textbox(), gr.Textbox(), gr.HTML()
        self.ask = page.Composer(form, None, None, self.prompt, self.message, self.chat).ask
        self.values = [field.info.default for field in form.fields.values()]

    def send(self, text: str, names: list[str], **query: str) -> tuple[str, Any]:
        """The number of the prompt, and what is said."""
        found = self.ask(asked(**query), text, names, False, "", *self.values)
        return found[self.chat], found[self.message]["value"]


@pytest.fixture
def form(tables: Settings) -> Form:
    return Form()


def test_a_prompt_begins_a_conversation_and_the_next_goes_on_with_it(form: Form) -> None:
    names = ["toy", "toy"]
    first, said = form.send("One day", names)
    assert said == "" and queries.jobs() == []
    kept, said = form.send("And then?", names, chat=first)
    assert kept == first and "still being answered" in said
    answer_both(int(first))
    number, _ = form.send("And then?", names, chat=first)
    html = draw(chat=number)
    assert html.count('<article class="turn"') == 2 and "And then?" in html
    earlier = page.draw(asked(chat=number))["earlier"]
    assert "2 prompts" in earlier and earlier.count('class="earlier"') == 1
    press("delete", number)
    assert draw(chat=number) == draw() and "None yet" in page.draw(asked())["earlier"]


def test_what_cannot_be_asked_is_said_and_the_prompt_is_kept(form: Form) -> None:
    found = form.ask(asked(), " ", ["toy"], False, "", *form.values)
    assert "Prompt was not accepted" in found[form.message]["value"]
    assert "value" not in found[form.prompt] and conversations.newest_conversations(9) == []
    assert "No model is selected" in str(form.send("Why?", [])[1])


# the stream ---------------------------------------------------------------------------------------


class Answers:
    """What the process of the models answers."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rows: list[dict[str, Any]] = [*SECOND]
        self.status, self.fails = 200, None
        monkeypatch.setattr(openai_api, "send_request", self.sent)
        routes = [Route("/slimscope/answer", answers.answer, methods=["POST"])]
        self.app = Starlette(routes=routes)

    @asynccontextmanager
    async def sent(self, *_: Any) -> AsyncIterator[httpx.Response]:
        if self.fails:
            raise self.fails
        if self.status != 200:
            error = {"error": {"message": "The context is full."}}
            yield httpx.Response(self.status, json=error, headers={"retry-after": "3"})
            return
        lines = [': {"waits": "Loading Toy", "about": 4.2}', ': {"unused": true}']
        lines += [f"data: {json.dumps({'slimscope': row})}" for row in self.rows]
        yield httpx.Response(200, content="\n\n".join([*lines, "data: [DONE]", ""]).encode())

    def ask(self, number: int | str, side: int | str = 1, client: str = "127.0.0.1") -> Any:
        visitor = TestClient(self.app, base_url="http://localhost", client=(client, 1))
        return visitor.post(f"/slimscope/answer?prompt={number}&side={side}")


@pytest.fixture
def process(tables: Settings, monkeypatch: pytest.MonkeyPatch) -> Answers:
    return Answers(monkeypatch)


def rows_of(answer: Any) -> list[dict[str, Any]]:
    return [json.loads(part[6:]) for part in answer.text.split("\n\n") if part]


def test_an_answer_is_streamed_and_stored_at_its_end(process: Answers) -> None:
    number = prompted()
    told = rows_of(process.ask(number, 2))
    assert told == [{"waits": "Loading Toy", "about": 4.2}, {"unused": True}, *SECOND]
    stored = conversations.turn(number).answers[2]
    assert stored.text == f"A {HOSTILE} dog" and stored.transcript == [{"unused": True}, *SECOND]
    process.fails = AssertionError("answered twice")
    again = process.ask(number, 2)  # a page that has not been redrawn
    assert again.status_code == 200 and rows_of(again) == stored.transcript
    assert process.ask(number, 2, client="10.0.0.7").status_code == 403
    assert conversations.turn(number).answers[2].transcript == stored.transcript


def test_many_follow_an_answer_and_see_what_they_may(process: Answers) -> None:
    """Of requests at the same time one has the answer written; a blind one hides its model."""
    number = prompted()
    turns = conversations.turns_to(number)
    writing = answers._Writing(turns, 2, ME)

    async def scenario() -> list[list[Any]]:
        seen: list[list[Any]] = [[] for _ in range(20)]

        async def follow(place: int) -> None:
            async for part in writing.follow(hidden=place % 2 == 1):
                seen[place].append(json.loads(part.decode()[6:]))

        answers._written[number, 2] = writing
        async with anyio.create_task_group() as tasks:
            for place in range(10):
                tasks.start_soon(follow, place)
            await anyio.lowlevel.checkpoint()
            for row in SECOND:
                writing._add(row)
                await anyio.lowlevel.checkpoint()
            for place in range(10, 20):  # begins late
                tasks.start_soon(follow, place)
            await writing._end()
        return seen

    seen = anyio.run(scenario)
    for place, rows in enumerate(seen):
        if place % 2 == 0:
            assert rows == SECOND
        else:
            assert [row.get("rest") for row in rows] == [row.get("rest") for row in SECOND]
            assert all(row["ms"] == 0 and not row["rejected"] for row in rows if "tokens" in row)
    assert conversations.turn(number).answers[2].transcript == SECOND
    assert not answers._written


def test_blind_answers_tell_nothing_of_their_author(process: Answers) -> None:
    text = process.ask(prompted(blind=True), 2).text
    assert "Loading a model" in text and "Toy" not in text and "unused" not in text
    assert all(
        row["ms"] == 0 and row["rejected"] == []
        for row in rows_of(process.ask(prompted(blind=True), 2))
        if "tokens" in row
    )


@pytest.mark.parametrize(
    ("fails", "status", "code", "end"),
    [
        (None, 400, 400, "error"),
        (None, 429, 429, ""),
        (OverloadError("3 are before you.", retry_after_s=4, requests_ahead=3), 200, 429, ""),
        (SlimscopeError("It does not start."), 200, 500, "error"),
    ],
)
def test_a_refusal_is_kept_unless_time_mends_it(
    process: Answers, fails: Any, status: int, code: int, end: str
) -> None:
    process.fails, process.status = fails, status
    number = prompted()
    refused = process.ask(number)
    assert refused.status_code == code
    assert bool(refused.headers.get("retry-after")) == (code in (429, 400))
    stored = conversations.turn(number).answers
    assert [each.transcript[-1]["end"] for each in stored.values()] == ([end] if end else [])
    html = draw(chat=str(number))
    assert ("problem" in html) == bool(end) and html.count("data-begin") == (1 if end else 2)


def test_a_stream_that_breaks_off_is_an_error(process: Answers) -> None:
    process.rows = SECOND[:1]
    number = prompted()
    process.ask(number)
    last = conversations.turn(number).answers[1].transcript[-1]
    assert last["end"] == "error" and "ended early" in last["error"]


@pytest.mark.parametrize(
    ("number", "side", "code"),
    [("", 1, 422), ("x", 1, 422), (1, "", 422), (99, 1, 404), (1, 0, 409), (1, 3, 409)],
)
def test_what_the_browser_asks_for_is_checked(
    process: Answers, number: int | str, side: int | str, code: int
) -> None:
    prompted()
    assert process.ask(number, side).status_code == code
    assert process.ask(1, 1, client="10.0.0.7").status_code == 403  # somebody else
    assert conversations.turn(1).answers == {}


# votes --------------------------------------------------------------------------------------------


def test_names_are_hidden_until_the_vote(blind: str) -> None:
    html = draw(chat=blind)
    assert "amphista-0002" not in html and "tokens/s" not in html and "head-1" not in html
    assert "A is better" in html and "Both are bad" in html
    assert sorted(display_order(conversations.turn(int(blind)))) == [1, 2]
    after = answer_both(prompted(after=int(blind)))
    turns = conversations.turns_to(after)
    assert is_hidden(turns, "local") and display_order(turns[0]) == display_order(turns[1])
    press("vote-1", blind)
    assert "amphista-0002" in draw(chat=blind) and "both are bad" in draw(chat=blind)
    assert "amphista-0002" in page.draw(asked())["earlier"]
    turns = conversations.turns_to(after)
    assert not is_hidden(turns, "local") and is_hidden(turns, "guest-a")


def test_there_is_no_vote_on_what_failed_or_was_stopped(tables: Settings) -> None:
    for end in ("error", "cancelled"):
        number = answer_both(prompted(blind=True), FIRST, [{"end": end, "rest": ""}])
        assert "amphista-0002" in draw(chat=str(number)) and 'data-do="vote' not in draw(
            chat=str(number)
        )
        assert "not finished" in press("vote1", str(number))


def test_programs_read_answers_and_vote(blind: str, answered: str) -> None:
    api = TestClient(build(), base_url="http://localhost", client=("127.0.0.1", 1))
    texts = api.get(f"/chats/{answered}").json()
    assert [each["text"] for each in texts] == ["A cat", f"A {HOSTILE} dog"]
    assert texts[1]["tokens_per_step"] == 2.0 and texts[0]["end"] == "limit"
    assert api.get(f"/chats/{blind}").status_code == 409  # it would tell who wrote what
    assert api.post(f"/chats/{blind}/vote?choice=1").status_code == 200
    assert conversations.turn(int(blind)).votes == {"local": 1}
    assert api.post(f"/chats/{blind}/vote?choice=0").status_code == 409
    assert api.post(f"/chats/{answered}/vote?choice=7").status_code == 422
    guest = TestClient(build(), base_url="http://localhost", client=("10.0.0.7", 1))
    assert guest.post(f"/chats/{answered}/vote?choice=1").status_code == 403


@pytest.mark.parametrize("deed", ["vote9", "vote-2", "vote1; drop", "vote", "explode", ""])
def test_what_the_browser_sends_is_checked(answered: str, deed: str) -> None:
    assert "problem" in press(deed, answered)
    assert conversations.turn(int(answered)).votes == {}
    assert "problem" in press("vote1", "sds-0001") and "problem" in press("delete", answered, GUEST)


def test_a_vote_is_kept_and_shown_and_none_of_guests_without_a_name(answered: str) -> None:
    assert "disabled" in draw(GUEST, chat=answered)
    assert "may not vote" in press("vote0", answered, GUEST)
    html = draw(chat=answered)
    assert 'data-do="vote1"' in html and 'data-do="vote0"' in html and 'data-do="vote-1"' in html
    assert press("vote2", answered) == ""
    html = draw(chat=answered)
    assert "Your vote: amphista-0002 is better" in html and 'data-do="vote' not in html
    assert "voted on these answers before" in press("vote0", answered)
    assert conversations.turn(int(answered)).votes == {"local": 2}


# the strip ----------------------------------------------------------------------------------------


def test_a_token_is_tinted_by_its_source_and_marked_where_texts_part() -> None:
    passes = [
        TranscriptStep([("A", 0)], [], 9.0),
        TranscriptStep([(" b", 1), ("", 2), (" c", 9)], [" d", " "], 5.0),
    ]
    html = strip(Transcript(passes, "limit", "!"), differs=3)
    assert html.count("<span") == 2 and html.count("<mark") == 1
    assert '<mark class="head-6" title="drafted by head 9, step 1, 5.0 ms"> c</mark>' in html
    assert html.count("<s ") == 1 and "rejected draft token" in html
    assert html.endswith("!</p>")
    html = strip(Transcript([TranscriptStep([(f" {n}", 1)], [], 1.0) for n in range(600)], "limit"))
    assert html.count("<span") == 512 and html.endswith(" 599</p>")
    assert legend({1, 2}).count("head-") == 2
    html = strip(Transcript([TranscriptStep([(" a", LOOKUP_HEAD), (" b", 0)], [], 1.0)], "limit"))
    assert 'class="head-looked" title="from prompt lookup, step 0, 1.0 ms"> a' in html
    assert legend({LOOKUP_HEAD}).count("head-") == 1 and "prompt lookup" in legend({LOOKUP_HEAD, 3})
    assert "head-looked" not in legend({3})


def ended(number: int, state: State) -> None:
    with writing() as session:
        session.get_one(Job, number).state = state
        session.add(Event(job_id=number, at=0, type=str(state), actor="mira"))


def test_an_empty_playground_makes_a_model_and_offers_it(tables: Settings) -> None:
    examples.install_examples(check_row)
    assert "Make a 4-bit" in draw()
    press("make", "")
    (made,) = [row for row in queries.jobs() if row.id > 0]
    assert (made.kind, made.config["bits"], made.config["stages"]) == ("dlqat", 4, "gptq")
    assert made.run in draw() and "Make a 4-bit" not in draw()
    ended(made.id, State.FAILED)
    assert "Make a 4-bit" in draw()
    ended(made.id, State.SUCCEEDED)
    saved_folder(made.run, "model")
    store(model_folder(made.id, size=80))
    assert f"Select the dense model and {made.run}" in draw()
    assert made.run not in draw(sides=f"smollm2-135m,{made.run}")


def test_a_guest_makes_no_model(tables: Settings) -> None:
    assert "problem" in press("make", "", GUEST) and not queries.jobs()

"""The Playground page: conversations, growing answers, the token strip, votes, the leaderboard."""

from __future__ import annotations

import json
from typing import Any

import gradio as gr
import pytest
from starlette.requests import Request
from starlette.testclient import TestClient

from backend.decoding.limits import LOOKUP_HEAD
from backend.queue.votes import votes_of
from backend.settings import Settings
from backend.store import queries
from backend.store.session import writing
from backend.store.states import State
from backend.store.tables import Job
from jobs.generate.arena import display_order, is_hidden
from jobs.generate.config import GenerateJob
from jobs.generate.transcript import ENDS, Transcript, TranscriptStep, transcript_writer
from tests.ui.lab import GUEST, HOST, asked, job, pressed, saved_folder, store
from ui.api import build
from ui.pages.playground import board, page
from ui.pages.playground.actions import generate_run
from ui.pages.playground.answers import answers, facts
from ui.runs.token_strip import tints, token_spans
from ui.widgets.config_form import ConfigForm
from ui.widgets.html import WIDGETS

HOSTILE = "<img src=x onerror=alert(1)>"
CONFIG = {"prompt": f"Tell me. {HOSTILE}", "sides": "toy, amphista-0002"}


def generated(number: int, **values: Any) -> Job:
    row = {"kind": "generate", "config": CONFIG, "name": "", "lane": "playground"}
    return job(number, **{**row, **values})


@pytest.fixture
def answered(tables: Settings) -> str:
    """A finished run of two sides whose texts part at the second token."""
    store(generated(1))
    write_answers("generate-0001")
    return "generate-0001"


def write_answers(run: str) -> None:
    with transcript_writer(run, 1) as writer:
        writer.add(ms=30.0, tokens=[["A", 0]], rejected=[])
        writer.add(ms=10.0, tokens=[[" cat", 0]], rejected=[])
        writer.add(end="limit", rest="")
    with transcript_writer(run, 2) as writer:
        writer.add(ms=30.0, tokens=[["A", 0]], rejected=[])
        writer.add(ms=10.0, tokens=[[f" {HOSTILE}", 1], [" dog", 0]], rejected=[" sat"])
        writer.add(end="end", rest="")


def draw(who: Any = HOST, **query: str) -> str:
    return page.draw(asked(who, **query))["board"]


def press(do: str, run: str, who: Any = HOST) -> str:
    """What is said when a button is pressed."""
    said, _ = page.act("", asked(who), pressed(do, run))
    return str(said["value"])


def strip(transcript: Transcript, differs: int | None = None) -> str:
    return WIDGETS.strip(token_spans(transcript, differs))


def legend(sources: set[int]) -> str:
    return WIDGETS.legend(tints(sources))


def test_answers_stand_side_by_side(answered: str) -> None:
    html = draw(run=answered)
    assert html.count('data-testid="answer-') == 2
    assert HOSTILE not in html and "&lt;img" in html
    assert 'class="head-1"' in html and "<s title=" in html and "head 1" in html
    assert "tokens/s" not in html and "2.00 tokens per step" in html  # too few for a speed
    assert "first difference from A at character 3" in html and ENDS["end"] in html
    assert "data-live" not in html and 'data-do="again"' not in html
    assert "At temperature 0 the answer would be the same." in html
    earlier = page.draw(asked(run=answered))["earlier"]
    assert HOSTILE not in earlier and 'aria-current="true"' in earlier


@pytest.mark.parametrize(
    ("tokens", "unused", "told"),
    [
        ([["A", 0]], True, "33 tokens · 100.0 tokens/s · drafter unused: no draft tree is faster"),
        ([["A", 0]], False, "33 tokens · 100.0 tokens/s · almost no draft token accepted"),
        ([["A", 0], ["B", 1]], False, "65 tokens · 200.0 tokens/s · 2.00 tokens per step"),
    ],
)
def test_a_drafter_that_is_good_for_nothing_is_told(
    tokens: list[tuple[str, int]], unused: bool, told: str
) -> None:
    steps = [TranscriptStep(tokens, [] if unused else ["x"], 10.0)] * 32
    written = Transcript([TranscriptStep([("A", 0)], [], 30.0), *steps], unused=unused)
    assert " · ".join(facts(written, hidden=False)).startswith(told)
    assert facts(written, hidden=True) == [told.split(" · ")[0]]


def test_nothing_asked_yet_and_who_waits_is_told_for_what(tables: Settings) -> None:
    assert draw() == draw(run="generate-0099")
    assert draw().count("data-example=") == 3 and "None yet" in page.draw(asked())["earlier"]
    store(generated(2, state="queued", started_at=None, finished_at=None))
    html = draw(run="generate-0002")
    assert "Waiting for its turn" in html and 'data-live="generate-0002"' in html  # since 1970
    assert 'data-do="stop"' in html
    store(generated(3, state="running", finished_at=None))
    with transcript_writer("generate-0003", 1) as writer:
        writer.add(waits="Loading Toy", about=4.2, at=1000)
    html = draw(run="generate-0003")
    assert "Loading Toy (about 4 s)" in html and 'data-since="1000"' in html
    assert "Reading the prompt" in html  # the other side


def test_drafters_can_be_chosen(tables: Settings) -> None:
    config = {"model": "toy", "minutes": 12.5, "answers": 2000, "ablation": "adaptation only"}
    store(job(2, kind="amphista", state=State.SUCCEEDED, config=config))
    told = "amphista-0002 for toy: Staged adaptation only, 12.5 min, 2,000 answers"
    assert (told, "amphista-0002") not in page.sides()  # nothing of it is here
    saved_folder("amphista-0002", "drafter")
    assert (told, "amphista-0002") in page.sides()
    assert generate_run("amphista-0002") is None  # not one of these


def test_a_conversation_whose_beginning_is_gone_shows_the_rest(answered: str) -> None:
    store(generated(4, config={**CONFIG, "follows": "generate-0099"}))
    write_answers("generate-0004")
    assert draw(run="generate-0004").count('<article class="turn"') == 1
    store(generated(5, config={**CONFIG, "follows": answered}))
    with writing() as session:
        session.get_one(Job, 1).removed_at = 1
    assert draw(run="generate-0005").count('<article class="turn"') == 1


# asking -------------------------------------------------------------------------------------------


class Form:
    """What the page sends when a prompt is sent."""

    def __init__(self) -> None:
        with gr.Blocks():
            self.form = ConfigForm(GenerateJob, {}, "playground-", without=page.ELSEWHERE)
            self.prompt, self.run, self.message = gr.Textbox(), gr.Textbox(), gr.HTML()
        self.ask = page._ask(self.form, self.prompt, self.run, self.message)
        self.values = [field.info.default for field in self.form.fields.values()]

    def send(self, text: str, names: list[str], **query: str) -> tuple[str, Any]:
        """The run, and what is said."""
        found = self.ask(asked(**query), text, names, False, "", *self.values)
        return found[self.run], found[self.message]["value"]


@pytest.fixture
def form(tables: Settings, monkeypatch: pytest.MonkeyPatch) -> Form:
    return Form()


def test_a_prompt_begins_a_conversation_and_the_next_goes_on_with_it(form: Form) -> None:
    names = ["toy", "toy"]
    assert form.send("One day", names) == ("generate-0001", "")
    first = queries.job("generate-0001")
    assert first.lane == "playground" and first.config["follows"] == ""
    kept, said = form.send("And then?", names, run="generate-0001")
    assert kept == "generate-0001" and "still being answered" in said
    store(generated(5, config={**CONFIG, "sides": "toy, toy"}))
    write_answers("generate-0005")
    run, _ = form.send("And then?", names, run="generate-0005")
    assert queries.job(run).config["follows"] == "generate-0005"
    html = draw(run=run)
    assert html.count('<article class="turn"') == 2 and "And then?" in html
    other, _ = form.send("And then?", ["toy"], run="generate-0005")
    assert queries.job(other).config["follows"] == ""  # with other models it is another one
    earlier = page.draw(asked(run=run))["earlier"]
    assert "2 prompts" in earlier and earlier.count('class="earlier"') == 3


def test_what_cannot_be_asked_is_said_and_the_prompt_is_kept(form: Form) -> None:
    found = form.ask(asked(), " ", ["toy"], False, "", *form.values)
    assert "Prompt was not accepted" in found[form.message]["value"]
    assert "value" not in found[form.prompt] and queries.jobs() == []
    assert "No model is selected" in str(form.send("Why?", [])[1])


def test_the_same_prompt_again_has_another_seed_and_an_answer_is_stopped(answered: str) -> None:
    assert "would be the same" in press("again", answered)
    sampled = {**CONFIG, "sides": "toy", "prompt": "One day", "temperature": 0.7, "seed": 4}
    store(generated(7, config=sampled))
    _, run = page.act("", asked(), pressed("again", "generate-0007"))
    assert queries.job(run).config | {"seed": 4} == queries.job(run).config | sampled
    assert queries.job(run).config["seed"] == 5
    store(generated(2, state="running", finished_at=None))
    assert press("stop", "generate-0002") == "" and queries.job(2).desired == "stop"


# while they grow ----------------------------------------------------------------------------------


def streamed(run: str, at: str = "", client: str = "127.0.0.1") -> dict[str, Any]:
    scope = {
        "type": "http", "method": "GET", "path": "/", "client": (client, 1),
        "headers": [(b"host", b"localhost")], "query_string": f"run={run}&at={at}".encode(),
    }  # fmt: skip
    return json.loads(answers(Request(scope)).body)


def test_a_page_gets_the_tokens_it_has_not_drawn(answered: str) -> None:
    found = streamed(answered, "1,2")
    assert found["over"] and [side["after"] for side in found["sides"]] == [1, 2]
    one, other = found["sides"]
    assert one["html"] == '<span title="chosen by the base model, step 1, 10.0 ms"> cat</span>'
    assert other["html"] == "" and other["passes"] == 2 and "3 tokens" in other["facts"]
    assert HOSTILE not in json.dumps(streamed(answered))
    assert streamed("generate-0099")["over"] and streamed("<x>")["over"]


@pytest.mark.parametrize("at", ["", "x,-1", "1", "0,0,0,0,0,0", "99,99"])
def test_what_a_page_says_it_has_is_not_believed(answered: str, at: str) -> None:
    found = streamed(answered, at)
    assert [side["passes"] for side in found["sides"]] == [2, 2]
    assert found["sides"][1]["html"] and found["sides"][1]["after"] == 0


# votes --------------------------------------------------------------------------------------------


@pytest.fixture
def blind(answered: str) -> str:
    store(generated(3, config={**CONFIG, "blind": True}))
    write_answers("generate-0003")
    return "generate-0003"


def test_names_are_hidden_until_the_vote(blind: str) -> None:
    html = draw(run=blind)
    assert "amphista-0002" not in html and "tokens/s" not in html and "head-1" not in html
    assert "A is better" in html and "Both are bad" in html
    assert "amphista" not in json.dumps(streamed(blind)) and "head-" not in str(streamed(blind))
    assert sorted(display_order(queries.job(blind))) == [1, 2]
    store(generated(4, config={**CONFIG, "blind": True, "follows": blind}))
    after = queries.job("generate-0004")
    assert is_hidden(after, "local") and display_order(after) == display_order(queries.job(blind))
    press("vote-1", blind)
    assert "amphista-0002" in draw(run=blind) and "both are bad" in draw(run=blind)
    assert not is_hidden(after, "local") and is_hidden(after, "guest-a")
    assert "amphista-0002" in page.draw(asked())["earlier"]  # of the run that was never blind


def test_the_leaderboard_counts_blind_votes(blind: str, answered: str) -> None:
    assert "No blind votes yet" in board.ranking()
    press("vote1", answered)  # names were shown
    assert "1 further vote does not count" in board.ranking()
    press("vote2", blind)
    html = board.ranking()
    assert html.index("amphista-0002") < html.index("toy") and "1 blind vote: too few" in html


def test_programs_read_answers_and_vote(blind: str) -> None:
    api = TestClient(build(), base_url="http://localhost", client=("127.0.0.1", 1))
    texts = api.get(f"/runs/{blind}/answers").json()
    assert [each["text"] for each in texts] == ["A cat", f"A {HOSTILE} dog"]
    assert texts[1]["tokens_per_step"] == 2.0 and texts[0]["end"] == "limit"
    assert texts[1]["tokens_per_second"] is None
    assert api.post(f"/runs/{blind}/vote?choice=1").status_code == 200
    assert votes_of(blind) == {"local": 1}
    assert api.post(f"/runs/{blind}/vote?choice=0").status_code == 409
    assert api.post(f"/runs/{blind}/vote?choice=7").status_code == 422
    board = api.get("/leaderboard").json()
    assert board["votes"] == 1 and board["ratings"][0]["name"] == "toy"
    guest = TestClient(build(), base_url="http://localhost", client=("10.0.0.7", 1))
    assert guest.post(f"/runs/{blind}/vote?choice=1").status_code == 403


@pytest.mark.parametrize("deed", ["vote9", "vote-2", "vote1; drop", "vote", "explode", ""])
def test_what_the_browser_sends_is_checked(answered: str, deed: str) -> None:
    assert "problem" in press(deed, answered) and votes_of(answered) == {}
    assert "problem" in press("vote1", "sds-0001")


def test_a_vote_is_kept_and_shown_and_none_of_guests_without_a_name(answered: str) -> None:
    assert "disabled" in draw(GUEST, run=answered)
    assert "may not vote" in press("vote0", answered, GUEST) and votes_of(answered) == {}
    html = draw(run=answered)
    assert 'data-do="vote1"' in html and 'data-do="vote0"' in html and 'data-do="vote-1"' in html
    assert press("vote2", answered) == ""
    assert votes_of(answered) == {"local": 2}
    html = draw(run=answered)
    assert "Your vote: amphista-0002 is better" in html and 'data-do="vote' not in html
    assert "voted on generate-0001 before" in press("vote0", answered)
    assert votes_of(answered) == {"local": 2}


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

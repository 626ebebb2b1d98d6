"""Serving engine: refusals, events, shared prefixes and memory."""

import threading
from collections.abc import Callable, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from backend.decoding.acceptance import Sampling
from backend.decoding.draft_tree import DraftTokens, NoDraft
from backend.decoding.serving import engine as engines
from backend.decoding.serving import loop
from backend.decoding.serving.engine import ServingEngine
from backend.decoding.serving.loop import RequestQueue
from backend.decoding.serving.request import Event, GenerationRequest, NewPieces, Waiting
from backend.decoding.serving.speculation import Speculation
from backend.errors import ConfigError, OverloadError
from backend.kernels.library import BLOCK
from backend.models.loading import load
from tests.decoding.serving.conftest import alone, ask, prompt_of, target_of
from tests.refusals import refusal
from tests.waiting import until

Open = Callable[..., ServingEngine]


@pytest.mark.parametrize(
    ("prompt", "limit", "more", "name"),
    [
        ([], 8, {}, "prompt"),
        ([1, 512], 8, {}, "prompt"),
        ([-1], 8, {}, "prompt"),
        ([1] * 256, 8, {}, "max_new_tokens"),
        ([1] * 250, 7, {}, "max_new_tokens"),
        ([1], 0, {}, "max_new_tokens"),
        ([1], -1, {"echo": True}, "max_new_tokens"),
        ([1] * 257, 0, {"echo": True}, "max_new_tokens"),
        ([1] * 70, 40, {}, "max_new_tokens"),  # blocks for 100 tokens
        ([1], 8, {"logprobs": 101}, "logprobs"),
        ([1], 8, {"logprobs": -1}, "logprobs"),
    ],
)
def test_invalid_requests_are_refused(
    opened: Open, prompt: list[int], limit: int, more: dict, name: str
) -> None:
    engine = opened(blocks=6)
    with refusal(name, error=ConfigError):
        ask(engine, prompt, limit, **more)
    assert engine.status().waiting == 0


def test_up_to_the_last_token_of_the_context(opened: Open) -> None:
    engine, prompt = opened(), prompt_of(250, 1)
    text = alone(target_of("toy"), prompt, 6)
    assert ask(engine, prompt, 6, lookup=True).wait().tokens == text
    assert ask(engine, prompt_of(256, 1), 0, echo=True).wait().end.reason == "length"


# texts --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 2, 64, 65, 150])
@pytest.mark.parametrize("new", [0, 1, 4])
def test_log_probabilities_of_prompt_and_answer_are_those_of_the_model(
    opened: Open, length: int, new: int
) -> None:
    engine, target, prompt = opened(), target_of("toy"), prompt_of(length, 3)
    ask(engine, prompt, 3).wait()  # a shared prefix is read again if its logits are needed
    answer = ask(engine, prompt, new, echo=True, logprobs=3).wait()
    assert answer.tokens[:length] == [*prompt] and len(answer.tokens) == length + new
    with torch.inference_mode():
        cache = target.native.new_cache(length + new)
        ids = torch.tensor(answer.tokens)
        logits = [
            target.native.forward(some, cache, read_out=len(some))[1] for some in ids.split(64)
        ]
    expected = torch.cat(logits).log_softmax(-1)[:-1]
    first, *others = answer.pieces
    assert (first.logprob, first.top) == (None, ()) and answer.end.shared_tokens == 0
    for row, piece in zip(expected, others, strict=True):
        assert piece.logprob == pytest.approx(row[piece.token].item(), abs=1e-4)
        best = row.topk(3)
        assert [chance for _, chance in piece.top] == pytest.approx(best.values.tolist(), abs=1e-4)
        assert {token for token, _ in piece.top} == {*best.indices.tolist()}


def test_a_text_ends_at_a_token_and_before_a_text(opened: Open) -> None:
    engine, prompt = opened(), load("toy").tokenizer("Once upon a time").input_ids
    whole = ask(engine, prompt, 30).wait()
    place = next(n for n in range(3, 30) if whole.tokens[n] not in whole.tokens[:n])
    ended = ask(engine, prompt, 30, ends=frozenset([whole.tokens[place]])).wait()
    assert (ended.end.reason, ended.end.completion_tokens) == ("stop", place + 1)
    assert ended.tokens == whole.tokens[: place + 1]
    stop = whole.text[8:11]
    for more in ({}, {"lookup": True}):
        stopped = ask(engine, prompt, 30, stop=(stop, "never said"), **more).wait()
        assert stopped.end.reason == "stop_string"
        assert stopped.text == whole.text[: whole.text.index(stop)]
        assert stopped.end.completion_tokens == len(stopped.tokens) < 30
    assert whole.end.reason == "length" and whole.end.first_token_s > 0


# sharing and memory -------------------------------------------------------------------------------


def test_common_prefixes_are_shared(opened: Open) -> None:
    engine, prompt = opened(), prompt_of(100, 5)
    first = ask(engine, prompt, 30).wait()
    again = ask(engine, prompt, 30).wait()
    assert (first.end.shared_tokens, again.end.shared_tokens) == (0, 99 // BLOCK * BLOCK)
    assert first.tokens == again.tokens
    talk = [*prompt, *first.tokens, 7, 8, 9]
    on = ask(engine, talk, 5).wait()
    assert on.end.shared_tokens == 129 // BLOCK * BLOCK
    assert on.tokens == alone(target_of("toy"), talk, 5)
    other = ask(engine, [*prompt[:40], *prompt_of(30, 6)], 5).wait()
    assert other.end.shared_tokens == 40 // BLOCK * BLOCK


def test_simultaneous_requests_share_a_prefix(opened: Open) -> None:
    engine, system = opened(), prompt_of(96, 7)
    answers = [ask(engine, [*system, n, 5, 6], 5) for n in range(3, 15)]
    first, second, *others = sorted(x.wait().end.shared_tokens for x in answers)
    assert (first, *others) == (0, *[96] * 10) and second in (64, 96)  # it started in the same pass


@pytest.mark.parametrize("blocks", [7, 9, 20])
def test_memory_for_one_sequence_serves_all_in_turn(opened: Open, blocks: int) -> None:
    """Each sequence grows to seven blocks; a preempted sequence restarts with the same text."""
    engine, target = opened(blocks=blocks), target_of("toy")
    prompts = [prompt_of(10 + 3 * n, n) for n in range(10)]
    sampling = Sampling(0.8, seed=3)
    answers = [ask(engine, p, 60, sampling=sampling, echo=True, logprobs=1) for p in prompts]
    for prompt, answer in zip(prompts, answers, strict=True):
        assert answer.wait().end.error is None
        assert answer.tokens == [*prompt, *alone(target, prompt, 60, sampling)]
        assert engine.status().memory <= blocks * target.block_size


def test_an_observer_sees_all_states_and_the_logits_of_the_answer(opened: Open) -> None:
    """Includes a sequence that restarts."""
    engine, prompts = opened(blocks=7), [prompt_of(10 + 3 * n, n) for n in range(6)]
    observed: list[list[tuple[int, int, list[int]]]] = [[] for _ in prompts]

    def observe(of: list[tuple[int, int, list[int]]], start: int, *read: Tensor) -> None:
        of.append((start, len(read[0]), read[1].argmax(-1).tolist()))

    asked = zip(prompts, observed, strict=True)
    answers = [ask(engine, p, 60, observe=partial(observe, of)) for p, of in asked]
    for prompt, answer, of in zip(prompts, answers, observed, strict=True):
        answer.wait()
        last = max(n for n, (start, *_) in enumerate(of) if not start)  # where it restarted
        starts, lengths, best = zip(*of[last:], strict=True)
        assert [*starts] == [sum(lengths[:n]) for n in range(len(starts))]
        assert sum(lengths) == len(prompt) + len(answer.tokens) - 1
        assert [token for each in best for token in each] == answer.tokens
    assert any(start == 0 for of in observed for start, *_ in of[1:])


def test_two_thousand_cancelled_requests_take_no_memory(opened: Open) -> None:
    engine, ends = opened(), list[str]()
    stays = ask(engine, prompt_of(20, 1), 200)

    def count(event: Event) -> None:
        ends.append(getattr(event, "reason", ""))  # two compute threads

    request = GenerationRequest(prompt_of(30, 2), 100, person="x")
    for n in range(2_000):
        ticket = engine.submit(request, count)
        ticket.cancel()
        if n % 50 == 49:  # at most the queue limit
            until(lambda ticket=ticket: ticket.done, 20)
    assert stays.wait().tokens == alone(target_of("toy"), prompt_of(20, 1), 200)
    ask(engine, [5], 1).wait()
    # the last event comes before the engine frees the sequence
    until(lambda: not engine.status().running, 20)
    assert sum(map(bool, ends)) == 2_000  # a late cancellation has all tokens
    assert ends.count("cancelled") > 1_950
    engine.close()
    assert engine.status().memory == 0


# queue --------------------------------------------------------------------------------------------


def waiting(person: str, number: int) -> Any:
    """Return a stand-in for a sequence, with what the queue reads."""
    request = SimpleNamespace(person=person)
    return SimpleNamespace(request=request, number=number, cancelled=False)


@pytest.mark.parametrize(
    ("asked", "served"),
    [("aaab", "abaa"), ("aabbc", "abcab"), ("aaaabcbc", "abcabcaa"), ("abab", "abab")],
)
def test_visitors_take_turns(asked: str, served: str) -> None:
    line, order = RequestQueue(), ""
    for number, person in enumerate(asked):
        line.add(waiting(person, number))
    told = "".join(x.request.person for x in line.order([]))
    while len(line):
        line.remove(one := next(iter(line.order([]))))
        order += one.request.person
    assert order == told == served


def test_a_visitor_with_many_running_requests_waits() -> None:
    line, running = RequestQueue(), [waiting(person, n) for n, person in enumerate("aab")]
    waits = [waiting(person, n) for n, person in enumerate("aabc")]
    for each in waits:
        line.add(each)
    assert "".join(x.request.person for x in line.order(running)) == "cbaa"
    line.requeue(back := waiting("a", 9))
    assert next(iter(line.order(running))) is back
    waits[3].cancelled = back.cancelled = True
    assert {*map(id, line.drop_cancelled())} == {id(back), id(waits[3])} and len(line) == 3


def test_positions_are_reported_and_too_many_requests_refused(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "MAX_RUNNING", 1)
    monkeypatch.setattr(engines, "MAX_WAITING", 6)
    monkeypatch.setattr(engines, "MAX_WAITING_PER_VISITOR", 4)
    engine, held = opened(), threading.Event()
    request = GenerationRequest((5, 6), 3)
    engine.submit(request, lambda event: held.wait(20) and None)  # the loop is blocked
    until(lambda: not engine.status().waiting, 20)
    answers = [ask(engine, [7], 2, person="a") for _ in range(4)]
    with pytest.raises(OverloadError, match=r"4 requests are waiting, 4 of them yours"):
        ask(engine, [7], 2, person="a")  # one visitor cannot fill the queue
    answers += [ask(engine, [7], 2, person="b") for _ in range(2)]
    with pytest.raises(OverloadError, match=r"6 requests are waiting, 2 of them yours") as refused:
        ask(engine, [7], 2, person="b")
    assert refused.value.requests_ahead == 6 and refused.value.retry_after_s > 0
    held.set()
    ends = [answer.wait().end for answer in answers]
    assert all(end.reason == "length" for end in ends)
    places = [[e.place for e in x.events if isinstance(e, Waiting)] for x in answers]
    assert [x[0] for x in places[1:]] and all(x == sorted(x, reverse=True) for x in places)
    assert places[4] and max(places[4]) <= 1  # b waits for one request of a, not for four


@pytest.mark.parametrize(("long", "first"), [(60, "short"), (1000, "long")])
def test_a_long_prompt_does_not_delay_others(
    opened: Open, monkeypatch: pytest.MonkeyPatch, long: int, first: str
) -> None:
    monkeypatch.setattr(loop, "LONG_PROMPT_TOKENS", long)
    engine, held, order = opened(), threading.Event(), list[str]()
    engine.submit(GenerationRequest((5, 6), 2), lambda event: held.wait(20) and None)
    until(lambda: not engine.status().waiting, 20)
    for name, length in (("long", 200), ("middle", 120), ("short", 30)):
        told = partial(lambda name, event: order.append(name), name)
        engine.submit(GenerationRequest(prompt_of(length, length), 1), told)
    held.set()
    ask(engine, [5], 60).wait()
    assert order[0] == first and {*order} == {"long", "middle", "short"}


# errors -------------------------------------------------------------------------------------------


class Broken(NoDraft):
    nodes = 4

    def propose(self, hidden: Tensor, tokens: Sequence[int]) -> DraftTokens:
        raise RuntimeError("no drafts today")


def test_an_error_ends_only_its_request(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Speculation, "pays_off", lambda *_: True)
    engine, text = opened(), alone(target_of("toy"), (5, 6, 7), 20)
    broken = ask(engine, [5, 6, 7], 20, drafter=Broken())
    observed = list[Event]()

    def leave(event: Event) -> None:
        observed.append(event)
        raise OSError("nobody listens")

    engine.submit(GenerationRequest((5, 6, 7), 20), leave)
    assert ask(engine, [5, 6, 7], 20).wait().tokens == text
    assert broken.wait().end.reason == "error" and "no drafts today" in str(broken.end.error)
    ask(engine, [5], 1).wait()
    assert isinstance(observed[0], NewPieces) and len(observed) == 2


def test_a_failed_pass_ends_its_sequences_only(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = opened()
    with monkeypatch.context() as changed:
        changed.setattr(target_of("toy"), "run", lambda segments: 1 / 0)
        failed = ask(engine, [5, 6], 4).wait()
    assert failed.end.reason == "error" and "ZeroDivisionError" in str(failed.end.error)
    assert ask(engine, [5, 6], 4).wait().tokens == alone(target_of("toy"), (5, 6), 4)


def test_closing_cancels_all_requests(opened: Open) -> None:
    engine = opened()
    answers = [ask(engine, [5, 6], 200, person=str(n)) for n in range(5)]
    engine.close()
    assert {answer.wait().end.reason for answer in answers} <= {"cancelled", "length"}
    with pytest.raises(OverloadError):
        ask(engine, [5], 1)


def test_the_status_has_decoder_and_speed(opened: Open) -> None:
    engine = opened()
    ask(engine, prompt_of(9, 1), 40, lookup=True).wait()
    status = engine.status()
    assert status.tokens_per_s > 0 and status.per_sequence > 0 and status.batch == 1
    assert status.decoder.startswith("native") and status.memory > 0
    assert opened("PyTorch").status().decoder.endswith("may resolve differently")

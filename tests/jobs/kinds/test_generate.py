"""The generate job: texts side by side, pass by pass, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from backend.decoding.limits import LOOKUP_HEAD
from backend.decoding.native.cache import NativeCache
from backend.errors import ConfigError, ModelError
from backend.models.loading import LoadedModel, load
from backend.queue.folders import read_log, run_folder
from backend.store import queries
from backend.store.states import State
from backend.store.tables import Job
from jobs.generate import run as generation
from jobs.generate.config import read_sides
from jobs.generate.conversation import Turn, chain, messages
from jobs.generate.transcript import (
    MIN_TIMED_TOKENS,
    Transcript,
    TranscriptStep,
    file_of,
    first_difference,
    read_transcript,
    transcript_writer,
)
from jobs.playground.pool import ModelPool
from jobs.submit import checked, submit
from tests.decoding.test_engine import plain
from tests.drafters.toys import END, base, toy_prompts
from tests.jobs.kinds.test_benchmark_kind import trained
from tests.jobs.playground.answering import AnsweringLoop
from tests.queue.conftest import HOST, Wait, succeeded

PROMPT = load("toy").tokenizer.decode(toy_prompts()[0], skip_special_tokens=True)
SMALL = {
    "prompt": PROMPT, "sides": "toy", "max_new_tokens": 24, "threads": 1, "precision": "float32",
    "nodes": 4,
}  # fmt: skip


def finished(wait: Wait, **values: object) -> Job:
    return succeeded(wait, "generate", {**SMALL, **values})


def test_with_and_without_a_drafter_side_by_side(wait: Wait) -> None:
    one = trained()
    job = finished(wait, sides=f"toy, {one.run}", max_new_tokens=48)
    tokenizer = load("toy").tokenizer
    ids = tokenizer(PROMPT).input_ids
    expected = plain(base(), ids, 48, [END])
    first, second = read_transcript(job.run, 1), read_transcript(job.run, 2)
    assert first.text == second.text == tokenizer.decode(expected, skip_special_tokens=True)
    assert len(first.tokens) == len(expected) and {head for _, head in first.tokens} == {0}
    assert first.accepted == 1.0 and second.accepted is not None and second.accepted >= 1.0
    assert first.speed and second.speed and first.end in ("limit", "end")
    assert any(each.rejected for each in second.passes) and not first.passes[0].rejected
    figures = {(r.stage, str(r.metric)): r for r in queries.results([job.id])}
    assert figures["side-2", "accepted_length"].value == second.accepted
    assert figures["side-2", "tokens_per_second"].details["side"] == one.run


def test_what_was_looked_up_is_told_apart(wait: Wait) -> None:
    prompt = load("toy").tokenizer.decode(toy_prompts()[8], skip_special_tokens=True)
    plainly = finished(wait, prompt=prompt)
    job = finished(wait, prompt=prompt, sides=f"toy, {trained().run}", lookup=True)
    for side in (1, 2):
        found = read_transcript(job.run, side)
        assert found.text == read_transcript(plainly.run, 1).text
        assert LOOKUP_HEAD in {head for _, head in found.tokens}
    assert "a tree of 4 nodes" in read_log(job.run, 1)[0]


def test_a_side_that_was_finished_is_kept_and_one_that_was_cut_is_written_anew(wait: Wait) -> None:
    job = submit("generate", {**SMALL, "sides": "toy,toy,toy"}, HOST)
    for side, rows in ((1, [{"end": "limit", "rest": "kept"}]), (2, [])):
        with transcript_writer(job.run, side) as writer:
            writer.add(ms=1.0, tokens=[["A", 0]], rejected=[])
            for row in rows:
                writer.add(**row)
    first = file_of(job.run, 1).read_bytes()
    assert wait(job.id, State.SUCCEEDED, State.FAILED) == State.SUCCEEDED
    assert file_of(job.run, 1).read_bytes() == first
    assert read_transcript(job.run, 2).text == read_transcript(job.run, 3).text != "A"


def test_one_side_that_fails_does_not_end_the_others(
    wait: Wait, monkeypatch: pytest.MonkeyPatch
) -> None:
    loading = generation.load_model

    def failing(spec: str, *more: object, **named: object) -> LoadedModel:
        if spec != "toy":
            raise ModelError("It was not loaded.", "It is damaged.")
        return loading(spec, *more, **named)

    monkeypatch.setattr(generation, "load_model", failing)
    job = submit("generate", {**SMALL, "sides": "smollm2-135m, toy", "precision": "auto"}, HOST)
    assert wait(job.id, State.SUCCEEDED, State.FAILED) == State.FAILED
    assert read_transcript(job.run, 1).end == "error" and read_transcript(job.run, 2).complete
    assert "damaged" in queries.job(job.id).error_text
    assert {r.stage for r in queries.results([job.id])} == {"side-2"}


# conversations ------------------------------------------------------------------------------------


def test_a_follow_up_goes_on_with_what_each_side_wrote(wait: Wait) -> None:
    first = finished(wait, sides="toy, toy", temperature=0.8, max_new_tokens=8)
    more = {"sides": "toy, toy", "prompt": "Then they went home.", "max_new_tokens": 8}
    job = finished(wait, **more, follows=first.run, system="Be short.")
    tokenizer, answer = load("toy").tokenizer, read_transcript(first.run, 1).text
    told = "\n\n".join(("Be short.", PROMPT, answer, "Then they went home."))
    expected = plain(base(), tokenizer(told).input_ids, 8, [END])
    written = read_transcript(job.run, 1)
    assert written.text == tokenizer.decode(expected, skip_special_tokens=True)
    assert [each.run for each in chain(job.run)] == [first.run, job.run]
    _, cost = checked("generate", {**SMALL, **more, "follows": job.run})
    assert cost.tokens == 8 and cost.letters > len(told) and cost.letters < 2 * len(told) + 60


def test_what_was_read_before_is_not_read_again_and_changes_nothing(
    wait: Wait, loop: AnsweringLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[int] = []
    beginning = NativeCache.beginning

    def noted(cache: NativeCache, length: int, capacity: int) -> NativeCache:
        kept.append(length)
        return beginning(cache, length, capacity)

    monkeypatch.setattr(NativeCache, "beginning", noted)
    native = {"precision": "bfloat16", "max_new_tokens": 12}
    first = finished(wait, **native)
    assert not kept
    more = {**native, "prompt": "Then they went home.", "follows": first.run}
    recalled = finished(wait, **more, lookup=True)
    before = len(load("toy").tokenizer(PROMPT).input_ids)
    assert len(kept) == 1 and kept[0] >= before
    loop.playground.models = ModelPool()
    anew = finished(wait, **more, lookup=True)
    assert len(kept) == 1
    assert read_transcript(anew.run, 1).text == read_transcript(recalled.run, 1).text != ""


def test_what_cannot_be_followed_is_refused(wait: Wait) -> None:
    first = finished(wait, max_new_tokens=2)
    waiting = submit("generate", SMALL, HOST)
    other = submit("count", {}, HOST)
    for follows, sides, why in (
        ("generate-0099", "toy", "no run"),
        ("nonsense", "toy", "no run"),
        (waiting.run, "toy", "queued"),
        (other.run, "toy", "no answers"),
        (first.run, "toy, toy", "other models"),
    ):
        with pytest.raises(ConfigError, match=why):
            checked("generate", {**SMALL, "follows": follows, "sides": sides})


def test_the_conversation_as_a_template_takes_it() -> None:
    said = messages([Turn("Why?", "So."), Turn("How?", "Thus.")], "When?", "Be short.")
    assert [each["role"][0] for each in said] == [*"suauau"]
    assert said[-1]["content"] == "When?" and messages([], "Why?") == [
        {"role": "user", "content": "Why?"}
    ]


# sampling and refusals ----------------------------------------------------------------------------


def test_sampling_and_stop_strings(wait: Wait) -> None:
    job = finished(wait, sides="toy,toy", temperature=0.8, top_p=0.9, stop=" and |zebra")
    one, other = read_transcript(job.run, 1), read_transcript(job.run, 2)
    assert one.text == other.text  # the same seed
    assert " and " not in one.text and one.end in ("stop", "limit", "end")


def test_who_answers_is_known_by_name(queue: Path) -> None:
    mine = trained()
    model, drafter = read_sides(f"smollm2-135m, {mine.run}")
    assert (model.model, model.drafter) == ("smollm2-135m", None)
    assert (drafter.model, drafter.drafter) == ("toy", run_folder(mine.run) / "drafter")


# the file -----------------------------------------------------------------------------------------


def test_half_a_line_is_not_read(queue: Path) -> None:
    with transcript_writer("generate-0001", 1) as writer:
        writer.add(unused=True)
        writer.add(ms=50.0, tokens=[["A", 0]], rejected=[])
        writer.add(ms=20.0, tokens=[[" cat", 1], [" sat", 0]], rejected=[" dog"])
    file = file_of("generate-0001", 1)
    file.write_text(file.read_text() + '{"ms": 1', encoding="utf-8")
    found = read_transcript("generate-0001", 1)
    assert found.passes[1] == TranscriptStep([(" cat", 1), (" sat", 0)], [" dog"], 20.0)
    assert (found.text, found.accepted, found.end) == ("A cat sat", 2.0, "") and found.unused
    assert read_transcript("generate-0001", 2) == Transcript()


def test_a_speed_is_told_from_enough_tokens() -> None:
    def of(tokens: int) -> float | None:
        one = TranscriptStep([("a", 0), ("b", 1)], [], 20.0)
        return Transcript([TranscriptStep([("A", 0)], [], 50.0), *[one] * (tokens // 2)]).speed

    assert of(MIN_TIMED_TOKENS - 2) is None and of(MIN_TIMED_TOKENS) == 100.0


@pytest.mark.parametrize(
    ("one", "other", "place"),
    [("abc", "abd", 2), ("abc", "abc", None), ("ab", "abc", None), ("", "a", None)],
)
def test_where_texts_part(one: str, other: str, place: int | None) -> None:
    assert first_difference(one, other) == place

"""The generate job: recorded texts, and what is refused; and transcripts, which chats have, too."""

import pytest

from backend.decoding.limits import LOOKUP_HEAD
from backend.models.loading import load
from backend.queue.artifacts import read_log, run_folder
from backend.store import queries
from backend.store.states import State
from backend.store.tables import Job
from jobs.fields.drafters import read_sides
from jobs.serving.transcript import (
    MIN_TIMED_TOKENS,
    Transcript,
    TranscriptStep,
    file_of,
    first_difference,
    read_transcript,
    transcript_of,
    transcript_writer,
)
from jobs.submit import submit
from tests.decoding.test_engine import plain
from tests.drafters.toys import END, base, toy_prompts
from tests.jobs.kinds.test_benchmark_kind import trained
from tests.queue.conftest import HOST, Wait, succeeded

PROMPT = load("toy").tokenizer.decode(toy_prompts()[0], skip_special_tokens=True)
SMALL = {
    "prompt": PROMPT,
    "sides": "toy",
    "max_new_tokens": 24,
    "threads": 1,
    "precision": "float32",
    "nodes": 4,
}


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
    figures = {(r.stage, str(r.metric)): r for r in queries.results([job.id])}
    assert figures["side-2", "accepted_length"].value == second.accepted
    assert figures["side-2", "tokens_per_second"].details["side"] == one.run
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


def test_one_side_that_fails_does_not_end_the_others(wait: Wait) -> None:
    mine = trained()
    job = submit("generate", {**SMALL, "sides": f"{mine.run}, toy"}, HOST)
    (run_folder(mine.run) / "drafter" / "drafter.safetensors").write_bytes(b"damaged")
    assert wait(job.id, State.SUCCEEDED, State.FAILED) == State.FAILED
    assert read_transcript(job.run, 1).end == "error" and read_transcript(job.run, 2).complete
    assert read_transcript(job.run, 1).error in queries.job(job.id).error_text
    assert {r.stage for r in queries.results([job.id])} == {"side-2"}


def test_sampling_and_stop_strings(wait: Wait) -> None:
    sampling = {"temperature": 0.8, "top_p": 0.9, "stop": " and |zebra", "lookup": True}
    job = finished(wait, sides="toy,toy", **sampling)
    one, other = read_transcript(job.run, 1), read_transcript(job.run, 2)
    assert one.text == other.text  # the same seed
    assert " and " not in one.text and one.end in ("stop", "limit", "end")
    assert {head for _, head in one.tokens} <= {0, LOOKUP_HEAD}


def test_who_answers_is_known_by_name(queue: object) -> None:
    mine = trained()
    model, drafter = read_sides(f"smollm2-135m, {mine.run}")
    assert (model.model, model.drafter) == ("smollm2-135m", None)
    assert (drafter.model, drafter.drafter) == ("toy", run_folder(mine.run) / "drafter")


# transcripts --------------------------------------------------------------------------------------


def test_half_a_line_is_not_read(queue: object) -> None:
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
    assert transcript_of([{"waits": "Loading", "about": 1, "at": 2}]) == Transcript()  # of old runs
    assert transcript_of([{"tokens": 3}]).end == transcript_of(["x"]).end == "error"


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

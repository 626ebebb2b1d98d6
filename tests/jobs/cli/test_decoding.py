"""`slimscope benchmark` and `slimscope generate`, in processes of their own."""

import json
from pathlib import Path

from backend.queue.supervisor import SupervisorLoop
from backend.store import queries
from jobs.serving.transcript import read_transcript
from tests.shell import slimscope


def test_a_text_is_printed_as_it_comes(supervised: SupervisorLoop) -> None:
    words = ("generate", "One day Tom found a ball.", "--model", "toy", "--max-new-tokens", "20")
    done = slimscope(*words, meanwhile=supervised.turn)
    assert done.returncode == 0, done.stderr
    text = read_transcript("generate-0001", 1).text
    assert text.strip() and text in done.stdout and "tokens a pass" in done.stdout
    (side,) = json.loads(slimscope(*words, "--lookup", "--json", meanwhile=supervised.turn).stdout)
    pieces = [piece for each in side["passes"] for piece, _ in each["tokens"]]
    assert "".join(pieces) == read_transcript("generate-0002", 1).text != ""
    assert [queries.job(f"generate-{n:04d}").config["lookup"] for n in (1, 2)] == [False, True]


def test_decoders_are_timed_and_judged(supervised: SupervisorLoop) -> None:
    words = ("benchmark", "--model", "toy", "--preset", "quick look")
    done = slimscope(*words, meanwhile=supervised.turn)
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stdout.split())
    assert "Vanilla" in said and "Prompt lookup " in said and "responses match vanilla's" in said


def test_what_is_not_there_is_refused(queue: Path) -> None:
    for words in (
        ("generate", "Why?", "--drafter", "amphista-0099"),
        ("generate", "", "--model", "toy"),
        ("benchmark", "amphista-0099"),
        ("benchmark", "--model", "toy", "--preset", "none such"),
    ):
        refused = slimscope(*words)
        assert refused.returncode == 2 and refused.stderr.startswith("slimscope:"), words
        assert "Traceback" not in refused.stderr

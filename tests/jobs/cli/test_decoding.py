"""Tests of `slimscope submit benchmark` in a separate process."""

from pathlib import Path

from backend.queue.supervisor import SupervisorLoop
from tests.shell import slimscope


def test_decoders_are_timed_and_judged(supervised: SupervisorLoop) -> None:
    words = ("submit", "benchmark", "--model", "toy", "--preset", "quick look", "--wait")
    completed = slimscope(*words, meanwhile=supervised.turn)
    assert completed.returncode == 0, completed.stderr
    output = " ".join(completed.stdout.split())
    assert (
        "Vanilla" in output and "Prompt lookup " in output and "responses match vanilla's" in output
    )


def test_what_is_not_there_is_refused(queue: Path) -> None:
    for words in (
        ("submit", "benchmark", "--drafters", "amphista-0099"),
        ("submit", "benchmark", "--model", "toy", "--preset", "none such"),
    ):
        refused = slimscope(*words)
        assert refused.returncode == 2 and refused.stderr.startswith("slimscope:"), words
        assert "Traceback" not in refused.stderr

"""Runs the shell blocks of the guide and the README, in order, in an empty folder."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from backend.queue.supervisor import SupervisorLoop
from backend.store import queries
from tests.shell import slimscope

ROOT = Path(__file__).parents[3]
SDS = "--segments 4 --context 32 --windows 2 --adjust-steps 1 --redense-steps 2 --threads 1"
DLQAT = (
    "--segments 4 --context 64 --windows 2 --steps 2 --batch 2 --length 32 --sample-tokens 2 "
    "--no-packed --stages rtn,gptq,dlqat --threads 1"
)
AMPHISTA = (
    "--answers 24 --heldout 8 --answer-tokens 16 --minutes 0 --steps 4 --batch 4 --threads 1 "
    "--draft-vocabulary 256"
)
SMALL = {  # what makes the walk short: added at the end of a line, where it counts
    ("submit", "sds"): SDS,
    ("submit", "dlqat"): DLQAT,
    ("submit", "amphista"): AMPHISTA,
    ("submit", "benchmark"): "--preset 'quick look'",
}


def lines(page: str) -> Iterator[list[str]]:
    """Return the words of each command, without comments."""
    text = (ROOT / page).read_text(encoding="utf-8")
    block = re.search(r"```bash\n(slimscope submit sds --model toy .*?)```", text, re.DOTALL)
    for line in block[1].splitlines():
        if words := shlex.split(line, comments=True):
            yield words[1:]


def test_the_readme_shows_some_of_the_lines_of_the_guide_in_their_order() -> None:
    readme, guide = [*lines("README.md")], [*lines("docs/guide.md")]
    assert readme and readme == [words for words in guide if words in readme]
    assert readme[0] == guide[0] and readme[-1] == guide[-1]


def test_the_lines_of_the_guide_work_in_their_order(supervised: SupervisorLoop) -> None:
    for words in lines("docs/guide.md"):
        more = shlex.split(SMALL.get((words[0], words[1] if words[1:] else ""), ""))
        turn = supervised.turn if "--wait" in words else None
        completed = slimscope(*words, *more, meanwhile=turn)
        assert completed.returncode == 0, (words, completed.stdout, completed.stderr)
        assert "benchmark" not in words or "responses match vanilla's" in " ".join(
            completed.stdout.split()
        )
    runs = {job.run: job.state for job in queries.jobs()}
    assert [*runs][::-1][:5] == [
        "sds-0001",
        "dlqat-0002",
        "amphista-0003",
        "benchmark-0004",
        "sds-0005",
    ]
    assert len(runs) == 11 and runs["sds-0011"] == "queued"

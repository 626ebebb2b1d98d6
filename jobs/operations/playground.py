"""Operations on the answers of the playground."""

from dataclasses import asdict
from typing import Annotated

from pydantic import Field

from backend.queue.actor import Actor
from backend.store import queries
from jobs.generate import arena
from jobs.generate.transcript import read_transcript
from jobs.operations.registry import Record, Run, operation

Choice = Annotated[int, Field(description="The better answer, from 1; 0: a tie; -1: all bad.")]


@operation("answers")
def run_answers(run: Run) -> list[Record]:
    """The texts of a run of the playground, one for each model: text, tokens, tokens per second,
    accepted tokens per step, and how it ended ("" while it is written)."""
    job = queries.job(run)
    written = [(name, read_transcript(job.run, n)) for n, name in enumerate(arena.names_of(job), 1)]
    return [
        {"model": name, "text": text.text, "tokens": len(text.tokens), "end": text.end,
         "tokens_per_second": text.speed, "tokens_per_step": text.accepted}
        for name, text in written
    ]  # fmt: skip


@operation("leaderboard", tool="")
def show_leaderboard() -> Record:
    """The ratings of models by blind votes in the playground, the best first."""
    return asdict(arena.leaderboard())


@operation("vote", writes=True, who="guest", tool="")
def vote(run: Run, choice: Choice, actor: Actor) -> list[Record]:
    """Vote for an answer of a run of the playground. Answers with the texts and their models."""
    arena.vote(queries.job(run), choice, actor)
    return run_answers(run)

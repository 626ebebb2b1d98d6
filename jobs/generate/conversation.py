"""Conversations: a run goes on with the one its config names. Each side has been told the prompts
of the chain and its own answers. The runs form a tree, named after the first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from backend.errors import ConfigError, NotFoundError
from backend.store import queries
from backend.store.states import State
from backend.store.tables import Job, check_intact
from jobs.generate.transcript import read_transcript

MAX_TURNS = 50


def chain(follows: str, field: str = "follows") -> list[Job]:
    """The runs up to this one, the first of the conversation first; none for "".

    Raises:
        ConfigError: a run of the chain is gone or none of this kind, or there are too many.
    """
    jobs: list[Job] = []
    while follows:
        try:
            job = queries.job(follows)
        except (NotFoundError, ConfigError) as error:
            raise _broken(f"There is no run {follows[:40]}.", field) from error
        check_intact(job.config)
        if "prompt" not in job.config or "sides" not in job.config:
            raise _broken(f"{job.run} holds no answers.", field)
        if len(jobs) == MAX_TURNS or job.run in {each.run for each in jobs}:
            raise _broken(f"A conversation has at most {MAX_TURNS} prompts.", field)
        jobs.append(job)
        follows = str(job.config.get("follows", ""))
    return jobs[::-1]


def turns_to(job: Job) -> list[Job]:
    """The chain up to this run; the run alone where the chain is broken."""
    try:
        return chain(job.run)
    except ConfigError:
        return [job]


def require_chain(follows: str, sides: Sequence[str]) -> list[Job]:
    """The chain; ConfigError unless it ends with a finished run of the same sides."""
    jobs = chain(follows)
    for job in jobs:
        if job.removed_at is not None:
            raise _broken(f"{job.run} was deleted.", "follows")
    for job in jobs[-1:]:
        if job.state != State.SUCCEEDED:
            raise _broken(f"{job.run} is {job.state}.", "follows")
        if [name.strip() for name in str(job.config["sides"]).split(",")] != [*sides]:
            raise _broken(f"{job.run} has other models.", "sides")
    return jobs


@dataclass(frozen=True)
class Turn:
    """A prompt, and the answer one side gave."""

    prompt: str
    answer: str


def turns(jobs: Sequence[Job], side: int) -> list[Turn]:
    """What one side, from 1, has been asked and has answered."""
    return [Turn(str(job.config["prompt"]), read_transcript(job.run, side).text) for job in jobs]


def messages(before: Sequence[Turn], prompt: str, system: str = "") -> list[dict[str, str]]:
    """The conversation as a chat template takes it."""
    said = [{"role": "system", "content": system}] if system.strip() else []
    for turn in before:
        said.append({"role": "user", "content": turn.prompt})
        said.append({"role": "assistant", "content": turn.answer})
    return [*said, {"role": "user", "content": prompt}]


@dataclass(frozen=True)
class Conversation:
    """A conversation as a list shows it: its newest run, first prompt, and number of prompts."""

    newest: Job
    prompt: str
    prompts: int


def conversations(jobs: Sequence[Job]) -> list[Conversation]:
    """The conversations of these runs, newest first; one may begin before them."""
    by_run = {job.run: job for job in jobs}
    found: dict[str, Conversation] = {}
    for job in jobs:
        first, prompts = job, 1
        while (before := by_run.get(str(first.config.get("follows", "")))) and prompts < MAX_TURNS:
            first, prompts = before, prompts + 1
        found.setdefault(first.run, Conversation(job, str(first.config.get("prompt", "")), prompts))
    return [*found.values()]


def _broken(why: str, field: str) -> ConfigError:
    return ConfigError("The conversation cannot go on.", why, "Begin a new chat.", field)

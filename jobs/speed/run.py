"""Decoding speed as a job: vanilla, prompt lookup, a small assistant and trained drafters answer
the same prompts in turn, on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field

from backend.errors import ConfigError
from backend.models.facts import ModelFacts
from backend.models.memory import RUNTIME, memory_available, refuse_beyond, weight_memory
from backend.models.sources.catalogue import inspect
from backend.store.tables import Job
from jobs.fields.base_model import BaseConfig, load_model, refuse_precision, resolve_model
from jobs.fields.drafters import drafter_bytes, drafter_config, drafters_named
from jobs.fields.model import absolute
from jobs.fields.prompts import PromptConfig, check_prompts
from jobs.kind import Estimate, JobConfig, Kind
from jobs.runtime.costs import DECODE_COST
from jobs.runtime.duration import estimate_seconds
from jobs.speed.report import LABELS, DecoderReport, decoder_reports, verdicts

if TYPE_CHECKING:
    from jobs.runtime.context import JobContext

NAME = "speed"
TREE_PROMPTS = 4  # on which trees of other sizes are tried
SIZES = (2, 4, 8, 16, 32)


class TimingConfig(BaseModel):
    """Who drafts, and how all are timed."""

    drafters: str = Field(
        "",
        max_length=300,
        title="Drafters",
        description="Finished runs of the kind amphista whose base is the model, such as "
        "amphista-0007.",
        json_schema_extra={"choices": "drafters", "many": True},
    )
    lookup: bool = Field(
        True,
        title="Prompt lookup",
        description="Also decode with guesses looked up in the text so far. Needs no training.",
    )
    combined: bool = Field(
        True,
        title="Prompt lookup before drafters",
        description="Also decode with each drafter guessing only where the last two tokens are not "
        "found in the text so far.",
    )
    assistant: str = Field(
        "",
        max_length=300,
        title="Small assistant",
        description="A small model with the same tokenizer that guesses greedily. Empty: none.",
    )
    count: int = Field(
        12,
        ge=1,
        le=10_000,
        title="Prompts asked",
        description="In turn from each task of the set.",
        json_schema_extra={"unit": "prompts"},
    )
    max_new_tokens: int = Field(
        64,
        ge=2,
        le=32768,
        title="New tokens",
        description="Of an answer, at most.",
        json_schema_extra={"unit": "tokens"},
    )
    rounds: int = Field(
        3,
        ge=1,
        le=100,
        title="Rounds",
        description="How often every answer is timed, in another order each time; one more round "
        "warms up.",
        json_schema_extra={"unit": "rounds"},
    )
    nodes: int = Field(
        0,
        ge=0,
        le=256,
        title="Tree size",
        description="Guesses verified at once, the chosen token included. 0: for each drafter "
        "what pays best on this machine, measured first.",
        json_schema_extra={"unit": "nodes"},
    )
    try_sizes: bool = Field(
        False,
        title="Try tree sizes",
        description=f"Also time every drafter with trees of {', '.join(map(str, SIZES))} nodes, "
        f"on {TREE_PROMPTS} prompts.",
        json_schema_extra={"advanced": True},
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        title="Precision",
        description="auto: bfloat16 where the processor computes in it. Only in float32 are all "
        "texts the same to the last token.",
        json_schema_extra={"advanced": True},
    )


class SpeedJob(BaseConfig, TimingConfig, PromptConfig, JobConfig):
    """A model, its rivals, and the prompts they answer."""

    model_config = ConfigDict(extra="forbid", frozen=True)


# before the work ----------------------------------------------------------------------------------


def check(config: SpeedJob) -> Estimate:
    """Refuses what cannot work; tells what the rest will cost."""
    base = resolve_model(config.model)
    facts = base.facts
    refuse_precision(base, config.precision)
    runs = drafters_named(config.drafters, config.model, "drafters")
    refuse_unfit(config, facts, runs)
    check_prompts(config, facts)
    assistants = [inspect(absolute(config.assistant))] if config.assistant else []
    for other in assistants:
        refuse_unlike(facts, other)
    drafters = sum(map(drafter_bytes, runs))
    needed = RUNTIME + sum(weight_memory(each) for each in (facts, *assistants)) + drafters
    refuse_beyond(needed, memory_available(), facts.title)
    cost = work(config, facts, len(runs))
    seconds, basis = estimate_seconds(NAME, config.model, cost)
    return Estimate(seconds, needed, cost, basis, warnings(config, runs))


def refuse_unfit(config: SpeedJob, facts: ModelFacts, runs: Sequence[Job]) -> None:
    """Refuses answers longer than the model reads, and trees that no drafter fills."""
    if config.max_new_tokens >= facts.context:
        raise ConfigError(
            f"Answers of {config.max_new_tokens} tokens do not fit.",
            f"{facts.title} reads {facts.context} tokens, the prompt included.",
            "Choose fewer.",
            "max_new_tokens",
        )
    for job in runs:
        most = 1 + len(drafter_config(job)["growth"])
        if config.nodes > most:
            raise ConfigError(
                f"A tree of {config.nodes} nodes is too large for {job.run}.",
                f"On held-out text no more than {most} were ever right.",
                f"Choose {most} or fewer, or 0.",
                "nodes",
            )


def refuse_unlike(facts: ModelFacts, assistant: ModelFacts) -> None:
    """Refuses an assistant that writes other tokens."""
    if assistant.vocabulary != facts.vocabulary:
        raise ConfigError(
            f"{assistant.title} cannot draft for {facts.title}.",
            f"It knows {assistant.vocabulary} tokens, the model {facts.vocabulary}.",
            "Choose one with the same tokenizer.",
            "assistant",
        )


def warnings(config: SpeedJob, runs: Sequence[Job]) -> tuple[str, ...]:
    """What is worth knowing beforehand."""
    if not (runs or config.lookup or config.assistant):
        return ("Only vanilla decoding is timed: there is nothing to compare it with.",)
    return ()


def work(config: SpeedJob, facts: ModelFacts, drafters: int) -> float:
    """Floating-point operations, about; a decoded token is dear."""
    arms = 1 + config.lookup + bool(config.assistant) + drafters * (1 + config.combined)
    answers = arms * config.count * (1 + config.rounds)
    trees = drafters * config.try_sizes * 2 * len(SIZES) * min(TREE_PROMPTS, config.count)
    tokens = (answers + trees) * config.max_new_tokens
    return 2.0 * DECODE_COST * facts.parameters * tokens


# the work -----------------------------------------------------------------------------------------


def run(config: SpeedJob, context: JobContext) -> None:
    """The whole job. The answers to a prompt are a checkpoint, so a killed job goes on."""
    from backend.methods.amphista.target_model import TargetModel
    from backend.store import queries
    from jobs.runtime.environment import prepare
    from jobs.speed.benchmark import DecodingBenchmark

    device = prepare(config, context)
    loaded = load_model(config.model, device, config.precision, context)
    contest = DecodingBenchmark(config, loaded, TargetModel(loaded.model), context)
    contest.compare()
    if config.try_sizes:
        contest.try_sizes()
    drafters = len(drafters_named(config.drafters, config.model, "drafters"))
    context.result("run", "work", work(config, loaded.facts, drafters))
    results = queries.results([context.run])
    for sentence in verdicts(results):
        context.log(sentence)
    record_fastest(decoder_reports(results), context)


def record_fastest(arms: Sequence[DecoderReport], context: JobContext) -> None:
    """The figures of the fastest arm stand for the run, beside others."""
    fastest = max(arms, key=lambda arm: arm.speed)
    context.result("run", "tokens_per_second", fastest.speed, of=fastest.label)
    if len(arms) > 1:
        context.result("run", "speed_up", fastest.speed_up, of=fastest.label)


KINDS = (
    Kind(
        name=NAME,
        title="Decoding speed",
        summary="Decode the same prompts with and without drafters, in turn, and tell what each "
        "gains or loses here.",
        config=SpeedJob,
        check=check,
        run=run,
        of_models=False,
        stages=LABELS,
        presets={
            "quick look": {"count": 6, "max_new_tokens": 32, "rounds": 2},
            "default": {},
            "thorough": {"count": 48, "max_new_tokens": 128, "rounds": 5, "try_sizes": True},
        },
    ),
)

"""One prompt, up to four models or drafters: a short job whose texts are watched as they come."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ConfigDict, Field

from backend.errors import ConfigError, SlimscopeError
from backend.methods.amphista.config import LEAST_PENALTY, Temperature
from backend.models.layer_names import read_names
from backend.models.memory import RUNTIME, memory_available, refuse_beyond, weight_memory
from jobs.evaluation.run import RUN
from jobs.fields.base_model import load_model, refuse_precision, resolve_model
from jobs.fields.drafters import KIND as DRAFTER_KIND
from jobs.fields.drafters import drafter_folder, drafter_run
from jobs.fields.model import absolute
from jobs.generate.transcript import ENDS, MOST, read_transcript, transcript_writer
from jobs.kind import Estimate, JobConfig, Kind
from jobs.runtime.costs import DECODE_COST
from jobs.runtime.duration import estimate_seconds

if TYPE_CHECKING:
    from pathlib import Path

    from backend.methods.amphista.decoding.acceptance import Sampling
    from backend.methods.amphista.decoding.proposers import Proposer
    from backend.methods.amphista.target_model import TargetModel
    from backend.models.loading import LoadedModel
    from jobs.runtime.context import JobContext

NAME = "generate"
STOPS = "|"


class GenerateJob(JobConfig):
    """A prompt, who answers it, and how."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompt: str = Field(
        "Explain in three sentences why the sky is blue.",
        min_length=1,
        max_length=8000,
        title="Prompt",
        description="What all of them are asked.",
        json_schema_extra={"lines": 4},
    )
    sides: str = Field(
        "smollm2-135m",
        min_length=1,
        max_length=1000,
        title="Models and drafters",
        description="One to four: a model, a run that saved one, or a run of the kind amphista, "
        "whose base then decodes with its drafter.",
        json_schema_extra={"many": True},
    )
    max_new_tokens: int = Field(
        96,
        ge=1,
        le=4096,
        title="New tokens",
        description="Of an answer, at most.",
        json_schema_extra={"unit": "tokens"},
    )
    temperature: Temperature = Field(
        0.0,
        ge=0,
        le=5,
        title="Temperature",
        description="0 takes the likeliest token.",
    )
    top_k: int = Field(
        0,
        ge=0,
        le=10**6,
        title="Top-k",
        description="Draws from so many likeliest tokens. 0: from all.",
        json_schema_extra={"advanced": True},
    )
    top_p: float = Field(
        1.0,
        gt=0,
        le=1,
        title="Top-p",
        description="Draws from the likeliest tokens that together have this probability.",
        json_schema_extra={"advanced": True},
    )
    repetition_penalty: float = Field(
        1.0,
        ge=LEAST_PENALTY,
        le=10,
        title="Repetition penalty",
        description="1: none. Each guess of a tree is penalised by its own text.",
        json_schema_extra={"advanced": True},
    )
    typical: bool = Field(
        False,
        title="Typical acceptance (lossy)",
        description="Keeps guesses that are likely enough. More are accepted, and the text is no "
        "longer the base's own. Needs a temperature.",
        json_schema_extra={"advanced": True},
    )
    stop: str = Field(
        "",
        max_length=300,
        title="Stop strings",
        description=f"Texts that end an answer, several with {STOPS}",
        json_schema_extra={"advanced": True},
    )
    chat: bool = Field(
        True,
        title="Chat template",
        description="Puts the prompt into the model's chat template, where it has one.",
        json_schema_extra={"advanced": True},
    )
    nodes: int = Field(
        0,
        ge=0,
        le=256,
        title="Tree size",
        description="Guesses verified at once. 0: what pays best on this machine, measured first.",
        json_schema_extra={"unit": "nodes", "advanced": True},
    )
    lookup: bool = Field(
        False,
        title="Prompt lookup first",
        description="Where the last tokens stand in the text already, what followed them is "
        "guessed; elsewhere a drafter guesses. Plain models are sped up by it, too.",
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        title="Precision",
        description="auto: bfloat16 where the processor computes in it. Only in float32 is a "
        "drafter's text the base's to the last token.",
        json_schema_extra={"advanced": True},
    )


@dataclass(frozen=True)
class GenerationSide:
    """One of those who answer.

    Attributes:
        name: as it was given.
        model: a base (see `jobs.fields.base_model`).
        drafter: its folder, if there is one.
    """

    name: str
    model: str
    drafter: Path | None = None


# before the work ----------------------------------------------------------------------------------


def sides_of(text: str) -> list[GenerationSide]:
    """Who answers.

    Raises:
        ConfigRefused: too many, none, or a run that holds neither model nor drafter.
    """
    names = read_names(text)
    if not 1 <= len(names) <= MOST:
        raise ConfigError(
            f"{len(names)} models were named.", f"One to {MOST} can answer side by side.",
            "Separate them by commas.", "sides",
        )  # fmt: skip
    return [_side(name) for name in names]


def _side(name: str) -> GenerationSide:
    if RUN.fullmatch(name) and name.startswith(f"{DRAFTER_KIND}-"):
        job = drafter_run(name, "sides")
        return GenerationSide(job.run, str(job.config["model"]), drafter_folder(job))
    return GenerationSide(name, absolute(name))


def check(config: GenerateJob) -> Estimate:
    """Refuses what cannot work; tells what the rest will cost."""
    if config.typical and not config.temperature:
        raise ConfigError(
            "Typical acceptance needs a temperature.", "It accepts what is likely enough to draw.",
            "Set a temperature above 0, or take it off.", "typical",
        )  # fmt: skip
    facts = []
    for side in sides_of(config.sides):
        try:
            base = resolve_model(side.model, "sides")
            refuse_precision(base, config.precision)
            facts.append(base.facts)
        except ConfigError:
            raise
        except SlimscopeError as error:
            raise type(error)(error.what, error.why, error.do, "sides") from error
    shortest = min(facts, key=lambda each: each.context)
    if config.max_new_tokens >= shortest.context:
        raise ConfigError(
            f"{config.max_new_tokens} new tokens do not fit.",
            f"{shortest.title} reads {shortest.context} tokens, the prompt included.",
            "Ask for fewer.", "max_new_tokens",
        )  # fmt: skip
    largest = max(facts, key=weight_memory)
    needed = RUNTIME + int(1.3 * weight_memory(largest))
    refuse_beyond(needed, memory_available(), largest.title)
    work = sum(2.0 * DECODE_COST * each.parameters * config.max_new_tokens for each in facts)
    seconds, basis = estimate_seconds(NAME, config.sides, work)
    lossy = ("Typical acceptance writes another text than the base would.",) * config.typical
    return Estimate(seconds, needed, work, basis, lossy)


# the work -----------------------------------------------------------------------------------------


def run(config: GenerateJob, context: JobContext) -> None:
    """Writes one side after the other; those an earlier attempt has finished are kept."""
    from backend.methods.amphista.target_model import TargetModel
    from jobs.runtime.environment import prepare

    device, sides = prepare(config, context), sides_of(config.sides)
    held: tuple[str, LoadedModel, TargetModel] | None = None
    for number, side in enumerate(sides, 1):
        context.progress(number - 1, len(sides), f"{side.name} writes")
        if not read_transcript(context.run, number).end:
            if held is None or held[0] != side.model:
                held = None  # one model at a time
                loaded = load_model(side.model, device, config.precision, context)
                held = side.model, loaded, TargetModel(loaded.model)
            answer(config, side, number, held[1], held[2], context)
        record(side, number, context)


def answer(
    config: GenerateJob,
    side: GenerationSide,
    number: int,
    loaded: LoadedModel,
    target: TargetModel,
    context: JobContext,
) -> None:
    """Writes one side's text, pass by pass."""
    from backend.methods.amphista.checkpoint import Amphista
    from backend.methods.amphista.decoding.proposers import PromptLookupFirst
    from backend.methods.amphista.generate import make_proposer, refuse_processors
    from backend.text.prompts import prompt_ids

    refuse_processors(loaded.model)
    drafter = Amphista.load(side.drafter) if side.drafter else None
    proposer = make_proposer(target, drafter, config.nodes)
    if drafter:
        context.log(f"{side.name}: {drafter.arm}, a tree of {proposer.nodes} nodes.")
    if config.lookup:
        proposer = PromptLookupFirst(proposer)
    tokenizer = loaded.tokenizer
    ids = (
        prompt_ids(config.prompt, tokenizer) if config.chat else tokenizer(config.prompt).input_ids
    )
    with transcript_writer(context.run, number) as writer:
        for row in passes(config, target, proposer, list(ids), loaded, context):
            writer.add(**row)


def passes(
    config: GenerateJob,
    target: TargetModel,
    proposer: Proposer,
    ids: list[int],
    loaded: LoadedModel,
    context: JobContext,
) -> Iterator[dict[str, object]]:
    """The lines of one side (see `jobs.generate.transcript`)."""
    from backend.methods.amphista.decoding.acceptance import acceptance
    from backend.methods.amphista.decoding.engine import decode
    from backend.methods.amphista.generate import Detokenizer
    from backend.reporter import stop_if_asked
    from backend.text.prompts import end_ids

    ends = end_ids(loaded.tokenizer, loaded.model.generation_config)
    told = Detokenizer(loaded.tokenizer, config.stop.split(STOPS))
    token, rule = -1, acceptance(sampling(config))
    for step in decode(target, proposer, ids, rule, config.max_new_tokens, ends):
        stop_if_asked(context)
        tokens = []
        for token, head in zip(step.tokens, step.heads, strict=True):
            tokens.append((told.add(token), head))
            if told.stopped:
                break
        rejected = [loaded.tokenizer.decode([token]) for token in step.rejected]
        yield {"ms": 1000 * sum(step.seconds.values()), "tokens": tokens, "rejected": rejected}
        if told.stopped:
            break
    why = "stop" if told.stopped else "end" if token in ends else "limit"
    yield {"end": why, "rest": told.rest()}


def sampling(config: GenerateJob) -> Sampling:
    """How tokens are chosen."""
    from backend.methods.amphista.decoding.acceptance import Sampling

    return Sampling(**config.model_dump(include={field.name for field in fields(Sampling)}))


def record(side: GenerationSide, number: int, context: JobContext) -> None:
    """Records the figures of a side that has ended."""
    found, stage = read_transcript(context.run, number), f"side-{number}"
    about: dict[str, Any] = {"side": side.name, "end": found.end, "tokens": len(found.tokens)}
    if found.speed and found.accepted:
        context.result(stage, "tokens_per_second", found.speed, n=1, **about)
        context.result(stage, "accepted_length", found.accepted, n=len(found.passes) - 1)
    context.log(f"{side.name}: {len(found.tokens)} tokens, {ENDS[found.end]}.")


KINDS = (
    Kind(
        name=NAME,
        title="Generate text",
        summary="Ask one prompt of up to four models or drafters, and watch them answer.",
        config=GenerateJob,
        check=check,
        run=run,
        of_models=False,
        stages={f"side-{n}": f"Side {n}" for n in range(1, MOST + 1)},
    ),
)

"""Operations on mixes of layer formats: the best mix for a budget, and the runs that reproduce the
state of a live model with full quality. Does not import torch.

- Sparsity patterns become a run of the kind `sds`: the full method or only its first pruning.
- Bit widths become a run of the kind `dlqat`: trained or only quantized.
- A mix of both becomes one run after the other; the effort names the methods that train.
"""

from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from shlex import quote
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field

from backend.budget import Budget
from backend.errors import ConfigError, SlimscopeError
from backend.live.address import (
    MAX_MEASURED_TOKENS,
    WORKBENCH,
    Address,
    LiveState,
    QueuedState,
    Ratio,
    state_at,
)
from backend.models.facts import ModelFacts
from backend.models.families.stored import LinearShape
from backend.pruning.pattern import Pattern
from backend.quantization.config import IntegerFormat
from backend.queue.actor import Actor
from backend.sensitivity.budget import Mix
from backend.sensitivity.profile import SensitivityProfile
from jobs import pipeline as pipelines
from jobs.fields.models import resolve_model
from jobs.operations.registry import Record, operation
from jobs.profile.profiles import KINDS, Method, budget_method, budget_solver, newest_profile, pins
from jobs.record import summary
from jobs.submit import check_and_estimate, command_line, submit

Effort = Literal["one-shot", "sds", "dlqat", "full"]
EMBEDDING_BITS = (8, 6, 4)
MISSING = {
    "sds": ("No layer is pruned.", "Set a sparsity or a pattern."),
    "dlqat": ("No layer is quantized.", "Set a number of bits."),
}

FormatPart = TypeVar("FormatPart", Pattern, IntegerFormat)
Model = Annotated[str, Field(min_length=1, max_length=300, description="Model of the state.")]
State = Annotated[Address, Field(description="Address of the state.")]
EffortField = Annotated[
    Effort,
    Field(
        description="one-shot: prune and round only. sds or dlqat: only this method trains. "
        "full: every method that the state needs."
    ),
]
TRAINED = {"one-shot": (), "sds": ("sds",), "dlqat": ("dlqat",), "full": ("sds", "dlqat")}
MeasuredTokens = Annotated[int, Field(ge=0, le=MAX_MEASURED_TOKENS)]
PerplexityRatio = Annotated[
    Ratio | None,
    Field(description="Perplexity relative to dense, shown next to that of the run."),
]


def planned_steps(
    facts: ModelFacts, address: str, effort: Effort
) -> list[tuple[str, dict[str, Any]]]:
    """Return kind and config (without the model) of each run. Raises `ConfigError` if the address
    does not belong to this model, the state is dense, or it has no layer for a method of the
    effort."""
    state = state_at(address, [*facts.linears, *facts.embeddings])
    formats = [(layer, state.formats[layer.name]) for layer in facts.linears]
    patterns = {layer: format.pattern for layer, format in formats if format.pattern}
    widths = {layer: format.width for layer, format in formats if format.width}
    embedding = _embedding(facts, state)
    if not patterns and not widths:
        raise ConfigError(
            "There is nothing to run.",
            "Every layer of the blocks is dense.",
            "Give some layers a format.",
            "state",
        )
    trained, steps = TRAINED[effort], list[tuple[str, dict[str, Any]]]()
    if (effort == "sds" and not patterns) or (effort == "dlqat" and not widths):
        what, do = MISSING[effort]
        raise ConfigError(what, "", do, "effort")
    if patterns:
        pattern, exceptions = _most_common(patterns, facts)
        one_shot = {} if "sds" in trained else {"until": "first", "control": False}
        pruned = {"pattern": str(pattern), "base": state.pruner}
        steps.append(("sds", {**pruned, **exceptions, **one_shot}))
    if widths:
        width, exceptions = _most_common(widths, facts)
        rounded = {"bits": width.bits, "group_size": width.group, **exceptions}
        quantizer_only = {} if "dlqat" in trained else {"stages": state.quantizer}
        keep_zeros = {"keep_zeros": True} if patterns else {}
        steps.append(("dlqat", {**rounded, **quantizer_only, **keep_zeros, **embedding}))
    return steps


def _embedding(facts: ModelFacts, state: LiveState) -> dict[str, str]:
    widths = {
        format.width.bits
        for layer in facts.embeddings
        if (format := state.formats[layer.name]).width
    }
    if not widths:
        return {"embedding": "dense"}
    if len(widths) > 1 or not widths.issubset(EMBEDDING_BITS):
        raise ConfigError(
            "A run cannot store embedding and head in these formats.",
            f"Both need the same width: {', '.join(map(str, EMBEDDING_BITS))} bits.",
            "Choose another width for them.",
            "state",
        )
    return {"embedding": str(widths.pop()), "format": "slimscope"}


def _most_common(
    formats: Mapping[LinearShape, FormatPart], facts: ModelFacts
) -> tuple[FormatPart, dict[str, str]]:
    """Return the most common format, and the config fields for layers that differ or stay dense."""
    common = Counter(formats.values()).most_common(1)[0][0]
    exceptions = [
        f"{_name(layer)}={format}" for layer, format in formats.items() if format != common
    ]
    dense = [_name(layer) for layer in facts.linears if layer not in formats]
    fields = {"overrides": ", ".join(exceptions), "exclude": ", ".join(dense)}
    return common, {name: value for name, value in fields.items() if value}


def _name(layer: LinearShape) -> str:
    return f"{layer.block}.{layer.module}"


@operation(
    "plan-state",
    path="/plan-state",
    tool="",
    command=False,
)
def plan_state(model: Model, state: State, effort: EffortField = "full") -> list[Record]:
    """Plan the runs that reproduce the state of a live model: kind, config, time and memory of
    each. They form a pipeline."""
    steps = []
    for kind, config in planned_steps(resolve_model(model).facts, state, effort):
        config = {"model": model, **config}
        _, estimate = check_and_estimate(kind, config)  # rejects invalid configs, as the form does
        steps.append(
            {
                "kind": kind,
                "config": config,
                "seconds": estimate.seconds,
                "bytes": estimate.bytes,
                "warnings": [*estimate.warnings],
                "command": command_line(kind, config),
            }
        )
    return steps


@operation(
    "queue-state",
    path="/queue-state",
    tool="",
    command=False,
    writes=True,
    access="guest",
    status=201,
)
def queue_state(
    model: Model,
    state: State,
    actor: Actor,
    effort: EffortField = "full",
    predicted: PerplexityRatio = None,
    live: PerplexityRatio = None,
    low: PerplexityRatio = None,
    high: PerplexityRatio = None,
    tokens: Annotated[MeasuredTokens, Field(description="Tokens of the live measurement.")] = 0,
    context: Annotated[MeasuredTokens, Field(description="Tokens of each of its windows.")] = 0,
    preview: Annotated[bool, Field(description="It measured layers of instant methods.")] = False,
) -> list[Record]:
    """Queue the runs of `plan-state`. The last one records the state with its predicted and its
    live perplexity, `low` to `high`."""
    planned = planned_steps(resolve_model(model).facts, state, effort)
    measured: dict[str, Any] = {"live": live, "low": low, "high": high, "preview": preview}
    measured |= {"tokens": tokens, "context": context}
    origin = QueuedState(
        model=model,
        state=state,
        predicted=predicted,
        profile=_profile_of(model) if predicted else "",
        **measured if live else {},
    )
    environment = {WORKBENCH: origin.model_dump()}
    if len(planned) == 1:  # guests may queue a single run
        ((kind, config),) = planned
        return [summary(submit(kind, {"model": model, **config}, actor, environment=environment))]
    steps = [pipelines.Step(kind, "", config) for kind, config in planned]
    jobs = pipelines.queue(pipelines.Pipeline("", model, steps), actor, environment=environment)
    return [summary(job) for job in jobs]


def _profile_of(model: str) -> str:
    """The run whose profile predicts; empty without one."""
    with suppress(SlimscopeError):
        return newest_profile(model).run
    return ""


Only = Literal["", "quantized", "pruned"]
Text = Annotated[str, Field(max_length=40)]


def budget_text(record: Record) -> str:
    token_ms = record["milliseconds"]
    time = f", {token_ms:.2f} ms a token in the decoder, predicted" if token_ms else ""
    mix = ", ".join(f"{count} x {format}" for format, count in record["formats"].items())
    lines = (
        f"{record['model']}: {record['bytes'] / 1e6:.1f} MB of {record['dense_bytes'] / 1e6:.1f}, "
        f"{record['bits']:.2f} bits a weight, {record['sparsity']:.1%} zeros{time}",
        f"Predicted perplexity: {record['perplexity_ratio']:.3f} of the dense model's",
        f"Layers: {mix}",
        "",
        *(f"{layer}={format}" for layer, format in record["layers"].items()),
        "",
        f"Run it: {record['command']}",
    )
    return "\n".join(lines)


@operation("budget", path="/budget", tool="budget", as_text=budget_text)
def budget(
    model: Annotated[str, Field(description="A model that has a sensitivity profile.")],
    size: Annotated[Text, Field(description="File size, such as 80MB.")] = "",
    bits: Annotated[Text, Field(description="Bits per weight of the layers, such as 3.25.")] = "",
    sparsity: Annotated[Text, Field(description="Zeros in the layers, such as 50%.")] = "",
    loss: Annotated[Text, Field(description="Increase in perplexity, such as 2%.")] = "",
    ms: Annotated[
        Text, Field(description="Milliseconds per token in the native decoder, such as 6.5.")
    ] = "",
    only: Annotated[Only, Field(description="Formats to use. Empty: chosen by the budget.")] = "",
    pin: Annotated[
        str,
        Field(max_length=20_000, description="Layers with a fixed format: mlp.down_proj=int4-g64"),
    ] = "",
) -> Record:
    """Find the best mix of layer formats for a budget from the newest sensitivity profile of a
    model: predicted loss, bytes, time per token, and the command that runs it."""
    texts = [size, bits and f"{bits}bits", sparsity, loss and f"loss {loss}", ms and f"{ms}ms"]
    budgets = [text for text in texts if text]
    if len(budgets) != 1:
        raise ConfigError(
            f"{len(budgets)} budgets are given." if budgets else "No budget is given.",
            "",
            "Give one of size, bits, sparsity, loss and ms.",
            field="size",
        )
    try:
        target = Budget.parse(budgets[0])
    except ValueError as error:
        raise ConfigError(str(error), "", "Correct the budget.", field="size") from error
    profile = newest_profile(model)
    method: Method = only or budget_method(target, "quantized")
    mix = budget_solver(profile, method).solve(target, pins(profile, pin, "pin"))
    facts = resolve_model(model, reads=False).facts
    result = record(profile, mix, target, method) | {"dense_bytes": 2 * facts.parameters}
    if pin:
        result["command"] += f" --overrides {quote(pin)}"
    return result


def record(profile: SensitivityProfile, mix: Mix, target: Budget, method: Method) -> Record:
    """Return a mix as a record, with the command that runs it."""
    command = f"slimscope submit {KINDS[method]} --model {profile.model}"
    return {
        "model": profile.model,
        "profile": profile.run,
        "estimate": profile.estimate,
        "budget": str(target),
        "bytes": mix.nbytes,
        "bits": mix.bits,
        "sparsity": mix.sparsity,
        "loss": mix.loss,
        "perplexity_ratio": mix.ratio,
        "milliseconds": mix.milliseconds,
        "formats": dict(Counter(str(format) for format in mix.formats.values()).most_common()),
        "layers": {name: str(format) for name, format in mix.formats.items()},
        "command": f"{command} --allocation 'budget:{target}'",
    }

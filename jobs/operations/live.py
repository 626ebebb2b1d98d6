"""Operations on mixes of formats: the best one under a budget, and a state of a live model as
configs of runs that make it properly. Does not import torch.

patterns a run of the kind sds: the whole method, or its first pruning alone widths a run of the
kind dlqat: trained, or by the quantizer alone both one after the other
"""

from collections import Counter
from collections.abc import Mapping
from shlex import quote
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field

from backend.budget import Budget
from backend.errors import ConfigError
from backend.live.address import (
    MOST_TOKENS,
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
from backend.quantization.config import Width
from backend.queue.actor import Actor
from backend.sensitivity.budget import Mix
from backend.sensitivity.profile import SensitivityProfile
from jobs import pipeline as pipelines
from jobs.fields.models import resolve_model
from jobs.operations.registry import Record, operation
from jobs.profile.profiles import KINDS, Method, method_of, newest_profile, pins, solver_of
from jobs.record import summary
from jobs.submit import checked, command_line, submit

Effort = Literal["one-shot", "full"]
EMBEDDING_BITS = (8, 6, 4)

F = TypeVar("F", Pattern, Width)
Model = Annotated[str, Field(min_length=1, max_length=300, description="The model of the state.")]
State = Annotated[Address, Field(description="The address of a state.")]
Made = Annotated[
    Effort, Field(description="one-shot: pruned and rounded alone. full: SDS and DL-QAT.")
]
Known = Annotated[
    Ratio | None, Field(description="Perplexity over dense, to be shown beside that of the run.")
]


def planned_steps(
    facts: ModelFacts, address: str, effort: Effort
) -> list[tuple[str, dict[str, Any]]]:
    """Kind and config of each run, without its model. Raises ConfigError: the address is none of
    this model, or the state is dense."""
    state = state_at(address, [*facts.linears, *facts.embeddings])
    forms = [(x, state.formats[x.name]) for x in facts.linears]
    patterns = {x: form.pattern for x, form in forms if form.pattern}
    widths = {x: form.width for x, form in forms if form.width}
    embedding = _embedding(facts, state)
    if not patterns and not widths:
        raise ConfigError(
            "There is nothing to run.",
            "Every layer of the blocks is dense.",
            "Give some layers a format.",
            "state",
        )
    steps: list[tuple[str, dict[str, Any]]] = []
    if patterns:
        pattern, others = _named(patterns, facts)
        first = {} if effort == "full" else {"until": "first", "control": False}
        pruned = {"pattern": str(pattern), "base": state.pruner}
        steps.append(("sds", {**pruned, **others, **first}))
    if widths:
        width, others = _named(widths, facts)
        rounded = {"bits": width.bits, "group_size": width.group, **others}
        alone = {"stages": state.quantizer} if effort == "one-shot" else {}
        zeros = {"keep_zeros": True} if patterns else {}
        steps.append(("dlqat", {**rounded, **alone, **zeros, **embedding}))
    return steps


def _embedding(facts: ModelFacts, state: LiveState) -> dict[str, str]:
    bits = {form.width.bits for x in facts.embeddings if (form := state.formats[x.name]).width}
    if not bits:
        return {"embedding": "stored"}
    if len(bits) > 1 or not bits.issubset(EMBEDDING_BITS):
        raise ConfigError(
            "A run cannot store embedding and head so.",
            f"They take {', '.join(map(str, EMBEDDING_BITS))} bits, and both the same.",
            "Choose another width for them.",
            "state",
        )
    return {"embedding": str(bits.pop()), "format": "slimscope"}


def _named(formats: Mapping[LinearShape, F], facts: ModelFacts) -> tuple[F, dict[str, str]]:
    """The format most layers have, and the fields that name those that differ or stay dense."""
    most = Counter(formats.values()).most_common(1)[0][0]
    others = [f"{_name(x)}={form}" for x, form in formats.items() if form != most]
    dense = [_name(x) for x in facts.linears if x not in formats]
    fields = {"overrides": ", ".join(others), "exclude": ", ".join(dense)}
    return most, {name: text for name, text in fields.items() if text}


def _name(layer: LinearShape) -> str:
    return f"{layer.block}.{layer.module}"


@operation(
    "plan-state",
    path="/plan-state",
    tool="",
    command=False,
)
def plan_state(model: Model, state: State, effort: Made = "full") -> list[Record]:
    """The runs that make the state of a live model properly, one on the other: kind, config, time
    and memory. They work as the steps of a pipeline."""
    steps = []
    for kind, config in planned_steps(resolve_model(model).facts, state, effort):
        config = {"model": model, **config}
        _, estimate = checked(kind, config)  # refuses what cannot run, as the form does
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
    "queue-state", path="/queue-state", tool="", command=False, writes=True, who="guest", status=201
)
def queue_state(
    model: Model,
    state: State,
    actor: Actor,
    effort: Made = "full",
    predicted: Known = None,
    live: Known = None,
    tokens: Annotated[int, Field(ge=0, le=MOST_TOKENS, description="Measured live on.")] = 0,
) -> list[Record]:
    """Add the runs that `plan-state` tells to the queue. The last one keeps the state, and what was
    predicted and measured live of it."""
    planned = planned_steps(resolve_model(model).facts, state, effort)
    from_state = QueuedState(
        model=model, state=state, predicted=predicted, live=live, tokens=tokens if live else 0
    )
    known = {WORKBENCH: from_state.model_dump()}
    if len(planned) == 1:  # which guests may queue, too
        ((kind, config),) = planned
        return [summary(submit(kind, {"model": model, **config}, actor, known=known))]
    steps = [pipelines.Step(kind, "", config) for kind, config in planned]
    jobs = pipelines.queue(pipelines.Pipeline("", model, steps), actor, known=known)
    return [summary(job) for job in jobs]


Only = Literal["", "quantized", "pruned"]
Text = Annotated[str, Field(max_length=40)]


def budget_text(record: Record) -> str:
    taken = record["milliseconds"]
    time = f", {taken:.2f} ms a token in the decoder, predicted" if taken else ""
    mix = ", ".join(f"{count} x {form}" for form, count in record["formats"].items())
    lines = (
        f"{record['model']}: {record['bytes'] / 1e6:.1f} MB of {record['dense_bytes'] / 1e6:.1f}, "
        f"{record['bits']:.2f} bits a weight, {record['sparsity']:.1%} zeros{time}",
        f"Predicted perplexity: {record['perplexity_ratio']:.3f} of the dense model's",
        f"Layers: {mix}",
        "",
        *(f"{layer}={form}" for layer, form in record["layers"].items()),
        "",
        f"Run it: {record['command']}",
    )
    return "\n".join(lines)


@operation("budget", path="/budget", tool="budget", said=budget_text)
def budget(
    model: Annotated[str, Field(description="A model that has a sensitivity profile.")],
    size: Annotated[Text, Field(description="Of the file, such as 80MB.")] = "",
    bits: Annotated[Text, Field(description="A weight of the layers, such as 3.25.")] = "",
    sparsity: Annotated[Text, Field(description="Zeros in the layers, such as 50%.")] = "",
    loss: Annotated[Text, Field(description="Rise of perplexity, such as 2%.")] = "",
    ms: Annotated[Text, Field(description="Of a token in the native decoder, such as 6.5.")] = "",
    only: Annotated[Only, Field(description="Formats used; empty: those the budget is of.")] = "",
    pin: Annotated[
        str,
        Field(max_length=20_000, description="Layers held at a format: mlp.down_proj=int4-g64"),
    ] = "",
) -> Record:
    """The best mix of formats for a budget, layer by layer, from the newest sensitivity profile of
    a model: predicted loss, bytes, time of a token, and the command that makes it."""
    texts = [size, bits and f"{bits}bits", sparsity, loss and f"loss {loss}", ms and f"{ms}ms"]
    given = [text for text in texts if text]
    if len(given) != 1:
        raise ConfigError(
            f"{len(given)} budgets are given." if given else "There is no budget.",
            "",
            "Give one of size, bits, sparsity, loss and ms.",
            field="size",
        )
    try:
        asked = Budget.parse(given[0])
    except ValueError as error:
        raise ConfigError(str(error), "", "Correct it.", field="size") from error
    profile = newest_profile(model)
    method: Method = only or method_of(asked, "quantized")
    mix = solver_of(profile, method).solve(asked, pins(profile, pin, "pin"))
    facts = resolve_model(model, reads=False).facts
    told = record(profile, mix, asked, method) | {"dense_bytes": 2 * facts.parameters}
    if pin:
        told["command"] += f" --overrides {quote(pin)}"
    return told


def record(profile: SensitivityProfile, mix: Mix, asked: Budget, method: Method) -> Record:
    """What is told of a mix."""
    command = f"slimscope submit {KINDS[method]} --model {profile.model}"
    return {
        "model": profile.model,
        "profile": profile.run,
        "estimate": profile.estimate,
        "budget": str(asked),
        "bytes": mix.nbytes,
        "bits": mix.bits,
        "sparsity": mix.sparsity,
        "loss": mix.loss,
        "perplexity_ratio": mix.ratio,
        "milliseconds": mix.milliseconds,
        "formats": dict(Counter(str(form) for form in mix.formats.values()).most_common()),
        "layers": {name: str(form) for name, form in mix.formats.items()},
        "command": f"{command} --allocation 'budget:{asked}'",
    }

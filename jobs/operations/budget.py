"""Operations that answer what mix of formats is best under a budget."""

from collections import Counter
from shlex import quote
from typing import Annotated, Literal

from pydantic import Field

from backend.budget import Budget
from backend.errors import ConfigError
from backend.sensitivity.budget import Mix
from backend.sensitivity.profile import SensitivityProfile
from jobs.fields.models import resolve_model
from jobs.operations.registry import Record, operation
from jobs.profile.profiles import KINDS, Method, method_of, newest_profile, pins, solver_of

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

"""Operations that answer what mix of formats is best under a budget."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Literal

from pydantic import Field

from backend.errors import ConfigError
from backend.models.layer_names import check_layer_patterns, fits
from backend.sensitivity.budget import Budget, BudgetSolver, Mix
from backend.sensitivity.formats import Format
from backend.sensitivity.profile import SensitivityProfile
from jobs.fields.base_model import resolve_model
from jobs.operations.registry import Record, operation
from jobs.profile.profiles import newest_profile

Only = Literal["", "quantized", "pruned"]
Text = Annotated[str, Field(max_length=40)]


def budget_text(record: Record) -> str:
    mix = ", ".join(f"{count} x {form}" for form, count in record["formats"].items())
    lines = (
        f"{record['model']}: {record['bytes'] / 1e6:.1f} MB of {record['dense_bytes'] / 1e6:.1f}, "
        f"{record['bits']:.2f} bits a weight, {record['sparsity']:.1%} zeros",
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
    only: Annotated[Only, Field(description="Formats used; empty: those the budget is of.")] = "",
    pin: Annotated[
        str,
        Field(max_length=20_000, description="Layers held at a format: mlp.down_proj=int4-g64"),
    ] = "",
) -> Record:
    """The best mix of formats for a budget, layer by layer, from the newest sensitivity profile of
    a model: predicted loss, bytes, and the command that makes it."""
    asked = _budget(size, bits, sparsity, loss)
    profile = newest_profile(model)
    facts = resolve_model(model, reads=False).facts
    fixed = 2.0 * (facts.parameters - facts.linear_weights)
    solver = BudgetSolver(profile, fixed, allowed_formats(profile, asked, only))
    mix = solver.solve(asked, pins(profile, pin))
    return record(profile, mix, asked) | {"dense_bytes": 2 * facts.parameters}


def _budget(size: str, bits: str, sparsity: str, loss: str) -> Budget:
    texts = [size, f"{bits}bits" if bits else "", sparsity, f"loss {loss}" if loss else ""]
    given = [text for text in texts if text]
    if len(given) != 1:
        what = f"{len(given)} budgets are given." if given else "There is no budget."
        raise ConfigError(what, "", "Give one of size, bits, sparsity and loss.", field="size")
    try:
        return Budget.parse(given[0])
    except ValueError as error:
        raise ConfigError(str(error), "", "Correct it.", field="size") from error


def allowed_formats(profile: SensitivityProfile, asked: Budget, only: Only) -> frozenset[Format]:
    """Those a budget is spent on: a sparsity on pruned ones, unless told otherwise.

    Raises:
        ConfigError: the profile has none of them.
    """
    only = only or ("pruned" if asked.kind == "sparsity" else "quantized")
    if only == "pruned":
        found = frozenset(x for x in profile.formats if x.pattern and not x.quantized)
    else:
        found = frozenset(x for x in profile.formats if x.quantized and not x.pattern)
    if not found:
        what = f"{profile.run} has no {only} formats."
        raise ConfigError(what, "", "Profile the model in some.", field="only")
    return found


def pins(profile: SensitivityProfile, text: str) -> dict[str, str]:
    """Full name of a layer -> format it is held at. Raises ConfigError: a name matches none."""
    held: dict[str, str] = {}
    for part in filter(None, map(str.strip, text.split(","))):
        name, _, form = (side.strip() for side in part.partition("="))
        check_layer_patterns([name], profile.layers, "pin")
        held |= {layer.name: form for layer in profile.layers if fits(name, layer)}
    return held


def record(profile: SensitivityProfile, mix: Mix, asked: Budget) -> Record:
    """What is told of a mix."""
    pruned = any(form.pattern for form in mix.formats.values())
    kind = "sds" if pruned else "dlqat"
    return {
        "model": profile.model, "profile": profile.run, "budget": str(asked), "bytes": mix.nbytes,
        "bits": mix.bits, "sparsity": mix.sparsity, "loss": mix.loss,
        "perplexity_ratio": mix.ratio,
        "formats": dict(Counter(str(form) for form in mix.formats.values()).most_common()),
        "layers": {name: str(form) for name, form in mix.formats.items()},
        "command": f"slimscope submit {kind} --model {profile.model} --allocation 'budget:{asked}'",
    }  # fmt: skip

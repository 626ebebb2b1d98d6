"""SDS pruning as a kind of job."""

from collections.abc import Mapping
from math import log
from typing import Any

from backend.budget import PREFIX
from backend.pruning.config import STAGE_LABELS, SDSStage
from backend.pruning.plan import PruningPlan
from jobs.kind import KeyFigure, Kind, StageStyle, Values
from jobs.metrics import PERPLEXITY
from jobs.sds.config import NAME, SDSJob
from jobs.sds.estimate import requirements
from jobs.wording import StageComparison, apart, fixed

PAID = {
    "below": "",
    "above": " The re-dense detour did not pay on this model.",
    "": " The evaluation text is too short to tell whether the re-dense detour pays.",
}


def headline(values: Mapping[str, Any]) -> list[str]:
    """A budget in place of the pattern, which it replaces; "one-shot" where SDS is left out."""
    allocation = str(values.get("allocation", ""))
    budget = allocation.removeprefix(PREFIX)
    first = f"{budget} on average" if budget != allocation else values.get("pattern")
    once = "one-shot " if values.get("until") == SDSStage.FIRST else ""
    pruner = f"{once}{base}" if (base := values.get("base")) else ""
    return [str(value) for value in (first, pruner) if value]


def verdict(stages: StageComparison) -> str:
    """In words, whether the method helped on this model.

    Where both are reconstructed block by block, their ends tell whether the re-dense detour paid.
    """
    if not {SDSStage.SDS, SDSStage.FIRST} <= stages.perplexity.keys():
        return _first_reconstructed(stages)
    rivals = {SDSStage.FIRST: "the first pruning", SDSStage.CONTROL: "its control"}
    measured = _measured(stages, rivals)
    text = f"SDS {stages.clause(SDSStage.SDS, measured)}.{_reconstructed(stages)}"
    if SDSStage.CONTROL not in measured:
        return f"{text} No control was run, so whether the re-dense detour paid is not known."
    if {SDSStage.SDS_BLOCKS, SDSStage.FIRST_BLOCKS} <= stages.perplexity.keys():
        return text + PAID[stages.order(SDSStage.SDS_BLOCKS, SDSStage.FIRST_BLOCKS)]
    return text + PAID[stages.order(SDSStage.SDS, SDSStage.CONTROL)]


def _first_reconstructed(stages: StageComparison) -> str:
    """In words, what block reconstruction gave a run that stopped after the first pruning."""
    if not {SDSStage.FIRST_BLOCKS, SDSStage.FIRST} <= stages.perplexity.keys():
        return ""
    rivals = {SDSStage.FIRST: "the first pruning", SDSStage.CONTROL: "its adjusted form"}
    clause = stages.clause(SDSStage.FIRST_BLOCKS, _measured(stages, rivals))
    return f"Block reconstruction {clause}."


def _reconstructed(stages: StageComparison) -> str:
    """In words, what block reconstruction gave; empty without it."""
    if SDSStage.SDS_BLOCKS not in stages.perplexity:
        return ""
    rivals = {SDSStage.SDS: "SDS", SDSStage.FIRST_BLOCKS: "the first pruning reconstructed alike"}
    clause = stages.clause(SDSStage.SDS_BLOCKS, _measured(stages, rivals))
    return f" With its blocks reconstructed, it {clause}."


def _measured(stages: StageComparison, rivals: Mapping[SDSStage, str]) -> dict[str, str]:
    """Those of `rivals` that have a perplexity: stage -> its name in a sentence."""
    return {str(stage): name for stage, name in rivals.items() if stage in stages.perplexity}


def key_figure(values: Values, kept: str) -> KeyFigure | None:
    """The share of the perplexity lost to the first pruning that the kept stage wins back:

    won_back = (first - end) / (first - dense)      end: the kept stage

    and the same share of the cross-entropy, their logarithms."""
    stages = (SDSStage.DENSE, SDSStage.FIRST, SDSStage.CONTROL, SDSStage.SDS, SDSStage.SDS_BLOCKS)
    dense, first, control, sds, blocks = (values.get((stage, PERPLEXITY)) for stage in stages)
    end = values.get((kept, PERPLEXITY), sds)
    if dense is None or first is None or end is None or first <= dense or kept == SDSStage.FIRST:
        return None
    blocks = values.get((SDSStage.FIRST_BLOCKS, PERPLEXITY)) if blocks is None else blocks
    named = {
        "dense": dense,
        "pruned": first,
        "only adjusted": control,
        "after SDS": sds,
        "blocks reconstructed": blocks,
    }
    known = {name: value for name, value in named.items() if value is not None}
    told = zip(apart([*known.values()]), known, strict=True)
    entropy = log(first / end) / log(first / dense)
    return KeyFigure(
        f"{fixed(100 * (first - end) / (first - dense), 0)} %",
        "of the perplexity lost to pruning won back",
        f"Perplexity {', '.join(map(' '.join, told))}. "
        f"In cross-entropy, {fixed(100 * entropy, 0)} %.",
    )


STYLES = {
    "dense": StageStyle("grey", main=True),
    "first": StageStyle("vermillion", main=True, pruned=True),
    "control": StageStyle("vermillion", "dot", pruned=True),
    "redense": StageStyle("purple", main=True),
    "second": StageStyle("blue", "dot", pruned=True),
    "sds": StageStyle("blue", main=True, pruned=True),
    "first-blocks": StageStyle("green", "dash", main=True, pruned=True),
    "sds-blocks": StageStyle("blue", "dash", main=True, pruned=True),
}
KIND = Kind(
    name=NAME,
    title="SDS pruning",
    summary="Prune, let the removed weights grow back a little, prune again. Loses less than "
    "pruning once.",
    config=SDSJob,
    requirements=requirements,
    run="jobs.sds.run:run",
    plan=PruningPlan,
    order=10,
    main_fields=("pattern", "base"),
    headline=headline,
    headline_fields=frozenset({"pattern", "base"}),
    compresses=True,
    saves="model",
    stages=STAGE_LABELS,
    styles=STYLES,
    default_stage=SDSStage.SDS,
    verdict=verdict,
    remedy="a lower sparsity, zeros at any place (50% instead of 2:4), the pruner SparseGPT or "
    "ALPS, or more calibration text than a quick look has",
    key_figure=key_figure,
    recipes={
        "SDS": {},
        "SDS and its control": {"control": True},
        "SparseGPT": {"until": "first", "base": "sparsegpt"},
        "Wanda": {"until": "first", "base": "wanda"},
        "ALPS": {"until": "first", "base": "alps"},
    },
    notes={
        "SDS": "Prune, make dense again, prune again.",
        "SDS and its control": "SDS, and the same without its middle step, to see if that step "
        "pays.",
        "SparseGPT": "One-shot: second-order errors of the layer, column by column.",
        "Wanda": "One-shot: weights times the norms of their inputs. The fastest.",
        "ALPS": "One-shot: the layer's problem solved by ADMM. The most accurate.",
    },
    presets={
        "quick look": {
            "segments": 12,
            "context": 256,
            "windows": 8,
            "adjust_steps": 6,
            "redense_steps": 10,
        },
        "default": {},
        "thorough": {"segments": 128, "windows": 64, "adjust_steps": 60, "reconstruct": 3},
    },
)

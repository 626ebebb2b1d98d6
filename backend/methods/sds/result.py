"""What a finished SDS run says about itself."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from backend.methods.sds.config import SDSStage
from backend.methods.sds.stage_store import BlockReport


@dataclass(frozen=True)
class SDSResult:
    """The outcome of a run.

    Attributes:
        kept: the stage that is in the model now.
        heldout: stage -> mean loss on the held-out segments, nats per token; empty without them.
        errors: stage -> relative output error, mean over all linears. Stages of the two passes
            are measured on different inputs: compare within a pass.
        zero_share: stage -> share of exact zeros among the prunable weights.
        seconds: step -> time. "inputs" are the calibration passes; solving counts the blocks of all
            attempts, "checkpoints" and "heldout" only those of the last.
        warnings: what a person should know, in the order it was found.
    """

    kept: SDSStage
    heldout: dict[SDSStage, float]
    errors: dict[SDSStage, float]
    zero_share: dict[SDSStage, float]
    seconds: dict[str, float]
    warnings: tuple[str, ...]


def summary(
    facts: Sequence[BlockReport],
    kept: SDSStage,
    heldout: dict[SDSStage, float],
    more_seconds: Mapping[str, float],
    more_warnings: Sequence[str],
) -> SDSResult:
    """The result of a run, given what its blocks noted and what was found after them."""
    errors = defaultdict[SDSStage, list[float]](list)
    seconds = defaultdict[str, float](float, more_seconds)
    zeros, weights = Counter[str](), Counter[str]()
    for of_block in facts:
        for step, spent in of_block.seconds.items():
            seconds[step] += spent
        zeros.update(of_block.zeros)
        weights.update(dict.fromkeys(of_block.zeros, of_block.weights))
        for stage, by_module in of_block.errors.items():
            errors[SDSStage(stage)] += by_module.values()
    return SDSResult(
        kept=kept,
        heldout=heldout,
        errors={stage: fmean(values) for stage, values in errors.items()},
        zero_share={SDSStage(stage): zeros[stage] / weights[stage] for stage in zeros},
        seconds=dict(seconds),
        warnings=(*(text for each in facts for text in each.warnings), *more_warnings),
    )

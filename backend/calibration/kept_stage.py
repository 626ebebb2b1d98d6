"""Which stage a run keeps: the one rule of all kinds.

Of the stages that can be kept, in order from the simplest on, the first whose losses on held-out
windows are not significantly above the lowest: the 95 % interval of their paired ratio (`paired`)
holds 1, or there are too few windows to tell. Held-out text is neither calibrated nor tested on, so
that the figures of the kept stage are not those of the luckiest one. Controls are never kept.
Without held-out text there is no evidence, and the last stage of the method is kept.

Does not import torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from backend.statistics.paired import paired_ratio

Losses = Mapping[str, Sequence[float]]  # stage -> mean loss of each held-out window, nats per token


@dataclass(frozen=True)
class KeptStage:
    """The stage a run keeps, and why, in a sentence or two."""

    stage: str
    reason: str


def choose(
    losses: Losses,
    candidates: Sequence[str],
    labels: Mapping[str, str],
    controls: Sequence[str] = (),
) -> KeptStage:
    """The kept one of `candidates`, which go from the simplest stage to the last of the method.

    Args:
        losses: of all of them; empty without held-out text.
        labels: stage -> what people call it.
        controls: of which it is only said if they are better.
    """
    *earlier, last = candidates
    if not earlier:
        return KeptStage(last, f"Kept: {labels[last]}. No other stage can be.")
    if not losses:
        why = "no text was held out to compare it with the other stages on"
        return KeptStage(last, f"Kept: {labels[last]}, not by evidence: {why}.")
    best = min(candidates, key=lambda stage: fmean(losses[stage]))
    kept = next(
        stage for stage in candidates if stage == best or not _is_better(best, stage, losses)
    )
    place = candidates.index(kept)
    told = [f"Kept: {labels[kept]}."]
    if before := candidates[:place]:
        rival = min(before, key=lambda stage: fmean(losses[stage]))
        said = _beside(losses[kept], losses[rival], labels[rival])
        told.append(f"Its perplexity on held-out text is {said}.")
    if after := [x for x in candidates[place + 1 :] if losses[x] != losses[kept]]:
        rival = min(after, key=lambda stage: fmean(losses[stage]))
        change = _change(losses[rival], losses[kept])
        told.append(f"{labels[rival]} is not better on held-out text ({change}).")
    for number, stage in enumerate(candidates):
        equals = [other for other in candidates[:number] if losses[other] == losses[stage]]
        told += [f"{labels[stage]} changed nothing: it is {labels[x]}." for x in equals[:1]]
    better = [stage for stage in controls if stage in losses and _is_better(stage, kept, losses)]
    told += [f"{labels[stage]} is better on held-out text, but never kept." for stage in better]
    return KeptStage(kept, " ".join(told))


def _is_better(stage: str, rival: str, losses: Losses) -> bool:
    """Whether the loss of `stage` lies significantly below that of `rival`."""
    ratio = paired_ratio(losses[stage], losses[rival])
    return ratio is not None and ratio.high < 1


def _beside(losses: Sequence[float], others: Sequence[float], name: str) -> str:
    """Where the perplexity lies: "26.8 % lower than with GPTQ (25.2 to 28.5 %)"."""
    ratio = paired_ratio(losses, others)
    if ratio is None or ratio.high >= 1:
        return f"near that with {name} ({_change(losses, others)})"
    value, low, high = (f"{100 * (1 - x):.1f}" for x in (ratio.value, ratio.high, ratio.low))
    return f"{value} % lower than with {name} ({low} to {high} %)"


def _change(losses: Sequence[float], others: Sequence[float]) -> str:
    """The change of the perplexity against that of others: "perplexity −3.1 %, −4.0 to −2.2 %"."""
    ratio = paired_ratio(losses, others)
    if ratio is None:
        return f"{len(losses)} windows are too few to tell"
    value, low, high = (f"{100 * (x - 1):+.1f}" for x in (ratio.value, ratio.low, ratio.high))
    return f"perplexity {value} %, {low} to {high} %".replace("-", "−")

"""Selection of the stage that a run keeps; all kinds of runs share this rule.

The run keeps the simplest candidate whose losses on held-out windows are not significantly above
the lowest: the 95 % interval of their paired ratio (`backend.statistics.paired`) contains 1, or
there are too few windows to decide. Held-out text serves neither calibration nor evaluation, so the
reported figures of the kept stage are not biased by the selection. Controls are never kept. Without
held-out text, the run keeps the last stage of the method.

Does not import torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from backend.statistics.paired import paired_ratio

Losses = Mapping[str, Sequence[float]]  # stage -> mean loss of each held-out window, nats per token


@dataclass(frozen=True)
class KeptStage:
    """Stage that a run keeps, and the reason in a sentence or two."""

    stage: str
    reason: str


def choose(
    losses: Losses,
    candidates: Sequence[str],
    labels: Mapping[str, str],
    controls: Sequence[str] = (),
) -> KeptStage:
    """Select the stage to keep.

    Args:
        losses: losses of all candidates and perhaps controls; empty without held-out text.
        candidates: stages that can be kept, from the simplest to the last of the method.
        labels: stage -> label on the screen.
        controls: stages that are never kept; the reason mentions those that are better.
    """
    *earlier, last = candidates
    if not earlier:
        return KeptStage(last, f"Kept: {labels[last]}. It is the only candidate.")
    if not losses:
        cause = "no text was held out to compare the stages"
        return KeptStage(last, f"Kept: {labels[last]}, without evidence: {cause}.")
    best = min(candidates, key=lambda stage: fmean(losses[stage]))
    kept = next(
        stage for stage in candidates if stage == best or not _is_better(best, stage, losses)
    )
    position = candidates.index(kept)
    sentences = [f"Kept: {labels[kept]}."]
    if simpler := candidates[:position]:
        rival = min(simpler, key=lambda stage: fmean(losses[stage]))
        comparison = _comparison(losses[kept], losses[rival], labels[rival])
        sentences.append(f"Its perplexity on held-out text is {comparison}.")
    if later := [x for x in candidates[position + 1 :] if losses[x] != losses[kept]]:
        rival = min(later, key=lambda stage: fmean(losses[stage]))
        sentences.append(_verdict(losses[rival], losses[kept], labels[rival]))
    for number, stage in enumerate(candidates):
        equal = [x for x in candidates[:number] if losses[x] == losses[stage]]
        sentences += [f"{labels[stage]} is equal to {labels[x]}." for x in equal[:1]]
    better = [stage for stage in controls if stage in losses and _is_better(stage, kept, losses)]
    sentences += [
        f"{labels[stage]} is better on held-out text, but controls are never kept."
        for stage in better
    ]
    return KeptStage(kept, " ".join(sentences))


def _is_better(stage: str, rival: str, losses: Losses) -> bool:
    """Return True if the loss of `stage` is significantly below that of `rival`."""
    ratio = paired_ratio(losses[stage], losses[rival])
    return ratio is not None and ratio.high < 1


def _comparison(losses: Sequence[float], reference: Sequence[float], name: str) -> str:
    """Comparison with a reference, such as "26.8 % lower than with GPTQ (25.2 to 28.5 %)"."""
    ratio = paired_ratio(losses, reference)
    if ratio is None or ratio.high >= 1:
        return f"close to that of {name} ({_change(losses, reference)})"
    value, low, high = (f"{100 * (1 - x):.1f}" for x in (ratio.value, ratio.high, ratio.low))
    return f"{value} % lower than with {name} ({low} to {high} %)"


def _verdict(losses: Sequence[float], kept: Sequence[float], name: str) -> str:
    """Sentence about a later stage that is not kept."""
    ratio, change = paired_ratio(losses, kept), _change(losses, kept)
    if ratio is None or not ratio.is_significant:
        return f"The difference to {name} is undecided on held-out text ({change})."
    return f"{name} is not better on held-out text ({change})."


def _change(losses: Sequence[float], reference: Sequence[float]) -> str:
    """Change from a reference, such as "perplexity −3.1 %, −4.0 to −2.2 %"."""
    ratio = paired_ratio(losses, reference)
    if ratio is None:
        return f"{len(losses)} windows are too few to decide"
    value, low, high = (f"{100 * (x - 1):+.1f}" for x in (ratio.value, ratio.low, ratio.high))
    return f"perplexity {value} %, {low} to {high} %".replace("-", "−")

"""What is looked at of a run's weights: names in the address, which `state.js` reads and writes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from backend.statistics.tensors import RELATIVE_ERROR
from ui.charts.heatmap import available
from ui.charts.series import MAX_STAGES
from ui.runs.weights import RunWeights, kept_stage
from ui.theme import declared
from ui.widgets.explorer import Selection, known_or_first

FIRST_STATISTICS = (RELATIVE_ERROR, "kurtosis")  # the map begins with the first there is
DISTRIBUTIONS = ("ridges", "statistics")  # views of the histograms themselves
VIEWS = {  # below the map and the histogram
    "ridges": "Ridges",
    "magnitudes": "Magnitudes",
    "matrix": "Matrix",
    "joint": "Before/after",
    "channels": "Channels",
    "spectrum": "Spectrum",
    "inputs": "Inputs",
    "statistics": "All statistics",
}
OPTIONS: dict[str, dict[str, tuple[str, dict[str, str]]]] = {  # view -> field -> label, choices
    "matrix": {
        "cells": (
            "Cells",
            {
                "mean": "Mean",
                "max": "Largest",
                "zeros": "Zeros",
                "change": "Change",
            },
        )
    },
    "channels": {
        "side": ("Channels", {"row": "Output channels", "column": "Input channels"}),
        "measure": ("Figure", {"norm": "Norm", "max": "Largest magnitude", "zeros": "Exact zeros"}),
        "order": ("Order", {"size": "By size", "index": "By number"}),
    },
    "inputs": {
        "flow": (
            "Figure",
            {
                "inputs": "Inputs",
                "weights": "Weights",
                "product": "Product",
            },
        )
    },
}
AGAINST = {"": "Nothing", "dense": "Dense", "run": "Other run"}
TEXTS = {  # chart -> the question it answers, and what the literature says about such charts
    "map": (
        "",
        "Layers differ in how much compression they bear, which is why some methods give each a "
        "sparsity (OWL, Yin et al. 2023) or bits (HAWQ, Dong et al. 2019) of its own.",
    ),
    "overlay": (
        "What did each step do to the distribution of this tensor's weights?",
        "Magnitude pruning removes the middle of the distribution (Han et al. 2015); the small "
        "weights that stay between the dotted lines meet large inputs.",
    ),
    "ridges": (
        "How does the distribution change from block to block, and from stage to stage?",
        "A pruned model that is made dense again prunes better than the original (SDS, Li et al. "
        "2025): its middle peak holds what can go.",
    ),
    "magnitudes": (
        "How large are the weights besides zero, on a scale that shows the small ones?",
        "Scores of weight times input keep small weights that meet large inputs (Wanda, Sun et al. "
        "2023): the tail below the threshold.",
    ),
    "channels": (
        "Are there outlier channels, and have they as many zeros as the others?",
        "A few features are far larger than all others, and rounding or pruning them costs most "
        "(Dettmers et al. 2022).",
    ),
    "matrix": (
        "Where in the matrix are the large weights, and where did they change?",
        "Bright columns are input features that all outputs read, like the outlier features of "
        "Dettmers et al. (2022).",
    ),
    "joint": (
        "What became of the weights, each by what it was in the dense tensor?",
        "To remove or round a weight at the least cost, the others have to change, too (Optimal "
        "Brain Surgeon, Hassibi and Stork 1993): what lies off the diagonal.",
    ),
    "spectrum": (
        "How many directions carry the weights, and how heavy is the tail?",
        "Well-trained layers have heavy-tailed spectra with α between 2 and 6 (Martin and Mahoney "
        "2021), here fitted as by Clauset, Shalizi and Newman (2009).",
    ),
    "inputs": (
        "Which input channels are large in every block? Are their weights smaller to compensate?",
        "The same few channels are large in nearly all blocks (Dettmers et al. 2022); Wanda scores "
        "a weight by its product with the norm of its input (Sun et al. 2023).",
    ),
}


@dataclass(frozen=True)
class WeightsSelection(Selection):
    """What is looked at, as far as reports draw it. (Gradio keeps the name "page" of an address for
    itself.)

    Attributes:
        run, vs: the run, and the one it is compared with.
        tensor: full name; `stage`, `stat`, `against`: of the map.
        show, y: stages and height axis of the histogram; `view`: the panel below it.
    """

    vs: str = ""
    tensor: str = ""
    stage: str = ""
    stat: str = ""
    against: str = ""
    view: str = ""
    show: tuple[str, ...] = ()
    y: str = ""

    def settled(self, weights: RunWeights, other: RunWeights | None = None) -> "WeightsSelection":
        """The same, with everything that is not stored replaced by what is."""
        statistics = available(weights.table)
        default = next(name for name in (*FIRST_STATISTICS, *statistics) if name in statistics)
        stat = self.stat if self.stat in statistics else default
        return replace(
            self,
            run=weights.job.run,
            vs=other.job.run if other else "",
            tensor=self.tensor if self.tensor in weights.tensors else weights.typical,
            stage=self.stage if self.stage in weights.stages else last_with(stat, weights),
            stat=stat,
            against=known_or_first(self.against, AGAINST) if self.against != "run" or other else "",
            view=known_or_first(self.view, VIEWS),
            show=tuple(s for s in weights.stages if s in self.show)[:MAX_STAGES]
            or default_stages(weights, other is not None),
        )


def main_stages(stages: Sequence[str]) -> list[str]:
    """The stages a model passes through on its way to what a method makes of it."""
    main = [s for s in stages if declared(s).main]
    return main if len(main) > 1 else [*stages]


def last_with(stat: str, weights: RunWeights) -> str:
    """The last main stage of which a statistic is stored; without one, the last."""
    main = main_stages(weights.stages)
    having = [s for s in main if weights.of_stage(s)[stat].notna().any()]
    return (having or main)[-1]


def default_stages(weights: RunWeights, two_runs: bool) -> tuple[str, ...]:
    """The stages that are shown where nobody has chosen any; beside another run what was kept."""
    main = main_stages(weights.stages)
    kept = kept_stage(weights, weights.stages)
    return tuple(dict.fromkeys((main[0], kept)) if two_runs else main[:MAX_STAGES])

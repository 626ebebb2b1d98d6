"""Every metric, described once: its key, label, unit, direction and definition.

To add one, add an entry to `_ALL` and report its key. A metric nobody described is called by its
family and judged by nobody.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from backend.metric_key import MetricKey

PERPLEXITY, BITS_PER_BYTE = MetricKey("perplexity"), MetricKey("bits_per_byte")
KL_TO_DENSE, TOP1_AGREEMENT = MetricKey("kl_to_dense"), MetricKey("top1_agreement")
GREEDY_AGREEMENT, ACCURACY = MetricKey("greedy_agreement"), MetricKey("accuracy")
HELDOUT_LOSS, RELATIVE_ERROR = MetricKey("heldout_loss"), MetricKey("relative_error")
ZERO_SHARE, BITS_PER_WEIGHT = MetricKey("zero_share"), MetricKey("bits_per_weight")
RANK_CORRELATION = MetricKey("rank_correlation")
PARAMETERS, PARAMETER_SHARE = MetricKey("parameters"), MetricKey("parameter_share")
TOKENS_PER_SECOND, SPEED_UP = MetricKey("tokens_per_second"), MetricKey("speed_up")
BYTES_PER_TOKEN, PASS_MS = MetricKey("bytes_per_token"), MetricKey("pass_ms")
BREAK_EVEN = MetricKey("break_even")
ACCEPTED_LENGTH, SAME_TEXT = MetricKey("accepted_length"), MetricKey("same_text")
PREDICTED_LENGTH = MetricKey("predicted_length")
PREDICTED_SPEED_UP, DRAFT_COST = MetricKey("predicted_speed_up"), MetricKey("draft_cost")
CHAINED, STEPS = MetricKey("chained"), MetricKey("steps")
SIZE, DISK, TOOK, PEAK = (MetricKey(name) for name in ("size", "disk", "took", "peak"))
BYTES, LINEAR_BYTES, SECONDS = "bytes", "linear_bytes", "seconds"  # families with a series each
COST, TREE = "cost", "tree"  # families of curves over the nodes of a tree
BLOCK, AXES = "block", {"step": "Step", "block": "Block", "nodes": "Tree nodes"}
LOSS, ERROR = MetricKey("loss"), MetricKey("error", axis=BLOCK)
MEMORY = MetricKey("memory_mb", axis="seconds")
PROCESSOR = MetricKey("processor_percent", axis="seconds")

Better = Literal["lower", "higher", ""]
Form = Literal["number", "share", "bytes", "seconds", "count"]


@dataclass(frozen=True)
class Metric:
    """One metric.

    Attributes:
        better: which direction people want it to go; empty where that is no question.
        form: how it is written; a share is shown in per cent.
        unit: of the figure as it is shown; bytes and seconds carry theirs in every cell, because
            it changes with their size.
        calibrated: measured on the run's own calibration text, which seeds and settings change.
        timed: a clock measured it, so it differs from run to run.
        aliases: other names a filter may use.
        over: what a point of its curve is the mean of.
    """

    key: MetricKey
    label: str
    definition: str = ""
    better: Better = ""
    form: Form = "number"
    unit: str = ""
    calibrated: bool = False
    timed: bool = False
    aliases: tuple[str, ...] = ()
    over: str = ""

    @property
    def name(self) -> str:
        """What a filter, a file or an address calls it."""
        return str(self.key)

    @property
    def scale(self) -> float:
        """What a value is multiplied by to be shown in the unit of the title."""
        return 100.0 if self.form == "share" else 1.0

    @property
    def shown_unit(self) -> str:
        return "%" if self.form == "share" else self.unit

    @property
    def title(self) -> str:
        """The label with its unit, as in the head of a column."""
        return f"{self.label}, {self.shown_unit}" if self.shown_unit else self.label

    @property
    def field(self) -> str:
        """Its name in files for programs, with the unit of the value as it is stored: a share is
        0 to 1."""
        unit = (self.unit if self.form == "number" else self.form).replace(" ", "_").lower()
        words = f"{self.key.family}_{self.key.series}".split("_")
        told = unit in ("", "count") or unit in words
        return self.name if told or not unit.isidentifier() else f"{self.name}_{unit}"


_ALL = (
    Metric(
        PERPLEXITY,
        "Perplexity",
        "exp of the mean negative log-likelihood of the predicted tokens, in windows that do not "
        "overlap; can be compared only on the same text, context and vocabulary.",
        "lower",
        aliases=("ppl",),
    ),
    Metric(
        BITS_PER_BYTE,
        "Bits per byte",
        "The same log-likelihood in bits for each UTF-8 byte of the text; can be compared between "
        "vocabularies.",
        "lower",
    ),
    Metric(
        HELDOUT_LOSS,
        "Held-out loss",
        "Mean negative log-likelihood on calibration segments the method has not seen; decides "
        "which stage is kept.",
        "lower",
        unit="nats per token",
        calibrated=True,
    ),
    Metric(
        RANK_CORRELATION,
        "Rank correlation",
        "Of an estimate of what a layer loses with what was measured, over the layers (Spearman), "
        "averaged over the formats measured.",
        "higher",
    ),
    Metric(
        KL_TO_DENSE,
        "KL to dense",
        "Mean Kullback–Leibler divergence of the next-token distribution from the dense model's.",
        "lower",
        unit="nats",
    ),
    Metric(
        TOP1_AGREEMENT,
        "Top-1 agreement",
        "Share of positions where the likeliest next token is the dense model's.",
        "higher",
        "share",
    ),
    Metric(
        GREEDY_AGREEMENT,
        "Same greedy text",
        "Share of the tokens of greedy samples before the first that differs from the dense "
        "model's, mean over prompts.",
        "higher",
        "share",
    ),
    Metric(
        ACCURACY,
        "Accuracy",
        "Share of the questions of the task named that are answered right: acc_norm of "
        "lm-evaluation-harness where the task has it, else acc. endings: four endings of passages "
        "of the evaluation text; guessing gives 25 %.",
        "higher",
        "share",
    ),
    Metric(
        RELATIVE_ERROR,
        "Relative output error",
        "Squared difference of a layer's outputs from the dense layer's, relative to those, mean "
        "over all linear layers.",
        "lower",
        "share",
        calibrated=True,
    ),
    Metric(
        ZERO_SHARE,
        "Zeros",
        "Share of the weights of the linear layers in the blocks that are exactly zero, pruned or "
        "rounded to it.",
        "higher",
        "share",
        aliases=("sparsity", "zeros"),
    ),
    Metric(
        TOKENS_PER_SECOND,
        "Decoding speed",
        "Generated tokens for each second of wall-clock time, on the machine the run names; can be "
        "compared only there, with the same threads and precision.",
        "higher",
        unit="tokens/s",
        timed=True,
        aliases=("speed",),
    ),
    Metric(
        SPEED_UP,
        "Speed-up",
        "Tokens per second over those of what it is compared with in the same run: the same base "
        "without a drafter (Speed), or the dense model (Evaluation, DL-QAT).",
        "higher",
        unit="×",
        timed=True,
    ),
    Metric(
        ACCEPTED_LENGTH,
        "Accepted length",
        "Tokens committed for each verify pass, the bonus token counted; vanilla decoding has 1.",
        "higher",
        unit="tokens per pass",
    ),
    Metric(
        BREAK_EVEN,
        "Break-even",
        "Time of a verify pass with all that belongs to it, over that of a vanilla pass: so many "
        "tokens must a pass yield before decoding becomes faster.",
        "lower",
        unit="passes",
        timed=True,
    ),
    Metric(
        SAME_TEXT,
        "Same texts",
        "Share of the prompts whose answer is that of vanilla decoding, token for token.",
        "higher",
        "share",
    ),
    Metric(
        PREDICTED_SPEED_UP,
        "Predicted speed-up",
        "Accepted length over what a verify pass of such a tree costs here, in vanilla passes; a "
        "forecast, not a measured speed.",
        "higher",
        unit="×",
        timed=True,
    ),
    Metric(
        PREDICTED_LENGTH,
        "Predicted length",
        "Tokens per pass with the trees that are the default, which depend on the costs measured "
        "on this machine, by an exact walk over held-out answers.",
        "higher",
        unit="tokens per pass",
        timed=True,
    ),
    Metric(
        DRAFT_COST,
        "Draft cost",
        "Time to draft one tree, over that of one vanilla pass of the base model.",
        "lower",
        unit="passes",
        timed=True,
    ),
    Metric(
        PARAMETERS,
        "Trained parameters",
        "Trained parameters that were added to the model.",
        "lower",
        "count",
    ),
    Metric(
        PARAMETER_SHARE,
        "Added parameters",
        "Added parameters over those of the base model.",
        "lower",
        "share",
    ),
    Metric(
        MetricKey("fit_explained"),
        "Initial fit",
        "Share of the mean square of what the cloned layer reads in the base that the fusion of "
        "hidden state and next token, before any training, gives the first adaptation layer.",
        "higher",
        "share",
    ),
    *(
        Metric(
            MetricKey(f"top{m}"),
            f"Top-{m}",
            "Share of positions of held-out answers where the token that comes is "
            + ("the head's likeliest." if m == 1 else f"among the head's {m} likeliest."),
            "higher",
            "share",
        )
        for m in (1, 3, 5)
    ),
    Metric(
        CHAINED,
        "Top-1 if all before are right",
        "Top-1 of a head over the positions where the heads before it are right: how often "
        "drafting goes on.",
        "higher",
        "share",
    ),
    Metric(STEPS, "Steps", "Optimizer steps the training took.", "", "count"),
    Metric(
        BITS_PER_WEIGHT,
        "Bits per weight",
        "Stored bits, scales and zero points counted, for each weight of the quantized layers.",
        "lower",
    ),
    Metric(
        MetricKey(BYTES),
        "Size",
        "Bytes of the model's weights in the format named.",
        "lower",
        "bytes",
    ),
    Metric(
        PASS_MS,
        "Time per pass",
        "Mean time of a pass of the model, drafting and acceptance included. Decoding speed has "
        "the prefill in it as well, which weighs more the shorter the responses are.",
        "lower",
        unit="ms",
        timed=True,
    ),
    Metric(
        BYTES_PER_TOKEN,
        "Read per token",
        "Bytes of weights the native decoder reads for a token, those of the head included, and "
        "without the zeros it leaves out.",
        "lower",
        "bytes",
    ),
    Metric(
        MetricKey(LINEAR_BYTES),
        "Linears",
        "Bytes of the linear layers of the blocks with 16-bit values, in the format named.",
        "lower",
        "bytes",
    ),
    Metric(
        MetricKey(SECONDS),
        "Time",
        "Wall-clock seconds of the step named, over all attempts.",
        "lower",
        "seconds",
        timed=True,
    ),
    # known of every run, without having been recorded as a figure
    Metric(SIZE, "Size on disk", "Bytes of the model folder the run saved.", "lower", "bytes"),
    Metric(
        DISK,
        "Disk space, total",
        "Bytes of the run's folder after it has ended: models, checkpoints, logs.",
        "lower",
        "bytes",
    ),
    Metric(
        TOOK,
        "Duration",
        "Wall-clock time of the run's last stretch.",
        "lower",
        "seconds",
        aliases=("duration",),
    ),
    Metric(PEAK, "Peak memory", "Most memory the run's process held.", "lower", "bytes"),
    # curves, recorded while a run works, and no figures in the end
    Metric(LOSS, "Loss", better="lower"),
    Metric(ERROR, "Relative output error", better="lower", form="share", over="a block"),
    Metric(MetricKey("heldout"), "Held-out loss", better="lower"),
    Metric(MetricKey("accepted"), "Accepted", better="higher"),
    Metric(MetricKey("changed"), "Share of codes changed"),
    Metric(MetricKey("m"), "Group magnitude m"),
    Metric(MetricKey("rate"), "Learning rate"),
    Metric(MetricKey("owl"), "Outliers and sparsity"),
    Metric(MetricKey("reconstruction"), "Held-out error left by block reconstruction"),
    Metric(MetricKey(COST), "Cost of verifying n tokens"),
    Metric(MetricKey(TREE), "Draft tree"),
    Metric(MEMORY, "Memory of the process", unit="MB"),
    Metric(PROCESSOR, "Use of the processor", unit="% of a core"),
)
METRICS = {metric.key.family: metric for metric in _ALL}
_PLACES = {family: place for place, family in enumerate(METRICS)}


def metric(key: MetricKey) -> Metric:
    """The description of the metric, at whatever stage."""
    described = METRICS.get(key.family) or Metric(
        MetricKey(key.family), key.family.replace("_", " ").capitalize()
    )
    if not key.series:
        return described
    words = key.series.replace("_", " ").replace("/", ", ")
    whole = MetricKey(key.family, series=key.series)
    return replace(described, key=whole, label=f"{described.label}, {words}")


def ordered(keys: Iterable[MetricKey]) -> list[MetricKey]:
    """The metrics once each: the described ones in their order, then series and unknown ones."""
    last = len(_PLACES)
    return sorted(
        {*keys}, key=lambda k: (last if k.series else _PLACES.get(k.family, last), str(k))
    )


def axis_title(axis: str) -> str:
    return AXES.get(axis, axis.capitalize())

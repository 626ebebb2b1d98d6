"""Registry of all metrics: key, label, unit, direction and definition.

To add a metric, add an entry to `_ALL` and report its key. Unknown metrics are labeled with their
family and have no direction.
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
SIZE, DISK, DURATION, PEAK = (MetricKey(name) for name in ("size", "disk", "took", "peak"))
BYTES, LINEAR_BYTES, SECONDS = "bytes", "linear_bytes", "seconds"  # families with several series
COST, TREE = "cost", "tree"  # families of curves over the number of tree nodes
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
        key: key of its results.
        label: name on pages.
        definition: explanation in one or two sentences.
        better: desired direction; empty if there is none.
        form: format of its values; a share is shown in percent.
        unit: displayed unit. Bytes and seconds have a unit in every cell, which depends on the
            size of the value.
        calibrated: True if it is measured on the calibration text, which depends on the config.
        timed: True if it is a measured time or speed, which depends on the machine.
        aliases: alternative names in filters.
        over: group averaged in each point of a curve.
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
        """Name in filters, files and addresses."""
        return str(self.key)

    @property
    def scale(self) -> float:
        """Factor from a stored value to the unit of the title."""
        return 100.0 if self.form == "share" else 1.0

    @property
    def shown_unit(self) -> str:
        """Unit on pages: "%" for a share."""
        return "%" if self.form == "share" else self.unit

    @property
    def title(self) -> str:
        """Label with its unit, as in column headers."""
        return f"{self.label}, {self.shown_unit}" if self.shown_unit else self.label

    @property
    def field(self) -> str:
        """Name in exported files, with the unit of stored values (a share is 0 to 1)."""
        unit = (self.unit if self.form == "number" else self.form).replace(" ", "_").lower()
        words = f"{self.key.family}_{self.key.series}".split("_")
        has_unit = unit in ("", "count") or unit in words
        return self.name if has_unit or not unit.isidentifier() else f"{self.name}_{unit}"


_ALL = (
    Metric(
        PERPLEXITY,
        "Perplexity",
        "exp of the mean negative log-likelihood per predicted token, in non-overlapping windows; "
        "comparable only for the same text, context and vocabulary.",
        "lower",
        aliases=("ppl",),
    ),
    Metric(
        BITS_PER_BYTE,
        "Bits per byte",
        "Negative log-likelihood in bits per UTF-8 byte of the text; comparable between "
        "vocabularies.",
        "lower",
    ),
    Metric(
        HELDOUT_LOSS,
        "Held-out loss",
        "Mean negative log-likelihood on calibration segments that the method did not use; decides "
        "which stage is kept.",
        "lower",
        unit="nats per token",
        calibrated=True,
    ),
    Metric(
        RANK_CORRELATION,
        "Rank correlation",
        "Spearman correlation over the layers between estimated and measured loss, averaged over "
        "the measured formats.",
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
        "Share of positions where the most likely next token is that of the dense model.",
        "higher",
        "share",
    ),
    Metric(
        GREEDY_AGREEMENT,
        "Same greedy text",
        "Share of the tokens of greedy samples before the first difference from the dense model, "
        "averaged over prompts.",
        "higher",
        "share",
    ),
    Metric(
        ACCURACY,
        "Accuracy",
        "Share of correct answers in the named task: acc_norm of lm-evaluation-harness if the task "
        "has it, otherwise acc. endings: four endings for passages of the evaluation text; "
        "guessing gives 25 %.",
        "higher",
        "share",
    ),
    Metric(
        RELATIVE_ERROR,
        "Relative output error",
        "Squared difference between the outputs of a layer and its dense version, relative to the "
        "dense outputs, averaged over all linear layers.",
        "lower",
        "share",
        calibrated=True,
    ),
    Metric(
        ZERO_SHARE,
        "Zeros",
        "Share of weights in the linear layers of the blocks that are exactly zero, by pruning or "
        "rounding.",
        "higher",
        "share",
        aliases=("sparsity", "zeros"),
    ),
    Metric(
        TOKENS_PER_SECOND,
        "Decoding speed",
        "Generated tokens per second of wall-clock time; comparable only on the same machine, with "
        "the same threads and precision.",
        "higher",
        unit="tokens/s",
        timed=True,
        aliases=("speed",),
    ),
    Metric(
        SPEED_UP,
        "Speed-up",
        "Tokens per second relative to the reference in the same run: the base model without a "
        "drafter (Benchmark), or the dense model (Evaluation, DL-QAT).",
        "higher",
        unit="×",
        timed=True,
    ),
    Metric(
        ACCEPTED_LENGTH,
        "Accepted length",
        "Tokens per verify pass, including the bonus token; 1 for vanilla decoding.",
        "higher",
        unit="tokens per pass",
    ),
    Metric(
        BREAK_EVEN,
        "Break-even",
        "Time of a verify pass including drafting, in vanilla passes; decoding is faster if the "
        "accepted length is larger.",
        "lower",
        unit="passes",
        timed=True,
    ),
    Metric(
        SAME_TEXT,
        "Same texts",
        "Share of prompts with the same answer as vanilla decoding, token for token.",
        "higher",
        "share",
    ),
    Metric(
        PREDICTED_SPEED_UP,
        "Predicted speed-up",
        "Accepted length divided by the cost of a verify pass on this machine, in vanilla passes: "
        "a forecast, not a measured speed.",
        "higher",
        unit="×",
        timed=True,
    ),
    Metric(
        PREDICTED_LENGTH,
        "Predicted length",
        "Tokens per pass with the default trees for this machine, computed by an exact walk over "
        "held-out answers.",
        "higher",
        unit="tokens per pass",
        timed=True,
    ),
    Metric(
        DRAFT_COST,
        "Draft cost",
        "Time to draft one tree, relative to a vanilla pass of the base model.",
        "lower",
        unit="passes",
        timed=True,
    ),
    Metric(
        PARAMETERS,
        "Trained parameters",
        "Trained parameters added to the model.",
        "lower",
        "count",
    ),
    Metric(
        PARAMETER_SHARE,
        "Added parameters",
        "Added parameters relative to those of the base model.",
        "lower",
        "share",
    ),
    Metric(
        MetricKey("fit_explained"),
        "Initial fit",
        "Share of the mean square of the cloned layer's original inputs that the fusion of hidden "
        "state and next token explains before training.",
        "higher",
        "share",
    ),
    *(
        Metric(
            MetricKey(f"top{m}"),
            f"Top-{m}",
            "Share of positions in held-out answers where the next token is "
            + ("the first choice" if m == 1 else f"among the first {m} choices")
            + " of the head.",
            "higher",
            "share",
        )
        for m in (1, 3, 5)
    ),
    Metric(
        CHAINED,
        "Top-1 if previous heads are right",
        "Top-1 of a head at positions where all previous heads are right: how often drafting "
        "continues.",
        "higher",
        "share",
    ),
    Metric(STEPS, "Steps", "Optimizer steps of the training.", "", "count"),
    Metric(
        BITS_PER_WEIGHT,
        "Bits per weight",
        "Stored bits per weight of the quantized layers, including scales and zero points.",
        "lower",
    ),
    Metric(
        MetricKey(BYTES),
        "Size",
        "Bytes of the model's weights in the named format.",
        "lower",
        "bytes",
    ),
    Metric(
        PASS_MS,
        "Time per pass",
        "Mean time of a pass of the model, including drafting and acceptance. Unlike decoding "
        "speed, it does not include the prefill.",
        "lower",
        unit="ms",
        timed=True,
    ),
    Metric(
        BYTES_PER_TOKEN,
        "Read per token",
        "Bytes of weights that the native decoder reads per token, including the head, without "
        "skipped zeros.",
        "lower",
        "bytes",
    ),
    Metric(
        MetricKey(LINEAR_BYTES),
        "Linears",
        "Bytes of the linear layers of the blocks in the named format, with 16-bit values.",
        "lower",
        "bytes",
    ),
    Metric(
        MetricKey(SECONDS),
        "Time",
        "Wall-clock seconds of the named step, over all attempts.",
        "lower",
        "seconds",
        timed=True,
    ),
    # known for every run without a recorded result
    Metric(SIZE, "Size on disk", "Bytes of the saved model folder.", "lower", "bytes"),
    Metric(
        DISK,
        "Disk space, total",
        "Bytes of the folder of the finished run: models, checkpoints, logs.",
        "lower",
        "bytes",
    ),
    Metric(
        DURATION,
        "Duration",
        "Wall-clock time of the run's last attempt.",
        "lower",
        "seconds",
        timed=True,
        aliases=("duration",),
    ),
    Metric(PEAK, "Peak memory", "Maximum memory of the run's process.", "lower", "bytes"),
    # curves, recorded during a run; they are not results
    Metric(LOSS, "Loss", better="lower"),
    Metric(ERROR, "Relative output error", better="lower", form="share", over="a block"),
    Metric(MetricKey("heldout"), "Held-out loss", better="lower"),
    Metric(MetricKey("accepted"), "Accepted", better="higher"),
    Metric(MetricKey("changed"), "Share of codes changed"),
    Metric(MetricKey("m"), "Group magnitude m"),
    Metric(MetricKey("rate"), "Learning rate"),
    Metric(MetricKey("owl"), "Outliers and sparsity"),
    Metric(MetricKey("reconstruction"), "Remaining held-out error of block reconstruction"),
    Metric(MetricKey(COST), "Cost of verifying n tokens"),
    Metric(MetricKey(TREE), "Draft tree"),
    Metric(MEMORY, "Memory of the process", unit="MB"),
    Metric(PROCESSOR, "Processor usage", unit="% of a core"),
)
METRICS = {metric.key.family: metric for metric in _ALL}
_POSITIONS = {family: position for position, family in enumerate(METRICS)}


def metric(key: MetricKey) -> Metric:
    """Return the entry of a metric, with the series of the key in its label."""
    metric_entry = METRICS.get(key.family) or Metric(
        MetricKey(key.family), key.family.replace("_", " ").capitalize()
    )
    if not key.series:
        return metric_entry
    series_label = key.series.replace("_", " ").replace("/", ", ")
    full_key = MetricKey(key.family, series=key.series)
    return replace(metric_entry, key=full_key, label=f"{metric_entry.label}, {series_label}")


def ordered(keys: Iterable[MetricKey]) -> list[MetricKey]:
    """Return the distinct metrics: registered ones in their order, then series and unknown ones."""
    last = len(_POSITIONS)
    return sorted(
        {*keys}, key=lambda k: (last if k.series else _POSITIONS.get(k.family, last), str(k))
    )


def axis_title(axis: str) -> str:
    """Return the title of the x-axis of a curve."""
    return AXES.get(axis, axis.capitalize())

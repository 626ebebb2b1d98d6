"""A sensitivity profile as a kind of job."""

from typing import Any

from pydantic import field_validator

from backend.errors import ConfigError
from backend.models import memory
from backend.models.facts import ModelFacts
from backend.options import Dtype, option
from backend.pruning.config import PrunerName
from backend.quantization import GridType
from backend.quantization.config import SpaceName
from backend.sensitivity.budget import EXPERT
from backend.sensitivity.profile import Format
from backend.text.corpora import require_length
from jobs.estimates import PhaseWork, decoded_bytes
from jobs.fields.models import resolve_model
from jobs.fields.text import (
    CalibrationText,
    check_context,
    context_length,
    few_tokens,
    require_text,
)
from jobs.fields.types import ModelConfig
from jobs.kind import JobConfig, Kind, Requirements

NAME, DENSE = "profile", "dense"
FORMATS = (
    "int2-g64, int3-g64, int4-g64, int5-g64, int6-g64, int8-g64, 30%, 40%, 50%, 60%, 70%, 80%, 2:4"
)
QUANTIZER = "gptq"  # makes the quantized candidates
EMBEDDING_FORMATS = tuple(map(Format.parse, ("int8-g32", "int6-g32", "int4-g32")))
MAX_FORMATS = 64
EXPERTS_PER_TOKEN = 8  # of a mixture, at most
MEASURE_COPIES = 8  # of the logits of one window
TIMED_TOKENS = 256  # to time a format, those before the passes included


class ProfileJob(ModelConfig, CalibrationText, JobConfig):
    """Which model, on which text, in which formats."""

    formats: str = option(FORMATS, "Formats", max_length=1000)
    """What every layer is tried in, comma-separated: int4-g64 is 4 bits in groups of 64, 50% and
    2:4 are sparsity patterns, 2:4+int4-g64 is both."""
    measured: str = option("", "Formats measured", max_length=1000, examples=["int3-g64, 50%"])
    """In which the loss of each layer alone is measured on held-out text, beside the Fisher
    estimate; the others are scaled to it. Several times as slow."""
    windows: int = option(1, "Windows a measurement", ge=1, le=64, unit="windows", advanced=True)
    """Of the held-out ones, for the loss of each layer alone."""
    pruner: PrunerName = option("sparsegpt", "Pruner", advanced=True)
    """Makes the pruned candidates."""
    grid: GridType = option("symmetric", "Grid", advanced=True)
    """Of the quantized candidates, which GPTQ makes."""
    space: SpaceName = option("weighted", "Range search", advanced=True)
    """Of the quantized candidates."""
    damping: float = option(0.01, "Damping", gt=0, le=1, advanced=True)
    """Added to the Hessian diagonal, relative to the mean input energy."""
    precision: Dtype = option("auto", "Forward precision", advanced=True)
    """Of all passes. auto: bfloat16 where the hardware supports it."""

    @field_validator("formats", "measured")
    @classmethod
    def _known_formats(cls, text: str) -> str:
        return ", ".join(dict.fromkeys(map(str, parsed(text))))

    @property
    def all_formats(self) -> tuple[Format, ...]:
        """The candidates, in the order of the figures that are stored of each layer; those of
        embedding and head last."""
        return tuple(dict.fromkeys((*parsed(self.formats), *EMBEDDING_FORMATS)))

    @property
    def measured_formats(self) -> tuple[Format, ...]:
        return parsed(self.measured)


def parsed(text: str) -> tuple[Format, ...]:
    """The formats in a comma-separated list. Raises ValueError: one is none."""
    return tuple(Format.parse(part) for part in text.split(",") if part.strip())


def requirements(config: ProfileJob) -> Requirements:
    """See `Kind.requirements`."""
    facts = resolve_model(config.model).facts
    facts.require_compressible()
    check_context(config, facts)
    corpus = calibration_name(config, facts)
    require_text(corpus, "calibration_text", "calibration_text")
    windows = config.segments + config.heldout_windows
    require_length(corpus, windows * context_length(config, facts), "calibration_text")
    if not config.heldout_windows:
        raise ConfigError(
            "Nothing is held out.",
            "Gradients and losses are taken on held-out windows.",
            "Choose a share above 0.",
            field="holdout",
        )
    check_formats(config, facts)
    streamed, needed = memory_bytes(config, facts, memory.memory_available())
    warnings = few_tokens(config, facts)
    if streamed:
        warnings += (
            "The model does not fit into memory: its blocks are read from disk, and nothing but "
            "the estimates is made.",
        )
    return Requirements(
        title=facts.title,
        work=work(config, facts),
        memory=needed,
        warnings=warnings,
    )


def calibration_name(config: ProfileJob, facts: ModelFacts) -> str:
    """The corpus; auto is the model's default."""
    named = config.calibration_text
    if named == "self":
        raise ConfigError(
            "A profile is not taken on text that the model samples.",
            "Losses on it say little about text of others.",
            "Choose a corpus.",
            field="calibration_text",
        )
    return facts.default_text if named == "auto" else named


def check_formats(config: ProfileJob, facts: ModelFacts) -> None:
    """Refuse formats that fit no layer, or are measured but not made. Raises ConfigError."""
    formats = parsed(config.formats)
    if not 0 < len(formats) <= MAX_FORMATS:
        raise ConfigError(
            f"{len(formats)} formats are not possible.",
            "",
            f"Choose 1 to {MAX_FORMATS}.",
            field="formats",
        )
    columns = {x.columns for x in facts.linears}
    if unfit := [x for x in formats if not any(x.fits(n) for n in columns)]:
        inputs = ", ".join(map(str, sorted(columns)))
        raise ConfigError(
            f"{unfit[0]} fits no layer of this model.",
            f"They have {inputs} inputs.",
            "Choose a group that divides them.",
            field="formats",
        )
    if missing := [x for x in config.measured_formats if x not in formats]:
        raise ConfigError(
            f"{missing[0]} is not among the formats.",
            "",
            "Add it there, or leave it out here.",
            field="measured",
        )
    if config.windows > config.heldout_windows:
        raise ConfigError(
            f"There are {config.heldout_windows} held-out windows, not {config.windows}.",
            "",
            "Hold out more, or measure on fewer.",
            field="windows",
        )


def work(config: ProfileJob, facts: ModelFacts) -> list[PhaseWork]:
    """See `Requirements.work`."""
    weights, head = facts.linear_weights, facts.vocabulary * facts.hidden
    context = context_length(config, facts)
    heldout = config.heldout_windows * context
    rest = (weights / 2 + head) * context * config.windows  # half of the blocks, on average
    measured = len(config.measured_formats) * len(facts.linears) * rest
    formats = len(config.all_formats)
    made = candidate_products(facts, formats, config.segments * context)
    estimated = (3.0 + formats) * weights * heldout
    return [
        PhaseWork("dense", weights * heldout),
        PhaseWork("gradients", 3.0 * (weights + head) * heldout),
        PhaseWork("layers", made + estimated + measured),
        PhaseWork("decoding", decoded_bytes(facts, formats * TIMED_TOKENS), "memory"),
    ]


def candidate_products(facts: ModelFacts, formats: int, tokens: int) -> float:
    """Products of a pass on `tokens` that makes every layer in every format."""
    solve = sum(x.rows * x.columns**2 for x in facts.linears)
    return facts.linear_weights * tokens + 1.5 * formats * solve


def memory_bytes(
    config: ProfileJob, facts: ModelFacts, available: int, dtype: str = "float32"
) -> tuple[bool, dict[str, int]]:
    """Whether the model is streamed, and then purpose -> bytes at the peak."""
    context = context_length(config, facts)
    sizes: dict[str, Any] = {
        "dtype": dtype,
        "segments": config.segments,
        "context": context,
        "batch": 4,
        "streams": 1,
        "stages": 2,
        "on_disk": False,
    }
    heldout = memory.activation_memory(facts, config.heldout_windows, context, dtype)
    kept = (2 * facts.blocks + 1) * heldout  # states and gradients between blocks
    traced = 4 * config.heldout_windows * context * traced_values(facts)
    logits = 4 * MEASURE_COPIES * facts.vocabulary * context
    needed = memory.memory_needed(facts, **sizes) + kept + traced + logits
    streamed = needed > memory.STREAMING_THRESHOLD * available and not facts.support.stream
    parts = memory.memory_parts(facts, streamed=streamed, **sizes)
    decoder = {} if streamed else {"native decoder": 4 * facts.parameters}  # and what it lays out
    heldout_parts = {"held-out states": kept, "held-out layers": traced, "logits": logits}
    return streamed, parts | decoder | heldout_parts


def traced_values(facts: ModelFacts) -> int:
    """Inputs and output gradients of the layers of a block per token. Of its experts, a token
    reaches a few."""
    block = [x for x in facts.linears if x.block == facts.linears[0].block]
    layers = {EXPERT.sub(r"\1.*.", x.name): x.rows + x.columns for x in block}
    return sum(n * (EXPERTS_PER_TOKEN if ".*." in name else 1) for name, n in layers.items())


KIND = Kind(
    name=NAME,
    title="Sensitivity",
    summary="What each layer loses in each format, and the best mix of formats for a budget.",
    config=ProfileJob,
    requirements=requirements,
    run="jobs.profile.run:run",
    order=55,
    main_fields=("formats", "measured"),
    has_models=False,
    stages={DENSE: "Dense"},
    presets={
        "quick look": {"context": 256, "segments": 16},
        "default": {"context": 256},
        "measured": {"context": 256, "windows": 2, "measured": "int3-g64, 50%"},
        "thorough": {
            "context": 512,
            "holdout": 0.5,
            "windows": 4,
            "measured": "int2-g64, int3-g64, int4-g64, 50%, 70%, 2:4",
        },
    },
)

"""Training a drafter as a kind of job: its config, what a run needs, and its findings in words."""

from collections.abc import Mapping
from math import ceil
from typing import Any, Literal

from backend.drafters.config import (
    ANCHOR_SHARE,
    ARMS,
    CHUNK,
    DECLARED_DRAFTERS,
    GENERATION_BATCH,
    MAX_PROMPT_TOKENS,
    SHAPE,
    DrafterConfig,
    TrainingConfig,
    arm_of,
    head_stage,
)
from backend.errors import ConfigError
from backend.models.facts import ModelFacts
from backend.models.memory import ADAM_BYTES, RUNTIME, block_weights, weight_memory
from backend.options import option
from backend.text import files
from backend.text.prompts import BUILT_IN, SELF, STORIES, benchmark_prompts, require_prompts
from jobs.estimates import PhaseWork, decoded_bytes
from jobs.fields.drafters import DRAFTER_FOLDER, DRAFTER_KIND
from jobs.fields.models import decodable_model
from jobs.fields.text import PromptConfig, prompt_set, require_text
from jobs.fields.types import CorpusName, ModelConfig, PromptSet
from jobs.kind import DiskSpace, JobConfig, KeyFigure, Kind, Requirements, Values
from jobs.limits import require_context
from jobs.metrics import ACCEPTED_LENGTH, DRAFT_COST, PREDICTED_SPEED_UP
from jobs.wording import fixed, times

NAME = DRAFTER_KIND
DRAFTER = DRAFTER_FOLDER  # the stage that is the whole drafter, and the folder it is saved in
TRAINING = "training"  # the step whose time is recorded
MIN_GAIN = 0.05  # of speed; a smaller one would not be measurable
PROMPT_TOKENS = 64  # about, of a prompt with its chat template
CHARACTERS_PER_TOKEN = 2  # English has four; other scripts and code have fewer
MANY_ANSWERS = 256  # to fewer, prompts that the base has to write first add more time than variety
SELF_PROMPT_TOKENS = 100  # the base generates for each prompt of its own, discarded ones included
ACTIVATION_COPIES = 40  # values of hidden size that one token keeps for the backward pass
MASK_BYTES = 4  # of one guess for one token it may see, kept by each layer
CACHED_VALUE_BYTES = 4  # kept beside a hidden state: id, softmax denominator, first choice
DISK_MARGIN = 1.2  # for drafter and checkpoints beside the training data
COMPILED_BYTES = 300 * 2**20  # of kernels compiled for products of every size; measured
COST_PASSES = 2000  # of one token, to measure the decoding costs
CORPUS_WARNING = "Heads trained on corpus text predict the base model's responses less well."


class DataConfig(PromptConfig):
    """What the drafter is trained on."""

    prompts: PromptSet = option("auto", examples=["auto", BUILT_IN, SELF, STORIES])
    """Prompts to generate training data from. auto: half built-in, half model-generated; fewer than
    256 are all built-in; stories for the toy. file:NAME.jsonl: your own; only the first turn is
    used."""
    data: Literal["answers", "text"] = option("answers", "Training data")
    """answers: responses the base model generates, the distribution the drafter has to predict.
    text: windows of a corpus."""
    answers: int = option(1024, "Sequences", ge=2, le=10**7, unit="sequences")
    """Responses, or windows of text."""
    answer_tokens: int = option(128, "Max response tokens", ge=8, le=32768, unit="tokens")
    """Maximum response length (exact length for corpus windows)."""
    heldout: int = option(48, "Held-out sequences", ge=1, le=10**5, unit="sequences", advanced=True)
    """Kept apart to measure head accuracy and to choose the tree."""
    training_text: CorpusName = option("auto", "Corpus", choices="evaluation_text", advanced=True)
    """Used only if the training data is text."""


class AmphistaJob(ModelConfig, DrafterConfig, DataConfig, TrainingConfig, JobConfig):
    """Base model, drafter architecture, training data and budget."""


def requirements(config: AmphistaJob) -> Requirements:
    facts = decodable_model(config.model, config.precision).facts
    require_consistent(config, facts)
    if config.data == "text":
        require_text(corpus_name(config, facts), "evaluation_text", "training_text")
    else:
        for name in prompt_sets(config, facts):
            if name != SELF:
                require_prompts(name, "prompts")
    return Requirements(
        title=facts.title,
        work=work(config, facts),
        memory=memory_bytes(config, facts),
        disk=DiskSpace(
            DISK_MARGIN * cache_bytes(config, facts),
            "The hidden states",
            "Use fewer or shorter sequences.",
            "answers",
        ),
        warnings=(CORPUS_WARNING,) if config.data == "text" else (),
    )


def require_consistent(config: AmphistaJob, facts: ModelFacts) -> None:
    """Refuse settings that contradict each other or the model."""
    if config.heldout >= config.answers:
        raise ConfigError(
            "No training sequences are left.",
            f"{config.heldout} of {config.answers} sequences are held out.",
            "Hold out fewer, or use more sequences.",
            "heldout",
        )
    longest = config.answer_tokens + config.heads  # the last guesses reach behind the response
    require_context(longest, facts, "Responses and guesses", "answer_tokens", prompt=True)
    if config.adaptation_layers > facts.blocks:
        raise ConfigError(
            f"{config.adaptation_layers} layers cannot be cloned.",
            f"{facts.title} has {facts.blocks}.",
            "Choose the architecture medusa, which clones none.",
            "architecture",
        )
    if config.adaptation_layers and facts.support.clone:
        raise ConfigError(
            f"The layers of {facts.title} cannot be cloned.",
            facts.support.clone,
            "Choose the architecture medusa, which clones none.",
            "architecture",
        )


def _repeats(config: AmphistaJob) -> bool:
    """Whether the layers run again behind an anchor; see `drafter.registry.drafter`."""
    return bool(DECLARED_DRAFTERS[config.architecture].facts.get("repeats"))


def corpus_name(config: AmphistaJob, facts: ModelFacts) -> str:
    """The corpus; auto is the model's default."""
    return facts.default_text if config.training_text == "auto" else config.training_text


def prompt_sets(config: AmphistaJob, facts: ModelFacts) -> tuple[str, ...]:
    """The prompt sets; auto adds model-generated prompts to many built-in ones."""
    suits = prompt_set(config, facts)
    adds = config.prompts == "auto" and suits == BUILT_IN and config.answers >= MANY_ANSWERS
    return (BUILT_IN, SELF) if adds else (suits,)


def sequence_tokens(config: AmphistaJob, facts: ModelFacts, longest: bool = False) -> int:
    """Tokens of a sequence, about: of the mean, or of the longest."""
    if config.data == "text":
        return config.answer_tokens
    named = [name for name in prompt_sets(config, facts) if name.startswith(files.PREFIX)]
    prompts = [prompt for name in named for prompt in benchmark_prompts(name)]
    given = [PROMPT_TOKENS + len(prompt.text) // CHARACTERS_PER_TOKEN for prompt in prompts]
    if longest:
        prompt = max(given, default=MAX_PROMPT_TOKENS + PROMPT_TOKENS)
    else:
        prompt = sum(given) // len(given) if given else PROMPT_TOKENS
    return min(prompt + config.answer_tokens, facts.context)


def cache_bytes(config: AmphistaJob, facts: ModelFacts) -> int:
    """Disk that ids, hidden states and what else is kept of each token take at most."""
    return (
        config.answers
        * sequence_tokens(config, facts)
        * (2 * facts.hidden + 3 * CACHED_VALUE_BYTES)
    )


def drafter_weights(config: AmphistaJob, facts: ModelFacts) -> int:
    d, block = facts.hidden, block_weights(facts)
    if config.architecture in ("amphista", "medusa"):
        layers = config.adaptation_layers * (block + 2 * d**2)
        encoder = 12 * d**2 * (config.architecture == "amphista")
        encoder *= config.ablation != "adaptation only"
        if config.ablation == "as many parameters":  # as those of a whole Amphista
            layers, encoder = 2 * (block + 2 * d**2), 12 * d**2
        return layers + encoder + config.heads * d**2
    inputs = sum(range(2, config.heads + 2)) * (config.architecture == "hydra")
    return config.adaptation_layers * block + (2 + inputs) * d**2


def memory_bytes(config: AmphistaJob, facts: ModelFacts) -> dict[str, int]:
    """Bytes at the peak, by what they are for, an estimate from above but for prompts of a file:
    answers are written before the training, so the larger of the two counts."""
    vocabulary = min(config.draft_vocabulary or facts.vocabulary, facts.vocabulary)
    longest = sequence_tokens(config, facts, longest=True)
    written = GENERATION_BATCH * longest
    parts = {
        "answers": 4 * written * (cached_values(facts) + facts.hidden) * (config.data == "answers"),
        "training": COMPILED_BYTES
        + ADAM_BYTES * drafter_weights(config, facts)
        + 4 * ACTIVATION_COPIES * config.batch * longest * facts.hidden
        + config.batch * mask_bytes(config, longest)
        + 4 * 4 * CHUNK * config.heads * vocabulary,
    }
    most = max(parts, key=parts.__getitem__)
    needed = {"runtime": RUNTIME, "weights": weight_memory(facts)}
    return needed | {most: parts[most]}


def mask_bytes(config: AmphistaJob, length: int) -> int:
    """Bytes of the masks of one sequence where layers run again behind M anchors, about: each of
    M (K - 1) guesses sees the tokens and the guesses, [M (K - 1), length + M (K - 1)]."""
    if not _repeats(config):
        return 0
    guesses = ceil(ANCHOR_SHARE * length) * (config.heads - 1)
    return MASK_BYTES * config.adaptation_layers * guesses * (length + guesses)


def cached_values(facts: ModelFacts) -> int:
    """Keys and values that all blocks keep of one token; from above for fused projections."""
    rows = [x.rows for x in facts.linears if x.module.endswith(("k_proj", "v_proj"))]
    return sum(rows) or 2 * facts.blocks * facts.hidden


def work(config: AmphistaJob, facts: ModelFacts) -> list[PhaseWork]:
    """See `Requirements.work`."""
    weights = facts.weights_per_token
    answers = config.answers * (config.data == "answers")
    sets = prompt_sets(config, facts)
    written = SELF_PROMPT_TOKENS * answers * sets.count(SELF) / len(sets)
    read = config.answers * sequence_tokens(config, facts)
    vocabulary = min(config.draft_vocabulary or facts.vocabulary, facts.vocabulary)
    guesses = config.heads * vocabulary * facts.hidden * ANCHOR_SHARE
    learned = config.steps * config.batch * sequence_tokens(config, facts)
    runs = 1 + _repeats(config) * (config.heads - 1) * ANCHOR_SHARE
    products = 3.0 * learned * (runs * drafter_weights(config, facts) + guesses)
    trained = PhaseWork("train", products, step=TRAINING)
    if config.minutes:
        trained = PhaseWork("train", 60 * config.minutes, "seconds", TRAINING)
    return [
        PhaseWork("ask", weights * written),
        PhaseWork("data", float(weights * read)),
        trained,
        PhaseWork("measure", decoded_bytes(facts, COST_PASSES), "memory"),
    ]


def headline(values: Mapping[str, Any]) -> list[str]:
    """What tells a drafter from others first: its arm, how long it learned, and from how much."""
    minutes, steps = values.get("minutes") or 0, values.get("steps") or 0
    learned = f"{minutes:g} min" if minutes else f"{steps:,} steps"
    written = "texts" if values.get("data") == "text" else "answers"
    return [arm_of(values), learned, f"{values.get('answers') or 0:,} {written}"]


def forecast(values: Values) -> str:
    """How fast drafting will be on the machine that trained the drafter."""
    gain, cost = (values.get((DRAFTER, name)) for name in (PREDICTED_SPEED_UP, DRAFT_COST))
    if gain is None or cost is None:
        return ""
    none = " (no gain)" if gain < 1 + MIN_GAIN else ""
    return (
        f"Predicted {times(gain)} the speed of plain decoding on this machine{none}; one "
        f"draft costs {fixed(cost, 2)} of a forward pass of the base model."
    )


def brief(values: Values, kept: str = "") -> KeyFigure | None:
    length = values.get((DRAFTER, ACCEPTED_LENGTH))
    return KeyFigure(f"{fixed(length, 2)} tokens", "a pass, with all heads", "") if length else None


NOTES = {
    "Amphista": "Drafting heads that attend to each other.",
    "Medusa": "Independent heads.",
    "Hydra": "Heads that read the draft tokens before theirs. Highest acceptance in our tests.",
    "EAGLE": "Token after token from its own states, in the manner of EAGLE-3.",
}
KIND = Kind(
    name=NAME,
    title="Amphista drafter",
    summary="Train heads that draft several tokens at once, so that the base model verifies them "
    "in one pass and generates the same text faster.",
    config=AmphistaJob,
    requirements=requirements,
    run="jobs.amphista.run:run",
    order=30,
    main_fields=("minutes", "heads"),
    compresses=True,
    saves="drafter",
    stages={DRAFTER: "Drafter", **{head_stage(k): f"Head {k}" for k in range(1, 11)}},
    headline=headline,
    headline_fields=frozenset({*SHAPE, "minutes", "steps", "answers", "data"}),
    has_models=False,
    recipes={name: ARMS[name] for name in NOTES},
    notes=NOTES,
    presets={
        "quick look": {"minutes": 0.5, "answers": 112, "answer_tokens": 64, "heldout": 16},
        "default": {},
        "thorough": {"minutes": 60, "answers": 6000},
    },
    forecast=forecast,
    brief=brief,
)

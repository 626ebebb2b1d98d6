"""What training a drafter needs before it starts: FLOPs, memory, disk, and what is refused."""

from math import ceil

from backend.drafters.config import (
    ANCHOR_SHARE,
    CHUNK,
    DECLARED_DRAFTERS,
    GENERATION_BATCH,
    MAX_PROMPT_TOKENS,
)
from backend.errors import ConfigError
from backend.models.facts import ModelFacts
from backend.models.memory import RUNTIME, block_weights, weight_memory
from backend.settings import available_threads, settings
from backend.text import files
from backend.text.prompts import BUILT_IN, SELF, benchmark_prompts, require_prompts
from jobs.amphista.config import AmphistaJob
from jobs.fields.models import decodable_model
from jobs.fields.text import prompt_set, require_text
from jobs.kind import DiskSpace, Requirements
from jobs.limits import require_context
from jobs.runtime.duration import ADAM_BYTES, FLOPS_PER_THREAD

PROMPT_TOKENS = 64  # about, of a prompt with its chat template
CHARACTERS_PER_TOKEN = 2  # English has four; other scripts and code have fewer
MANY_ANSWERS = 256  # to fewer, prompts that the base has to write first add more time than variety
SELF_PROMPT_TOKENS = 100  # the base generates for each prompt of its own, discarded ones included
BATCH_SPEED_UP = 3.0  # of forward passes in large batches, over the usual pace; measured
ACTIVATION_COPIES = 40  # values of hidden size that one token keeps for the backward pass
MASK_BYTES = 4  # of one guess for one token it may see, kept by each layer
CACHED_VALUE_BYTES = 4  # kept beside a hidden state: id, softmax denominator, first choice
DISK_MARGIN = 1.2  # for drafter and checkpoints beside the training data
COMPILED_BYTES = 300 * 2**20  # of kernels compiled for products of every size; measured
COST_PASSES = 2000  # of one token, to measure the decoding costs
CORPUS_WARNING = "Heads trained on corpus text predict the base model's responses less well."


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
        model=config.model,
        title=facts.title,
        flops=untimed_flops(config, facts),
        memory=memory_bytes(config, facts),
        disk=DiskSpace(
            DISK_MARGIN * cache_bytes(config, facts),
            "The hidden states",
            "Use fewer or shorter sequences.",
            "answers",
        ),
        timed_seconds=60 * config.minutes,
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
    work = {
        "answers": 4 * written * (cached_values(facts) + facts.hidden) * (config.data == "answers"),
        "training": COMPILED_BYTES
        + ADAM_BYTES * drafter_weights(config, facts)
        + 4 * ACTIVATION_COPIES * config.batch * longest * facts.hidden
        + config.batch * mask_bytes(config, longest)
        + 4 * 4 * CHUNK * config.heads * vocabulary,
    }
    most = max(work, key=work.__getitem__)
    needed = {"runtime": RUNTIME, "weights": weight_memory(facts)}
    return needed | {most: work[most]}


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


def flops_by_phase(config: AmphistaJob, facts: ModelFacts) -> dict[str, float]:
    """Floating-point operations of each phase: the basis of estimate and progress."""
    weights = facts.weights_per_token
    tokens = config.answers * sequence_tokens(config, facts)
    answered = config.data == "answers"
    sets = prompt_sets(config, facts)
    self_tokens = SELF_PROMPT_TOKENS * config.answers * sets.count(SELF) / len(sets) * answered
    return {
        "ask": 2.0 * weights * self_tokens / BATCH_SPEED_UP,
        "data": 2.0 * weights * tokens / BATCH_SPEED_UP,
        "train": training_flops(config, facts),
        "measure": 2.0 * weights * COST_PASSES,
    }


def untimed_flops(config: AmphistaJob, facts: ModelFacts) -> dict[str, float]:
    """Floating-point operations of the phases without a time budget."""
    phases = flops_by_phase(config, facts)
    return {name: n for name, n in phases.items() if name != "train" or not config.minutes}


def training_flops(config: AmphistaJob, facts: ModelFacts) -> float:
    """Floating-point operations of the training steps; with a time budget, what fits into it."""
    if config.minutes:
        threads = config.threads or settings().threads or available_threads()
        return 60 * config.minutes * FLOPS_PER_THREAD * threads
    vocabulary = min(config.draft_vocabulary or facts.vocabulary, facts.vocabulary)
    guesses = config.heads * vocabulary * facts.hidden * ANCHOR_SHARE
    learnt = config.steps * config.batch * sequence_tokens(config, facts)
    runs = 1 + _repeats(config) * (config.heads - 1) * ANCHOR_SHARE
    return 6.0 * learnt * (runs * drafter_weights(config, facts) + guesses)

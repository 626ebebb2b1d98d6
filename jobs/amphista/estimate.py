"""What training a drafter needs and costs, before it starts. Imports no torch."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from backend.errors import ConfigError, DatasetError
from backend.methods.amphista.config import CHUNK, LONGEST, WRITERS
from backend.models.facts import ModelFacts
from backend.models.memory import RUNTIME, block_weights, readable, weight_memory
from backend.settings import available_threads, settings
from backend.text import files
from backend.text.corpora import require_corpus
from backend.text.prompts import BUILT_IN, SELF, benchmark_prompts, require_prompts
from jobs.fields.prompts import prompt_set
from jobs.runtime.costs import ADAM
from jobs.runtime.duration import FLOPS_PER_THREAD

if TYPE_CHECKING:
    from jobs.amphista.run import AmphistaJob

PROMPT_TOKENS = 64  # of a prompt, about, and of a chat template
CHARACTERS = 2  # of a token; English has four, other scripts and code have fewer
ASKED = 100  # tokens the base writes for each prompt of its own, those left out included
FORWARD_PACE = 3.0  # passes without gradients in large batches, over the usual pace; measured
KEPT = 40  # numbers of the width of a hidden state that one token keeps for the backward pass
READ = 4  # bytes of each value kept beside a hidden state: id, denominator, first choice
SPARE = 1.2  # drafter and checkpoints beside the training data
PROGRAMS = 300 * 2**20  # bytes of what is compiled for products of every size; measured
JUDGED = 2000  # passes of one token that measuring this machine takes


def refuse_unfit(config: AmphistaJob, facts: ModelFacts) -> None:
    """Refuses settings that contradict each other or the model."""
    if config.heldout >= config.answers:
        raise ConfigError(
            "Nothing is left to learn from.",
            f"{config.heldout} of {config.answers} sequences are held out.",
            "Hold out fewer, or take more.",
            "heldout",
        )
    if config.answer_tokens + config.heads >= facts.context:
        raise ConfigError(
            f"Answers of {config.answer_tokens} tokens do not fit.",
            f"{facts.title} reads {facts.context} tokens, the prompt included.",
            "Choose fewer.",
            "answer_tokens",
        )
    if config.adaptation_layers > facts.blocks:
        raise ConfigError(
            f"{config.adaptation_layers} layers cannot be cloned.",
            f"{facts.title} has {facts.blocks}.",
            "Choose fewer.",
            "adaptation_layers",
        )
    if not config.teacher_weight and not config.label_weight:
        raise ConfigError(
            "There is nothing to learn.", "Both losses have the weight 0.", "", "teacher_weight"
        )


def corpus_name(config: AmphistaJob, facts: ModelFacts) -> str:
    """The corpus meant: auto is the one that suits the model."""
    return facts.default_text if config.text == "auto" else config.text


def require_text(name: str) -> None:
    """Refuses a corpus that is not there, or is no text but the model itself.

    Raises:
        TextRefused: names the field.
    """
    try:
        require_corpus(name, "evaluation_text")
    except DatasetError as error:
        raise DatasetError(error.what, error.why, error.do, "text") from error


def prompt_sets(config: AmphistaJob, facts: ModelFacts) -> tuple[str, ...]:
    """The sets meant: auto adds what the model asks itself, unless it only tells stories."""
    suits = prompt_set(config, facts)
    return (BUILT_IN, SELF) if config.prompts == "auto" and suits == BUILT_IN else (suits,)


def require_data(config: AmphistaJob, facts: ModelFacts) -> None:
    """Refuses prompts or a corpus that are not there.

    Raises:
        TextRefused: names the field.
    """
    if config.data == "text":
        require_text(corpus_name(config, facts))
    else:
        for name in prompt_sets(config, facts):
            if name != SELF:
                require_prompts(name, "prompts")


def given_prompts(config: AmphistaJob, facts: ModelFacts) -> list[int]:
    """Tokens of every prompt of a file, about; none where no file is asked."""
    named = [name for name in prompt_sets(config, facts) if name.startswith(files.PREFIX)]
    found = [prompt for name in named for prompt in benchmark_prompts(name)]
    return [PROMPT_TOKENS + len(prompt.text) // CHARACTERS for prompt in found]


def sequence_tokens(config: AmphistaJob, facts: ModelFacts, longest: bool = False) -> int:
    """Tokens of a sequence, about: of the mean, or of the longest."""
    if config.data == "text":
        return config.answer_tokens
    given = given_prompts(config, facts)
    if longest:
        prompt = max(given, default=LONGEST + PROMPT_TOKENS)
    else:
        prompt = sum(given) // len(given) if given else PROMPT_TOKENS
    return min(prompt + config.answer_tokens, facts.context)


def cache_bytes(config: AmphistaJob, facts: ModelFacts) -> int:
    """Disk that ids, hidden states and what else is kept of each token take at most."""
    return config.answers * sequence_tokens(config, facts) * (2 * facts.hidden + 3 * READ)


def refuse_full_disk(config: AmphistaJob, facts: ModelFacts) -> None:
    """Refuses a run whose training data the disk has no room for.

    Raises:
        ConfigRefused: names both numbers, and what makes it smaller.
    """
    needed, root = SPARE * cache_bytes(config, facts), settings().root
    free = shutil.disk_usage(root if root.exists() else ".").free
    if needed > free:
        raise ConfigError(
            "The hidden states do not fit on the disk.",
            f"They take about {readable(needed)}; {readable(free)} are free.",
            "Take fewer or shorter sequences.",
            "answers",
        )


def drafter_weights(config: AmphistaJob, facts: ModelFacts) -> int:
    """Weights of the drafter, about."""
    d, inner = facts.hidden, config.encoder_width or facts.hidden
    if not config.head_layers:  # as many as those of a whole drafter
        return 2 * (block_weights(facts) + 2 * d**2) + (12 + config.heads) * d**2
    layers = config.adaptation_layers * (block_weights(facts) + 2 * d**2)
    return layers + 12 * inner**2 * config.encoder + config.heads * config.head_layers * d**2


def memory(config: AmphistaJob, facts: ModelFacts) -> dict[str, int]:
    """Bytes at the peak, by what they are for, an estimate from above but for prompts of a file:
    answers are written before the training, so the larger of the two counts."""
    vocabulary = min(config.draft_vocabulary or facts.vocabulary, facts.vocabulary)
    longest = sequence_tokens(config, facts, longest=True)
    written = WRITERS * longest
    work = {
        "answers": 4 * written * (cached_values(facts) + facts.hidden) * (config.data == "answers"),
        "training": PROGRAMS
        + ADAM * drafter_weights(config, facts)
        + 4 * KEPT * config.batch * longest * facts.hidden
        + 4 * 4 * CHUNK * config.heads * vocabulary,
    }
    most = max(work, key=work.__getitem__)
    return {"runtime": RUNTIME, "weights": weight_memory(facts), most: work[most]}


def cached_values(facts: ModelFacts) -> int:
    """Keys and values that all blocks keep of one token; from above where one linear makes
    queries, keys and values together."""
    rows = [x.rows for x in facts.linears if x.module.endswith(("k_proj", "v_proj"))]
    return sum(rows) or 2 * facts.blocks * facts.hidden


def parts(config: AmphistaJob, facts: ModelFacts) -> dict[str, float]:
    """Floating-point operations of each part of the job: the basis of estimate and progress."""
    weights = facts.weights_per_token
    tokens = config.answers * sequence_tokens(config, facts)
    answered = config.data == "answers"
    sets = prompt_sets(config, facts)
    asked = ASKED * config.answers * sets.count(SELF) / len(sets) * answered
    return {
        "ask": 2.0 * weights * asked / FORWARD_PACE,
        "data": 2.0 * weights * tokens / FORWARD_PACE,
        "train": training_work(config, facts),
        "measure": 2.0 * weights * JUDGED,
    }


def untimed_work(config: AmphistaJob, facts: ModelFacts) -> float:
    """Floating-point operations of all parts that take as long as they take."""
    timed = config.minutes > 0
    return sum(work for part, work in parts(config, facts).items() if part != "train" or not timed)


def training_work(config: AmphistaJob, facts: ModelFacts) -> float:
    """Floating-point operations of the steps; with a time budget, what fits into it."""
    if config.minutes:
        threads = config.threads or settings().threads or available_threads()
        return 60 * config.minutes * FLOPS_PER_THREAD * threads
    vocabulary = min(config.draft_vocabulary or facts.vocabulary, facts.vocabulary)
    guesses = config.heads * vocabulary * facts.hidden * config.anchors
    learnt = config.steps * config.batch * sequence_tokens(config, facts)
    return 6.0 * learnt * (drafter_weights(config, facts) + guesses)

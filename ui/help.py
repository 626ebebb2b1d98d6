"""The help drawer: questions, filters, metrics, terms of the field, licenses."""

from collections.abc import Mapping
from pathlib import Path

from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from backend.models.sources import catalog
from backend.text import corpora
from backend.text.files import PREFIX
from jobs.metrics import METRICS
from ui.templates import fragments
from ui.widgets.html import WIDGETS

GLOSSARY: Mapping[str, Mapping[str, str]] = {
    "Pruning (SDS)": {
        "SDS": "Sparse, dense, sparse: prune a model, make all its weights dense again, and prune "
        "again. The second pruning takes weights that grew back small.",
        "Sparsity": "Share of weights that are exactly zero.",
        "N:M": "At most N of M consecutive inputs of a row are non-zero. GPUs accelerate 2:4.",
        "Wanda": "Prunes by |weight| times the norm of its input.",
        "SparseGPT": "Prunes column by column and updates the remaining weights to compensate.",
        "ALPS": "Prunes each layer by optimization (ADMM), then solves for the remaining weights.",
        "DSnoT": "Starts from Wanda's mask and swaps pruned for kept weights; trains nothing.",
        "First pruning": "One-shot pruning of the dense model.",
        "Re-dense": "All weights are optimized again, with penalties that make the next pruning "
        "cheap.",
        "Second pruning (SDS)": "The re-dense model is pruned again, and the weights that stay are "
        "adjusted: what the method ends with.",
        "Forward passes and Grams": "The calibration text runs through the blocks, and products "
        "of each layer's inputs are summed up (a Gram matrix), by which errors are weighed.",
        "Second pruning, not adjusted": "The re-dense model is pruned again.",
        "Weight adjustment": "Optimizes the remaining weights so that each layer's outputs match "
        "those of the dense layer.",
        "Block reconstruction": "Trains the remaining weights of a whole block to give the dense "
        "block's outputs.",
        "Control": "The first pruning with weight adjustment under the same mask: the baseline "
        "that SDS has to beat.",
    },
    "Quantization (DL-QAT)": {
        "DL-QAT": "Small updates of the weights, and a factor for each group, are trained inside "
        "the rounding.",
        "RTN": "Rounds each weight to the nearest point of the grid. Needs no text.",
        "GPTQ": "Rounds column by column and updates the remaining weights to compensate.",
        "AWQ": "Before rounding, scales up the weights of the inputs that matter most.",
        "HQQ": "Fits scale and zero point to the weights by half-quadratic optimization. Needs no "
        "text.",
        "Group": "Consecutive inputs of a row that share one scale.",
        "Group magnitude": "Trained factor of a group's scale.",
        "Codes": "The integers that represent the weights on the grid.",
        "Quantization space": "The grid: bits, scale and zero point of every group.",
    },
    "Sensitivity": {
        "Sensitivity": "The loss that one layer alone causes in a format, all others dense, in "
        "nats a token.",
        "Fisher information": "Mean squared gradient of the loss at a layer's outputs. Half of it "
        "times their squared error estimates the layer's sensitivity.",
        "Budget": "What a mix of formats may take: the size of the file, bits a weight, a share of "
        "zeros, or a rise of perplexity.",
    },
    "Drafting (Amphista)": {
        "Amphista": "Drafting heads that see each other through attention. They draft several "
        "tokens, which the base model then verifies in one pass.",
        "Anchor": "A text position at which the drafting heads predict. They are trained on a "
        "sample of all positions.",
        "Drafting head": "Predicts the token at one position ahead.",
        "Medusa": "Independent drafting heads on the last hidden state.",
        "Hydra": "Drafting heads that also see the tokens drafted before them.",
        "Head position": "How far ahead a head predicts: 1 is the token after the next.",
        "Prompt lookup": "Drafts the tokens that followed the last n-gram earlier in the context. "
        "Needs no training.",
        "Tree node": "One draft token with all tokens before it on its branch.",
        "Verify pass": "One forward pass of the base model over all draft tokens.",
        "Accepted length": "Tokens generated per verify pass, including the bonus token. "
        "Autoregressive decoding has 1.00.",
        "Speed-up": "Ratio of tokens per second to the reference of the same run: the base model "
        "without a drafter, or the dense model.",
    },
    "Runs": {
        "Run": "A background job and everything it produced, with an id like sds-0042.",
        "Attempt": "One process that worked on a run. An interrupted run has several.",
        "Stage": "All weights after one step of a method, such as dense or re-dense.",
        "Dense": "The model as it came: nothing is pruned or rounded.",
        "Kept stage": "The stage whose weights the run saved. If there are several candidates, a "
        "held-out text decides.",
        "Checkpoint": "Finished work on disk. A resumed run continues from the last complete one.",
        "Sweep": "Runs that were submitted together, one for each combination of settings: choose "
        "several values in New run.",
        "Baseline": "The run that others are compared with.",
    },
    "Model and data": {
        "Block": "One decoder layer: attention, then MLP.",
        "Tensor": "One weight matrix, [outputs, inputs].",
        "Calibration": "Text that is run through the model to collect statistics of each layer's "
        "inputs. It shares no passage with the evaluation text.",
        "Context": "Number of tokens in one window of the model.",
        "Kurtosis": "Weight of a distribution's tails: 3 for a bell curve, more with outliers.",
        "Spread": "Standard deviation of the weights of a tensor.",
        "GGUF": "File format of llama.cpp. It holds packed weights and the tokenizer.",
        "Histogram": "Number of weights in each of 256 bins. All stages share the bins; exact "
        "zeros are counted separately.",
    },
}

QUESTIONS = {  # question -> answer, page
    "What does this do?": (
        "It makes a language model smaller or faster, and shows what that changed in its weights "
        "and in its answers.",
        "home",
    ),
    "How do I compress a model?": (
        "Choose a recipe and a model, look at the time and memory it takes, and add it to the "
        "queue.",
        "new-run",
    ),
    "Which model fits into 80 MB?": (
        "A sensitivity profile says what each layer loses in each format; a budget then gives "
        "every layer its own.",
        "workbench",
    ),
    "What happened to the weights?": (
        "Their distribution before and after, layer by layer.",
        "weights",
    ),
    "Is the compressed model still good?": (
        "Ask it, beside the original, or vote without knowing which is which.",
        "playground",
    ),
    "Which of my runs is best?": ("Filter, sort and compare them.", "runs"),
    "How do I show it to others?": (
        "Share any chart to a story. Present it, follow it on phones, or export it as one file.",
        "story",
    ),
}

FILTERS = {
    "wanda": "runs with this word in their id, name, model, settings, state, tags or note",
    "sparsity>0.4": "runs with a sparsity above 40 %; sparsity>40% is equivalent",
    "perplexity<=20": "compare numbers with < <= > >= = and !=",
    "kind:sds state:failed": "all terms must match; a colon means that the column contains the "
    "text",
    "deleted:yes": "runs deleted less than a day ago, which can be restored; archived:yes shows "
    "those in the archive",
    "tag:demo -owner:mira": "a minus sign negates a term",
    'model=toy "half way"': "an equals sign matches the whole value; quotes keep words together",
    "age<2d took>5min size<500MB": "durations and sizes have units",
}

HTML = fragments("templates/help.html")


def known_terms() -> dict[str, str]:
    """Term or metric -> what it means here."""
    metrics = {m.title: m.definition for m in METRICS.values() if m.definition}
    return metrics | {term: text for topic in GLOSSARY.values() for term, text in topic.items()}


def explained(word: str, meaning: str = "") -> Markup:
    """A term or a metric with what it means: where Help knows it, a link to it, else `meaning`."""
    known = known_terms().get(word, "")
    return WIDGETS.term(word, known or meaning, bool(known))


def help_drawer(_: Request) -> Response:
    """The content of the drawer; the browser asks for it when the drawer is first opened."""
    metrics = [m for m in METRICS.values() if m.definition]
    models = [entry for entry in catalog.entries() if not Path(entry.name).is_absolute()]
    texts = [corpus for corpus in corpora.corpora() if not corpus.name.startswith(PREFIX)]
    return HTMLResponse(HTML.drawer(QUESTIONS, FILTERS, metrics, GLOSSARY, [*models, *texts]))

"""The words of the field as this product uses them, a sentence each, and examples of use."""

from __future__ import annotations

from collections.abc import Mapping

GLOSSARY: Mapping[str, Mapping[str, str]] = {
    "Runs": {
        "Run": "A background job and all it produced, named like sds-0042.",
        "Attempt": "One process that worked on a run; a run that was interrupted has several.",
        "Stage": "All weights after one step of the method, such as dense or re-dense.",
        "Kept stage": "The stage whose weights the run saved; a held-out text decides where there "
        "is a choice.",
        "Checkpoint": "Finished work on disk; a resumed run goes on from the last whole one.",
        "Sweep": "Runs added together, one for every combination of some settings.",
        "Baseline": "The run the others are compared with.",
    },
    "Model and text": {
        "Block": "One decoder layer: attention, then MLP.",
        "Tensor": "One weight matrix, [outputs, inputs].",
        "Calibration": "Text that is run through the model to see which inputs its layers get; it "
        "shares no passage with the evaluation text.",
        "Context": "How many tokens the model reads in one window.",
        "Histogram": "How many weights lie in each of 256 bins; all stages share their bins, and "
        "exact zeros are counted apart.",
    },
    "Pruning (SDS)": {
        "Sparsity": "The share of weights that are exactly zero.",
        "N:M": "Of every M neighbouring inputs of a row N are kept; 2:4 is what GPUs speed up.",
        "Wanda": "Prunes by |weight| times the norm of its input.",
        "SparseGPT": "Prunes column by column and lets the remaining weights make up for each.",
        "First pruning": "One-shot pruning of the dense model.",
        "Re-dense": "All weights move again, with penalties that make the next pruning cheap.",
        "Second pruning": "The re-dense model pruned once more.",
        "Weight adjustment": "Moves the weights that are left so that each layer's outputs come "
        "close to the dense layer's.",
        "Control": "The first pruning, adjusted under its own mask: what SDS has to beat.",
    },
    "Quantisation (DL-QAT)": {
        "Group": "Neighbouring inputs of a row that share one scale.",
        "Group magnitude": "The trained factor of a group's scale.",
        "Codes": "The integers that stand for the weights on the grid.",
        "Quantisation space": "The grid: bits, scale and zero point of every group.",
    },
    "Drafting (Amphista)": {
        "Anchor": "A position of a text from which the heads guess; they learn at a share of all.",
        "Drafting head": "Guesses the token at one position ahead.",
        "Head position": "How far ahead a head guesses: 1 is the token after the next.",
        "Prompt lookup": "Guesses what followed the last tokens where they stand in the text "
        "already. Needs no training.",
        "Tree node": "One drafted token with all tokens before it on its branch.",
        "Verify pass": "One pass of the base model over all drafted tokens.",
        "Accepted length": "Tokens committed for each verify pass, the bonus token counted; "
        "vanilla decoding has 1.00.",
        "Speed-up": "Tokens per second over those of what it is compared with in the same run: the "
        "same base without a drafter, or the dense model.",
    },
}

FILTERS = {
    "wanda": "every run with this word in its id, name, model, setting, state, tags or note",
    "sparsity>0.4": "runs with more than 40 % zeros; sparsity>40% is the same",
    "perplexity<=20": "figures compare with < <= > >= = and !=",
    "kind:sds state:failed": "every term must hold; a colon asks whether the column contains it",
    "tag:demo -owner:mira": "a minus turns a term around",
    'model=toy "half way"': "an equals sign wants all of it; quotes hold words together",
    "age<2d took>5min size<500MB": "times and sizes carry their unit",
}

COMMANDS = {
    "slimscope submit sds --model toy --pattern 2:4 --base wanda --wait": "add a run, follow it",
    "slimscope submit sds --model toy --sweep pattern=2:4,50% --sweep seed=0..2": "six runs",
    "slimscope list --state failed": "runs, the newest first",
    "slimscope show sds-0001 --json": "all that is known of a run",
    "slimscope logs sds-0001 --follow": "its log as it is written",
    "slimscope next sds-0001": "put a waiting run before all others",
    "slimscope cancel sds-0001": "ask it to stop; twice: kill it",
    "slimscope resume sds-0001": "go on from its last checkpoint",
    "slimscope bench amphista-0001": "how fast decoding is with a drafter, and without",
    'slimscope generate --drafter amphista-0001 "Why is the sky blue?"': "decode with it",
    "slimscope models": "what can be compressed",
    "slimscope doctor": "is this machine ready?",
}

REQUESTS = {
    "GET /runs?state=succeeded&limit=20": "runs, the newest first",
    "GET /runs/sds-0001": "all that is known of a run",
    "GET /runs/sds-0001/curves": "the points of its curves",
    "POST /submit/sds": 'add a run; the body holds what differs: {"model": "toy"}',
    "POST /runs/sds-0001/cancel": "ask it to stop",
}

PYTHON = """\
from backend.store import queries

for job in queries.jobs(kind="sds", limit=5):
    print(job.run, job.state, job.config["model"])
    for row in queries.results([job.id]):
        print("  ", row.stage, row.metric, row.value)
curves = frames.curves(1)  # a pandas DataFrame: name, step, value, at
weights = frames.tensor_table(1)  # one row a tensor and stage
"""

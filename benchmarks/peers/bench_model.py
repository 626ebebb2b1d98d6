"""The 25-million-parameter LLaMA that `benchmarks.pruning` prunes, and the text it reads.

Bytes are tokens. Trained for a minute on the calibration part of the Wikipedia sample: enough for
weights and activations that are no noise, far from a good model. One seed, one thread.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase
from transformers import PreTrainedTokenizerFast as FastTokenizer

from backend.models.loading import load
from backend.models.sources.catalog import materialize
from backend.text.corpora import documents
from backend.text.slices import calibration_slices, evaluation_slice

TEXT = "wikipedia"
STEPS, BATCH, LENGTH, RATE = 131, 8, 128, 1e-3
CALIBRATION = {"25m": (64, 256), "smollm2-135m": (16, 512)}  # segments, tokens
EVALUATION = 16, 512


def byte_tokenizer() -> PreTrainedTokenizerBase:
    """256 tokens, one for each byte."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({letter: n for n, letter in enumerate(letters)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    return FastTokenizer(tokenizer_object=made, clean_up_tokenization_spaces=False)


def train(folder: Path) -> None:
    """Write model and tokenizer into `folder`."""
    torch.manual_seed(0)
    tokenizer = byte_tokenizer()
    shape = {"hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 8}
    config = LlamaConfig(vocab_size=256, num_attention_heads=8, **shape)
    model = LlamaForCausalLM(config)
    text = "\n\n".join(documents(TEXT, "calibration", True))
    tokens = torch.tensor(tokenizer.encode(text))
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    for step in range(STEPS):
        starts = torch.randint(len(tokens) - LENGTH, (BATCH, 1))
        rows = tokens[starts + torch.arange(LENGTH)]
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(input_ids=rows, labels=rows, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 10 == 0:
            print(f"training step {step} of {STEPS}, loss {loss.item():.3f}", flush=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def set_up(name: str, folder: Path) -> float:
    """Fills `folder` with model/ and ids.safetensors; what is there is used again.

    Returns:
        Bytes of text in a token of the evaluation text.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "model").exists():
        if name == "25m":
            train(folder / "draft")
            (folder / "draft").rename(folder / "model")
        else:
            load(name)
            (folder / "model").symlink_to(materialize(name))
    tokenizer = FastTokenizer.from_pretrained(folder / "model")
    calibration, _ = calibration_slices(TEXT, tokenizer, *CALIBRATION[name], seed=0)
    evaluation = evaluation_slice(TEXT, tokenizer, *EVALUATION)
    ids = {"calibration": calibration.input_ids, "evaluation": evaluation.input_ids}
    save_file(ids, folder / "ids.safetensors")
    return evaluation.utf8_bytes / (evaluation.tokens - EVALUATION[0])

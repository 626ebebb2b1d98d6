"""Train the built-in toy model anew, in about two minutes.

    make bench-toy ARGS=FOLDER

A LLaMA with grouped-query attention, small enough that pruning half of its weights has a visible
effect. Uses a fixed seed and one thread, so the weights are reproducible on the same machine."""

import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from backend.models.sources.spec import TOY_FOLDER
from backend.models.sources.toy.stories import stories

TRAIN_SEED, HELD_OUT_SEED = 1, 999
STORIES = 8000
VOCABULARY, CONTEXT, BATCH, STEPS = 512, 256, 8, 1500
PEAK_RATE, DECAY_FROM = 5e-3, 0.5  # decay starts after this share of the steps
END = "<|endoftext|>"


def build_tokenizer(text: list[str]) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer with 512 entries; token 0 marks the end of a story."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(text, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=END,
        eos_token=END,
        pad_token=END,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def build_model() -> LlamaForCausalLM:
    """Build a model with 181,000 float32 parameters; the inputs of every linear are a multiple of
    64."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=64,
            intermediate_size=192,
            num_hidden_layers=3,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            bos_token_id=0,
            eos_token_id=0,
            pad_token_id=0,
        )
    )


def encode(tokenizer: PreTrainedTokenizerFast, text: list[str]) -> Tensor:
    """Return the token ids [T] of all stories, each preceded by an end token."""
    return torch.tensor([token for story in text for token in [0, *tokenizer.encode(story)]])


def rate(step: int) -> float:
    """Return the fraction of the peak learning rate: short warm-up, constant, then linear decay to
    2 %."""
    decay = (STEPS - step) / (STEPS * (1 - DECAY_FROM))
    return min((step + 1) / 20, 1.0, max(decay, 0.02))


def train(model: LlamaForCausalLM, tokens: Tensor) -> None:
    """Train with AdamW on random windows [BATCH, CONTEXT] of the stories."""
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=PEAK_RATE, betas=(0.9, 0.98), weight_decay=0.05
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    model.train()
    for step in range(STEPS):
        starts = torch.randint(len(tokens) - CONTEXT, (BATCH, 1))
        rows = tokens[starts + torch.arange(CONTEXT)]
        loss = model(input_ids=rows, labels=rows, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 100 == 0 or step == STEPS - 1:
            print(f"step {step:5d}  loss {loss.item():.4f}", flush=True)


@torch.no_grad()
def held_out_perplexity(model: LlamaForCausalLM, tokens: Tensor) -> float:
    """Return exp of the mean negative log-likelihood over 64 windows of unseen stories."""
    model.eval()
    rows = tokens[: 64 * CONTEXT].view(64, CONTEXT)
    return model(input_ids=rows, labels=rows, use_cache=False).loss.exp().item()


def main(folder: Path) -> None:
    """Train the model and save it with its tokenizer in `folder`."""
    torch.manual_seed(TRAIN_SEED)
    torch.set_num_threads(1)
    text = stories(TRAIN_SEED, STORIES)
    tokenizer, model = build_tokenizer(text), build_model()
    print(f"{model.num_parameters():,} parameters")
    train(model, encode(tokenizer, text))
    held_out = encode(tokenizer, stories(HELD_OUT_SEED, 400))
    print(f"held-out perplexity {held_out_perplexity(model, held_out):.3f}")
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else TOY_FOLDER)

"""Differences between families of causal language models. Only `experts` and `logits` import
torch."""

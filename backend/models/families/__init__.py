"""Differences between families of causal language models; only `experts` and `logits` use torch."""

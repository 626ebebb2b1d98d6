"""Amphista: heads that draft several tokens at once, and lossless decoding with them.

Read in this order:

config             settings of drafter and training (no torch); the arms of the ablation
target_model       the frozen model, opened so that it can verify trees of draft tokens
drafter/           the architectures and their contract
data/              prompts, generated responses and cached hidden states
training/          loss, training loop, accuracy of the heads
tree               which draft tokens are worth verifying
decoding/          proposers, acceptance, the decoding loop, cost model, benchmark
checkpoint         a trained drafter on disk
generate           `generate` and `Amphista.load`: start here to use it
"""

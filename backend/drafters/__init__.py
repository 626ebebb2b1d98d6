"""Drafters: Amphista, Medusa, Hydra, EAGLE. Read in this order:

config             settings of drafter and training (no torch); the arms of the ablation
registry           the contract of an architecture; amphista, hydra and eagle keep it
layers/            what architectures are built from
data/              prompts, generated responses and cached hidden states
training/          loss, training loop, accuracy of the heads
tree_proposer      a drafter as a source of draft tokens
exact_walk         accepted length without the target model
checkpoint         a trained drafter on disk
generate           `generate` and `Amphista.load`: start here to use it
"""

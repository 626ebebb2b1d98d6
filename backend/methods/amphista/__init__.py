"""Amphista: heads that guess several tokens at once, and lossless decoding with them.

Read in this order:

config                       what a person may choose (no torch), and the arms of an ablation
target                       the base, opened so that trees of guesses can be verified
layers, encoder, drafter     the module; initial: what it knows before its first step
writing, corpus              the base's own answers and its hidden states, on disk
loss, training, measure      how the heads learn, and how good they are
tree                         which guesses are worth verifying
proposers, acceptance        who guesses, and what is kept
engine                       the decoding loop
costs                        what a pass costs here, and the tree that pays best
light                        a drafter on 4-bit weights: what is read least is guessed fastest
saved, generate              `Amphista.load` and `generate`: start here to use it
"""

"""Speculative decoding, lossless. Read in this order:

target_model       the frozen model, opened so that it can verify trees of draft tokens
draft_tree         which draft tokens are worth verifying
proposers, prompt_lookup    sources of draft tokens
acceptance, engine          the path that is kept; the loop
cost_model, benchmark       time of a pass on this machine; measured speed
native/            the forward pass in C++
"""

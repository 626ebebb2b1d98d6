"""Lossless speculative decoding. Proposers draft token trees (`draft_tree`), `target_model`
verifies them in one pass, and `acceptance` picks a path. `serving/loop.py` is the decoding loop and
`native/` the model in C++."""

"""Speculative decoding, lossless: `target_model` verifies the trees (`draft_tree`) that proposers
draft, in the loop of `engine`; `acceptance` keeps a path; `native/` is the model in C++."""

"""One engine for all who ask a model at the same time."""

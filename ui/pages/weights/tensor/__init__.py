"""One tensor: its histograms, magnitudes and channels; the matrix itself, and its spectrum."""

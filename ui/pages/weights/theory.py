"""What the literature says about each view, a sentence with its source."""

from __future__ import annotations

OF_TENSOR = {
    "overlay": "Magnitude pruning removes the middle of the distribution (Han et al. 2015); what "
    "stays between the dotted lines was kept for its inputs.",
    "mirror": "Pruning cuts a gap around zero, quantisation leaves a comb at the points of its "
    "grid (Deep Compression, Han et al. 2016).",
    "magnitude": "Scores of weight times input keep small weights that meet large inputs (Wanda, "
    "Sun et al. 2023): the tail below the threshold.",
    "cumulative": "The height of the dense line at a magnitude is the sparsity that pruning by "
    "that threshold gives (Han et al. 2015).",
    "difference": "SparseGPT makes up for the weights it removes in those that stay (Frantar and "
    "Alistarh 2023), which widens the distribution; Wanda leaves them as they are.",
    "channels": "A few features are far larger than all others, and rounding or pruning them costs "
    "most (Dettmers et al. 2022).",
    "matrix": "Bright columns are input features that all outputs read, like the outlier features "
    "of Dettmers et al. (2022).",
    "joint": "To remove a weight at the least cost, the others have to change, too (Optimal Brain "
    "Surgeon, Hassibi and Stork 1993): what lies off the diagonal.",
    "spectrum": "Well-trained layers have heavy-tailed spectra with α between 2 and 6 (Martin and "
    "Mahoney 2021), here fitted as by Clauset, Shalizi and Newman (2009).",
    "story": "A pruned model that is made dense again prunes better than the original (SDS, Li et "
    "al. 2025): its middle peak holds what can go.",
}
OF_LAYERS = {
    "map": "Layers differ in how much compression they bear, which is why OWL gives each block a "
    "sparsity of its own (Yin et al. 2023).",
    "depth": "Deeper blocks of language models are often close to redundant (Gromov et al. 2024); "
    "a sudden change of width marks those that are not like the others.",
    "ridges": "Blocks in the middle can often be dropped at little cost, the first and the last "
    "rarely (ShortGPT, Men et al. 2024).",
    "shapes": "A uniform grid spends its points evenly; NF4 puts them where a bell curve has its "
    "weights (QLoRA, Dettmers et al. 2023).",
    "inputs": "The same few channels are large in nearly all blocks (Dettmers et al. 2022); Wanda "
    "scores a weight by its product with the norm of its input (Sun et al. 2023).",
    "tree": "Blocks with gated MLPs hold most of their weights there (Shazeer 2020), so that is "
    "where compression saves most.",
}

"""OWL: sparsity per block by its share of outliers (Yin et al., arXiv 2310.05175). No torch.

    D_b = share of weights of block b with |W_ij| sqrt(H_jj) > M times their layer's mean of it
    r_b = 2 lambda (D_b - min D) / (max D - min D)
    S_b = S + mean(r) - r_b

D_b has the mean of each layer, not that of the block as published, which follows the layers with
the largest weights (ours). Blocks with more outliers stay denser. The mean of r is weighted by the
number of weights, so that the mean of S_b is S even if some layers are excluded. H is computed on
the dense model's inputs. Layers with a pattern of their own (overrides) do not take part."""

from collections.abc import Mapping

from backend.errors import ConfigError
from backend.pruning.config import SDSConfig

OUTLIER_MULTIPLE, SPREAD = 5.0, 0.08  # M and lambda, as published


def refuse_allocation(config: SDSConfig) -> None:
    """Reject configs that OWL cannot satisfy. Raises ConfigError: the pattern is n:m, or a block
    could lose none or all of its weights."""
    pattern = config.pattern
    if config.allocation != "owl":
        return
    if pattern.structured:
        what = f"OWL does not work with the pattern {pattern}."
        why = "An n:m pattern has the same sparsity in every block."
        do = "Give the pattern as a percentage, or choose uniform."
        raise ConfigError(what, why, do, field="allocation")
    if min(pattern.drop, 1 - pattern.drop) <= 2 * SPREAD:
        what = f"OWL cannot allocate a sparsity of {pattern}."
        why = "A block could lose all of its weights, or none."
        do = f"Choose a percentage between {2 * SPREAD:.0%} and {1 - 2 * SPREAD:.0%}, or uniform."
        raise ConfigError(what, why, do, field="allocation")


def block_shares(
    outliers: Mapping[int, float], weights: Mapping[int, int], share: float, spread: float = SPREAD
) -> dict[int, float]:
    """Block -> share of its weights that is dropped, S_b. `outliers`: block -> D_b. `weights`:
    block -> number of weights. `share`: S, of all blocks together."""
    low, high = min(outliers.values()), max(outliers.values())
    width = 2 * spread / (high - low) if high > low else 0.0
    r = {block: width * (D - low) for block, D in outliers.items()}
    mean = sum(weights[block] * r[block] for block in r) / sum(weights[block] for block in r)
    return {block: share + mean - r[block] for block in r}

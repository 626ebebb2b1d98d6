"""The model card of saved weights: what the model is, how it was made, how to load it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from backend.export.formats import Layout

STOCK = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained("<this folder>"{})
tokenizer = AutoTokenizer.from_pretrained("<this folder>")
```"""
DEQUANTISE = (
    ", quantization_config=CompressedTensorsConfig(dequantize=True)"  # required to load zero-points
)


def loading(layout: Layout) -> str:
    """Instructions for loading the folder, with limitations."""
    if layout.format == "dense":
        return (
            f"{STOCK.format('')}\n\nThe weights are stored in float32, at values of the "
            "quantization grid: every program can load them, without gains in size or speed."
        )
    if layout.format != "compressed-tensors":
        return (
            f"GPTQ layout, `checkpoint_format` {layout.format}. Loading it with "
            "`transformers` requires the packages gptqmodel and optimum."
        )
    if layout.symmetric:
        return (
            f"{STOCK.format('')}\n\nRequires the package compressed-tensors. In float32 the "
            "logits are bit-identical to the measured ones. `transformers` unpacks the weights on "
            "loading: this saves disk space, not memory."
        )
    code = STOCK.format(DEQUANTISE).replace(
        "import AutoModelForCausalLM, AutoTokenizer",
        "import AutoModelForCausalLM, AutoTokenizer, CompressedTensorsConfig",
    )
    return (
        f"{code}\n\nRequires the package compressed-tensors and `dequantize=True`: without it the "
        "packed zero-points of an asymmetric grid do not load. Weights are dequantised in the "
        "precision of the scales, so logits differ by its rounding error."
    )


def model_card(
    title: str,
    run: str,
    stage: str,
    note: str,
    layout: Layout,
    bits_per_weight: float,
    perplexity: Mapping[str, float],
    config: Mapping[str, Any],
    text: Mapping[str, Any],
) -> str:
    """The text of README.md.

    Args:
        note: a caveat about the base model; may be empty.
        perplexity: stage label -> perplexity, for all measured stages.
        text: identifies the calibration, training and evaluation texts.
    """
    rows = "\n".join(f"| {label} | {value:.3f} |" for label, value in perplexity.items())
    group = f"groups of {layout.group_size}" if layout.group_size else "one group per row"
    grid = "symmetric" if layout.symmetric else "asymmetric"
    warning = f"\nNote on the base model: {note}\n" if note else ""
    return f"""# {title}, {layout.bits} bits by {stage}

Made by Slimscope, run {run}. {layout.bits} bits, {group}, {grid}: {bits_per_weight:.3f} bits
per weight of the quantised layers, including scales and zero-points.
{warning}
{loading(layout)}

Perplexity on the evaluation text of the run:

| stage | perplexity |
|---|---|
{rows}

DL-QAT stages were trained on the training text below. Part of their gain over untrained baselines
is adaptation to that text: compare with the LoRA control, the same training without quantization.

Texts:

```json
{json.dumps(text, indent=2)}
```

Full config:

```json
{json.dumps(config, indent=2)}
```
"""

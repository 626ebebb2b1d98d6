"""The README beside saved weights: what the model is, how it was made, how to load it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from backend.export.layouts import Layout

STOCK = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained("<this folder>"{})
tokenizer = AutoTokenizer.from_pretrained("<this folder>")
```"""
DEQUANTISE = (
    ", quantization_config=CompressedTensorsConfig(dequantize=True)"  # else zero-points do not fit
)


def loading(layout: Layout) -> str:
    """How the folder is loaded, and what is known of that."""
    if layout.format == "dense":
        return (
            f"{STOCK.format('')}\n\nThe weights are stored as float32 numbers that lie on the "
            "grid: any program reads them, and none gains size or speed from it."
        )
    if layout.format != "compressed-tensors":
        return (
            f"GPTQ layout, `checkpoint_format` {layout.format}. `transformers` loads it with the "
            "packages gptqmodel and optimum installed."
        )
    if layout.symmetric:
        return (
            f"{STOCK.format('')}\n\nNeeds the package compressed-tensors. In float32 the logits "
            "are those that were measured, bit for bit. `transformers` unpacks the weights when it "
            "loads them: less disk, not less memory."
        )
    code = STOCK.format(DEQUANTISE).replace(
        "import AutoModelForCausalLM, AutoTokenizer",
        "import AutoModelForCausalLM, AutoTokenizer, CompressedTensorsConfig",
    )
    return (
        f"{code}\n\nNeeds the package compressed-tensors, and `dequantize=True`: without it the "
        "packed zero-points of a grid that is not symmetric do not load. Products are then taken "
        "in the precision of the scales, so logits differ by its rounding."
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
    """The README.

    Args:
        note: what to beware of in the base model; may be empty.
        perplexity: stage label -> value, of all stages that were measured.
        text: what identifies the texts.
    """
    rows = "\n".join(f"| {label} | {value:.3f} |" for label, value in perplexity.items())
    group = f"groups of {layout.group_size}" if layout.group_size else "one group a row"
    grid = "symmetric" if layout.symmetric else "not symmetric"
    warning = f"\nNote on the base: {note}\n" if note else ""
    return f"""# {title}, {layout.bits} bits by {stage}

Made by Slimscope, run {run}. {layout.bits} bits, {group}, {grid}: {bits_per_weight:.3f} bits for
each weight of the quantised layers, scales and zero-points counted.
{warning}
{loading(layout)}

Perplexity on the evaluation text of the run:

| stage | perplexity |
|---|---|
{rows}

DL-QAT stages were trained on the training text below. Some of what they gain over baselines that
were not is adaptation to that kind of text: compare with the LoRA control, which is the same
training without quantisation.

Texts:

```json
{json.dumps(text, indent=2)}
```

The whole config:

```json
{json.dumps(config, indent=2)}
```
"""

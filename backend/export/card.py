"""The model card of saved weights: what the model is, how it was made, how to load it."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from backend.export.formats import Layout
from backend.export.origin import ModelOrigin, front_matter, licence_note
from backend.quantization import GRID_NAMES

STOCK = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained("<this folder>"{})
tokenizer = AutoTokenizer.from_pretrained("<this folder>")
```"""
DEQUANTIZE = (
    ", quantization_config=CompressedTensorsConfig(dequantize=True)"  # required to load zero-points
)


def loading(layout: Layout, embedding: bool = False) -> str:
    """Instructions for loading the folder, with limitations. `embedding`: it is packed, too."""
    if layout.format == "dense":
        return (
            f"{STOCK.format('')}\n\nThe weights are stored in the dtype of the base model, at "
            "values of the quantisation grid: every program can load them, without gains in "
            "size or speed."
        )
    if layout.format == "slimscope":
        return (
            "Codes in a format of Slimscope's own, which holds real offsets, and embeddings of "
            "other bits than the layers: open it there, or export it as GGUF, whose types hold "
            "groups of a multiple of 32 exactly (offsets: Q4_1)."
        )
    if layout.format != "compressed-tensors":
        return (
            f"GPTQ layout, `checkpoint_format` {layout.format}. Loading it with "
            "`transformers` requires the packages gptqmodel and optimum."
        )
    if layout.grid == "symmetric" and not embedding:
        return (
            f"{STOCK.format('')}\n\nRequires the package compressed-tensors. In float32 the "
            "logits are bit-identical to the measured ones. `transformers` unpacks the weights on "
            "loading: this saves disk space, not memory."
        )
    code = STOCK.format(DEQUANTIZE).replace(
        "import AutoModelForCausalLM, AutoTokenizer",
        "import AutoModelForCausalLM, AutoTokenizer, CompressedTensorsConfig",
    )
    return (
        f"{code}\n\nRequires the package compressed-tensors and `dequantize=True`: without it "
        "packed zero-points of an asymmetric grid and packed embeddings do not load. Weights are "
        "dequantised in the precision of the scales, so logits differ by its rounding error."
    )


def figures(measured: Mapping[str, Mapping[str, float]]) -> str:
    """A table of what was measured: metric -> stage -> value."""
    stages = dict.fromkeys(stage for values in measured.values() for stage in values)
    head = f"| stage | {' | '.join(measured)} |\n|---|{'---|' * len(measured)}\n"
    rows = (
        f"| {stage} | {' | '.join(_figure(values.get(stage)) for values in measured.values())} |"
        for stage in stages
    )
    return head + "\n".join(rows)


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}" if abs(value) < 1 else f"{value:.3f}"


def pruned_card(
    title: str,
    run: str,
    stage: str,
    method: str,
    pattern: str,
    origin: ModelOrigin,
    note: str,
    measured: Mapping[str, Mapping[str, float]],
    config: Mapping[str, Any],
    text: Mapping[str, Any],
) -> str:
    """The text of README.md of a pruned model; see `model_card`."""
    warning = f"\nNote on the base: {note}\n" if note else ""
    return f"""{front_matter(origin, ["pruning", "sparse"], library="transformers")}
# {title}, {pattern} pruned by {method}

Made by Slimscope, run {run}. Stage: {stage}. {licence_note(origin)}
{warning}
The zeros are stored as ordinary numbers: the file is as large as the dense one, and plain
`transformers` runs it at the dense speed.

{STOCK.format("")}

Measured on the evaluation text of the run:

{figures(measured)}
{_appendix(config, text)}"""


def gguf_card(
    file: str, model: str, type: str, run: str, origin: ModelOrigin, note: str = ""
) -> str:
    """The text of README.md beside a GGUF file of `model`: a run, or the name of a model."""
    warning = f"\nNote on the base: {note}\n" if note else ""
    return f"""{front_matter(origin, ["gguf", "llama.cpp"], "quantized")}
# {file}

Made of {model} by Slimscope, run {run}. Linear layers: {type}. {licence_note(origin)}
{warning}
```sh
llama-cli -m {file} -p "Once upon a time"
```
"""


def _appendix(config: Mapping[str, Any], text: Mapping[str, Any]) -> str:
    return f"""
Texts:

```json
{json.dumps(text, indent=2)}
```

Full config:

```json
{json.dumps(config, indent=2)}
```
"""


def model_card(
    title: str,
    run: str,
    stage: str,
    origin: ModelOrigin,
    note: str,
    layout: Layout,
    bits_per_weight: float,
    perplexity: Mapping[str, float],
    config: Mapping[str, Any],
    text: Mapping[str, Any],
    embeddings: Sequence[str] = (),
) -> str:
    """The text of README.md. `note`: a caveat about the base model; `perplexity`: stage label ->
    value, for all measured stages; `text`: identifies the calibration, training and evaluation
    texts; `embeddings`: names of a packed embedding and head."""
    widths = sorted({each.bits for each in layout.linears})
    tags = ["quantization", *(f"{bits}-bit" for bits in widths), layout.format]
    group = f"groups of {layout.group_size}" if layout.group_size else "one group per row"
    grid, of = GRID_NAMES[layout.grid], [layout.of(name) for name in embeddings]
    also = "".join(f" {n}: {x.bits} bits." for n, x in zip(embeddings, of, strict=True))
    alike = any(each == layout.linears[0] for each in of)
    warning = f"\nNote on the base model: {note}\n" if note else ""
    return f"""{front_matter(origin, tags, "quantized", "transformers")}
# {title}, {layout.width} by {stage}

Made by Slimscope, run {run}. {layout.width}, {group}, {grid}: {bits_per_weight:.3f} bits
per weight of the quantised layers, with scales, zero-points and offsets.{also} \
{licence_note(origin)}
{warning}
{loading(layout, alike)}

Perplexity on the evaluation text of the run:

{figures({"perplexity": perplexity})}

DL-QAT stages were trained on the training text below. Part of their gain over untrained baselines
is adaptation to that text: compare with the LoRA control, the same training without quantization.
{_appendix(config, text)}"""


def live_card(
    title: str, base: str, origin: ModelOrigin, note: str, formats: Mapping[str, int],
    made: Mapping[str, int], methods: tuple[str, str], address: str,
) -> str:  # fmt: skip
    """The text of README.md of a live model. `formats`, `made`: how many layers are stored, and
    were made, so; `methods`: the pruner and the quantizer chosen."""
    warning = f"\nNote on the base model: {note}\n" if note else ""
    stored = "".join(f"| {form} | {count} |\n" for form, count in formats.items())
    ways = ", ".join(f"{count} {way}" for way, count in made.items())
    return f"""{front_matter(origin, ["slimscope", "workbench"], "quantized")}
# {title}

{base}, written by Slimscope's workbench as it was on the screen. No run has made, trained or
evaluated it. Layers: {ways}. Instant ones are made without the inputs that the layers before leave:
queue the same state as a run for the better model. {licence_note(origin)}
{warning}
| format | layers |
|---|---|
{stored}
Pruner: {methods[0]}. Quantizer: {methods[1]}. State:

```
{address}
```
"""

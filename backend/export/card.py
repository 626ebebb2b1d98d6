"""Model cards of saved models: description, origin, and instructions for loading.

The base model's name on the Hub and its license are read from its own card, and the files with its
license terms are copied. Does not import torch.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData, metadata_load

from backend.export.formats import Layout
from backend.models.sources import hub
from backend.models.sources.cache import UNKNOWN, CacheOrigin, prepared
from backend.models.sources.catalog import local_folder
from backend.models.sources.shipped import SHIPPED
from backend.models.sources.spec import TOY, TOY_FOLDER, is_hub_id
from backend.quantization import GRID_NAMES

CARD = "README.md"
LOADING_CODE = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained("<this folder>"{})
tokenizer = AutoTokenizer.from_pretrained("<this folder>")
```"""


@dataclass(frozen=True)
class ModelOrigin:
    """Origin and license of a base model. Unknown facts are "".

    Attributes:
        base_model: id on the Hub.
        license: identifier of the license on the Hub, such as apache-2.0.
        name: name of a license without an identifier.
        link: link to a license without an identifier.
        folder: folder with the files of the license terms.
    """

    base_model: str = ""
    license: str = ""
    name: str = ""
    link: str = ""
    folder: Path | None = None


def origin_of(spec: str) -> ModelOrigin:
    """Return the origin of the model `spec`, read from its files."""
    if spec == TOY:
        return ModelOrigin(license="apache-2.0", folder=TOY_FOLDER)
    if spec in SHIPPED:
        model = SHIPPED[spec]
        return ModelOrigin(model.hub_id, model.license, folder=prepared(spec))
    folder = hub.cached(spec) if is_hub_id(spec) else Path(spec)
    if spec.endswith(".gguf"):
        folder = local_folder(spec)  # the converted model
    card: dict[str, Any] = {}
    if folder and (folder / CARD).is_file():
        with suppress(Exception):  # the YAML parser raises many kinds of errors
            card = metadata_load(folder / CARD) or {}
    cached = CacheOrigin.read(folder) if folder else None
    base = spec if is_hub_id(spec) else str(card.get("base_model") or "")
    base = base or (cached.base_model if cached else "")
    license = cached.license.lower() if cached and cached.license != UNKNOWN else ""
    return ModelOrigin(
        base_model=base,
        license=str(card.get("license") or license),
        name=str(card.get("license_name") or ""),
        link=str(card.get("license_link") or ""),
        folder=folder,
    )


def front_matter(
    origin: ModelOrigin,
    tags: Sequence[str],
    relation: str | None = None,
    library: str | None = None,
) -> str:
    """Return the YAML block that the Hub reads.

    Args:
        tags: methods that were applied to the model.
        relation: relation to the base model in the Hub's terms (quantized, finetune).
        library: library that loads the model.
    """
    data = ModelCardData(
        base_model=origin.base_model or None,
        base_model_relation=relation if origin.base_model else None,
        license=origin.license or None,
        license_name=origin.name or None,
        license_link=origin.link or None,
        library_name=library,
        pipeline_tag="text-generation",
        tags=["slimscope", *tags],
    )
    return f"---\n{data.to_yaml()}\n---\n"


def license_note(origin: ModelOrigin) -> str:
    """Return a sentence about the license."""
    base = origin.base_model or "the base model"
    if not origin.license:
        return f"The license of {base} applies, but it is unknown. Add it before you publish."
    license = origin.name if origin.license == "other" and origin.name else origin.license
    return f"The license and the terms of {base} apply: {license}."


def copy_terms(origin: ModelOrigin, folder: Path) -> None:
    """Copy the files with the license terms of the base model into a new model folder."""
    if origin.folder is None or not origin.folder.is_dir():
        return
    for pattern in ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*", "COPYING*"):
        for file in sorted(origin.folder.glob(pattern)):
            if file.is_file() and not (folder / file.name).exists():
                shutil.copyfile(file, folder / file.name)


def loading(layout: Layout, embedding: bool = False) -> str:
    """Return instructions for loading the folder, with limitations. `embedding`: True if the
    embedding is packed."""
    if layout.format == "dense":
        return (
            f"{LOADING_CODE.format('')}\n\nThe weights are stored in the dtype of the base model, "
            "at values of the quantization grid. Every program can load them, without gains in "
            "size or speed."
        )
    if layout.format == "slimscope":
        return (
            "Codes in a format of Slimscope's own, which supports real offsets, and embeddings "
            "with other bits than the layers. Open it in Slimscope, or export it as GGUF, whose "
            "types store groups of a multiple of 32 exactly (offsets: Q4_1)."
        )
    if layout.format != "compressed-tensors":
        return (
            f"GPTQ layout, `checkpoint_format` {layout.format}. Loading it with "
            "`transformers` requires the packages gptqmodel and optimum."
        )
    if layout.grid == "symmetric" and not embedding:
        return (
            f"{LOADING_CODE.format('')}\n\nRequires the package compressed-tensors. In float32 the "
            "logits are bit-identical to the measured ones. `transformers` unpacks the weights on "
            "loading, so the format saves disk space, but no memory."
        )
    code = LOADING_CODE.format(
        ", quantization_config=CompressedTensorsConfig(dequantize=True)"
    ).replace(
        "import AutoModelForCausalLM, AutoTokenizer",
        "import AutoModelForCausalLM, AutoTokenizer, CompressedTensorsConfig",
    )
    return (
        f"{code}\n\nRequires the package compressed-tensors and `dequantize=True`. Without it "
        "packed zero-points of an asymmetric grid and packed embeddings do not load. Weights are "
        "dequantized in the precision of the scales, so logits differ by its rounding error."
    )


def figures(measured: Mapping[str, Mapping[str, float]]) -> str:
    """Return a Markdown table of measured results: metric -> stage -> value."""
    stages = dict.fromkeys(stage for values in measured.values() for stage in values)
    header = f"| stage | {' | '.join(measured)} |\n|---|{'---|' * len(measured)}\n"
    rows = (
        f"| {stage} | {' | '.join(_figure(values.get(stage)) for values in measured.values())} |"
        for stage in stages
    )
    return header + "\n".join(rows)


def _figure(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if abs(value) < 1 else f"{value:.3f}"


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
    """Return the text of README.md of a pruned model; see `model_card`."""
    warning = f"\nNote on the base: {note}\n" if note else ""
    return f"""{front_matter(origin, ["pruning", "sparse"], library="transformers")}
# {title}, {pattern} pruned by {method}

Made by Slimscope, run {run}. Stage: {stage}. {license_note(origin)}
{warning}
The zeros are stored as ordinary numbers. The file is as large as the dense one, and plain
`transformers` runs it at the dense speed.

{LOADING_CODE.format("")}

Measured on the evaluation text of the run:

{figures(measured)}
{_appendix(config, text)}"""


def gguf_card(
    file: str, model: str, type: str, run: str, origin: ModelOrigin, note: str = ""
) -> str:
    """Return the text of README.md for a GGUF file. `model`: a run, or the name of a model."""
    warning = f"\nNote on the base: {note}\n" if note else ""
    return f"""{front_matter(origin, ["gguf", "llama.cpp"], "quantized")}
# {file}

Made from {model} by Slimscope, run {run}. Linear layers: {type}. {license_note(origin)}
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
    """Return the text of README.md of a quantized model.

    Args:
        title: name of the base model.
        run: name of the run.
        stage: label of the saved stage.
        origin: origin of the base model.
        note: a caveat about the base model.
        layout: format, and the settings of each layer.
        bits_per_weight: stored bits per weight of the quantized layers.
        perplexity: stage label -> perplexity, for all measured stages.
        config: config of the run.
        text: identification of the calibration, training and evaluation texts.
        embeddings: names of a packed embedding and head.
    """
    widths = sorted({linear_layout.bits for linear_layout in layout.linears})
    tags = ["quantization", *(f"{bits}-bit" for bits in widths), layout.format]
    group = f"groups of {layout.group_size}" if layout.group_size else "one group per row"
    grid, embedding_layouts = GRID_NAMES[layout.grid], {n: layout.of(n) for n in embeddings}
    also = "".join(f" {n}: {x.bits} bits." for n, x in embedding_layouts.items())
    has_packed_embedding = layout.linears[0] in embedding_layouts.values()
    warning = f"\nNote on the base model: {note}\n" if note else ""
    return f"""{front_matter(origin, tags, "quantized", "transformers")}
# {title}, {layout.width} by {stage}

Made by Slimscope, run {run}. {layout.width}, {group}, {grid}: {bits_per_weight:.3f} bits
per weight of the quantized layers, including scales, zero-points and offsets.{also} \
{license_note(origin)}
{warning}
{loading(layout, has_packed_embedding)}

Perplexity on the evaluation text of the run:

{figures({"perplexity": perplexity})}

DL-QAT stages were trained on the training text below. Part of their gain over untrained baselines
is adaptation to that text. Compare with the LoRA control, the same training without quantization.
{_appendix(config, text)}"""


def live_card(
    title: str,
    base: str,
    origin: ModelOrigin,
    note: str,
    formats: Mapping[str, int],
    made: Mapping[str, int],
    methods: tuple[str, str],
    address: str,
) -> str:
    """Return the text of README.md of a live model.

    Args:
        base: name of the base model.
        formats: format -> number of layers.
        made: way of compression, such as "instant" -> number of layers.
        methods: names of the pruner and the quantizer.
        address: address of the state in the workbench.
    """
    warning = f"\nNote on the base model: {note}\n" if note else ""
    table = "".join(f"| {form} | {count} |\n" for form, count in formats.items())
    ways = ", ".join(f"{count} {way}" for way, count in made.items())
    return f"""{front_matter(origin, ["slimscope", "workbench"], "quantized")}
# {title}

{base}, saved from Slimscope's workbench. No run has made, trained or evaluated it. Layers: {ways}.
Instant layers do not see the inputs from the compressed layers before them. For a better model,
queue the same state as a run. {license_note(origin)}
{warning}
| format | layers |
|---|---|
{table}
Pruner: {methods[0]}. Quantizer: {methods[1]}. State:

```
{address}
```
"""

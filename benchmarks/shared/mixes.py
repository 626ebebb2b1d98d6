"""A model that is built again and again as `benchmarks.budget` compares it."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from gguf import MODEL_ARCH, get_tensor_name_map
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from backend.calibration.heldout import window_nll
from backend.calibration.second_moments import InputCollector, StatisticsLevel
from backend.checkpoints import Checkpoints
from backend.live.measurements import DecodingClock
from backend.models.block_forward import after_blocks, open_stream, run_block
from backend.models.blocks import all_linears, block_linears, decoder_blocks, resolve_dtype
from backend.models.loading import load
from backend.pruning.config import SDSConfig
from backend.pruning.plan import pruning_plan
from backend.pruning.sds import run_sds
from backend.reporter import SilentReporter
from backend.sensitivity.profile import Format
from backend.sensitivity.walk import Solvers, candidates, rounded_embedding
from backend.text.slices import calibration_slices, evaluation_slice
from benchmarks.exports import by_llama
from jobs.fields.models import resolve_model
from jobs.profile.kind import EMBEDDING_FORMATS

Formats = Mapping[str, Format]
BATCH, HELDOUT, SOLVERS, SILENT = 4, 16, Solvers(range_search="weighted"), SilentReporter()


class Trial:
    """A model that is compressed again and again from the same dense weights."""

    def __init__(self, given: argparse.Namespace, model: str) -> None:
        base = resolve_model(model)
        self.given, self.dtype = given, getattr(torch, resolve_dtype("auto", torch.device("cpu")))
        loaded = load(base.source, "cpu", torch.float32)
        self.model: PreTrainedModel = loaded.model.requires_grad_(False)
        names = [
            base.facts.default_text if x == "auto" else x for x in (given.calibration, given.text)
        ]
        sizes = (given.context, given.seed)
        calibration, _ = calibration_slices(
            names[0], loaded.tokenizer, given.segments, *sizes, HELDOUT
        )
        self.calibration = calibration.input_ids
        self.test = evaluation_slice(
            names[1], loaded.tokenizer, given.windows, given.context
        ).input_ids
        self.dense = {name: p.clone() for name, p in self.model.named_parameters()}
        self.embeddings = [x.name for x in base.facts.embeddings]
        self.weights, self.source = base.facts.linear_weights, base.source

    @torch.no_grad()
    def losses(self) -> Tensor:
        """Mean loss of each test window of the model as it is: blocks in the dtype of passes, the
        head in float32."""
        stream = open_stream(self.model, self.test, BATCH, self.dtype)
        for block in range(len(decoder_blocks(self.model))):
            stream.advance(run_block(self.model, stream, block, stream.hidden))
        found = [
            window_nll(after_blocks(self.model, row, states.float()[None]), row)
            for batch, hidden in zip(self.test.split(BATCH), stream.hidden, strict=True)
            for row, states in zip(batch.split(1), hidden, strict=True)
        ]
        return torch.cat(found)

    def restore(self) -> None:
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(self.dense[name])

    @torch.no_grad()
    def mixed(self, formats: Formats) -> Tensor:
        """Losses of the model with these formats."""
        self.restore()
        for name in self.embeddings:
            weight = self.model.get_submodule(name).get_parameter("weight")
            weight.copy_(rounded_embedding(self.dense[f"{name}.weight"], formats[name]))
        stream = open_stream(self.model, self.calibration, BATCH, self.dtype)
        for block in range(len(decoder_blocks(self.model))):
            linears = block_linears(self.model, block)
            with InputCollector(linears, StatisticsLevel.GRAM) as collector:
                run_block(self.model, stream, block, stream.hidden)
                inputs = collector.finish()
            for module, x in linears.items():
                form = formats[x.name]
                if form != Format():
                    made = candidates(x.read(), inputs[module], [form], SOLVERS, x.name, print)
                    x.write(made[form])
            stream.advance(run_block(self.model, stream, block, stream.hidden))
        return self.losses()

    @cached_property
    def clock(self) -> DecodingClock:
        return DecodingClock(load(self.source, "cpu", torch.float32).model, lambda: None)

    def milliseconds(self, formats: Formats) -> float:
        """Of a token in the native decoder, which reads the head of a quantized model in 8 bits."""
        rounded = any(x.quantized for x in formats.values())
        head = EMBEDDING_FORMATS[0] if rounded else Format()
        read = {x: head for x in self.embeddings if formats[x] == Format()}
        return self.clock.milliseconds({**formats, **read})

    def by_owl(self, pattern: str) -> Tensor:
        """Losses of the model that a run with SparseGPT and OWL's percentages makes."""
        self.restore()
        config = SDSConfig.model_validate(
            {
                "base": "sparsegpt",
                "until": "first",
                "control": False,
                "pattern": pattern,
                "allocation": "owl",
            }
        )
        plan = pruning_plan(config, all_linears(self.model), {})
        with TemporaryDirectory() as folder:
            run_sds(self.model, self.calibration, config, plan, Checkpoints(Path(folder)), SILENT)
        return self.losses()

    def formats(self, pruned: bool) -> list[Format]:
        """The candidates of a method."""
        return [x for x in self.given.formats if bool(x.pattern) == pruned != x.quantized]

    @torch.no_grad()
    def importance(self) -> dict[str, NDArray[np.float32]]:
        """The mean squares of each layer's inputs [in], by the names of GGUF."""
        self.restore()
        names = get_tensor_name_map(MODEL_ARCH.LLAMA, len(decoder_blocks(self.model)))
        stream, found = open_stream(self.model, self.calibration, BATCH, self.dtype), {}
        for block in range(len(decoder_blocks(self.model))):
            linears = block_linears(self.model, block)
            with InputCollector(linears, StatisticsLevel.ENERGY) as collector:
                stream.advance(run_block(self.model, stream, block, stream.hidden))
                inputs = collector.finish()
            for module, x in linears.items():
                found[f"{names.get_name(x.name)}.weight"] = inputs[module].energy.numpy()
        return found

    def of_file(self, path: Path) -> Tensor:
        """Losses of a GGUF file in llama.cpp."""
        return by_llama(path, self.test)[0]

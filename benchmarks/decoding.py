"""Decoding one token after the other, and several in one pass: ours, PyTorch's, and llama.cpp's.

    make bench-decoding
    make bench-decoding ARGS="--threads 2 --gguf model.gguf"
    make bench-decoding ARGS="--only 'native, bf16' 'native, int4' --instructions avx2"

All engines continue the same 192 tokens of the same model, in turn, round after round. Told are
milliseconds of processor time for a token (medians; of all threads together), tokens a second by
the clock, how much longer a pass over n tokens takes than one over a single token, and the tokens
of a prompt of 512 that are read in a second of processor time. Beside them the limit: the bytes of
the weights over the bandwidth a plain sum of memory reaches here.

`error` is the root mean square difference of the logits from those in float32, relative to their
spread, `perplexity` that of a held-out text, read in passes over 32 tokens. Weights of 2 to 8 bits
are rounded to nearest here, in groups of 64, and 2:4 is by magnitude: their speed is that of any.
The mix has 3 bits in gates and up projections, 6 in down projections and the head, and 4 in
attention.

llama.cpp needs `llama-cpp-python`, built for this processor (pip install --no-binary
llama-cpp-python), and a GGUF file of the model, which it converts into its own formats. It runs in
a process of its own, as it does not share matrix units with PyTorch.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Protocol, runtime_checkable

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from backend.decoding.draft_tree import chain
from backend.decoding.native.model import NativeModel
from backend.decoding.target_model import TargetModel
from backend.kernels.library import Kernels, instruction_sets, kernels
from backend.models.blocks import all_linears, to_bfloat16
from backend.models.loading import load
from backend.pruning.masks import keep_mask
from backend.pruning.pattern import Pattern
from backend.quantization.grid import QuantizedWeight, minmax_grid
from backend.quantization.packed_linear import pack_model
from backend.text.slices import evaluation_slice
from benchmarks.peers import llama_process as peer
from benchmarks.shared.timing import Taken, timed

CONTEXT, NEW, PROMPT = 192, 24, 512
WINDOWS, WINDOW, PASS = 16, 224, 32  # tokens of a window, and of a pass over it
WIDTHS = (2, 4, 8, 12)
GROUP = 64
BITS = (2, 3, 4, 5, 6, 8)
MIX = {"gate_proj": 3, "up_proj": 3, "down_proj": 6, "lm_head": 6}  # the others 4


class Writer(Protocol):
    """Continues the context."""

    bytes: int  # of the weights it reads for a token

    def write(self, first: int, number: int) -> list[int]:
        """The likeliest continuation after the context and `first`."""

    def rewind(self, length: int = CONTEXT) -> None:
        """Forget all but the first tokens."""


@runtime_checkable
class Engine(Writer, Protocol):
    """Also passes over several tokens at once."""

    def logits(self, tokens: Sequence[int]) -> Tensor:
        """[n, vocabulary] after the context and each of the tokens."""


class Ours:
    """A `TargetModel`, native or in PyTorch."""

    def __init__(
        self, model: PreTrainedModel, context: Sequence[int], own: Kernels | None = None
    ) -> None:
        native = NativeModel(model, own) if own else False
        self._target = target = TargetModel(model, native)
        self._cache = target.new_cache(CONTEXT + NEW + max(WIDTHS) + 1)
        target.read(context, self._cache)
        self.bytes = target.native.layout.size if target.native else _bytes(model)

    def logits(self, tokens: Sequence[int]) -> Tensor:
        tree = chain(len(tokens) - 1) if len(tokens) > 1 else None
        return self._target.read(tokens, self._cache, tree, len(tokens))[1]

    def read(self, tokens: Sequence[int]) -> object:
        """The states after a prompt of its own, and the logits after its end."""
        return self._target.read(tokens, self._target.new_cache(len(tokens)), None, 1)

    def write(self, first: int, number: int) -> list[int]:
        written = [first]
        for _ in range(number):
            written.append(int(self.logits(written[-1:]).argmax()))
        return written[1:]

    def rewind(self, length: int = CONTEXT) -> None:
        self._cache.rewind(length)


class Transformers:
    """`generate` of transformers, without its pass over the context."""

    def __init__(self, model: PreTrainedModel, context: Sequence[int]) -> None:
        self._model, self._ids = model, torch.tensor([list(context)])
        self.bytes = _bytes(model)

    def write(self, first: int, number: int) -> list[int]:
        ids = torch.cat([self._ids, torch.tensor([[first]])], 1)
        made = self._model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=number,
            min_new_tokens=number,
            pad_token_id=0,
            use_cache=True,
            repetition_penalty=1.0,
        )
        return made[0, ids.shape[1] :].tolist()

    def rewind(self, length: int = CONTEXT) -> None:
        pass


@dataclass
class Times:
    """Of one engine: processor and wall seconds a token, and processor seconds a pass by width."""

    cpu: list[float]
    wall: list[float]
    passes: dict[int, list[float]]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--threads", default=1, type=int)
    parser.add_argument("--rounds", default=7, type=int)
    parser.add_argument("--gguf", type=Path, help="of the same model, for llama.cpp")
    parser.add_argument("--only", nargs="*", help="engines, and no perplexity")
    parser.add_argument("--instructions", default="", choices=["", *instruction_sets()])
    return parser.parse_args()


def _bytes(model: PreTrainedModel) -> int:
    """Bytes of all weights a token needs: embeddings only once where they are the head as well."""
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    held = [*model.parameters(), *(b for n, b in model.named_buffers() if "pairs" not in n)]
    whole = sum(x.numel() * x.element_size() for x in held)
    embedding = model.get_input_embeddings().weight
    return whole - (0 if tied else embedding.numel() * embedding.element_size())


def quantized(model: PreTrainedModel, bits: int | Mapping[str, int]) -> PreTrainedModel:
    """A copy of the model on codes of so many bits, or of those of `MIX`; the native decoder reads
    a head that is not quantized in 8 bits."""
    named = {linear.name: linear.read() for linear in all_linears(model)}
    if not isinstance(bits, int):
        named["lm_head"] = model.get_output_embeddings().weight.float()
    layers = {}
    for name, weight in named.items():
        own = bits if isinstance(bits, int) else bits.get(name.rpartition(".")[2], 4)
        grid = minmax_grid(weight.view(len(weight), -1, GROUP), own, "symmetric")
        layers[name] = QuantizedWeight(grid, grid.codes(weight).byte())
    packed = deepcopy(model)
    to_bfloat16(packed)
    if lost := pack_model(packed, layers):
        sys.exit(f"Not read as codes: {lost}")
    return packed


@torch.no_grad()
def prune(model: PreTrainedModel, pattern: Pattern) -> None:
    """Set the smallest weights of all linears to 0."""
    for linear in all_linears(model):
        W = linear.read()
        linear.write(W * keep_mask(W.abs(), pattern))


def bandwidth() -> float:
    """Bytes a second of a plain sum over memory far larger than the caches."""
    memory = torch.ones(2**27, dtype=torch.float32)
    taken = [timed(memory.sum)[0] for _ in range(5)]
    return memory.numel() * 4 / min(taken[1:])


def engines(chosen: argparse.Namespace, context: Sequence[int], scratch: Path) -> dict[str, Writer]:
    """Name -> engine."""
    own, model = kernels(chosen.instructions), load(chosen.model, dtype=torch.bfloat16).model
    whole = load(chosen.model, dtype=torch.float32).model
    pruned = deepcopy(whole)
    prune(pruned, Pattern.parse("2:4"))
    widths: dict[str, int | Mapping[str, int]] = {f"int{bits}": bits for bits in BITS}
    builders: dict[str, Callable[[], Writer]] = {
        "transformers generate, bf16": lambda: Transformers(model, context),
        "PyTorch loop, bf16": lambda: Ours(model, context),
        "native, bf16": lambda: Ours(model, context, own),
        **{
            f"native, {name}": lambda bits=bits: Ours(quantized(whole, bits), context, own)
            for name, bits in {**widths, "mix": MIX}.items()
        },
        "native, int4, 2:4": lambda: Ours(quantized(pruned, 4), context, own),
        "native, bf16, 2:4": lambda: Ours(pruned.to(torch.bfloat16), context, own),
    }
    found = {name: build() for name, build in builders.items() if name in (chosen.only or builders)}
    if chosen.gguf:
        room = CONTEXT + NEW + max(WIDTHS) + 1
        for name, path in peer.formats(chosen.gguf, scratch, chosen.threads).items():
            found[f"llama.cpp, {name}"] = peer.RemoteLlama(path, context, room, chosen.threads)
    return found


def measure(found: dict[str, Writer], rounds: int) -> dict[str, Times]:
    """All engines in turn; the first round warms up."""
    times = {name: Times([], [], {n: [] for n in (1, *WIDTHS, PROMPT)}) for name in found}
    for turn in range(rounds + 1):
        for name, engine in found.items():
            for kind, of in _round(engine):
                if turn == 0:
                    continue
                if kind:
                    times[name].passes[kind].append(of[1])
                else:
                    times[name].wall.append(of[0] / NEW)
                    times[name].cpu.append(of[1] / NEW)
    return times


def _round(engine: Writer) -> Iterator[tuple[int, tuple[float, float]]]:
    """0 and the times of NEW tokens; n and those of a pass over n."""
    more = _taken(engine, lambda: engine.write(7, NEW + 1))
    engine.rewind()
    less = _taken(engine, lambda: engine.write(7, 1))
    engine.rewind()
    yield 0, (more[0] - less[0], more[1] - less[1])
    if not isinstance(engine, Engine):
        return
    for width in (1, *WIDTHS):
        tokens = list(range(7, 7 + width))
        yield width, _taken(engine, lambda tokens=tokens: engine.logits(tokens))
        engine.rewind()
    if isinstance(engine, Ours):
        yield PROMPT, _taken(engine, lambda: engine.read(range(7, 7 + PROMPT)))


def _taken(engine: Writer, act: Callable[[], object]) -> Taken:
    """Its time, of the process in which the engine computes."""
    here = timed(act)
    return engine.taken if isinstance(engine, peer.RemoteLlama) else here


def main() -> None:
    chosen = arguments()
    torch.set_num_threads(chosen.threads)
    context = [n % 1000 + 5 for n in range(CONTEXT)]
    with torch.inference_mode(), TemporaryDirectory() as scratch:
        reach = bandwidth()
        found = engines(chosen, context, Path(scratch))
        loaded = load(chosen.model, dtype=torch.float32)
        exact_model = loaded.model
        text = evaluation_slice(loaded.facts.default_text, loaded.tokenizer, WINDOWS, WINDOW)
        windows = text.input_ids.tolist()
        tokens = list(range(7, 23))
        exact = exact_model(input_ids=torch.tensor([[*context, *tokens]])).logits[0, -16:]
        del exact_model, loaded
        errors = {
            name: error_of(engine, tokens[: max(WIDTHS)], exact[: max(WIDTHS)])
            for name, engine in found.items()
            if isinstance(engine, Engine)
        }
        times = measure(found, chosen.rounds)
        perplexities = {
            name: perplexity(engine, windows)
            for name, engine in found.items()
            if isinstance(engine, Engine) and not chosen.only
        }
    base = (
        median(times["PyTorch loop, bf16"].cpu) if "PyTorch loop, bf16" in times else float("nan")
    )
    table = Table(title=f"{chosen.model}, {chosen.threads} thread(s), {reach / 1e9:.0f} GB/s")
    for head in (
        "engine",
        "ms",
        "tokens/s",
        "× PyTorch bf16",
        "limit ms",
        *(f"t({n})/t(1)" for n in WIDTHS),
        "prompt tokens/CPU s",
        "error",
        "perplexity",
    ):
        table.add_column(head, justify="left" if head == "engine" else "right")
    lines = []
    for name, each in times.items():
        cpu, wall = median(each.cpu), median(each.wall)
        limit = found[name].bytes / reach
        one = each.passes[1]
        ratios = [median(each.passes[n]) / median(one) if one else float("nan") for n in WIDTHS]
        prompt = PROMPT / median(each.passes[PROMPT] or [float("nan")])
        table.add_row(
            name,
            f"{1e3 * cpu:.1f}",
            f"{1 / wall:.0f}",
            f"{base / cpu:.2f}",
            f"{1e3 * limit:.1f}",
            *(f"{r:.2f}" for r in ratios),
            f"{prompt:.0f}",
            *(f"{x[name]:.4f}" if name in x else "" for x in (errors, perplexities)),
        )
        lines.append(
            {
                "engine": name,
                "cpu_ms": 1e3 * cpu,
                "tokens_s": 1 / wall,
                "limit_ms": 1e3 * limit,
                "speed_up": base / cpu,
                "prompt_tokens_cpu_s": prompt,
                "ratios": dict(zip(WIDTHS, ratios, strict=True)),
                "error": errors.get(name),
                "perplexity": perplexities.get(name),
            }
        )
    Console(width=150).print(table)
    print(json.dumps({"threads": chosen.threads, "bandwidth": reach, "engines": lines}))


def error_of(engine: Engine, tokens: Sequence[int], exact: Tensor) -> float:
    """Of the logits after the context, relative to the spread of the exact ones."""
    found = engine.logits(tokens).float()
    engine.rewind()
    return ((found - exact).square().mean().sqrt() / exact.std()).item()


def perplexity(engine: Engine, windows: Sequence[Sequence[int]]) -> float:
    """Of each window alone; what the engine has read before is lost."""
    losses = []
    for ids in windows:
        engine.rewind(0)
        parts = [ids[n : n + PASS] for n in range(0, len(ids) - 1, PASS)]
        logits = torch.cat([engine.logits(part) for part in parts])[: len(ids) - 1]
        losses.append(cross_entropy(logits.float(), torch.tensor(ids[1:])))
    return torch.stack(losses).mean().exp().item()


if __name__ == "__main__":
    main()

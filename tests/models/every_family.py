"""Every method on a tiny random model of every family: it works, or it is refused before queueing.

Each method is asked for what it requires, as the queue asks; where nothing is refused it runs, and
its result is checked: sparse weights are 2:4 in a model plain transformers loads, decoded text is
that of plain `generate`. A failure after that is a mistake; the exit code is then 1.

python -m tests.models.every_family --write           also writes the table of docs/models.md
python -m tests.models.every_family falcon mixtral    only these
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from backend.checkpoints import Checkpoints
from backend.decoding.draft_tree import NoDraft, Proposer, Tree
from backend.decoding.serving.loop import decode
from backend.decoding.target_model import TargetModel
from backend.drafters.config import DrafterConfig
from backend.drafters.generate import TreeProposer
from backend.drafters.registry import build_drafter
from backend.errors import SlimscopeError
from backend.export.reading import StoredLinears
from backend.models.facts import ModelFacts
from backend.models.loading import LoadedModel, load
from backend.models.saving import save
from backend.models.sources.catalog import inspect
from backend.pruning.plan import pruning_plan
from backend.pruning.sds import run_sds
from backend.quantization.dlqat.pipeline import DLQAT
from backend.quantization.plan import plan
from backend.reporter import SilentReporter
from backend.settings import settings
from backend.statistics.reference import ReferenceTensor
from jobs.kind import kinds
from tests.models.tiny_models import FAMILIES, WINDOW, write_tiny

TEXT = {"calibration_text": "toystories", "evaluation_text": "toystories"}
LENGTH, NEW = 32, 2 * WINDOW
DRAFTS = Tree([(0,), (1,), (0, 0), (1, 0), (0, 0, 0)])
PAGE = Path(__file__).parents[2] / "docs" / "models.md"
MARK = "<!-- python -m tests.models.every_family --write -->\n"
WORKS = "works"


@dataclass(frozen=True)
class TinyModel:
    """A saved model of one family."""

    folder: Path

    @cached_property
    def facts(self) -> ModelFacts:
        return inspect(str(self.folder))

    def loaded(self, dtype: torch.dtype = torch.float32) -> LoadedModel:
        return load(str(self.folder), dtype=dtype)

    @property
    def text(self) -> torch.Tensor:
        """Token ids [8, LENGTH]."""
        return torch.randint(3, 500, (8, LENGTH), generator=torch.Generator().manual_seed(0))


def statistics(tiny: TinyModel) -> None:
    stored = StoredLinears(tiny.folder, tiny.facts.matrices)
    for block in range(tiny.facts.blocks):
        for linear, W in stored.block(block):
            assert W.shape == (linear.rows, linear.columns)
            ReferenceTensor(W).measure(
                W, tensor=linear.name, block=block, module=linear.module, stage="dense"
            )


def sds(tiny: TinyModel) -> None:
    config = kinds()["sds"].config(adjust_steps=3, redense_steps=3)
    loaded = tiny.loaded()
    with TemporaryDirectory() as work:
        run_sds(
            loaded.model,
            tiny.text,
            config,
            pruning_plan(config, tiny.facts.linears),
            Checkpoints(Path(work)),
            SilentReporter(),
            loaded.saved_dtype,
        )
    with reloaded(loaded) as (again, facts):
        assert facts.linears == tiny.facts.linears and facts.dtype == tiny.facts.dtype
        for block in range(facts.blocks):
            for linear, W in again.block(block):
                groups = W.view(linear.rows, -1, 4)
                assert (groups != 0).sum(-1).max() <= 2, linear.name


@contextmanager
def reloaded(loaded: LoadedModel) -> Iterator[tuple[StoredLinears, ModelFacts]]:
    """The saved model, which plain transformers loads with the same logits."""
    ids = torch.arange(3, 15)[None]
    with TemporaryDirectory(dir=settings().root / "models") as name:
        folder = Path(name)
        save(loaded.model, loaded.tokenizer, folder, "", loaded.saved_dtype)
        plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        with torch.no_grad():
            expected, found = (m(input_ids=ids).logits for m in (loaded.model, plain))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        facts = inspect(str(folder))
        yield StoredLinears(folder, facts.linears), facts


def dlqat(tiny: TinyModel) -> None:
    config = kinds()["dlqat"].config(
        model="toy",
        steps=2,
        batch=2,
        length=LENGTH,
        group_size=8,
        rank=2,
        range_search="minmax",
        stages=["rtn", "gptq", "dlqat"],
    )
    model = tiny.loaded().model
    with TemporaryDirectory() as work:
        run = DLQAT(
            model,
            tiny.text,
            tiny.text,
            tiny.text,
            config,
            plan(config, tiny.facts),
            Checkpoints(Path(work)),
        )
        for stage in run.prepare(SilentReporter()):
            run.make(stage, SilentReporter())
            with run.installed(stage), torch.no_grad():
                assert model(input_ids=tiny.text).logits.isfinite().all()
        run.audit(SilentReporter())


def decoding(tiny: TinyModel) -> str:
    target = TargetModel(tiny.loaded().model)
    compare(target, NoDraft())
    native = TargetModel(tiny.loaded(torch.bfloat16).model)
    return "native" if native.native else ""


def drafter(tiny: TinyModel) -> str:
    target = TargetModel(tiny.loaded().model)
    architecture = "medusa" if tiny.facts.support.clone else "amphista"
    config = DrafterConfig(draft_vocabulary=0, heads=3, architecture=architecture)
    made = build_drafter(config, target, torch.arange(target.vocabulary))
    made.initialize(target, [*tiny.text])
    compare(target, TreeProposer(made.eval(), target, DRAFTS))
    return "" if architecture == "amphista" else "Medusa only"


def compare(target: TargetModel, proposer: Proposer) -> None:
    """Greedy text is that of plain `generate`."""
    prompt = list(range(3, 10))
    steps = decode(target, proposer, prompt, NEW)
    found = [token for step in steps for token in step.tokens]
    ids = torch.tensor([prompt])
    options: dict[str, Any] = {"do_sample": False, "max_new_tokens": NEW, "eos_token_id": None}
    expected = target.model.generate(ids, attention_mask=torch.ones_like(ids), **options)
    assert found == expected[0, len(prompt) :].tolist(), "another text than plain generate"


Method = tuple[str, dict[str, object], Callable[[TinyModel], str | None]]
METHODS: dict[str, Method] = {  # column -> kind of run, its fields, and the work
    "Statistics": ("statistics", {}, statistics),
    "SDS": ("sds", {**TEXT, "context": LENGTH}, sds),
    "DL-QAT": (
        "dlqat",
        {**TEXT, "context": LENGTH, "length": LENGTH, "group_size": 8, "format": "dense"},
        dlqat,
    ),
    "Decoding": ("benchmark", {"max_new_tokens": NEW, "prompts": "toystories"}, decoding),
    "Drafter": (
        "amphista",
        {
            "training_text": "toystories",
            "data": "text",
            "answer_tokens": LENGTH,
            "minutes": 0,
            "steps": 1,
        },
        drafter,
    ),
}


def attempt(tiny: TinyModel, method: Method) -> str:
    """What comes of a method: it works, is refused with a reason, or fails."""
    name, fields, work = method
    kind = kinds()[name]
    if name == "amphista" and tiny.facts.support.clone:
        fields = {**fields, "architecture": "medusa"}
    try:
        kind.requirements(kind.config(model=str(tiny.folder), **fields))
    except SlimscopeError as error:
        return error.why
    try:
        note = work(tiny)
    except Exception as error:
        return f"FAILS: {type(error).__name__}: {error}"[:300].replace("\n", " ")
    return f"{WORKS}, {note}" if note else WORKS


def examine(families: Sequence[str], root: Path) -> dict[str, dict[str, str]]:
    """Family -> column -> what came of it; models are written below `root`, the data folder."""
    found: dict[str, dict[str, str]] = {}
    for family in families:
        folder = root / "models" / family.replace(", ", "-")
        write_tiny(family, folder)
        tiny = TinyModel(folder)
        matrices = f"{len(tiny.facts.linears)} of {len(tiny.facts.matrices)}"
        found[family] = {"Compressed": matrices}
        found[family] |= {name: attempt(tiny, method) for name, method in METHODS.items()}
    return found


def markdown(found: dict[str, dict[str, str]]) -> str:
    """The table: families with the same results in one row, reasons as numbered notes."""
    reasons: dict[str, int] = {}

    def cell(text: str) -> str:
        if text.startswith(WORKS):
            return text
        return f"no [{reasons.setdefault(text, len(reasons) + 1)}]"

    groups: dict[tuple[str, ...], list[str]] = {}
    for family, cells in found.items():
        compressed, _, matrices = cells["Compressed"].partition(" of ")
        share = "" if compressed == matrices else f" {compressed}/{matrices}"
        results = tuple(cell(cells[column]) for column in METHODS)
        groups.setdefault(results, []).append(f"`{family}`{share}")
    lines = [f"| {' | '.join(['Families', *METHODS])} |", f"|{'---|' * (1 + len(METHODS))}"]
    lines += [
        f"| {', '.join(names)} | {' | '.join(results)} |" for results, names in groups.items()
    ]
    notes = [f"{number}. {reason}" for reason, number in reasons.items()]
    return "\n".join([*lines, "", *notes, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("families", nargs="*", help="empty: all")
    parser.add_argument("--write", action="store_true", help=f"the table of docs/{PAGE.name}")
    chosen = parser.parse_args()
    logging.set_verbosity_error()
    torch.set_num_threads(1)  # on models as small as these threads wait for each other
    with TemporaryDirectory() as root:
        os.environ["SLIMSCOPE_DATA_DIR"] = root
        settings.cache_clear()
        found = examine(chosen.families or [*FAMILIES], Path(root))
    table = Table("family", *next(iter(found.values())), box=None)
    for family, cells in found.items():
        table.add_row(family, *cells.values())
    Console().print(table)
    print(json.dumps(found))
    if chosen.write:
        before = PAGE.read_text(encoding="utf-8").partition(MARK)[0]
        PAGE.write_text(f"{before}{MARK}\n{markdown(found)}", encoding="utf-8")
    sys.exit(any(cell.startswith("FAILS") for cells in found.values() for cell in cells.values()))


if __name__ == "__main__":
    main()

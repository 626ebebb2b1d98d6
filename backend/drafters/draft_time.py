"""Where the time of a draft goes: seconds in each part of a drafter (ours)."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from backend.decoding.engine import LapTimer
from backend.drafters.registry import Drafter
from backend.drafters.tree_proposer import TreeProposer

REPEATS = 15
LM_HEAD, REST = "lm_head", "rest"


@torch.inference_mode()
def time_parts(
    proposer: TreeProposer, hidden: Tensor, tokens: Sequence[int], repeats: int = REPEATS
) -> dict[str, float]:
    """Median seconds of a draft in each child of the drafter that is used, in its LM head, and in
    the rest: the choice of candidates and the tree.

    `hidden`: [n, d] states of the target model, n >= 4; `tokens`: the token after each."""
    drafter, device = proposer.drafter, proposer.target.device
    found: list[dict[str, float]] = []
    room = proposer.target.context - 2 * (repeats + 1)  # for the drafts behind the states
    hidden, tokens = hidden[:room], tokens[:room]
    proposer.start(tokens[0], len(tokens) + 2 * (repeats + 1))
    proposer.propose(hidden[:-2], tokens[:-2])
    with ExitStack() as stack:
        spent = stack.enter_context(_watched(drafter, device))
        for _ in range(repeats + 1):  # the first is a warm-up
            spent.clear()
            clock = LapTimer(device)
            proposer.propose(hidden[-2:], tokens[-2:])
            whole = clock.lap()
            found.append({**spent, REST: whole - sum(spent.values())})
    return {part: median(each.get(part, 0.0) for each in found[1:]) for part in found[-1]}


@contextmanager
def _watched(drafter: Drafter, device: torch.device) -> Iterator[dict[str, float]]:
    """Seconds in each part since the dictionary was last cleared."""
    spent: dict[str, float] = defaultdict(float)
    clocks: list[LapTimer] = []
    head = drafter.head

    def begin(*_: Any) -> None:
        clocks.append(LapTimer(device))

    def timed_head(slots: Tensor) -> Tensor:
        clock = LapTimer(device)
        logits = head(slots)
        spent[LM_HEAD] += clock.lap()
        return logits

    with ExitStack() as stack:
        for name, part in _parts(drafter):

            def end(*_: Any, name: str = name) -> None:
                spent[name] += clocks.pop().lap()

            stack.callback(part.register_forward_pre_hook(begin).remove)
            stack.callback(part.register_forward_hook(end).remove)
        drafter.head = timed_head  # type: ignore[method-assign]
        stack.callback(drafter.__dict__.pop, "head")
        yield spent


def _parts(drafter: Drafter) -> Iterator[tuple[str, nn.Module]]:
    """The children of a drafter that are called, lists item by item; not its LM head's rows."""
    for name, child in drafter.named_children():
        if name != "reader":
            items = child.children() if isinstance(child, nn.ModuleList) else [child]
            yield from ((name, item) for item in items)

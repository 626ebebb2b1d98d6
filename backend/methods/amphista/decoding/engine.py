"""The decoding loop: guess a tree, verify it in one pass, keep the path that was right.

    prefill: h_1..h_P = base(x_1..x_P);  root = next token of h_P;  commit root
    loop:
      tree   = proposer(states read since the last call, the tokens that follow them)
      H      = base(root + guesses, mask of the tree)            appends a row for every node
      path, bonus = acceptance(tree, logits of H)                path begins with the root
      keep the cache rows of path;  commit the guesses on path and bonus;  root = bonus

After every step the cache holds all committed tokens but the last, the root.

Accepted length: tokens committed per verify pass, the bonus counted, so that decoding without a
drafter has 1.00 (Spec-Bench's convention). It is len(path), but for an answer that ends inside it.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

import torch

from backend.errors import ConfigError
from backend.methods.amphista.config import LOOKED_UP
from backend.methods.amphista.decoding.acceptance import Acceptance
from backend.methods.amphista.decoding.proposers import NOTHING, Proposer
from backend.methods.amphista.target_model import TargetModel
from backend.methods.amphista.tree import Tree

PARTS = ("draft", "verify", "accept", "cache")


@dataclass(frozen=True)
class DecodeStep:
    """What one pass of the base yielded.

    Attributes:
        tokens: newly committed.
        heads: who guessed each of them: head 1, 2, ...; 0 the base itself; `LOOKED_UP` the text.
        path: nodes of `tree` that were right, the root first; empty for the prefill.
        guesses: the tokens of all nodes of `tree`, the root's first.
        seconds: time in each of `PARTS`; the prefill has "prefill" instead.
    """

    tokens: list[int]
    heads: list[int]
    path: list[int]
    tree: Tree
    guesses: list[int]
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def rejected(self) -> list[int]:
        """The likeliest guesses of where the base chose otherwise: a chain from the path's end."""
        node, found = self.path[-1] if self.path else 0, []
        while self.tree.children[node]:
            node = self.tree.children[node][0]
            found.append(self.guesses[node])
        return found


@torch.inference_mode()
def decode(
    target: TargetModel,
    proposer: Proposer,
    prompt: Sequence[int],
    rule: Acceptance,
    limit: int,
    ends: Collection[int] = (),
) -> Iterator[DecodeStep]:
    """Writes up to `limit` tokens after `prompt`; ends early behind a token of `ends`.

    Raises:
        ConfigError: the prompt is empty, or prompt and answer do not fit the model's context.
    """
    _refuse_unfit(target, prompt, limit)
    clock, committed = LapTimer(target.device), list(prompt)
    cache = target.new_cache(len(prompt) + limit + proposer.nodes)
    verify = target.verifier(cache)
    proposer.start(prompt[0], cache.rows[0].capacity)
    hidden = target.hidden(torch.tensor([committed], device=target.device), cache)[0]
    root = rule.walk(NOTHING, committed[-1:], target.logits(hidden[-1:]), committed[:-1])[1]
    following = [*committed[1:], root]
    committed.append(root)
    yield DecodeStep([root], [0], [], NOTHING, [root], {"prefill": clock.lap()})
    while len(committed) - len(prompt) < limit and committed[-1] not in ends:
        clock.lap()
        guess = proposer.propose(hidden, following)
        drafted = clock.lap()
        tokens = [committed[-1], *guess.tokens]
        states, logits = verify(tokens, guess.tree)
        verified = clock.lap()
        path, bonus = rule.walk(guess.tree, tokens, logits, committed[:-1])
        accepted = clock.lap()
        cache.keep(len(committed) - 1, path)
        hidden = states if len(path) == len(tokens) else states[path]
        following = [*(tokens[node] for node in path[1:]), bonus]
        new = _cut(following, limit - (len(committed) - len(prompt)), ends)
        committed += new
        depths = guess.tree.depths
        heads = [LOOKED_UP if guess.looked_up else depths[node] for node in path[1:]] + [0]
        parts = dict(zip(PARTS, (drafted, verified, accepted, clock.lap()), strict=True))
        yield DecodeStep(new, heads[: len(new)], path, guess.tree, tokens, parts)


def _cut(tokens: list[int], room: int, ends: Collection[int]) -> list[int]:
    """The tokens up to the first end, that included, and no more than `room`."""
    end = next((n for n, token in enumerate(tokens, 1) if token in ends), len(tokens))
    return tokens[: min(end, room)]


class LapTimer:
    """Seconds between laps; waits for a GPU to have finished."""

    def __init__(self, device: torch.device) -> None:
        self._wait = device.type == "cuda"
        self._last = self._now()

    def _now(self) -> float:
        if self._wait:
            torch.cuda.synchronize()
        return time.perf_counter()

    def lap(self) -> float:
        """Seconds since the last call, or since the start."""
        now = self._now()
        passed, self._last = now - self._last, now
        return passed


def _refuse_unfit(target: TargetModel, prompt: Sequence[int], limit: int) -> None:
    if not prompt:
        raise ConfigError("There is nothing to continue.", "The prompt is empty.", "", "prompt")
    if max(prompt) >= target.vocabulary or min(prompt) < 0:
        raise ConfigError(
            "The prompt cannot be read.",
            f"It holds token {max(prompt)}; the model knows {target.vocabulary}.",
            "Use the model's own tokenizer.",
            "prompt",
        )
    if limit < 1 or len(prompt) + limit > target.context:
        raise ConfigError(
            f"{limit} new tokens do not fit.",
            f"The prompt has {len(prompt)}, the model reads {target.context} in all.",
            "Ask for fewer, or shorten the prompt.",
            "max_new_tokens",
        )

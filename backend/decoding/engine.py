"""The speculative decoding loop: draft a tree, verify it in one pass, keep the accepted path.

    prefill: h_1..h_P = target(x_1..x_P);  root = next token of h_P;  commit root
    loop:
      tree   = proposer(states since the last call, the tokens that follow them)
      H      = target(root + draft tokens, mask of the tree)     appends a row for every node
      path, bonus = Acceptance(tree, logits of H)                path begins with the root
      keep the cache rows of path;  commit the draft tokens on path and bonus;  root = bonus

After every step the cache holds all committed tokens but the last, the root.

Accepted length: tokens committed per verification pass, including the bonus token, so that decoding
without a drafter has 1.00 (as in Spec-Bench). It equals len(path) unless generation ends inside it.
"""

import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

import torch

from backend.decoding.acceptance import Acceptance
from backend.decoding.draft_tree import NO_TREE, DraftTokens, Proposer, Tree
from backend.decoding.limits import LOOKUP_HEAD
from backend.decoding.target_model import TargetModel
from backend.errors import ConfigError

PARTS = ("draft", "verify", "accept", "cache")


@dataclass(frozen=True)
class DecodeStep:
    """The result of one pass of the target model.

    Attributes:
        heads: source of each new token: head 1, 2, ...; 0 the target model; `LOOKUP_HEAD`.
        path: accepted nodes of `tree`, the root first; empty for the prefill.
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
        """The most likely rejected draft tokens: a chain from the end of the path."""
        node, tokens = self.path[-1] if self.path else 0, []
        while self.tree.children[node]:
            node = self.tree.children[node][0]
            tokens.append(self.guesses[node])
        return tokens


@torch.inference_mode()
def decode(
    target: TargetModel,
    proposer: Proposer,
    prompt: Sequence[int],
    rule: Acceptance,
    limit: int,
    ends: Collection[int] = (),
) -> Iterator[DecodeStep]:
    """Generate up to `limit` tokens after `prompt`; stop after a token of `ends`. Raises
    ConfigError: the prompt is empty, or prompt and response exceed the context of the model."""
    refuse_prompt(target, prompt, limit)
    clock, committed = LapTimer(target.device), list(prompt)
    cache = target.new_cache(len(prompt) + limit + proposer.nodes)
    proposer.start(prompt[0], cache.capacity)
    hidden, logits = target.prefill(committed, cache)
    root = rule.walk(NO_TREE, committed[-1:], logits, committed[:-1])[1]
    following = [*committed[1:], root]
    committed.append(root)
    yield DecodeStep([root], [0], [], NO_TREE, [root], {"prefill": clock.lap()})
    while len(committed) - len(prompt) < limit and committed[-1] not in ends:
        clock.lap()
        draft = proposer.propose(hidden, following)
        drafted = clock.lap()
        tokens = [committed[-1], *draft.tokens]
        states, logits = target.verify(tokens, draft.tree, cache)
        verified = clock.lap()
        path, bonus = rule.walk(draft.tree, tokens, logits, committed[:-1])
        accepted = clock.lap()
        cache.keep(len(committed) - 1, path)
        hidden = states if len(path) == len(tokens) else states[path]
        room = limit - (len(committed) - len(prompt))
        step = step_along(draft, tokens, path, bonus, room, ends)
        following = step.tokens  # where some are cut off, nothing follows
        committed += following
        parts = drafted, verified, accepted, clock.lap()
        step.seconds.update(zip(PARTS, parts, strict=True))
        yield step


def step_along(
    draft: DraftTokens,
    tokens: list[int],
    path: list[int],
    bonus: int,
    room: int,
    ends: Collection[int],
) -> DecodeStep:
    """The `tokens` of the accepted path behind the root and `bonus`, up to the first end and at
    most `room`."""
    depths, following = draft.tree.depths, [*(tokens[node] for node in path[1:]), bonus]
    heads = [LOOKUP_HEAD if draft.looked_up else depths[node] for node in path[1:]] + [0]
    end = next((n for n, token in enumerate(following, 1) if token in ends), len(following))
    new = following[: min(end, room)]
    return DecodeStep(new, heads[: len(new)], path, draft.tree, tokens)


class LapTimer:
    """A stopwatch; synchronises with the GPU."""

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


def refuse_prompt(target: TargetModel, prompt: Sequence[int], limit: int, least: int = 1) -> None:
    """Raise `ConfigError` for a prompt that cannot be read, or less than `least` or too many new
    tokens."""
    if not prompt:
        raise ConfigError(
            "There is no prompt.", "The prompt is empty.", "Enter a prompt.", "prompt"
        )
    if max(prompt) >= target.vocabulary or min(prompt) < 0:
        raise ConfigError(
            "The prompt has unknown tokens.",
            f"It holds token id {max(prompt)}; the vocabulary has {target.vocabulary} tokens.",
            "Use the model's own tokenizer.",
            "prompt",
        )
    if limit < least or len(prompt) + limit > target.context:
        raise ConfigError(
            f"{limit} new tokens do not fit into the context.",
            f"The prompt has {len(prompt)} tokens; {target.limit}.",
            "Generate fewer tokens, or shorten the prompt.",
            "max_new_tokens",
        )

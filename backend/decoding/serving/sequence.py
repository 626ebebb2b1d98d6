"""A request while it is served: its tokens, its cache and the events it sends."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor

from backend.decoding.acceptance import Acceptance, most_likely
from backend.decoding.cost_model import LapTimer
from backend.decoding.draft_tree import NO_TREE, DraftTokens
from backend.decoding.limits import LOOKUP_HEAD
from backend.decoding.native.cache import DecodingCache
from backend.decoding.native.model import Read, Segment
from backend.decoding.serving.request import (
    DecodeStep,
    Deliver,
    Event,
    Finished,
    GenerationRequest,
    NewPieces,
    Piece,
    TopTokens,
    Waiting,
)
from backend.decoding.serving.speculation import SequenceDrafter
from backend.errors import SlimscopeError
from backend.models.foreign_tokenizer import TextTokenizer, stream_decoder


class Detokenizer:
    """Decodes a stream of tokens into text, up to the first stop string.

    Holds back incomplete characters (`DecodeStream`) and text that may be the beginning of a stop
    string. Without a tokenizer there is no text. Raises ModelError: the tokenizer cannot decode a
    stream, or exceeds its limits."""

    def __init__(self, tokenizer: TextTokenizer | None, stops: Sequence[str] = ()) -> None:
        self._step = stream_decoder(tokenizer) if tokenizer is not None else None
        self._stops = tuple(stop for stop in stops if stop)
        self._decoded, self._emitted = "", 0
        self.stopped = False

    def add(self, token: int) -> str:
        """Decode one more token and return the text it completes; nothing after a stop string."""
        if self.stopped or self._step is None:
            return ""
        piece = self._step(token)
        if not piece:
            return ""
        search_start = max(0, len(self._decoded) - max(map(len, self._stops), default=0))
        self._decoded += piece
        positions = [self._decoded.find(stop, search_start) for stop in self._stops]
        matches = [position for position in positions if position >= 0]
        if matches:
            self.stopped, self._decoded = True, self._decoded[: min(matches)]
        prefixes = (stop[:n] for stop in self._stops for n in range(len(stop) - 1, 0, -1))
        partial = max((len(p) for p in prefixes if self._decoded.endswith(p)), default=0)
        return self._release(len(self._decoded) - (0 if self.stopped else partial))

    def flush(self) -> str:
        """Return the text held back, after the last token."""
        return self._release(len(self._decoded))

    def _release(self, end: int) -> str:
        start, self._emitted = self._emitted, max(self._emitted, end)
        return self._decoded[start : self._emitted]


NO_DRAFT = DraftTokens([], NO_TREE)
Score = tuple[float | None, TopTokens]


class ServedSequence:
    """A request, its tokens so far, and its cache while it runs.

    Attributes:
        committed: the prompt and all new tokens; the cache may lack the last of them.
        capacity: maximum number of tokens in the cache, including draft tokens.
        cancelled: True if the client is gone.
        done: True if the last event was sent.
    """

    def __init__(
        self,
        request: GenerationRequest,
        deliver: Deliver | None,
        tokenizer: TextTokenizer | None,
        drafter: SequenceDrafter,
    ) -> None:
        self.request, self.drafter, self._deliver = request, drafter, deliver
        self.committed = list(request.prompt)
        self.capacity = len(request.prompt) + request.max_tokens + drafter.nodes
        self.cache: DecodingCache | None = None
        self.cancelled = self.done = False
        self._shared_tokens: int | None = None
        self._echoed_tokens, self._position = 0, -1
        tokenizer = tokenizer if request.tokenizer is None else request.tokenizer
        self._acceptance, self._tokenizer = Acceptance(request.sampling), tokenizer
        self._detokenizer = Detokenizer(tokenizer, request.stop)
        self._prompt_text = Detokenizer(tokenizer)
        self._submitted_s, self._first_token_s = time.monotonic(), 0.0

    def cancel(self) -> None:
        """End the sequence before the next pass."""
        self.cancelled = True

    @property
    def unread(self) -> int:
        """Number of tokens not in the cache; 1 while tokens are generated."""
        return len(self.committed) - (self.cache.length if self.cache else 0)

    @property
    def generated(self) -> int:
        """Number of new tokens."""
        return len(self.committed) - len(self.request.prompt)

    @property
    def needs_states(self) -> bool:
        """True if the hidden states of all tokens are needed."""
        return self.drafter.needs_states or self.request.observe is not None

    @property
    def needs_logits(self) -> bool:
        """True if the logits of all prompt tokens are needed."""
        return self.request.echo and self.request.logprobs is not None

    def open(self, cache: DecodingCache) -> None:
        """Start to fill `cache`, which may contain a shared prefix."""
        self.cache = cache
        if self._shared_tokens is None:  # after a preemption the prefix is the sequence's own
            self._shared_tokens = cache.length
        self.drafter.start(self.committed[0], self.capacity)

    def segment(self, tokens: int, draft: DraftTokens) -> Segment:
        """Return the input of a pass: the next `tokens` tokens, followed by the draft."""
        assert self.cache is not None
        start = self.cache.length
        ids = [*self.committed[start : start + tokens], *draft.tokens]
        read_out = int(tokens == self.unread and self.request.max_tokens > 0)
        scored = self.needs_logits and self._echoed_tokens < len(self.request.prompt)
        if self.request.observe is not None:
            read_out = min(len(ids), max(0, start + len(ids) - len(self.request.prompt) + 1))
        if draft.tokens or scored:
            read_out = len(ids)
        return Segment(self.cache, ids, draft.tree if draft.tokens else None, read_out)

    def process(
        self, draft: DraftTokens, output: Read, ms: float, clock: LapTimer
    ) -> DecodeStep | None:
        """Process the hidden states and logits of a pass.

        Args:
            draft: the draft that the pass verified.
            output: hidden states and logits of the segment.
            ms: duration of the pass.
            clock: timer last read at the end of the pass.

        Returns:
            The decoding step, or None while the prompt is read.
        """
        assert self.cache is not None
        (hidden, logits), request = output, self.request
        pieces = self._echo(self.cache.length, logits)
        if self.unread > 0 or not request.max_tokens:
            self._observe_pass(hidden, logits)
            if pieces:
                self._emit_pieces(pieces, [], ms)
            if not self.unread:
                self.finish("length")
            return None
        step = self._accept(draft, hidden, logits, clock)
        self._first_token_s = self._first_token_s or time.monotonic() - self._submitted_s
        if self._deliver:
            # new tokens follow the echoed prompt; tokens after a stop string are dropped
            scores = self._scores(logits[-len(draft.tree) :], step.path or [0], step.tokens)
            for index, (token, head) in enumerate(zip(step.tokens, step.heads, strict=True)):
                pieces.append(Piece(self._detokenizer.add(token), head, token, *scores[index]))
                if self._detokenizer.stopped:
                    del self.committed[len(self.committed) - len(step.tokens) + index + 1 :]
                    break
            self._emit_pieces(pieces, step.rejected, ms)
        if self._detokenizer.stopped:
            self.finish("stop_string")
        elif self.committed[-1] in request.ends:
            self.finish("stop")
        elif self.generated >= request.max_tokens:
            self.finish("length")
        return step

    def _emit_pieces(self, pieces: list[Piece], rejected: Sequence[int], ms: float) -> None:
        """Emit new tokens, with the text of each token by itself for log-probabilities."""
        tokens = dict.fromkeys(rejected)
        if self.request.logprobs is not None:
            scored = ((piece.token, *(token for token, _ in piece.top)) for piece in pieces)
            tokens |= dict.fromkeys(chain.from_iterable(scored))
        alone = dict(zip(tokens, self._texts([*tokens]), strict=True))
        self.emit(NewPieces(pieces, [alone[token] for token in rejected], ms, alone))

    def _texts(self, tokens: Sequence[int]) -> list[str]:
        if self._tokenizer is None or not tokens:
            return [*map(str, tokens)]
        return [*map(str, self._tokenizer.batch_decode([[token] for token in tokens]))]

    def _accept(
        self, draft: DraftTokens, hidden: Tensor, logits: Tensor, clock: LapTimer
    ) -> DecodeStep:
        """Commit the accepted part of the draft and the bonus token, up to the first end token and
        the token limit."""
        assert self.cache is not None
        tree, tokens, request = draft.tree, [self.committed[-1], *draft.tokens], self.request
        nodes = logits[-len(tree) :] if len(logits) > len(tree) else logits
        path, bonus = self._acceptance.walk(tree, tokens, nodes, self.committed[:-1])
        seconds = {"accept": clock.lap()}
        if draft.tokens:
            self.cache.keep(len(self.committed) - 1, path)
            self.drafter.record_accepted(len(path) - 1)
            hidden, logits = hidden[path], logits[path]
        seconds["cache"] = clock.lap()
        self._observe_pass(hidden, logits)
        new = [*(tokens[node] for node in path[1:]), bonus]
        heads = [LOOKUP_HEAD if draft.looked_up else tree.depths[node] for node in path[1:]] + [0]
        end = next((n for n, token in enumerate(new, 1) if token in request.ends), len(new))
        count = min(end, request.max_tokens - self.generated)
        accepted_path = path if self.generated else []
        self.committed += new[:count]
        return DecodeStep(new[:count], heads[:count], accepted_path, tree, tokens, seconds)

    def _observe_pass(self, hidden: Tensor, logits: Tensor) -> None:
        """Pass hidden states and logits on to the drafter and the observer."""
        self.drafter.add_states(hidden)
        if self.request.observe is not None:
            assert self.cache is not None
            self.request.observe(self.cache.length - len(hidden), hidden, logits)

    def _echo(self, end: int, logits: Tensor) -> list[Piece]:
        """Return the prompt tokens that can be reported after a pass up to position `end`. The
        last row of `logits` belongs to the token before `end`."""
        request, start = self.request, self._echoed_tokens
        prompt = request.prompt
        if not request.echo or start == len(prompt):
            return []
        scored_end = min(end + 1, len(prompt)) if self.needs_logits else len(prompt)
        self._echoed_tokens = max(start, scored_end)  # a restarted sequence reads them again
        tokens = prompt[start : self._echoed_tokens]
        scores: list[Score] = [(None, ())] * len(tokens)
        if self.needs_logits:
            first, logits_start = max(start, 1), end - len(logits)  # token 0 has no prediction
            scored = prompt[first : self._echoed_tokens]
            rows = range(first - 1 - logits_start, end)
            scores[first - start :] = self._scores(logits, rows, scored)
        return [
            Piece(self._prompt_text.add(token), 0, token, *score)
            for token, score in zip(tokens, scores, strict=True)
        ]

    def _scores(self, logits: Tensor, rows: Sequence[int], tokens: Sequence[int]) -> list[Score]:
        """Return the log-probability of each token and those of the most likely tokens. `rows` are
        the rows of `logits` that predict them."""
        if (ranks := self.request.logprobs) is None or not tokens:
            return [(None, ())] * len(tokens)
        predictions = logits[[*rows[: len(tokens)]]].float()
        values, top_ids = most_likely(predictions, max(1, min(ranks, predictions.shape[1])))
        chosen_ids = torch.tensor(tokens, device=predictions.device)[:, None]
        logit, best = predictions.gather(1, torch.cat([chosen_ids, top_ids[:, :1]], 1)).T
        logprobs = (logit - best + values[:, 0]).tolist()
        return [
            (logprob, tuple(zip(ids[:ranks], likely[:ranks], strict=True)))
            for logprob, ids, likely in zip(
                logprobs, top_ids.tolist(), values.tolist(), strict=True
            )
        ]

    def emit(self, event: Event) -> None:
        """Deliver an event. A receiver that raises is treated as gone."""
        try:
            if self._deliver:
                self._deliver(event)
        except Exception:
            self.cancelled = True

    def report_position(self, position: int, seconds: float) -> None:
        """Send a changed queue position with the estimated seconds until the start."""
        if position != self._position:
            self.emit(Waiting(position, seconds))
        self._position = position

    def finish(self, reason: str, error: SlimscopeError | None = None) -> None:
        """Send the last event and free the cache. Later calls do nothing."""
        if self.done:
            return
        self.done, self.cache = True, None
        self.emit(
            Finished(
                reason,
                self._detokenizer.flush(),
                len(self.request.prompt),
                self._shared_tokens or 0,
                self.generated,
                self._first_token_s,
                error,
            )
        )

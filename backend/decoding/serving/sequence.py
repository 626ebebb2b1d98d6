"""One request while it is served: what was read and written, and what is told of it."""

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
    Likely,
    NewPieces,
    Piece,
    Waiting,
)
from backend.decoding.serving.speculation import Drafts
from backend.errors import SlimscopeError
from backend.models.foreign_tokenizer import TextTokenizer, stream_of


class Detokenizer:
    """Decode a stream of tokens into text, up to the first stop string.

    Held back until it is certain: a character split over several tokens (`DecodeStream`), and what
    may be the beginning of a stop string. Without a tokenizer there is no text. Raises
    ModelError: the tokenizer decodes no stream, or exceeds its limits."""

    def __init__(self, tokenizer: TextTokenizer | None, stops: Sequence[str] = ()) -> None:
        self._step = stream_of(tokenizer) if tokenizer is not None else None
        self._stops = tuple(stop for stop in stops if stop)
        self._decoded, self._emitted = "", 0
        self.stopped = False

    def add(self, token: int) -> str:
        """Decode one more token; return the text that has become certain, none after a stop."""
        if self.stopped or self._step is None:
            return ""
        piece = self._step(token)
        if not piece:
            return ""
        seen = max(0, len(self._decoded) - max(map(len, self._stops), default=0))
        self._decoded += piece
        places = [place for stop in self._stops if (place := self._decoded.find(stop, seen)) >= 0]
        if places:
            self.stopped, self._decoded = True, self._decoded[: min(places)]
        prefixes = (stop[:n] for stop in self._stops for n in range(len(stop) - 1, 0, -1))
        begun = max((len(p) for p in prefixes if self._decoded.endswith(p)), default=0)
        return self._emit(len(self._decoded) - (0 if self.stopped else begun))

    def rest(self) -> str:
        """Return what was held back, once generation has ended."""
        return self._emit(len(self._decoded))

    def _emit(self, end: int) -> str:
        start, self._emitted = self._emitted, max(self._emitted, end)
        return self._decoded[start : self._emitted]


NO_DRAFT = DraftTokens([], NO_TREE)
Score = tuple[float | None, Likely]


class ServedSequence:
    """A request, its tokens so far, and its cache while it runs.

    Attributes:
        committed: the prompt and all new tokens; the cache holds all but some of the last.
        capacity: tokens that the cache has to hold at most, those of a draft among them.
        cancelled: nobody waits for it any more; `done`: the last event was told.
    """

    def __init__(
        self,
        request: GenerationRequest,
        deliver: Deliver | None,
        tokenizer: TextTokenizer | None,
        drafts: Drafts,
    ) -> None:
        self.request, self.drafts, self._deliver = request, drafts, deliver
        self.committed = list(request.prompt)
        self.capacity = len(request.prompt) + request.max_tokens + drafts.nodes
        self.cache: DecodingCache | None = None
        self.cancelled = self.done = False
        self._shared: int | None = None
        self._echoed, self._place = 0, -1
        tokenizer = tokenizer if request.tokenizer is None else request.tokenizer
        self._rule, self._tokenizer = Acceptance(request.sampling), tokenizer
        self._detokenizer = Detokenizer(tokenizer, request.stop)
        self._prompt_text = Detokenizer(tokenizer)
        self._asked, self._first_token_s = time.monotonic(), 0.0

    def cancel(self) -> None:
        """End it before the next pass."""
        self.cancelled = True

    @property
    def unread(self) -> int:
        """Tokens that are not in the cache; 1 while tokens are generated."""
        return len(self.committed) - (self.cache.length if self.cache else 0)

    @property
    def generated(self) -> int:
        return len(self.committed) - len(self.request.prompt)

    @property
    def needs_states(self) -> bool:
        """Whether those of all tokens are wanted."""
        return self.drafts.needs_states or self.request.observe is not None

    @property
    def needs_logits(self) -> bool:
        """Whether those of all tokens of the prompt are wanted."""
        return self.request.echo and self.request.logprobs is not None

    def open(self, cache: DecodingCache) -> None:
        """Begin to read; the cache may hold a beginning."""
        self.cache = cache
        if self._shared is None:  # what it reads again is its own
            self._shared = cache.length
        self.drafts.start(self.committed[0], self.capacity)

    def segment(self, tokens: int, draft: DraftTokens) -> Segment:
        """What a pass reads: as many tokens, or the last one and a draft."""
        assert self.cache is not None
        start = self.cache.length
        ids = [*self.committed[start : start + tokens], *draft.tokens]
        read_out = int(tokens == self.unread and self.request.max_tokens > 0)
        scored = self.needs_logits and self._echoed < len(self.request.prompt)
        if self.request.observe is not None:
            read_out = min(len(ids), max(0, start + len(ids) - len(self.request.prompt) + 1))
        if draft.tokens or scored:
            read_out = len(ids)
        return Segment(self.cache, ids, draft.tree if draft.tokens else None, read_out)

    def take(self, draft: DraftTokens, read: Read, ms: float, clock: LapTimer) -> DecodeStep | None:
        """Go on with the states of what was read, and the logits; returns the step that wrote
        tokens. `clock`: was read when the pass ended."""
        assert self.cache is not None
        (hidden, logits), request = read, self.request
        pieces = self._echo(self.cache.length, logits)
        if self.unread > 0 or not request.max_tokens:
            self._saw(hidden, logits)
            if pieces:
                self._tell_pieces(pieces, [], ms)
            if not self.unread:
                self.finish("length")
            return None
        step = self._walk(draft, hidden, logits, clock)
        self._first_token_s = self._first_token_s or time.monotonic() - self._asked
        if self._deliver:
            # tell the tokens of a step behind those of the prompt; what follows a stop string is
            # forgotten
            scores = self._scores(logits[-len(draft.tree) :], step.path or [0], step.tokens)
            for number, (token, head) in enumerate(zip(step.tokens, step.heads, strict=True)):
                pieces.append(Piece(self._detokenizer.add(token), head, token, *scores[number]))
                if self._detokenizer.stopped:
                    del self.committed[len(self.committed) - len(step.tokens) + number + 1 :]
                    break
            self._tell_pieces(pieces, step.rejected, ms)
        if self._detokenizer.stopped:
            self.finish("stop_string")
        elif self.committed[-1] in request.ends:
            self.finish("stop")
        elif self.generated >= request.max_tokens:
            self.finish("length")
        return step

    def _tell_pieces(self, pieces: list[Piece], rejected: Sequence[int], ms: float) -> None:
        """Hand over new tokens, with the text of each by itself where it is asked for."""
        tokens = dict.fromkeys(rejected)
        if self.request.logprobs is not None:
            scored = ((piece.token, *(token for token, _ in piece.top)) for piece in pieces)
            tokens |= dict.fromkeys(chain.from_iterable(scored))
        alone = dict(zip(tokens, self._texts([*tokens]), strict=True))
        self.tell(NewPieces(pieces, [alone[token] for token in rejected], ms, alone))

    def _texts(self, tokens: Sequence[int]) -> list[str]:
        if self._tokenizer is None or not tokens:
            return [*map(str, tokens)]
        return [*map(str, self._tokenizer.batch_decode([[token] for token in tokens]))]

    def _walk(
        self, draft: DraftTokens, hidden: Tensor, logits: Tensor, clock: LapTimer
    ) -> DecodeStep:
        """Accept a part of a draft; commit it and the token after it, up to the first end and to
        the limit."""
        assert self.cache is not None
        tree, tokens, request = draft.tree, [self.committed[-1], *draft.tokens], self.request
        nodes = logits[-len(tree) :] if len(logits) > len(tree) else logits
        path, bonus = self._rule.walk(tree, tokens, nodes, self.committed[:-1])
        seconds = {"accept": clock.lap()}
        if draft.tokens:
            self.cache.keep(len(self.committed) - 1, path)
            self.drafts.judge(len(path) - 1)
            hidden, logits = hidden[path], logits[path]
        seconds["cache"] = clock.lap()
        self._saw(hidden, logits)
        new = [*(tokens[node] for node in path[1:]), bonus]
        heads = [LOOKUP_HEAD if draft.looked_up else tree.depths[node] for node in path[1:]] + [0]
        end = next((n for n, token in enumerate(new, 1) if token in request.ends), len(new))
        room = min(end, request.max_tokens - self.generated)
        walked = path if self.generated else []
        self.committed += new[:room]
        return DecodeStep(new[:room], heads[:room], walked, tree, tokens, seconds)

    def _saw(self, hidden: Tensor, logits: Tensor) -> None:
        """What was read last."""
        self.drafts.saw(hidden)
        if self.request.observe is not None:
            assert self.cache is not None
            self.request.observe(self.cache.length - len(hidden), hidden, logits)

    def _echo(self, end: int, logits: Tensor) -> list[Piece]:
        """The tokens of the prompt that are known with what was read up to `end`; the last token
        that was read has the last logits."""
        request, start = self.request, self._echoed
        prompt = request.prompt
        if not request.echo or start == len(prompt):
            return []
        told = min(end + 1, len(prompt)) if self.needs_logits else len(prompt)
        self._echoed = max(start, told)  # it may read again what is told
        tokens = prompt[start : self._echoed]
        scores: list[Score] = [(None, ())] * len(tokens)
        if self.needs_logits:
            first, read = max(start, 1), end - len(logits)  # there is nothing before the first
            known = prompt[first : self._echoed]
            scores[first - start :] = self._scores(logits, range(first - 1 - read, end), known)
        return [
            Piece(self._prompt_text.add(token), 0, token, *score)
            for token, score in zip(tokens, scores, strict=True)
        ]

    def _scores(self, logits: Tensor, rows: Sequence[int], tokens: Sequence[int]) -> list[Score]:
        """Log-probabilities of tokens and of the most likely, by the row before each."""
        if (ranks := self.request.logprobs) is None or not tokens:
            return [(None, ())] * len(tokens)
        before = logits[[*rows[: len(tokens)]]].float()
        values, places = most_likely(before, max(1, min(ranks, before.shape[1])))
        ids = torch.cat([torch.tensor(tokens, device=before.device)[:, None], places[:, :1]], 1)
        own, best = before.gather(1, ids).T
        told = (own - best + values[:, 0]).tolist()
        likely = zip(places.tolist(), values.tolist(), strict=True)
        return [
            (own, tuple(zip(of[:ranks], chances[:ranks], strict=True)))
            for own, (of, chances) in zip(told, likely, strict=True)
        ]

    def tell(self, event: Event) -> None:
        """Hand over an event; who cannot take it has left."""
        try:
            if self._deliver:
                self._deliver(event)
        except Exception:
            self.cancelled = True

    def tell_place(self, place: int, seconds: float) -> None:
        if place != self._place:
            self.tell(Waiting(place, seconds))
        self._place = place

    def finish(self, reason: str, error: SlimscopeError | None = None) -> None:
        """Tell the last event, once; the cache is freed."""
        if self.done:
            return
        self.done, self.cache = True, None
        self.tell(
            Finished(
                reason,
                self._detokenizer.rest(),
                len(self.request.prompt),
                self._shared or 0,
                self.generated,
                self._first_token_s,
                error,
            )
        )

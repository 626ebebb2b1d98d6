"""The answer to one request: as a stream of chunks, or as a whole."""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field

from backend.decoding.serving.request import Finished, NewPieces, Piece, Waiting
from backend.errors import ComputeError, SlimscopeError
from jobs.serving.answering import Began, Happened, Told
from jobs.serving.openai_format import (
    DONE,
    Body,
    ResponseFormat,
    Row,
    comment,
    error_body,
    event,
)

REASONS = {"stop": "stop", "stop_string": "stop", "length": "length", "cancelled": "stop"}
ENDS = {"stop": "end", "stop_string": "stop", "length": "limit"}  # as a `Transcript` says it
Events = AsyncIterator[tuple[int, Happened]]


def row_of(event: NewPieces | Finished) -> Row:
    """The event as a row of a `Transcript`."""
    if isinstance(event, NewPieces):
        tokens = [[piece.text, piece.head] for piece in event.pieces]
        return {"ms": round(event.ms, 2), "tokens": tokens, "rejected": event.rejected}
    return {
        "end": ENDS.get(event.reason, event.reason),
        "rest": event.rest,
        "first_token_s": round(event.first_token_s, 3),
        "prompt_tokens": event.prompt_tokens,
        "shared_tokens": event.shared_tokens,
    }


@dataclass
class Choice:
    """One of the answers to a request, so far."""

    text: str = ""
    pieces: list[Piece] = field(default_factory=list)
    alone: dict[int, str] = field(default_factory=dict)  # token -> its text by itself
    rows: list[Row] = field(default_factory=list)  # of its transcript
    finished: Finished | None = None


class OneAnswer:
    """The answer that these events make."""

    def __init__(self, body: Body, events: Events) -> None:
        self.body, self.events, self.shape = body, events, ResponseFormat(body)
        self.choices = [Choice() for _ in range(len(body.prompts) * body.n)]

    async def stream(self) -> AsyncIterator[bytes]:
        """Chunks as events; an error ends it. What it waits for is told in comments."""
        for index in range(len(self.choices)) if self.shape.chat else ():
            yield event(self.shape.begin(index))
        async for index, happened in self.events:
            if isinstance(happened, Told | Waiting | Began):
                yield comment(self._told(happened))
                continue
            try:
                chunk = self._chunk(index, happened)
            except SlimscopeError as error:
                yield event(error_body(error)[1])
                return
            yield event(chunk)
        if self.body.stream_options and self.body.stream_options.include_usage:
            yield event(self.shape.usage_chunk(self._usage()))
        yield DONE

    async def whole(self) -> Row:
        """The response of a request that does not stream; raises `SlimscopeError`."""
        async for index, happened in self.events:
            if isinstance(happened, Told | Waiting | Began):
                self._told(happened)
            else:
                self._chunk(index, happened)
        choices = []
        for index, choice in enumerate(self.choices):
            assert choice.finished is not None
            reason, scores = (
                REASONS[choice.finished.reason],
                self._logprobs(choice.pieces, choice.alone, 0),
            )
            details = {"transcript": choice.rows} if self.body.details else None
            choices.append(self.shape.choice(index, choice.text, scores, reason, details))
        return self.shape.whole(choices, self._usage())

    def _told(self, happened: Told | Waiting | Began) -> Row:
        if isinstance(happened, Began):
            began = {"decoder": happened.decoder, "threads": happened.threads}
            return began | {"unused": happened.unused}
        if isinstance(happened, Waiting):
            return {"waits": f"{happened.place} before you", "about": round(happened.seconds, 1)}
        return {"waits": happened.what, "about": round(happened.seconds, 1)}

    def _chunk(self, index: int, happened: Happened) -> Row:
        choice = self.choices[index]
        if isinstance(happened, NewPieces):
            text, reason, offset = "".join(p.text for p in happened.pieces), None, len(choice.text)
            scores = self._logprobs(happened.pieces, happened.alone, offset)
            choice.pieces += happened.pieces
            choice.alone |= happened.alone
        elif isinstance(happened, Finished):
            if happened.error or happened.reason not in REASONS:
                raise happened.error or ComputeError("The answer could not be given.")
            text, reason, scores = happened.rest, REASONS[happened.reason], None
            choice.finished = happened
        else:
            assert isinstance(happened, SlimscopeError)
            raise happened
        choice.text += text
        row = row_of(happened)
        if self.body.details:
            choice.rows.append(row)
        return self.shape.piece(index, text, scores, reason, row if self.body.details else None)

    def _logprobs(
        self, pieces: Sequence[Piece], alone: Mapping[int, str], offset: int
    ) -> Row | None:
        if self.body.likeliest is None:
            return None
        if self.shape.chat:
            return chat_logprobs(pieces, alone)
        return completion_logprobs(pieces, alone, offset)

    def _usage(self) -> Row:
        ended = [choice.finished for choice in self.choices if choice.finished]
        prompts = ended[:: self.body.n]  # a prompt counts once, whatever the number of its answers
        prompt = sum(each.prompt_tokens for each in prompts)
        shared = sum(each.shared_tokens for each in prompts)
        completion = sum(each.completion_tokens for each in ended)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": shared},
        }


# log probabilities --------------------------------------------------------------------------------


def chat_logprobs(pieces: Sequence[Piece], alone: Mapping[int, str]) -> Row:
    """Of a chat: each token with the likeliest in its place."""

    def about(token: int, logprob: float | None) -> Row:
        text = alone[token]
        value = -9999.0 if logprob is None else logprob
        return {"token": text, "logprob": value, "bytes": [*text.encode()]}

    content = [
        about(p.token, p.logprob) | {"top_logprobs": [about(*other) for other in p.top]}
        for p in pieces
    ]
    return {"content": content, "refusal": None}


def completion_logprobs(pieces: Sequence[Piece], alone: Mapping[int, str], offset: int = 0) -> Row:
    """Of a completion: lists beside each other; the first token of a prompt has none. `offset`: the
    character at which the first token begins."""
    offsets = []
    for piece in pieces:
        offsets.append(offset)
        offset += len(piece.text)
    return {
        "tokens": [alone[p.token] for p in pieces],
        "token_logprobs": [p.logprob for p in pieces],
        "top_logprobs": [
            None if p.logprob is None else {alone[token]: value for token, value in p.top}
            for p in pieces
        ],
        "text_offset": offsets,
    }

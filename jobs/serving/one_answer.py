"""Response to one request, as a stream of chunks or as one JSON object."""

import secrets
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from backend.decoding.serving.request import Finished, NewPieces, Piece, Waiting
from backend.errors import ComputeError, SlimscopeError
from jobs.serving.answering import AnswerEvent, AnswerStarted, WaitNotice
from jobs.serving.openai_format import (
    DONE,
    Body,
    ChatBody,
    JsonObject,
    comment,
    error_body,
    event,
)

FINISH_REASONS = {"stop": "stop", "stop_string": "stop", "length": "length", "cancelled": "stop"}
TRANSCRIPT_ENDS = {"stop": "end", "stop_string": "stop", "length": "limit"}
Events = AsyncIterator[tuple[int, AnswerEvent]]


def transcript_row(event: NewPieces | Finished) -> JsonObject:
    """Return the event as a row of a `Transcript`."""
    if isinstance(event, NewPieces):
        tokens = [[piece.text, piece.head] for piece in event.pieces]
        return {"ms": round(event.ms, 2), "tokens": tokens, "rejected": event.rejected}
    return {
        "end": TRANSCRIPT_ENDS.get(event.reason, event.reason),
        "rest": event.rest,
        "first_token_s": round(event.first_token_s, 3),
        "prompt_tokens": event.prompt_tokens,
        "shared_tokens": event.shared_tokens,
    }


@dataclass
class Choice:
    """State of one choice of the response.

    Attributes:
        token_texts: text of each token by itself.
        rows: its transcript.
        finished: its last event; None while it is generated.
    """

    text: str = ""
    pieces: list[Piece] = field(default_factory=list)
    token_texts: dict[int, str] = field(default_factory=dict)
    rows: list[JsonObject] = field(default_factory=list)
    finished: Finished | None = None


class ResponseBuilder:
    """Builds the response to a request from the events of its answer."""

    def __init__(self, body: Body, events: Events) -> None:
        self.body, self.events, self.chat = body, events, isinstance(body, ChatBody)
        self.choices = [Choice() for _ in range(len(body.prompts) * body.n)]
        name = "chat.completion" if self.chat else "text_completion"
        self._header = {
            "id": f"{'chatcmpl' if self.chat else 'cmpl'}-{secrets.token_hex(12)}",
            "object": name,
            "created": int(time.time()),
            "model": body.model,
        }
        self._chunk_header = self._header | ({"object": f"{name}.chunk"} if self.chat else {})

    async def stream(self) -> AsyncIterator[bytes]:
        """Yield the chunks as server-sent events; an error ends the stream. Wait notices are sent
        as comments."""
        for index in range(len(self.choices)) if self.chat else ():
            yield event(self._choice_chunk(index, {"role": "assistant", "content": ""}, None, None))
        async for index, answer_event in self.events:
            if isinstance(answer_event, WaitNotice | Waiting | AnswerStarted):
                yield comment(self._notice(answer_event))
                continue
            try:
                chunk = self._chunk(index, answer_event)
            except SlimscopeError as error:
                yield event(error_body(error)[1])
                return
            yield event(chunk)
        if self.body.stream_options and self.body.stream_options.include_usage:
            yield event(self._chunk_header | {"choices": [], "usage": self._usage()})
        yield DONE

    async def response(self) -> JsonObject:
        """Return the response of a request that does not stream. Raises SlimscopeError: the answer
        failed."""
        async for index, answer_event in self.events:
            if not isinstance(answer_event, WaitNotice | Waiting | AnswerStarted):
                self._chunk(index, answer_event)
        choices = []
        for index, choice in enumerate(self.choices):
            assert choice.finished is not None
            message = {"role": "assistant", "content": choice.text, "refusal": None}
            content: JsonObject = {"message": message} if self.chat else {"text": choice.text}
            details = {"slimscope": {"transcript": choice.rows}} if self.body.details else {}
            choices.append(
                {
                    "index": index,
                    **content,
                    "logprobs": self._logprobs(choice.pieces, choice.token_texts, 0),
                    "finish_reason": FINISH_REASONS[choice.finished.reason],
                    **details,
                }
            )
        return self._header | {"choices": choices, "usage": self._usage()}

    def _notice(self, answer_event: WaitNotice | Waiting | AnswerStarted) -> JsonObject:
        if isinstance(answer_event, AnswerStarted):
            return {
                "decoder": answer_event.decoder,
                "threads": answer_event.threads,
                "unused": answer_event.unused,
            }
        if isinstance(answer_event, Waiting):
            return {
                "waits": f"{answer_event.place} before you",
                "about": round(answer_event.seconds, 1),
            }
        return {"waits": answer_event.what, "about": round(answer_event.seconds, 1)}

    def _chunk(self, index: int, answer_event: AnswerEvent) -> JsonObject:
        choice = self.choices[index]
        if isinstance(answer_event, NewPieces):
            text, reason = "".join(piece.text for piece in answer_event.pieces), None
            logprobs = self._logprobs(answer_event.pieces, answer_event.alone, len(choice.text))
            choice.pieces += answer_event.pieces
            choice.token_texts |= answer_event.alone
        elif isinstance(answer_event, Finished):
            if answer_event.error or answer_event.reason not in FINISH_REASONS:
                raise answer_event.error or ComputeError("The answer could not be generated.")
            text, reason, logprobs = answer_event.rest, FINISH_REASONS[answer_event.reason], None
            choice.finished = answer_event
        else:
            assert isinstance(answer_event, SlimscopeError)
            raise answer_event
        choice.text += text
        row = transcript_row(answer_event)
        if self.body.details:
            choice.rows.append(row)
        content: Any = ({"content": text} if text else {}) if self.chat else text
        chunk = self._choice_chunk(index, content, logprobs, reason)
        return chunk | ({"slimscope": row} if self.body.details else {})

    def _choice_chunk(
        self, index: int, content: Any, logprobs: JsonObject | None, reason: str | None
    ) -> JsonObject:
        part = {"delta" if self.chat else "text": content}
        choice = {"index": index, **part, "logprobs": logprobs, "finish_reason": reason}
        return self._chunk_header | {"choices": [choice]}

    def _logprobs(
        self, pieces: Sequence[Piece], token_texts: Mapping[int, str], offset: int
    ) -> JsonObject | None:
        if self.body.logprob_count is None:
            return None
        if self.chat:
            return chat_logprobs(pieces, token_texts)
        return completion_logprobs(pieces, token_texts, offset)

    def _usage(self) -> JsonObject:
        finished = [choice.finished for choice in self.choices if choice.finished]
        first_of_prompts = finished[:: self.body.n]  # count a prompt once, not once per answer
        prompt = sum(answer.prompt_tokens for answer in first_of_prompts)
        shared = sum(answer.shared_tokens for answer in first_of_prompts)
        completion = sum(answer.completion_tokens for answer in finished)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": shared},
        }


# log probabilities --------------------------------------------------------------------------------


def chat_logprobs(pieces: Sequence[Piece], token_texts: Mapping[int, str]) -> JsonObject:
    """Log-probabilities of a chat: each token with its most likely alternatives."""

    def entry(token: int, logprob: float | None) -> JsonObject:
        text = token_texts[token]
        value = -9999.0 if logprob is None else logprob  # OpenAI's value for "very unlikely"
        return {"token": text, "logprob": value, "bytes": [*text.encode()]}

    content = [
        entry(p.token, p.logprob) | {"top_logprobs": [entry(*candidate) for candidate in p.top]}
        for p in pieces
    ]
    return {"content": content, "refusal": None}


def completion_logprobs(
    pieces: Sequence[Piece], token_texts: Mapping[int, str], offset: int = 0
) -> JsonObject:
    """Log-probabilities of a completion, as parallel lists; the first token of a prompt has none.
    `offset`: position of the first token in the text, in characters."""
    offsets = []
    for piece in pieces:
        offsets.append(offset)
        offset += len(piece.text)
    return {
        "tokens": [token_texts[p.token] for p in pieces],
        "token_logprobs": [p.logprob for p in pieces],
        "top_logprobs": [
            None if p.logprob is None else {token_texts[token]: value for token, value in p.top}
            for p in pieces
        ],
        "text_offset": offsets,
    }

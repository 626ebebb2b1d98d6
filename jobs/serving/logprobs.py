"""Log probabilities of tokens in the shapes of the OpenAI API."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from backend.decoding.serving.request import Piece


def chat_logprobs(pieces: Sequence[Piece], text_of: Callable[[int], str]) -> dict[str, Any]:
    """Of a chat: each token with the likeliest in its place."""

    def about(token: int, logprob: float | None) -> dict[str, Any]:
        text = text_of(token)
        value = -9999.0 if logprob is None else logprob
        return {"token": text, "logprob": value, "bytes": [*text.encode()]}

    content = [
        about(p.token, p.logprob) | {"top_logprobs": [about(*other) for other in p.top]}
        for p in pieces
    ]
    return {"content": content, "refusal": None}


def completion_logprobs(
    pieces: Sequence[Piece], text_of: Callable[[int], str], offset: int = 0
) -> dict[str, Any]:
    """Of a completion: lists beside each other; the first token of a prompt has none. `offset`: the
    character at which the first token begins."""
    offsets = []
    for piece in pieces:
        offsets.append(offset)
        offset += len(piece.text)
    return {
        "tokens": [text_of(p.token) for p in pieces],
        "token_logprobs": [p.logprob for p in pieces],
        "top_logprobs": [
            None if p.logprob is None else {text_of(token): value for token, value in p.top}
            for p in pieces
        ],
        "text_offset": offsets,
    }

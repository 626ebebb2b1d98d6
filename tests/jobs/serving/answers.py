"""Generate an answer of the playground in this process."""

import asyncio
from contextlib import aclosing
from typing import Any

from backend.queue import conversations
from jobs.chat import ask, chat_request
from jobs.serving.answering import AnswerWorker
from jobs.serving.one_answer import ResponseBuilder
from jobs.serving.pool import ModelPool
from jobs.serving.transcript import Transcript, parse_transcript
from tests.queue.conftest import HOST


def answer(side: str, **settings: object) -> Transcript:
    """Return the answer of a model or a drafter to a prompt with these settings."""
    number = ask({"prompt": "One day a cat", **settings, "sides": side}, False, HOST)
    whole = asyncio.run(_answered(number))
    (choice,) = whole["choices"]
    return parse_transcript(choice["slimscope"]["transcript"])


async def _answered(number: int) -> dict[str, Any]:
    body = chat_request(conversations.turns_to(number), 1)
    async with aclosing(AnswerWorker(body, "", ModelPool(lambda: 1)).events()) as events:
        return await ResponseBuilder(body, events).response()

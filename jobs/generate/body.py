"""A config as a request to the API."""

from collections.abc import Mapping, Sequence
from typing import Any

from jobs.generate.config import STOPS
from jobs.serving.requests import ChatBody

RENAMED = {"max_new_tokens": "max_tokens", "chat": "chat_template"}  # setting -> field of a body


def chat_body(
    settings: Mapping[str, Any], model: str, said: Sequence[Mapping[str, str]]
) -> ChatBody:
    """The streamed answer of a model to what was `said`; `settings`: of a `GenerateJob`."""
    system = str(settings.get("system", ""))
    values = {RENAMED.get(name, name): value for name, value in settings.items()}
    kept = {name: value for name, value in values.items() if name in ChatBody.model_fields}
    first = [{"role": "system", "content": system}] if system.strip() else []
    stop = [*filter(None, str(settings.get("stop", "")).split(STOPS))]
    about = {"model": model, "messages": [*first, *said], "stop": stop}
    return ChatBody.model_validate(kept | about | {"stream": True, "details": True})

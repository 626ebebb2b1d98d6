"""One request of the API, from its body to the events of its choices. It waits for its model in a
thread of its own; the engine writes all choices at once."""

import asyncio
import threading
import time
from collections.abc import AsyncGenerator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

from backend.decoding.acceptance import Sampling
from backend.decoding.draft_tree import Proposer
from backend.decoding.serving.request import Finished, GenerationRequest, NewPieces, Waiting
from backend.decoding.serving.sequence import ServedSequence
from backend.errors import (
    CancelledError,
    ComputeError,
    ConfigError,
    NotFoundError,
    SlimscopeError,
)
from backend.models.foreign_tokenizer import TextTokenizer, session_of
from backend.models.loading import LoadedModel
from backend.text.chat_template import chat_ids, end_ids
from jobs.fields.drafters import GenerationSide, read_side
from jobs.fields.models import ResolvedModel, decodable_model
from jobs.runtime.loading import load_model
from jobs.serving.openai_format import Body, ChatBody, CompletionBody
from jobs.serving.pool import Key, ModelPool, WarmModel, key_of

SEEDS = 2**63

T = TypeVar("T")


@dataclass(frozen=True)
class Told:
    """What a request waits for, about so many `seconds` (0: unknown)."""

    what: str
    seconds: float


@dataclass(frozen=True)
class Began:
    """The model is there; `unused`: its drafter drafts nothing, as no tree pays on this machine;
    `decoder`: what computes, in words; `threads` compute now."""

    decoder: str
    unused: bool
    threads: int


Happened = Told | Began | Waiting | NewPieces | Finished | SlimscopeError


class ThreadedEvents(Generic[T]):
    """What a thread of its own does for `person`, as events; leaving them `stop`s it."""

    def __init__(self, person: str) -> None:
        self.person, self._stopped = person, threading.Event()

    async def events(self) -> AsyncGenerator[T]:
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[T | None] = asyncio.Queue()
        threading.Thread(target=self._work, name=self.person, daemon=True).start()
        try:
            while (happened := await self.next_event()) is not None:
                yield happened
        finally:
            self._stopped.set()
            self.stop()

    async def next_event(self) -> T | None:
        """What happens next; None at the end."""
        return await self._events.get()

    def stop(self) -> None:
        """Called when nobody reads on."""

    def answer(self) -> None:
        """The work, in the thread."""
        raise NotImplementedError

    def failed(self, error: SlimscopeError) -> T:
        """The event of an error."""
        raise NotImplementedError

    def put(self, happened: T | None) -> None:
        with suppress(RuntimeError):  # the loop is closed, as the server stopped: nobody reads on
            self._loop.call_soon_threadsafe(self._events.put_nowait, happened)

    def _work(self) -> None:
        try:
            self.answer()
        except CancelledError:
            pass
        except SlimscopeError as error:
            self.put(self.failed(error))
        except Exception as error:  # a fault of ours must not leave the client waiting
            self.put(
                self.failed(
                    ComputeError(
                        "The answer could not be given.", f"{type(error).__name__}: {error}"
                    )
                )
            )
        finally:
            self.put(None)


class Answering(ThreadedEvents[tuple[int, Happened]]):
    """A request that is answered for `person`. `events` yields (choice, event) until all choices
    have finished, or an error; leaving it ends the choices that have not."""

    def __init__(self, body: Body, person: str, pool: ModelPool) -> None:
        super().__init__(person)
        self.body, self.pool = body, pool
        self._left = len(body.prompts) * body.n
        self._done = threading.Event()

    def stop(self) -> None:
        self._done.set()

    def failed(self, error: SlimscopeError) -> tuple[int, Happened]:
        return 0, error

    def _say(self, what: str, seconds: float) -> None:
        self.put((0, Told(what, seconds)))

    def answer(self) -> None:
        body = self.body
        try:
            side = read_side(body.model)
            base = decodable_model(side.model, body.precision)
        except SlimscopeError as error:
            raise NotFoundError(error.what, error.why, error.do, "model") from error
        key = key_of(side.model, base, "auto", body.precision)
        with session_of(self.pool.tokenizer(base, key, self._say)) as tokenizer:
            self._answer(side, base, key, tokenizer)

    def _answer(
        self, side: GenerationSide, base: ResolvedModel, key: Key, tokenizer: TextTokenizer
    ) -> None:
        body = self.body
        prompts = [self._ids(prompt, tokenizer) for prompt in body.prompts]
        limits = [_limit(body, len(ids), base) for ids in prompts]  # before anything is loaded
        load = partial(
            load_model, side.model, precision=body.precision, context=Unrecorded(), reads=False
        )
        with self.pool.using(
            base, key, load, self._say, self._stopped.is_set, side.drafter
        ) as model:
            requests = []
            for number in range(self._left):
                prompt, nth = divmod(number, body.n)
                proposer = self._proposer(model, side.drafter)
                requests.append(
                    self._request(
                        prompts[prompt], limits[prompt], nth, proposer, model.loaded, tokenizer
                    )
                )
            unused = bool(side.drafter) and requests[0].drafter is None
            self.put((0, Began(model.target.decoder, unused, self.pool.threads())))
            self._carry_out(model, requests)

    def _ids(self, prompt: Any, tokenizer: TextTokenizer) -> tuple[int, ...]:
        if isinstance(self.body, ChatBody):
            return tuple(chat_ids(prompt, tokenizer, self.body.chat_template))
        if isinstance(prompt, str):
            return tuple(tokenizer(prompt).input_ids)
        if prompt and max(prompt) >= len(tokenizer):
            raise ConfigError(
                "The prompt was not accepted.",
                f"It holds token {max(prompt)}; the tokenizer has {len(tokenizer)}.",
                "",
                "prompt",
            )
        return tuple(prompt)

    def _proposer(self, model: WarmModel, drafter: Path | None) -> Proposer | None:
        if drafter is None:
            return None
        if not model.knows(drafter, self.body.nodes):
            self._say("Measuring the drafter", 0.0)
        proposer = model.proposer(drafter, self.body.nodes)
        return proposer if proposer.nodes > 1 else None

    def _request(
        self,
        ids: tuple[int, ...],
        limit: int,
        nth: int,
        drafter: Proposer | None,
        loaded: LoadedModel,
        tokenizer: TextTokenizer,
    ) -> GenerationRequest:
        body = self.body
        seed = ((body.seed or 0) + nth) % SEEDS
        sampling = Sampling(body.temperature, body.top_k, body.top_p, body.repetition_penalty, seed)
        return GenerationRequest(
            prompt=ids,
            max_tokens=limit,
            sampling=sampling,
            stop=body.stops,
            person=self.person,
            ends=end_ids(tokenizer, loaded.model.generation_config),
            logprobs=body.likeliest,
            echo=isinstance(body, CompletionBody) and body.echo,
            drafter=drafter,
            lookup=body.lookup,
            tokenizer=tokenizer,
        )

    def _carry_out(self, model: WarmModel, requests: list[GenerationRequest]) -> None:
        tickets = list[ServedSequence]()
        try:
            for number, request in enumerate(requests):
                tickets.append(model.engine.submit(request, partial(self._deliver, number)))
            self._done.wait()
        finally:  # all of them end before their model and drafters are left to others
            for ticket in tickets:
                ticket.cancel()
            while not all(ticket.done for ticket in tickets):
                time.sleep(0.01)  # they end in the engine's thread, which needs the interpreter

    def _deliver(self, number: int, event: Waiting | NewPieces | Finished) -> None:
        """Called by the engine's thread."""
        self.put((number, event))
        if isinstance(event, Finished):
            self._left -= 1
            if not self._left:
                self._done.set()


class Unrecorded:
    """What loading needs of a run, where there is none."""

    def log(self, text: str) -> None:
        print(text, flush=True)

    def environment(self, **facts: Any) -> None:
        """Nothing is recorded."""


def _limit(body: Body, prompt: int, base: ResolvedModel) -> int:
    """How many tokens an answer may have; `ConfigError` if they do not fit."""
    room, limit = base.facts.context - prompt, body.limit
    if not prompt or room < (limit or 0) or (limit is None and room < 1):
        why = f"The prompt has {prompt} tokens, and the context of {base.facts.title} holds "
        why += f"{base.facts.context}."
        raise ConfigError(
            "The request does not fit into the context.",
            why,
            "Shorten the prompt, or ask for fewer tokens." if prompt else "Write a prompt.",
            "messages" if isinstance(body, ChatBody) else "prompt",
        )
    return min(room, body.usual_tokens) if limit is None else limit

"""Answer one API request: from its body to the events of its choices. A thread of the request waits
for the model; the engine then generates all choices at once."""

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
from backend.models.foreign_tokenizer import TextTokenizer, tokenizer_session
from backend.models.loading import LoadedModel
from backend.text.chat_template import chat_ids, end_ids
from jobs.fields.drafters import GenerationSide, parse_side
from jobs.fields.models import ResolvedModel, decodable_model
from jobs.runtime.loading import load_model
from jobs.serving.openai_format import Body, ChatBody, CompletionBody
from jobs.serving.pool import ModelKey, ModelPool, WarmModel, model_key

SEED_COUNT = 2**63

T = TypeVar("T")


@dataclass(frozen=True)
class WaitNotice:
    """Notice about the step that a request waits for.

    Attributes:
        what: name of the step.
        seconds: expected duration; 0: unknown.
    """

    what: str
    seconds: float


@dataclass(frozen=True)
class AnswerStarted:
    """The model is loaded and generation starts.

    Attributes:
        decoder: name of the decoder that computes.
        unused: True if the drafter drafts nothing, because no draft tree pays on this machine.
        threads: threads that the model computes with now.
    """

    decoder: str
    unused: bool
    threads: int


AnswerEvent = WaitNotice | AnswerStarted | Waiting | NewPieces | Finished | SlimscopeError


class ThreadedEvents(Generic[T]):
    """Run work in a thread and yield its events; closing the iterator cancels it. The thread is
    named after `person`."""

    def __init__(self, person: str) -> None:
        self.person, self._stopped = person, threading.Event()

    async def events(self) -> AsyncGenerator[T]:
        """Start the thread and yield its events until the work ends."""
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[T | None] = asyncio.Queue()
        threading.Thread(target=self._work, name=self.person, daemon=True).start()
        try:
            while (event := await self.next_event()) is not None:
                yield event
        finally:
            self._stopped.set()
            self.stop()

    async def next_event(self) -> T | None:
        """Wait for the next event; None at the end."""
        return await self._events.get()

    def stop(self) -> None:
        """Cancel the work. Called when the reader closes the iterator."""

    def answer(self) -> None:
        """Do the work. Called in the thread."""
        raise NotImplementedError

    def failed(self, error: SlimscopeError) -> T:
        """Return the event that reports an error."""
        raise NotImplementedError

    def put(self, event: T | None) -> None:
        """Append an event, from the thread; None ends the stream."""
        with suppress(RuntimeError):  # the loop is closed: the server has stopped
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    def _work(self) -> None:
        try:
            self.answer()
        except CancelledError:
            pass
        except SlimscopeError as error:
            self.put(self.failed(error))
        except Exception as error:  # a bug must not leave the client waiting
            self.put(
                self.failed(
                    ComputeError(
                        "The answer could not be generated.", f"{type(error).__name__}: {error}"
                    )
                )
            )
        finally:
            self.put(None)


class AnswerWorker(ThreadedEvents[tuple[int, AnswerEvent]]):
    """Worker that answers one request of `person`. `events` yields (choice index, event) until all
    choices have finished or an error occurs; closing it cancels the unfinished choices."""

    def __init__(self, body: Body, person: str, pool: ModelPool) -> None:
        super().__init__(person)
        self.body, self.pool = body, pool
        self._unfinished = len(body.prompts) * body.n
        self._all_finished = threading.Event()

    def stop(self) -> None:
        self._all_finished.set()

    def failed(self, error: SlimscopeError) -> tuple[int, AnswerEvent]:
        return 0, error

    def _report_wait(self, what: str, seconds: float) -> None:
        self.put((0, WaitNotice(what, seconds)))

    def answer(self) -> None:
        body = self.body
        try:
            side = parse_side(body.model)
            base = decodable_model(side.model, body.precision)
        except SlimscopeError as error:
            raise NotFoundError(error.what, error.why, error.do, "model") from error
        key = model_key(side.model, base, "auto", body.precision)
        with tokenizer_session(self.pool.tokenizer(base, key, self._report_wait)) as tokenizer:
            self._answer_with(side, base, key, tokenizer)

    def _answer_with(
        self, side: GenerationSide, base: ResolvedModel, key: ModelKey, tokenizer: TextTokenizer
    ) -> None:
        body = self.body
        prompts = [self._prompt_ids(prompt, tokenizer) for prompt in body.prompts]
        # refuses long prompts before the model is loaded
        limits = [_max_tokens(body, len(ids), base) for ids in prompts]
        load = partial(
            load_model,
            side.model,
            precision=body.precision,
            context=UnrecordedContext(),
            reads=False,
        )
        with self.pool.using(
            base, key, load, self._report_wait, self._stopped.is_set, side.drafter
        ) as model:
            requests = []
            for index in range(self._unfinished):
                prompt_index, sample_index = divmod(index, body.n)
                proposer = self._proposer(model, side.drafter)
                requests.append(
                    self._request(
                        prompts[prompt_index],
                        limits[prompt_index],
                        sample_index,
                        proposer,
                        model.loaded,
                        tokenizer,
                    )
                )
            unused = bool(side.drafter) and requests[0].drafter is None
            self.put((0, AnswerStarted(model.target.decoder, unused, self.pool.threads())))
            self._generate(model, requests)

    def _prompt_ids(self, prompt: Any, tokenizer: TextTokenizer) -> tuple[int, ...]:
        if isinstance(self.body, ChatBody):
            return tuple(chat_ids(prompt, tokenizer, self.body.chat_template))
        if isinstance(prompt, str):
            return tuple(tokenizer(prompt).input_ids)
        if prompt and max(prompt) >= len(tokenizer):
            raise ConfigError(
                "The prompt was not accepted.",
                f"It contains token {max(prompt)}; the tokenizer has {len(tokenizer)} tokens.",
                "",
                "prompt",
            )
        return tuple(prompt)

    def _proposer(self, model: WarmModel, drafter: Path | None) -> Proposer | None:
        if drafter is None:
            return None
        if not model.has_proposer(drafter, self.body.nodes):
            self._report_wait("Measuring the drafter", 0.0)
        proposer = model.proposer(drafter, self.body.nodes)
        return proposer if proposer.nodes > 1 else None

    def _request(
        self,
        ids: tuple[int, ...],
        max_tokens: int,
        sample_index: int,
        drafter: Proposer | None,
        loaded: LoadedModel,
        tokenizer: TextTokenizer,
    ) -> GenerationRequest:
        body = self.body
        seed = ((body.seed or 0) + sample_index) % SEED_COUNT
        sampling = Sampling(body.temperature, body.top_k, body.top_p, body.repetition_penalty, seed)
        return GenerationRequest(
            prompt=ids,
            max_tokens=max_tokens,
            sampling=sampling,
            stop=body.stops,
            person=self.person,
            ends=end_ids(tokenizer, loaded.model.generation_config),
            logprobs=body.logprob_count,
            echo=isinstance(body, CompletionBody) and body.echo,
            drafter=drafter,
            lookup=body.lookup,
            tokenizer=tokenizer,
        )

    def _generate(self, model: WarmModel, requests: list[GenerationRequest]) -> None:
        tickets = list[ServedSequence]()
        try:
            for index, request in enumerate(requests):
                tickets.append(model.engine.submit(request, partial(self._deliver, index)))
            self._all_finished.wait()
        finally:  # all must end before other requests may use their model and drafters
            for ticket in tickets:
                ticket.cancel()
            while not all(ticket.done for ticket in tickets):
                time.sleep(0.01)  # lets the engine's thread run, in which they end

    def _deliver(self, index: int, event: Waiting | NewPieces | Finished) -> None:
        """Forward an event of one choice. Called by the engine's thread."""
        self.put((index, event))
        if isinstance(event, Finished):
            self._unfinished -= 1
            if not self._unfinished:
                self._all_finished.set()


class UnrecordedContext:
    """Stand-in for the context of a run when a model is loaded outside of runs: prints the log."""

    def log(self, text: str) -> None:
        print(text, flush=True)

    def record_environment(self, **facts: Any) -> None:
        """Do nothing: there is no run to record facts of."""


def _max_tokens(body: Body, prompt_tokens: int, base: ResolvedModel) -> int:
    """Return the maximum number of tokens of an answer. Raises ConfigError: prompt and answer do
    not fit into the context."""
    room, limit = base.facts.context - prompt_tokens, body.limit
    if not prompt_tokens or room < (limit or 0) or (limit is None and room < 1):
        why = f"The prompt has {prompt_tokens} tokens, and the context of {base.facts.title} holds "
        why += f"{base.facts.context}."
        raise ConfigError(
            "The request does not fit into the context.",
            why,
            "Shorten the prompt, or ask for fewer tokens." if prompt_tokens else "Write a prompt.",
            "messages" if isinstance(body, ChatBody) else "prompt",
        )
    return min(room, body.usual_tokens) if limit is None else limit

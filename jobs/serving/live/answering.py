"""Answer one request about a live model, from its body to events. A request without an event for
`SILENT_S` ends; work that it has started, such as loading the model, continues.

waits       notice of a step that takes time; at any time
opened      the model is loaded; once
text        greedy text of the dense model, later of the live model
applied     the state is built: at once, or as a run would build it
loss        loss on a window of the evaluation text, later on more
speed       tokens per second of both texts
tokens, why loss of each token of a text with one block restored to its dense weights
refined     blocks rebuilt as a run would; then the requested results again
done, cancelled, error    the last event"""

import asyncio
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress
from itertools import chain, islice
from math import exp, nan
from statistics import median
from typing import Any

import torch

from backend.decoding.draft_tree import NoDraft
from backend.decoding.serving.loop import decode
from backend.decoding.serving.sequence import Detokenizer
from backend.errors import CancelledError, ComputeError, ConfigError, ModelError, SlimscopeError
from backend.live.address import LiveState
from backend.live.dense import Progress
from backend.live.measurements import LONGEST_TRACE, LiveLoss, losses, traced_losses
from backend.live.model import LiveModel
from backend.live.running import RunningModel
from backend.models.foreign_tokenizer import tokenizer_session
from backend.store.json_column import finite
from backend.text.chat_template import end_ids
from jobs.serving.answering import ThreadedEvents
from jobs.serving.live.models import MAX_TEXTS, BrowserState, LivePool, OpenedModel
from jobs.serving.live.requests import PULSE_S, SILENT_S, LiveBody

FIRST_LOSS_TOKENS = 256  # doubled for each further loss
FIRST_PIECES = 3  # pieces of text sent before the first loss

Event = dict[str, Any]


class LiveWorker(ThreadedEvents[Event]):
    """Worker that answers one request of `person`."""

    def __init__(self, body: LiveBody, person: str, guest: bool, pool: LivePool) -> None:
        super().__init__(person)
        self.body, self.guest, self.pool = body, guest, pool
        self._number = next(pool.numbers)
        self._state: BrowserState | None = None
        self._silent_s, self._last_step = 0.0, "Asking the live model"

    def failed(self, error: SlimscopeError) -> Event:
        return {
            "event": "error",
            "what": error.what,
            "why": error.why,
            "do": error.do,
            "field": error.field,
        }

    async def next_event(self) -> Event | None:
        """Wait for the next event. Returns a wait notice while none comes, and an error after
        `SILENT_S`."""
        if self._silent_s >= SILENT_S:
            return None
        try:
            event = await asyncio.wait_for(self._events.get(), PULSE_S)
        except TimeoutError:
            self._silent_s += PULSE_S
            if self._silent_s < SILENT_S:
                progress = f"still working ({self._silent_s:.0f} s, limit {SILENT_S:.0f} s)"
                return {"event": "waits", "what": f"{self._last_step}: {progress}", "about_s": 0.0}
            return self.failed(
                ComputeError(
                    "The live model takes too long.",
                    f"No result for {self._silent_s:.0f} s: {self._last_step}. "
                    "The machine may be busy.",
                    "Change a setting to try again.",
                )
            )
        self._silent_s = 0.0
        self._last_step = str((event or {}).get("what", self._last_step))
        return event

    def stop(self) -> None:
        """Cancel the measurements, unless a newer request of the browser has replaced this one."""
        if self._state:
            with suppress(CancelledError):
                self._check_newest()
                self._state.live.cancel()

    def _before_step(self) -> None:
        self.pool.before_step(self.guest, self._report_wait, self._check)

    def _report_wait(self, what: str, seconds: float) -> None:
        self.put({"event": "waits", "what": what, "about_s": seconds})

    def _send(self, event: str, **facts: Any) -> None:
        self.put({"event": event, **facts})

    def answer(self) -> None:
        with (
            self.pool.using(self.body.model, self._report_wait) as opened,
            self.pool.state(opened, self.person, self.body.browser) as state,
            tokenizer_session(opened.tokenizer) as self._tokenizer,
        ):
            try:
                self._check_newest, self._state = state.begin(self._number), state
                with self.pool.active_request(self.guest):
                    self._answer_with(opened, state)
                self._send("done")
            except CancelledError:
                self._send("cancelled")

    def _check(self) -> None:
        """Raise `CancelledError` if the client has gone or sent a newer request."""
        self._check_newest()
        if self._stopped.is_set():
            raise CancelledError

    def _answer_with(self, opened: OpenedModel, state: BrowserState) -> None:
        live = state.live
        self._before_step()
        if self.body.against:
            self._report_wait(f"Loading {self.body.against}", 0.0)
            self._why(opened, live, opened.comparison_model(self.body.against, live.dtype))
            return
        requested = opened.parse_state(self.body.state)
        self._send(
            "opened",
            identity=opened.dense.identity,
            decoder=opened.dense.reference(live.dtype).decoder,
            memory=self.pool.nbytes,
            budget=self.pool.budget,
        )
        text_error: SlimscopeError | None = None
        try:
            for _ in self._dense_text(opened, live) if self._generates_text else ():
                pass
        except (ConfigError, ModelError) as error:
            text_error = error  # raised after the state is built, which needs no text
        self._apply(opened, state, requested)
        if text_error:
            raise text_error
        self._measure(opened, live)
        if "refine" in self.body.want and not self._is_exact(live):
            for completed, total, what in live.refine():
                self._send("refined", done=completed, of=total, what=what)
                self._before_step()
            self._applied(live, 0, 0.0)
            self._measure(opened, live)

    @property
    def _generates_text(self) -> bool:
        return bool({"text", "speed"} & {*self.body.want})

    def _apply(self, opened: OpenedModel, state: BrowserState, requested: LiveState) -> None:
        dense, live = opened.dense, state.live
        with opened.preparing:
            self.pool.set_threads()
            steps = dense.prepare(requested.formats, dense.score_of(requested.pruner))
            for what, remaining_s in with_remaining_time(steps):
                self._report_wait(what, remaining_s)
                self._check()
            opened.save_energies()
        with state.changing:
            self._check()
            started = time.perf_counter()
            changed = live.apply(requested.formats, requested.pruner, requested.quantizer)
            _ = live.running  # packs the changed layers, so that the time includes it
        self._applied(live, len(changed), time.perf_counter() - started)

    def _applied(self, live: LiveModel, changed: int, seconds: float) -> None:
        self._send(
            "applied",
            ms=1000 * seconds,
            changed=changed,
            exactly=self._is_exact(live),
            read_bytes=live.running.read_bytes,
        )

    @staticmethod
    def _is_exact(live: LiveModel) -> bool:
        return all(origin != "instant" for origin in live.origins.values())

    def _measure(self, opened: OpenedModel, live: LiveModel) -> None:
        """Send the requested results: the first words, the first loss, then the rest of both."""
        want, empty = {*self.body.want}, iter(())
        text = self._live_text(opened, live) if self._generates_text else empty
        loss = self._losses(opened, live) if "loss" in want else empty
        for _ in chain(islice(text, FIRST_PIECES), islice(loss, 1), text, loss):
            pass
        if "why" in want:
            self._why(opened, live)

    def _losses(self, opened: OpenedModel, live: LiveModel) -> Iterator[None]:
        """Send the loss on the first `FIRST_LOSS_TOKENS`, then on at least twice as many tokens,
        and so on, with the length of a window (`context`); pause after each."""
        if opened.windows is None:
            assert opened.text_error
            self._send("missing", of="loss", why=str(opened.text_error))
            return
        self._before_step()
        windows, next_tokens = opened.windows, FIRST_LOSS_TOKENS
        first = windows[:1, :FIRST_LOSS_TOKENS]  # a part of a long window is measured sooner
        for part in (first, windows) if first.shape[1] < windows.shape[1] else (windows,):
            for number, loss in enumerate(losses(live, part, divergence=True), 1):
                tokens = number * part.shape[1]
                if tokens >= next_tokens or tokens == windows.numel():
                    next_tokens *= 2
                    counts = {"tokens": tokens, "of": windows.numel(), "context": part.shape[1]}
                    self._send("loss", **counts, **finite(figures(loss)))
                    yield
                self._before_step()

    # texts ----------------------------------------------------------------------------------------

    def _dense_text(self, opened: OpenedModel, live: LiveModel) -> Iterator[None]:
        """Send the dense model's text, which is cached. It comes before the live text, because it
        needs no built state. Pause after each piece."""
        reference, body = opened.dense.reference(live.dtype), self.body
        if reference.target is None:
            self._send("missing", of="text", why=reference.decoder)
            return
        prompt = self._prompt(opened)
        if cached := opened.texts.get((prompt, body.tokens)):
            self._send_piece("dense", "".join(cached[0]))
        else:
            pieces: list[str] = []
            speed = yield from self._generate("dense", opened, reference, prompt, pieces)
            while len(opened.texts) >= MAX_TEXTS:
                opened.texts.pop(next(iter(opened.texts)), None)
            opened.texts[prompt, body.tokens] = pieces, speed
        self._send_piece("dense", "", is_last=True)

    def _live_text(self, opened: OpenedModel, live: LiveModel) -> Iterator[None]:
        """Send the live model's text, and the speed of both; pause after each piece."""
        if opened.dense.reference(live.dtype).target is None:
            return  # reported with the dense text
        if live.running.target is None:
            self._send("missing", of="text", why=live.running.decoder)
            return
        prompt = self._prompt(opened)
        speed = yield from self._generate("live", opened, live.running, prompt, [])
        self._send_piece("live", "", is_last=True)
        if "speed" in self.body.want:
            _, dense = opened.texts.get((prompt, self.body.tokens), ([], None))
            self._send("speed", tokens_per_s=speed, dense_tokens_per_s=dense)

    def _prompt(self, opened: OpenedModel) -> tuple[int, ...]:
        return tuple(self._tokenizer(self.body.prompt).input_ids)

    def _generate(
        self,
        side: str,
        opened: OpenedModel,
        running: RunningModel,
        prompt: Sequence[int],
        pieces: list[str],
    ) -> Generator[None, None, float | None]:
        """Generate a text, append its pieces to `pieces` and pause after each. Returns the tokens
        per second after the prompt."""
        assert running.target is not None
        text, seconds = Detokenizer(self._tokenizer), list[float]()
        ends = end_ids(self._tokenizer, opened.dense.model.generation_config)
        steps = decode(running.target, NoDraft(), prompt, self.body.tokens, ends)
        while True:
            self._before_step()
            with opened.dense.lock:
                self._check()
                started = time.perf_counter()
                step = next(steps, None)
                seconds.append(time.perf_counter() - started)
            if step is None:
                break
            pieces.append("".join(map(text.add, step.tokens)))
            self._send_piece(side, pieces[-1])
            yield
        pieces.append(text.flush())
        self._send_piece(side, pieces[-1])
        return 1 / median(seconds[1:-1]) if len(seconds) > 2 else None

    def _send_piece(self, side: str, delta: str, is_last: bool = False) -> None:
        if "text" in self.body.want and (delta or is_last):
            self._send("text", side=side, delta=delta, done=is_last)

    # trace of a loss ------------------------------------------------------------------------------

    def _why(
        self, opened: OpenedModel, live: LiveModel, comparison: RunningModel | None = None
    ) -> None:
        """Send the loss of each token with one block at a time restored to its dense weights;
        blocks of the live model, or of `comparison`."""
        ids = self._tokenizer(self.body.text).input_ids
        if not 2 <= len(ids) <= LONGEST_TRACE:
            raise ConfigError(
                "The text cannot be traced.",
                f"It has {len(ids)} tokens; the limits are 2 to {LONGEST_TRACE}.",
                "Shorten it." if ids else "Write a text.",
                "text",
            )
        tokens = self._tokenizer.batch_decode([[token] for token in ids])
        self._send("tokens", tokens=tokens, blocks=opened.dense.blocks)
        self._before_step()
        for block, differences in traced_losses(live, torch.tensor(ids), comparison):
            self._send("why", block=block, losses=finite(differences.tolist()))
            self._before_step()


def figures(loss: LiveLoss) -> dict[str, float]:
    """The figures of a loss event."""
    ratio, n = loss.ratio, len(loss.windows)
    dense, kl = (sum(values) / n for values in (loss.dense, loss.divergence))
    return {
        "loss": loss.loss,
        "dense": dense,
        "kl": kl,
        "ratio": exp(min(loss.loss - dense, 700.0)),  # a larger exponent overflows
        "low": ratio.low if ratio else nan,
        "high": ratio.high if ratio else nan,
    }


def with_remaining_time(steps: Iterator[Progress]) -> Iterator[tuple[str, float]]:
    """Yield each step as text, with the estimated seconds left in its phase."""
    phase_started = step_ended = time.perf_counter()
    completed_before, phase = 0.0, ""
    for completed, total, what in steps:
        if what != phase:  # the first step of a phase need not be step 1
            phase_started, completed_before, phase = step_ended, completed - 1, what
        step_ended = time.perf_counter()
        seconds_per_step = (step_ended - phase_started) / (completed - completed_before)
        yield f"{what}: {completed:.0f} of {total:.0f}", seconds_per_step * (total - completed)

"""One request about a live model, from its body to events. One that comes no further ends after
`SILENT_S`; what it has begun, such as loading the model, goes on.

waits       what it waits for, at any time
opened      the model, once
text        greedy text of the dense model, and later of the live one
applied     its state was made: at once, or as a run would make it
loss        on 256 tokens, and later on more
speed       of both texts
tokens, why of a text: what each token's loss becomes with one block restored
refined     layers as a run makes them, block by block; then what was wanted, again
done, cancelled, error    the last one
"""

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
from backend.errors import CancelledError, ComputeError, ConfigError, SlimscopeError
from backend.live.address import LiveState
from backend.live.dense import Progress
from backend.live.measurements import LONGEST_TRACE, losses, traced_losses
from backend.live.model import LiveModel
from backend.live.running import RunningModel
from backend.models.foreign_tokenizer import session_of
from backend.store.json_column import finite
from backend.text.chat_template import end_ids
from jobs.serving.answering import ThreadedEvents
from jobs.serving.live.models import TEXTS_KEPT, BrowserState, LivePool, OpenedModel
from jobs.serving.live.requests import PULSE_S, SILENT_S, LiveBody

FIRST = 256  # tokens of the first loss that is told; then twice as many each time
WORDS = 3  # pieces of text before it

Event = dict[str, Any]


class LiveAnswering(ThreadedEvents[Event]):
    """A request that is answered for `person`."""

    def __init__(self, body: LiveBody, person: str, guest: bool, pool: LivePool) -> None:
        super().__init__(person)
        self.body, self.guest, self.pool = body, guest, pool
        self._number = next(pool.numbers)
        self._state: BrowserState | None = None
        self._silent, self._last = 0.0, "Asking the live model"

    def failed(self, error: SlimscopeError) -> Event:
        return {
            "event": "error",
            "what": error.what,
            "why": error.why,
            "do": error.do,
            "field": error.field,
        }

    async def next_event(self) -> Event | None:
        """What happens next; where nothing does, how long already, and at last an error."""
        if self._silent >= SILENT_S:
            return None
        try:
            happened = await asyncio.wait_for(self._events.get(), PULSE_S)
        except TimeoutError:
            self._silent += PULSE_S
            if self._silent < SILENT_S:
                pace = f"still working ({self._silent:.0f} s; gives up after {SILENT_S:.0f} s)"
                return {"event": "waits", "what": f"{self._last}: {pace}", "about_s": 0.0}
            return self.failed(
                ComputeError(
                    "The live model takes too long.",
                    f"Nothing came for {self._silent:.0f} s: {self._last}. "
                    "The machine may be busy.",
                    "Turn a knob to ask again.",
                )
            )
        self._silent, self._last = 0.0, str((happened or {}).get("what", self._last))
        return happened

    def stop(self) -> None:
        """Ends what is measured, unless a newer request of its browser has taken its place."""
        if self._state:
            with suppress(CancelledError):
                self._newest()
                self._state.live.cancel()

    def _step(self) -> None:
        self.pool.step(self.guest, self._say, self._check)

    def _say(self, what: str, seconds: float) -> None:
        self.put({"event": "waits", "what": what, "about_s": seconds})

    def _tell(self, event: str, **facts: Any) -> None:
        self.put({"event": event, **facts})

    def answer(self) -> None:
        with (
            self.pool.using(self.body.model, self._say) as opened,
            self.pool.state(opened, self.person, self.body.browser) as state,
            session_of(opened.tokenizer) as self._tokenizer,
        ):
            try:
                self._newest, self._state = state.begin(self._number), state
                with self.pool.turn(self.guest):
                    self._answer(opened, state)
                self._tell("done")
            except CancelledError:
                self._tell("cancelled")

    def _check(self) -> None:
        """Raises `CancelledError` where nobody waits for the rest."""
        self._newest()
        if self._stopped.is_set():
            raise CancelledError

    def _answer(self, opened: OpenedModel, state: BrowserState) -> None:
        live = state.live
        self._step()
        if self.body.against:
            self._say(f"Loading {self.body.against}", 0.0)
            self._why(opened, live, opened.other(self.body.against, live.dtype))
            return
        asked = opened.asked(self.body.state)
        self._tell(
            "opened",
            identity=opened.dense.identity,
            decoder=opened.dense.reference(live.dtype).decoder,
            memory=self.pool.nbytes,
            budget=self.pool.budget,
        )
        refused: ConfigError | None = None
        try:
            for _ in self._dense_text(opened, live) if self._writes else ():
                pass
        except ConfigError as error:
            refused = error  # the text alone: the state is made all the same
        self._apply(opened, state, asked)
        if refused:
            raise refused
        self._measure(opened, live)
        if "refine" in self.body.want and not all(self._exactly(live)):
            for done, of, what in live.refine():
                self._tell("refined", done=done, of=of, what=what)
                self._step()
            self._applied(live, 0, 0.0)
            self._measure(opened, live)

    @property
    def _writes(self) -> bool:
        return bool({"text", "speed"} & {*self.body.want})

    def _apply(self, opened: OpenedModel, state: BrowserState, asked: LiveState) -> None:
        dense, live = opened.dense, state.live
        with opened.preparing:
            self.pool.share()
            for what, left in timed(dense.prepare(asked.formats, dense.score_of(asked.pruner))):
                self._say(what, left)
                self._check()
            opened.remember()
        with state.changing:
            self._check()
            began = time.perf_counter()
            changed = live.apply(asked.formats, asked.pruner, asked.quantizer)
            _ = live.running
        self._applied(live, len(changed), time.perf_counter() - began)

    def _applied(self, live: LiveModel, changed: int, seconds: float) -> None:
        self._tell(
            "applied",
            ms=1000 * seconds,
            changed=changed,
            exactly=all(self._exactly(live)),
            read_bytes=live.running.read_bytes,
        )

    @staticmethod
    def _exactly(live: LiveModel) -> Iterator[bool]:
        return (origin != "instant" for origin in live.origins.values())

    def _measure(self, opened: OpenedModel, live: LiveModel) -> None:
        """What is wanted: the first words, the first loss, and then the rest of both."""
        want, nothing = {*self.body.want}, iter(())
        text = self._live_text(opened, live) if self._writes else nothing
        loss = self._losses(opened, live) if "loss" in want else nothing
        for _ in chain(islice(text, WORDS), islice(loss, 1), text, loss):
            pass
        if "why" in want:
            self._why(opened, live)

    def _losses(self, opened: OpenedModel, live: LiveModel) -> Iterator[None]:
        """Tells the loss on 256 tokens, then on twice as many, and pauses after each."""
        if opened.windows is None:
            assert opened.no_text
            self._tell("missing", of="loss", why=str(opened.no_text))
            return
        self._step()
        length, told = opened.windows.shape[1], FIRST
        for number, loss in enumerate(losses(live, opened.windows, divergence=True), 1):
            if number * length >= told or number == len(opened.windows):
                told *= 2
                ratio, n = loss.ratio, len(loss.windows)
                dense, kl = (sum(x) / n for x in (loss.dense, loss.divergence))
                figures = {
                    "loss": loss.loss,
                    "dense": dense,
                    "kl": kl,
                    "ratio": exp(min(loss.loss - dense, 700.0)),  # more is no number
                    "low": ratio.low if ratio else nan,
                    "high": ratio.high if ratio else nan,
                }
                self._tell("loss", tokens=n * length, of=opened.windows.numel(), **finite(figures))
                yield
            self._step()

    # texts ----------------------------------------------------------------------------------------

    def _dense_text(self, opened: OpenedModel, live: LiveModel) -> Iterator[None]:
        """Tells the dense model's text, which is kept: before the live one, as nothing has to be
        made for it. Pauses after each piece."""
        reference, body = opened.dense.reference(live.dtype), self.body
        if reference.target is None:
            self._tell("missing", of="text", why=reference.decoder)
            return
        prompt = self._prompt(opened)
        if kept := opened.texts.get((prompt, body.tokens)):
            self._piece("dense", "".join(kept[0]))
        else:
            pieces: list[str] = []
            kept = pieces, (yield from self._written("dense", opened, reference, prompt, pieces))
            while len(opened.texts) >= TEXTS_KEPT:
                opened.texts.pop(next(iter(opened.texts)), None)
            opened.texts[prompt, body.tokens] = kept
        self._piece("dense", "", done=True)

    def _live_text(self, opened: OpenedModel, live: LiveModel) -> Iterator[None]:
        """Tells the live model's text, and the speed of both; pauses after each piece."""
        if opened.dense.reference(live.dtype).target is None:
            return  # which was told
        if live.running.target is None:
            self._tell("missing", of="text", why=live.running.decoder)
            return
        prompt = self._prompt(opened)
        speed = yield from self._written("live", opened, live.running, prompt, [])
        self._piece("live", "", done=True)
        if "speed" in self.body.want:
            _, dense = opened.texts.get((prompt, self.body.tokens), ([], None))
            self._tell("speed", tokens_per_s=speed, dense_tokens_per_s=dense)

    def _prompt(self, opened: OpenedModel) -> tuple[int, ...]:
        return tuple(self._tokenizer(self.body.prompt).input_ids)

    def _written(
        self,
        side: str,
        opened: OpenedModel,
        running: RunningModel,
        prompt: Sequence[int],
        pieces: list[str],
    ) -> Generator[None, None, float | None]:
        """Writes a text into `pieces` as it comes; tokens a second behind the prompt."""
        assert running.target is not None
        text, seconds = Detokenizer(self._tokenizer), list[float]()
        ends = end_ids(self._tokenizer, opened.dense.model.generation_config)
        steps = decode(running.target, NoDraft(), prompt, self.body.tokens, ends)
        while True:
            self._step()
            with opened.dense.lock:
                self._check()
                began = time.perf_counter()
                step = next(steps, None)
                seconds.append(time.perf_counter() - began)
            if step is None:
                break
            pieces.append("".join(map(text.add, step.tokens)))
            self._piece(side, pieces[-1])
            yield
        pieces.append(text.flush())
        self._piece(side, pieces[-1])
        return 1 / median(seconds[1:-1]) if len(seconds) > 2 else None

    def _piece(self, side: str, delta: str, done: bool = False) -> None:
        if "text" in self.body.want and (delta or done):
            self._tell("text", side=side, delta=delta, done=done)

    # which blocks lose which tokens ---------------------------------------------------------------

    def _why(self, opened: OpenedModel, live: LiveModel, other: RunningModel | None = None) -> None:
        ids = self._tokenizer(self.body.text).input_ids
        if not 2 <= len(ids) <= LONGEST_TRACE:
            raise ConfigError(
                "The text cannot be traced.",
                f"It has {len(ids)} tokens; 2 to {LONGEST_TRACE} are possible.",
                "Shorten it." if ids else "Write a text.",
                "text",
            )
        tokens = self._tokenizer.batch_decode([[token] for token in ids])
        self._tell("tokens", tokens=tokens, blocks=opened.dense.blocks)
        self._step()
        for block, differences in traced_losses(live, torch.tensor(ids), other):
            self._tell("why", block=block, losses=finite(differences.tolist()))
            self._step()


def timed(steps: Iterator[Progress]) -> Iterator[tuple[str, float]]:
    """Each step in words, and about how many seconds are left of what it is a step of."""
    began = before = time.perf_counter()
    there, doing = 0.0, ""
    for done, of, what in steps:
        if what != doing:
            began, there, doing = before, done - 1, what  # some may have been there
        before = time.perf_counter()
        yield f"{what}: {done:.0f} of {of:.0f}", (before - began) * (of - done) / (done - there)

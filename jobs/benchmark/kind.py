"""The decoding benchmark as a kind of job."""

from jobs.benchmark.config import NAME, BenchmarkJob
from jobs.benchmark.estimate import requirements
from jobs.benchmark.report import LABELS, MIN_GAIN, VANILLA, decoder_label
from jobs.kind import KeyFigure, Kind, StageStyle, Values
from jobs.metrics import SPEED_UP, TOKENS_PER_SECOND
from jobs.wording import apart, times


def key_figure(values: Values, kept: str = "") -> KeyFigure | None:
    """The speed-up of the fastest decoder over plain decoding, and the tokens a second of both."""
    speeds = {stage: v for (stage, name), v in values.items() if name == TOKENS_PER_SECOND}
    fastest, gain = speeds.pop("run", None), values.get(("run", SPEED_UP))
    plain = speeds.get(VANILLA)
    if fastest is None or plain is None or gain is None:
        return None
    if gain < 1 + MIN_GAIN:
        text = f"No decoder was faster than plain decoding: {plain:.0f} tokens per second."
        return KeyFigure(times(1.0), "the speed of plain decoding", text)
    quick, slow = apart([fastest, plain], places=0)
    label = decoder_label(next((s for s, speed in speeds.items() if speed == fastest), "a drafter"))
    named = f"{label[0].lower()}{label[1:]}"
    return KeyFigure(
        times(gain),
        f"with {named}",
        f"{quick} tokens per second with {named}, {slow} without.",
    )


KIND = Kind(
    name=NAME,
    title="Benchmark",
    summary="Time decoding with and without each drafter on this machine.",
    config=BenchmarkJob,
    requirements=requirements,
    run="jobs.benchmark.run:run",
    order=40,
    main_fields=("drafters", "lookup"),
    has_models=False,
    stages=LABELS,
    stage_label=decoder_label,
    styles={VANILLA: StageStyle("grey")},
    key_figure=key_figure,
    key_metric=SPEED_UP,
    presets={
        "quick look": {"count": 6, "max_new_tokens": 32, "rounds": 2},
        "default": {},
        "thorough": {"count": 48, "max_new_tokens": 128, "rounds": 5},
    },
)

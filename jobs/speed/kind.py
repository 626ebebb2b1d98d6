"""Decoding speed as a kind of job."""

from __future__ import annotations

from jobs.kind import Kind
from jobs.speed.config import NAME, SpeedJob
from jobs.speed.estimate import requirements
from jobs.speed.report import LABELS

KIND = Kind(
    name=NAME,
    title="Decoding speed",
    summary="Decode the same prompts with and without drafters, in turn, and report the speed-up "
    "of each on this machine.",
    config=SpeedJob,
    requirements=requirements,
    run="jobs.speed.run:run",
    order=40,
    has_models=False,
    stages=LABELS,
    presets={
        "quick look": {"count": 6, "max_new_tokens": 32, "rounds": 2},
        "default": {},
        "thorough": {"count": 48, "max_new_tokens": 128, "rounds": 5, "try_sizes": True},
    },
)

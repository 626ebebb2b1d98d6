"""A sensitivity profile as a kind of job."""

from jobs.kind import Kind
from jobs.profile.config import DENSE, NAME, ProfileJob
from jobs.profile.estimate import requirements

KIND = Kind(
    name=NAME,
    title="Sensitivity",
    summary="What each layer loses in each format, and the best mix of formats for a budget.",
    config=ProfileJob,
    requirements=requirements,
    run="jobs.profile.run:run",
    order=55,
    main_fields=("formats", "measured"),
    has_models=False,
    stages={DENSE: "Dense"},
    presets={
        "quick look": {"context": 256, "segments": 16},
        "default": {"context": 256},
        "measured": {"context": 256, "windows": 2, "measured": "int3-g64, 50%"},
        "thorough": {"context": 512, "holdout": 0.5, "windows": 4,
                     "measured": "int2-g64, int3-g64, int4-g64, 50%, 70%, 2:4"},
    },
)  # fmt: skip

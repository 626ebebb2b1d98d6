"""Every environment variable Slimscope reads. All start with SLIMSCOPE_, but for SPACE_HOST, which
Hugging Face sets in a Space."""

from __future__ import annotations

import ipaddress
import json
import os
import re
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Literal, TypeVar

from platformdirs import user_cache_path
from pydantic import Field, SecretStr, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

T = TypeVar("T")
LEAST_TOKEN = 16  # characters
PLACES = tuple(f"SLIMSCOPE_{name}" for name in ("MODEL_DIRS", "CACHE_DIR", "TEXT_DIR", "TASK_DIR"))
FROZEN = (  # what a run may be told of its submission: no other name of a stored row is a variable
    *PLACES, "SLIMSCOPE_PLUGINS", "SLIMSCOPE_THREADS", "SLIMSCOPE_NATIVE", "SLIMSCOPE_INPUTS",
)  # fmt: skip
# An alias, and what is read by the shell of a node.
OTHER_VARIABLES = {"SLIMSCOPE_ARTIFACTS", "SLIMSCOPE_PYTHON"}
SPACE_NAME = re.compile(r"[a-z0-9][a-z0-9-]*\.hf\.space")


def space_host() -> str:
    """The host name of the Hugging Face Space this process is in; empty elsewhere."""
    name = os.environ.get("SPACE_HOST", "").lower()
    return name if SPACE_NAME.fullmatch(name) else ""


def _in_space(there: T, elsewhere: T) -> Callable[[], T]:
    """A default that is another one in a Space, where a proxy forwards to any address."""
    return lambda: there if space_host() else elsewhere


class Settings(BaseSettings):
    """What the person who starts Slimscope may set."""

    model_config = SettingsConfigDict(
        env_prefix="SLIMSCOPE_",
        frozen=True,
        hide_input_in_errors=True,  # it may be a token
    )

    data_dir: Path = Field(Path(), description="Holds results.db and artifacts/.")
    artifact_place: str = Field(
        "",
        validation_alias="SLIMSCOPE_ARTIFACTS",
        description="Where runs keep logs, checkpoints and models: a folder, or the URL of a store "
        "such as s3://bucket/folder; empty: artifacts/ in the data dir.",
    )
    cache_dir: Path = Field(
        default_factory=lambda: user_cache_path("slimscope"),
        description="Models and texts that were set up once; may be shared and deleted.",
    )
    database_url: str = Field("", description="SQLAlchemy URL; empty: results.db in the data dir.")
    host: str = Field(
        default_factory=_in_space("0.0.0.0", "127.0.0.1"),
        description="Address the dashboard listens on.",
    )
    port: int = Field(7860, ge=0, le=65535, description="Port the dashboard listens on.")
    names: tuple[str, ...] = Field(
        default_factory=lambda: tuple(filter(None, [space_host()])),
        description='Host names the dashboard answers to, as JSON: ["slimscope.lab.org"].',
    )
    host_token: SecretStr = Field(
        SecretStr(""),
        description="Makes whoever shows it a host, and everybody else a guest; empty: made anew "
        "at each start where the dashboard can be reached from other machines.",
    )
    guest_runs: int = Field(
        0, ge=0, le=100, description="Runs of guests in the queue or at work; 0: guests only look."
    )
    guest_seconds: float = Field(300.0, gt=0, description="How long a guest's run may take.")
    guest_gb: float = Field(4.0, gt=0, description="How much memory a guest's run may take.")
    guest_answers: int = Field(
        4,
        ge=0,
        le=100,
        description="Answers of guests in the playground, queued or at work; 0: none.",
    )
    guest_answers_per_minute: int = Field(
        6, ge=1, description="Answers one guest may ask for in a minute."
    )
    guest_tokens: int = Field(256, ge=1, description="Tokens of an answer for a guest.")
    guest_letters: int = Field(4000, ge=1, description="Characters a guest's prompt may have.")
    examples: bool = Field(
        True, description="Add the runs that come with the package, to have something to see."
    )
    model_dirs: tuple[Path, ...] = Field(
        (), description='Further folders models may be read from, as JSON: ["/models"].'
    )
    inputs: dict[str, str] = Field(
        {}, description="Set for a run on a cluster: paths of models, and their fingerprints."
    )
    text_dir: Path | None = Field(None, description="Folder of .txt and .jsonl corpora.")
    task_dir: Path | None = Field(
        None, description="Folder of lm-evaluation-harness tasks (YAML) of one's own."
    )
    slots: int = Field(1, ge=1, le=64, description="Jobs that run at the same time.")
    ray_address: str = Field(
        "http://127.0.0.1:8265", description="Where the head of a Ray cluster answers."
    )
    ray_token: SecretStr = Field(
        SecretStr(""), description="The token of the Ray cluster; runs do not get it."
    )
    slurm_args: str = Field(
        "", description="Arguments of sbatch that the site asks for: --partition=gpu --time=2-0"
    )
    engine: Literal["local", "ray", "slurm"] = Field(
        "local", description="Where runs start: on this machine (local), or on a cluster."
    )
    threads: int = Field(
        0, ge=0, description="CPU threads of a job; 0: all available, on a cluster 1."
    )
    job_gb: float = Field(
        0.0,
        ge=0,
        description="Memory a job may take, in GB, or the models of the playground; 0: no limit.",
    )
    job_hours: float = Field(
        0.0, ge=0, description="Hours an attempt of a job may take before it is stopped; 0: any."
    )
    native: bool = Field(True, description="Decode on a CPU with compiled C++ where possible.")
    stop_grace: float = Field(20.0, ge=0, description="Seconds a job has to stop by itself.")
    keep_checkpoints_days: float = Field(
        30.0, ge=0, description="Days the checkpoints of ended runs are kept; 0: for ever."
    )
    backups: int = Field(7, ge=0, le=1000, description="Daily copies of the database; 0: none.")
    offline_s: float = Field(
        1800.0, ge=0, description="Seconds a run goes on while the database does not answer."
    )
    idle_exit: float = Field(
        60.0, ge=0, description="Seconds until an idle supervisor ends; the playground: ten times."
    )
    plugins: tuple[str, ...] = Field(
        (),
        description="Python modules with job kinds, pruners, quantisers or drafters, as JSON.",
    )

    job_gpus: float = Field(0.0, ge=0, description="GPUs a job takes on a cluster.")

    @field_validator("host_token", "ray_token")
    @classmethod
    def _hard_to_guess(cls, value: SecretStr) -> SecretStr:
        if 0 < len(value.get_secret_value()) < LEAST_TOKEN:
            raise ValueError(f"must have {LEAST_TOKEN} characters or more")
        return value

    @field_validator("engine")
    @classmethod
    def _has_what_it_needs(cls, value: str, info: ValidationInfo) -> str:
        """All machines of a cluster use one database, and nobody else uses the cluster."""
        if value == "local":
            return value
        url, token = info.data.get("database_url", ""), info.data.get("ray_token")
        if not url or url.startswith("sqlite"):
            raise ValueError("it needs the database of a server (SLIMSCOPE_DATABASE_URL)")
        if value == "ray" and not (token and token.get_secret_value()):
            raise ValueError("it needs the token of the cluster (SLIMSCOPE_RAY_TOKEN)")
        return value

    @field_validator("data_dir", "cache_dir", "text_dir", "task_dir", "model_dirs")
    @classmethod
    def _absolute(cls, value: Path | tuple[Path, ...] | None) -> Path | tuple[Path, ...] | None:
        """Absolute, since a job's process starts in another folder."""
        if isinstance(value, tuple):
            return tuple(path.expanduser().resolve() for path in value)
        return value.expanduser().resolve() if value else None

    @field_validator("artifact_place")
    @classmethod
    def _absolute_folder(cls, value: str) -> str:
        return value if not value or "://" in value else str(Path(value).expanduser().resolve())

    @property
    def root(self) -> Path:
        """The data folder, absolute."""
        return self.data_dir

    @property
    def shared(self) -> bool:
        """Whether other people can reach the dashboard, so that a host has to show a token."""
        return bool(self.host_token.get_secret_value()) or not is_loopback(self.host)

    @property
    def url(self) -> str:
        """Where the tables are."""
        return self.database_url or f"sqlite:///{self.root / 'results.db'}"

    @property
    def artifacts(self) -> Path:
        """Where runs keep logs, checkpoints and models; with a store, copies of them."""
        if self.artifact_place and not self.artifact_store:
            return Path(self.artifact_place)
        return self.root / "artifacts"

    @property
    def artifact_store(self) -> str:
        """The URL of the store that all machines reach; empty where a folder is all there is."""
        return self.artifact_place if "://" in self.artifact_place else ""

    def for_jobs(self) -> dict[str, str]:
        """The variables that decide what a job may read and use; frozen with each job."""
        chosen = {
            "MODEL_DIRS": json.dumps([str(path) for path in self.model_dirs]),
            "PLUGINS": json.dumps(self.plugins),
            "CACHE_DIR": str(self.cache_dir),
            "TEXT_DIR": str(self.text_dir) if self.text_dir else "",
            "TASK_DIR": str(self.task_dir) if self.task_dir else "",
            "THREADS": str(self.threads) if self.threads else "",
            "NATIVE": "" if self.native else "false",
        }
        return {f"SLIMSCOPE_{name}": value for name, value in chosen.items() if value}

    def readable_roots(self) -> tuple[Path, ...]:
        """The only folders a model may be read from."""
        own = (self.root / "models", self.artifacts, self.cache_dir / "models")
        return tuple(path.resolve() for path in (*own, *self.model_dirs))


@lru_cache
def settings() -> Settings:
    """The settings of this process, read once from the environment."""
    return Settings()


def unknown_variables() -> list[str]:
    """Variables of the environment that are named as settings and are none."""
    known = {f"SLIMSCOPE_{name.upper()}" for name in Settings.model_fields} | OTHER_VARIABLES
    ours = (name for name in os.environ if name.upper().startswith("SLIMSCOPE_"))
    tests = "SLIMSCOPE_TEST_"
    return sorted(name for name in ours if name.upper() not in known and not name.startswith(tests))


def is_loopback(address: str) -> bool:
    """Whether this name or address always means the machine itself."""
    if address == "localhost":
        return True
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def available_threads() -> int:
    """CPU cores this process may really use (its affinity, not the host's count)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1

"""Every environment variable Slimscope reads. All start with SLIMSCOPE_, but for SPACE_HOST, which
Hugging Face sets in a Space."""

import ipaddress
import json
import os
import re
from functools import lru_cache
from pathlib import Path
from typing import Literal

from platformdirs import user_cache_path
from pydantic import Field, IPvAnyNetwork, SecretStr, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

LEAST_TOKEN = 16  # characters
PLACES = tuple(f"SLIMSCOPE_{name}" for name in ("MODEL_DIRS", "CACHE_DIR", "TEXT_DIR"))
FROZEN = (  # what a run may be told of its submission: no other name of a stored row is a variable
    *PLACES,
    "SLIMSCOPE_PLUGINS",
    "SLIMSCOPE_THREADS",
    "SLIMSCOPE_NATIVE",
    "SLIMSCOPE_INPUTS",
)
# An alias, and what is read by the shell of a node.
OTHER_VARIABLES = {"SLIMSCOPE_ARTIFACTS", "SLIMSCOPE_PYTHON"}
SPACE_NAME = re.compile(r"[a-z0-9][a-z0-9-]*\.hf\.space")


def space_host() -> str:
    """The host name of the Hugging Face Space this process is in; empty elsewhere."""
    name = os.environ.get("SPACE_HOST", "").lower()
    return name if SPACE_NAME.fullmatch(name) else ""


class Settings(BaseSettings):
    """What the person who starts Slimscope may set; docs/operations.md says what each means."""

    model_config = SettingsConfigDict(
        env_prefix="SLIMSCOPE_",
        frozen=True,
        hide_input_in_errors=True,  # it may be a token
    )

    # places
    data_dir: Path = Path()  # holds results.db and artifacts/
    artifact_place: str = Field("", validation_alias="SLIMSCOPE_ARTIFACTS")  # a folder, or a URL
    cache_dir: Path = Field(default_factory=lambda: user_cache_path("slimscope"))
    database_url: str = ""  # of SQLAlchemy; empty: results.db in the data folder
    model_dirs: tuple[Path, ...] = ()  # further folders models may be read from
    text_dir: Path | None = None  # .txt and .jsonl corpora, lm-evaluation-harness tasks (YAML)
    plugins: tuple[str, ...] = ()  # Python modules with job kinds, pruners, quantizers or drafters
    inputs: dict[str, str] = {}  # set for a run on a cluster: paths of models -> fingerprints

    # dashboard
    # in a Space, a proxy forwards to any address
    host: str = Field(default_factory=lambda: "0.0.0.0" if space_host() else "127.0.0.1")
    port: int = Field(7860, ge=0, le=65535)
    names: tuple[str, ...] = Field(default_factory=lambda: tuple(filter(None, [space_host()])))
    # where many visitors come from one address, such as a room behind a router
    room_networks: tuple[IPvAnyNetwork, ...] = ()
    host_token: SecretStr = SecretStr("")  # made anew at each start where it is needed
    examples: bool = True  # add the runs that come with the package

    # limits of guests
    guest_runs: int = Field(0, ge=0, le=100)  # queued or at work
    guest_seconds: float = Field(300.0, gt=0)
    guest_gb: float = Field(4.0, gt=0)
    guest_answers: int = Field(64, ge=0, le=1000)  # at the same time

    # runs
    slots: int = Field(1, ge=1, le=64)  # runs at the same time
    threads: int = Field(0, ge=0)  # of a run; 0: all available, on a cluster 1
    job_gb: float = Field(0.0, ge=0)  # a run may take, or the models that answer; 0: any
    job_hours: float = Field(0.0, ge=0)  # an attempt may take; 0: any
    native: bool = True  # decode on a CPU with compiled C++ where possible
    stop_grace: float = Field(20.0, ge=0)  # seconds a run has to stop by itself
    offline_s: float = Field(1800.0, ge=0)  # a run goes on while the database does not answer
    idle_exit: float = Field(60.0, ge=0)  # until a supervisor ends; what answers: ten times
    keep_checkpoints_days: float = Field(30.0, ge=0)  # of ended runs; 0: for ever
    backups: int = Field(7, ge=0, le=1000)  # daily copies of the database
    webhook: SecretStr = SecretStr("")  # URL that is told when a run has ended

    # cluster
    ray_address: str = "http://127.0.0.1:8265"
    ray_token: SecretStr = SecretStr("")
    slurm_args: str = ""  # of sbatch
    job_gpus: float = Field(0.0, ge=0)  # of a run
    engine: Literal["local", "ray", "slurm"] = "local"

    @field_validator("host_token", "ray_token")
    @classmethod
    def _hard_to_guess(cls, value: SecretStr) -> SecretStr:
        if 0 < len(value.get_secret_value()) < LEAST_TOKEN:
            raise ValueError(f"must have {LEAST_TOKEN} characters or more")
        return value

    @field_validator("webhook")
    @classmethod
    def _over_http(cls, value: SecretStr) -> SecretStr:
        if value and not value.get_secret_value().startswith(("http://", "https://")):
            raise ValueError("must begin with https:// or http://")
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

    @field_validator("data_dir", "cache_dir", "text_dir", "model_dirs")
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
    def names_guests(self) -> bool:
        """Whether guests may do anything, so that each needs a name."""
        return bool(self.guest_runs or self.guest_answers)

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

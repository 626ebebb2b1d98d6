"""Settings from environment variables. All start with SLIMSCOPE_ except SPACE_HOST, which Hugging
Face sets in a Space."""

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

MIN_TOKEN_LENGTH = 16  # characters
FOLDER_VARIABLES = tuple(f"SLIMSCOPE_{name}" for name in ("MODEL_DIRS", "CACHE_DIR", "TEXT_DIR"))
FROZEN_VARIABLES = (  # the only variables that a stored run may set for its process
    *FOLDER_VARIABLES,
    "SLIMSCOPE_PLUGINS",
    "SLIMSCOPE_THREADS",
    "SLIMSCOPE_NATIVE",
    "SLIMSCOPE_INPUTS",
)
# An alias, and a variable that a cluster node's shell reads.
OTHER_VARIABLES = {"SLIMSCOPE_ARTIFACTS", "SLIMSCOPE_PYTHON"}
SPACE_NAME = re.compile(r"[a-z0-9][a-z0-9-]*\.hf\.space")


def space_host() -> str:
    """Return the host name of the Hugging Face Space of this process, or ""."""
    name = os.environ.get("SPACE_HOST", "").lower()
    return name if SPACE_NAME.fullmatch(name) else ""


class Settings(BaseSettings):
    """Settings of the person who starts Slimscope, explained in docs/operations.md."""

    model_config = SettingsConfigDict(
        env_prefix="SLIMSCOPE_",
        frozen=True,
        hide_input_in_errors=True,  # the input may be a token
    )

    # folders
    data_dir: Path = Path()  # holds results.db and artifacts/
    artifact_place: str = Field("", validation_alias="SLIMSCOPE_ARTIFACTS")  # a folder, or a URL
    cache_dir: Path = Field(default_factory=lambda: user_cache_path("slimscope"))
    database_url: str = ""  # SQLAlchemy URL; empty: results.db in the data folder
    model_dirs: tuple[Path, ...] = ()  # additional folders to read models from
    text_dir: Path | None = None  # .txt and .jsonl corpora, lm-evaluation-harness tasks (YAML)
    plugins: tuple[str, ...] = ()  # Python modules with job kinds, pruners, quantizers or drafters
    inputs: dict[str, str] = {}  # set for runs on a cluster: model path -> fingerprint

    # dashboard
    # in a Space, a proxy forwards requests to any address
    host: str = Field(default_factory=lambda: "0.0.0.0" if space_host() else "127.0.0.1")
    port: int = Field(7860, ge=0, le=65535)
    names: tuple[str, ...] = Field(default_factory=lambda: tuple(filter(None, [space_host()])))
    # networks in which many visitors share an address, such as a room behind a router
    room_networks: tuple[IPvAnyNetwork, ...] = ()
    host_token: SecretStr = SecretStr("")  # generated at each start if needed
    examples: bool = True  # add the example runs of the package

    # limits of guests
    guest_runs: int = Field(0, ge=0, le=100)  # queued or running
    guest_seconds: float = Field(300.0, gt=0)
    guest_gb: float = Field(4.0, gt=0)
    guest_answers: int = Field(64, ge=0, le=1000)  # concurrent

    # runs
    slots: int = Field(1, ge=1, le=64)  # concurrent runs
    threads: int = Field(0, ge=0)  # per run; 0: all available, 1 on a cluster
    job_gb: float = Field(0.0, ge=0)  # memory limit of a run and of the served models; 0: none
    job_hours: float = Field(0.0, ge=0)  # time limit of an attempt; 0: none
    native: bool = True  # decode with compiled C++ on a CPU if possible
    stop_grace: float = Field(20.0, ge=0)  # seconds a run has to stop before it is killed
    offline_s: float = Field(1800.0, ge=0)  # seconds a run continues without the database
    idle_exit: float = Field(
        60.0, ge=0
    )  # seconds until an idle supervisor exits; serving process: 10 x
    keep_checkpoints_days: float = Field(30.0, ge=0)  # for ended runs; 0: forever
    backups: int = Field(7, ge=0, le=1000)  # daily copies of the database
    webhook: SecretStr = SecretStr("")  # URL called when a run has ended

    # cluster
    ray_address: str = "http://127.0.0.1:8265"
    ray_token: SecretStr = SecretStr("")
    slurm_args: str = ""  # arguments of sbatch
    job_gpus: float = Field(0.0, ge=0)  # per run
    engine: Literal["local", "ray", "slurm"] = "local"

    @field_validator("host_token", "ray_token")
    @classmethod
    def _check_token_length(cls, value: SecretStr) -> SecretStr:
        if 0 < len(value.get_secret_value()) < MIN_TOKEN_LENGTH:
            raise ValueError(f"must have {MIN_TOKEN_LENGTH} characters or more")
        return value

    @field_validator("webhook")
    @classmethod
    def _check_webhook_url(cls, value: SecretStr) -> SecretStr:
        if value and not value.get_secret_value().startswith(("http://", "https://")):
            raise ValueError("must begin with https:// or http://")
        return value

    @field_validator("engine")
    @classmethod
    def _check_engine(cls, value: str, info: ValidationInfo) -> str:
        """Require a shared database and, for Ray, a token: the cluster is reachable by others."""
        if value == "local":
            return value
        url, token = info.data.get("database_url", ""), info.data.get("ray_token")
        if not url or url.startswith("sqlite"):
            raise ValueError("needs a database server (SLIMSCOPE_DATABASE_URL)")
        if value == "ray" and not (token and token.get_secret_value()):
            raise ValueError("needs the token of the Ray cluster (SLIMSCOPE_RAY_TOKEN)")
        return value

    @field_validator("data_dir", "cache_dir", "text_dir", "model_dirs")
    @classmethod
    def _absolute(cls, value: Path | tuple[Path, ...] | None) -> Path | tuple[Path, ...] | None:
        """Make paths absolute: a job's process starts in another folder."""
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
        """True if others can reach the dashboard, so that hosts must log in with a token."""
        return bool(self.host_token.get_secret_value()) or not is_loopback(self.host)

    @property
    def names_guests(self) -> bool:
        """True if guests may write, so that each one needs a name."""
        return bool(self.guest_runs or self.guest_answers)

    @property
    def url(self) -> str:
        """The SQLAlchemy URL of the database."""
        return self.database_url or f"sqlite:///{self.root / 'results.db'}"

    @property
    def artifacts(self) -> Path:
        """The folder of logs, checkpoints and models of runs; with an artifact store, a cache."""
        if self.artifact_place and not self.artifact_store:
            return Path(self.artifact_place)
        return self.root / "artifacts"

    @property
    def artifact_store(self) -> str:
        """The URL of the shared artifact store, or "" if artifacts are kept in a folder."""
        return self.artifact_place if "://" in self.artifact_place else ""

    def for_jobs(self) -> dict[str, str]:
        """Return the variables that decide what a job may read and use; stored with each job."""
        variables = {
            "MODEL_DIRS": json.dumps([str(path) for path in self.model_dirs]),
            "PLUGINS": json.dumps(self.plugins),
            "CACHE_DIR": str(self.cache_dir),
            "TEXT_DIR": str(self.text_dir) if self.text_dir else "",
            "THREADS": str(self.threads) if self.threads else "",
            "NATIVE": "" if self.native else "false",
        }
        return {f"SLIMSCOPE_{name}": value for name, value in variables.items() if value}

    def readable_roots(self) -> tuple[Path, ...]:
        """Return the only folders that models may be read from."""
        managed = (self.root / "models", self.artifacts, self.cache_dir / "models")
        return tuple(path.resolve() for path in (*managed, *self.model_dirs))


@lru_cache
def settings() -> Settings:
    """Return the settings of this process, read once from the environment."""
    return Settings()


def unknown_variables() -> list[str]:
    """Return environment variables that start with SLIMSCOPE_ but are not settings."""
    known = {f"SLIMSCOPE_{name.upper()}" for name in Settings.model_fields} | OTHER_VARIABLES
    ours = (name for name in os.environ if name.upper().startswith("SLIMSCOPE_"))
    tests = "SLIMSCOPE_TEST_"
    return sorted(name for name in ours if name.upper() not in known and not name.startswith(tests))


def is_loopback(address: str) -> bool:
    """Return True if the name or address always refers to this machine."""
    if address == "localhost":
        return True
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def available_threads() -> int:
    """Return the number of CPU cores this process may use (its affinity, not the host's count)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1

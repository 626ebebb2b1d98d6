"""Models on the Hugging Face hub: the local cache, repository metadata, and downloads.

Code and weights other than safetensors are never downloaded. With `HF_HUB_OFFLINE=1` only cached
models are available. Lookups for a form have a deadline, and their answers are cached for some
minutes, so that edits of other fields do not repeat them. Does not import torch.
"""

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any

import huggingface_hub  # lazy: functions import their module on first call
from huggingface_hub import errors

from backend.errors import ModelError
from backend.models.families.stored import TensorHeader
from backend.models.sources.headers import read_json, weight_files

TIMEOUT_S = 10.0  # for a request to the hub
OFFLINE_REMEDY = "Use the built-in toy, SmolLM2-135M or a model folder on disk."
DEADLINE_S = 20.0  # for a lookup, including the time in the queue
ANSWER_TTL_S, ERROR_TTL_S = 600.0, 30.0
MAX_ANSWERS = 256
MAX_LOOKUPS = 4  # at the same time

Headers = tuple[dict[str, Any], dict[str, TensorHeader]]
_pool = ThreadPoolExecutor(MAX_LOOKUPS, thread_name_prefix="hub")
_lock = Lock()
_lookups: dict[str, tuple[float, Future[Headers]]] = {}  # hub id -> (start in seconds, answer)


def cached_ids() -> list[str]:
    """Return the ids of complete models with safetensors weights in the local hub cache."""
    try:
        repositories = huggingface_hub.scan_cache_dir().repos
    except errors.CacheNotFound:
        return []
    ids = sorted(repo.repo_id for repo in repositories if repo.repo_type == "model")
    return [hub_id for hub_id in ids if cached(hub_id)]


def cached(hub_id: str) -> Path | None:
    """Return the folder of a model in the hub cache, or None if it is not complete."""
    try:
        folder = _fetch(hub_id, local_files_only=True)
        weight_files(folder)
    except (errors.LocalEntryNotFoundError, errors.HFValidationError, ModelError):
        return None
    return folder if (folder / "config.json").is_file() else None


def download(hub_id: str) -> Path:
    """Download the files of a model that are not cached, and return its folder. Raises ModelError:
    see `fetch_headers`."""
    with _model_errors(hub_id):
        huggingface_hub.model_info(hub_id, timeout=TIMEOUT_S)
        return _fetch(hub_id)


def fetch_headers(hub_id: str) -> Headers:
    """Download config.json and the tensor headers of a repository, some kilobytes. Raises
    ModelError: there is no such model, it is gated or has no safetensors weights, or the hub is
    unreachable."""
    with _model_errors(hub_id):
        # This request fails immediately, while downloads retry for a long time.
        huggingface_hub.model_info(hub_id, timeout=TIMEOUT_S)
        config = read_json(Path(huggingface_hub.hf_hub_download(hub_id, "config.json")))
        files = huggingface_hub.get_safetensors_metadata(hub_id).files_metadata.values()
    tensors = (tensor for file in files for tensor in file.tensors.items())
    return config, {name: TensorHeader(tuple(info.shape), info.dtype) for name, info in tensors}


@contextmanager
def _model_errors(hub_id: str) -> Iterator[None]:
    """Convert exceptions of the hub client into `ModelError` with a remedy."""
    try:
        yield
    except ModelError:
        raise
    except errors.GatedRepoError as error:
        raise _refused(
            hub_id, "It is a gated model.", "Accept its terms on the hub, then run: hf auth login."
        ) from error
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        raise _refused(
            hub_id, "The hub has no public model of that name.", "Check the spelling: org/name."
        ) from error
    except errors.NotASafetensorsRepoError as error:
        raise _refused(
            hub_id,
            "It has no safetensors weights; pickle files can execute code and are not loaded.",
            "Choose a model published as safetensors.",
        ) from error
    except (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError) as error:
        raise _refused(
            hub_id,
            "It is not on this machine and the hub cannot be reached (offline).",
            OFFLINE_REMEDY,
        ) from error
    except errors.EntryNotFoundError as error:
        raise _refused(
            hub_id,
            "It has no config.json, so it is not a transformers model.",
            "Choose another model.",
        ) from error
    except Exception as error:  # the HTTP client raises further types
        raise _refused(hub_id, f"The hub cannot be reached: {error}.", OFFLINE_REMEDY) from error


def _refused(hub_id: str, why: str, do: str) -> ModelError:
    return ModelError(f"{hub_id} cannot be downloaded.", why, do, field="model")


def _fetch(hub_id: str, local_files_only: bool = False) -> Path:
    folder = huggingface_hub.snapshot_download(
        hub_id,
        allow_patterns=[
            "*.json",
            "*.safetensors",
            "tokenizer.model",
            "*.txt",
            "*.jinja",
            "LICENSE*",
            "README.md",
        ],
        ignore_patterns=["*/*", "adapter_*"],  # subfolders contain other formats
        local_files_only=local_files_only,
    )
    return Path(folder)


def cached_headers(hub_id: str) -> Headers:
    """Return the result of `fetch_headers`, which is cached for ten minutes. Raises ModelError: see
    `fetch_headers`, or the hub did not answer within `DEADLINE_S`."""
    try:
        return _lookup(hub_id).result(DEADLINE_S)
    except TimeoutError as error:
        raise ModelError(
            f"{hub_id} cannot be checked.",
            f"The hub did not answer within {DEADLINE_S:.0f} s.",
            "Try again later, or choose a model on this machine.",
            field="model",
        ) from error


def _lookup(hub_id: str) -> Future[Headers]:
    """Return the pending or recent lookup of a model, or start a new one."""
    with _lock:
        now = time.monotonic()
        stale = [
            key
            for key, (start, lookup) in _lookups.items()
            if lookup.done() and now - start > (ERROR_TTL_S if lookup.exception() else ANSWER_TTL_S)
        ]
        for key in [*stale, *list(_lookups)[: len(_lookups) - MAX_ANSWERS]]:
            _lookups.pop(key, None)
        if hub_id not in _lookups:
            _lookups[hub_id] = now, _pool.submit(fetch_headers, hub_id)
        return _lookups[hub_id][1]

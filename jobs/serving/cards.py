"""The graphics cards, which answers share with jobs."""

import torch

RESERVE = 10**9  # bytes for caches of keys and values, and for PyTorch itself


def choose_card(wanted: str) -> str:
    """The torch device for a config's `device`: of several cards the one with most memory left."""
    if wanted not in ("auto", "cuda") or not torch.cuda.is_available():
        return "cpu" if wanted == "auto" else wanted
    cards = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    return max(cards, key=free_memory)


def use_card(device: str) -> None:
    """Let this thread work on that device; what waits for "the GPU" waits for it."""
    if device.startswith("cuda"):
        torch.cuda.set_device(device)


def free_memory(card: str) -> int:
    free, _ = torch.cuda.mem_get_info(card)
    return max(0, free - RESERVE)

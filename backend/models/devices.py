"""Compute devices: the CPU and the accelerator of this machine, through the interface that PyTorch
gives all accelerators."""

from typing import Any

import torch

from backend.models.cards import MAX_REASON, Card, CardReport
from backend.models.memory import DeviceMemory, host_memory


def accelerator_module() -> Any:
    """Return PyTorch's module of the accelerator, such as `torch.cuda`; None if this machine has no
    accelerator with CUDA's interface. Apple's MPS does not tell its free memory."""
    kind = torch.accelerator.current_accelerator(check_available=True)
    module = torch.get_device_module(kind) if kind else None
    return module if hasattr(module, "mem_get_info") else None


def accelerators() -> list[str]:
    """Return the accelerators as torch devices, such as "cuda:0"."""
    kind, module = torch.accelerator.current_accelerator(), accelerator_module()
    return [f"{kind.type}:{i}" for i in range(module.device_count())] if kind and module else []


def wait_for_accelerator() -> None:
    """Wait for the queued work of the accelerator, if this process uses it."""
    module = accelerator_module()
    if module and module.is_initialized():
        module.synchronize()


def device_memory(device: str | torch.device) -> DeviceMemory:
    """Return the memory of a device as this process sees it."""
    device = torch.device(device)
    if device.type == "cpu":
        return host_memory()
    free, total = torch.get_device_module(device).mem_get_info(device)
    return DeviceMemory(str(device), total, free)


def free_memory(device: str | torch.device) -> int:
    """Return the bytes that can still be allocated on a device."""
    return device_memory(device).free


def peak_memory() -> int:
    """Return the largest number of bytes that this process has held on the accelerator; 0 if it
    uses none."""
    module = accelerator_module()
    return int(module.max_memory_reserved()) if module and module.is_initialized() else 0


def unusable_reason() -> str:
    """Return the reason of torch for finding no GPU, such as a driver that is too old; empty if it
    finds one."""
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return str(error).strip().split("\n")[0].rstrip(".")[:MAX_REASON]
    return ""


def card_report() -> CardReport:
    """Describe the accelerators of this machine."""
    cards, module = list[Card](), accelerator_module()
    for device in accelerators():
        properties = module.get_device_properties(device)
        cards.append(
            Card(
                device=device,
                name=properties.name,
                uuid=str(getattr(properties, "uuid", "")),
                total_bytes=properties.total_memory,
            )
        )
    return CardReport(cards=tuple(cards), reason="" if cards else unusable_reason())


def synchronize(device: torch.device) -> None:
    """Wait for the queued work of a device, so that a clock measures it. The CPU has no queue."""
    if device.type != "cpu":
        torch.get_device_module(device).synchronize()


def use_device(device: str) -> None:
    """Make an accelerator the current one of this thread, for calls that name no device."""
    if not device.startswith("cpu"):
        torch.get_device_module(device).set_device(device)


def device_name(device: str) -> str:
    """Return the product name of an accelerator, or "cpu"."""
    if device == "cpu":
        return device
    return str(torch.get_device_module(device).get_device_name(device))


if __name__ == "__main__":
    print(card_report().model_dump_json())

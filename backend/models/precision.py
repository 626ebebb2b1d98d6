"""Choose the precision of forward passes for a device."""

from __future__ import annotations

import torch


def resolve_dtype(precision: str, device: torch.device) -> str:
    """`precision`, or for "auto" the fastest one on `device`: "bfloat16" or "float32"."""
    if precision != "auto":
        return precision
    return "bfloat16" if computes_bfloat16(device) else "float32"


def computes_bfloat16(device: torch.device) -> bool:
    """Whether the device computes bfloat16 in hardware, faster than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return any(capabilities.get(unit) for unit in ("avx512_bf16", "amx_bf16", "bf16"))  # bf16: ARM

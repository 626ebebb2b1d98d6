"""Stand-in accelerator: a PyTorch device that computes on the CPU and is as strict as a GPU.

Tensors on it refuse what CUDA tensors refuse: an operation with a tensor on the CPU, `.numpy()`,
and a pointer that native code can read. Copies between devices are counted. It cannot show kernels,
memory, speed, or code that asks for a device of type "cuda".

PyTorch's support for back ends written in Python provides device, guard and hooks
(`torch.utils.backend_registration`, experimental). `install` cannot be undone: call it in a process
that ends with the test.
"""

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.utils import backend_registration
from torch.utils._pytree import tree_map_only

NAME = "sim"
UNREADABLE = 1 << 62  # bit that makes an address invalid for the CPU
MEMORY_BYTES = 24 * 2**30  # of a common card
# Operations that take tensors of two devices on CUDA, too.
TRANSFERS = frozenset({"_to_copy", "copy_", "_local_scalar_dense", "lift_fresh", "_copy_from"})
COPIES = frozenset({"_to_copy", "copy_"})
INDEXING = frozenset({"index", "index_put", "index_put_", "_index_put_impl_"})
RESIZING_FACTORIES = (
    "eye",
    "eye.m",
    "arange",
    "arange.start",
    "arange.start_step",
    "linspace",
    "randperm",
    "randperm.generator",
)
LOWER_PRECISION = ("linear", "matmul", "mm", "bmm", "addmm", "scaled_dot_product_attention")

calls: Counter[str] = Counter()  # operation -> calls on the device
copies: Counter[str] = Counter()  # "to host" or "to device" -> copies


class SimTensor(Tensor):
    """Tensor on the stand-in accelerator; `host` holds its values on the CPU."""

    host: Tensor

    @staticmethod
    def __new__(cls, host: Tensor) -> "SimTensor":
        if torch.is_inference_mode_enabled():
            with torch.inference_mode(False):  # views of wrappers cannot be inference tensors
                return cls(host)
        tensor = Tensor._make_wrapper_subclass(
            cls,
            host.size(),
            strides=host.stride(),
            storage_offset=host.storage_offset(),
            dtype=host.dtype,
            layout=host.layout,
            device=_device(),
            requires_grad=False,
        )
        tensor.host = host_of(host)
        return tensor

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(
        cls,
        operation: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        return compute(operation, args, kwargs or {})

    @property
    def data(self) -> Tensor:  # type: ignore[override]
        return self.detach()

    @data.setter
    def data(self, value: Tensor) -> None:
        Tensor.data.__set__(self, value)  # type: ignore[attr-defined]
        self.host = host_of(value)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        copied: Tensor = SimTensor(self.host.detach().clone())
        if isinstance(self, nn.Parameter):
            copied = nn.Parameter(copied)
        memo[id(self)] = copied.requires_grad_(self.requires_grad)
        return copied

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError(f"can't convert {NAME}:0 device type tensor to numpy.")

    def data_ptr(self) -> int:
        """Return an address that identifies the tensor and that native code cannot read."""
        return self.host.data_ptr() | UNREADABLE if self.numel() else 0

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.host.untyped_storage()  # libraries ask it for its identity and size

    def tolist(self) -> Any:
        copies["to host"] += 1
        return self.host.tolist()

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"SimTensor({self.host!r})"


@cache
def _device() -> torch.device:
    return torch.device(NAME, 0)


def host_of(tensor: Tensor) -> Tensor:
    return tensor.host if isinstance(tensor, SimTensor) else tensor


def is_sim(device: Any) -> bool:
    return device is not None and torch.device(device).type == NAME


def compute(operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Compute an operation on the host values, and return results on the device that CUDA would
    put them on. Raises RuntimeError where CUDA would."""
    name, tensors = operation.overloadpacket.__name__, list[Tensor]()
    host_args = [_on_host(value, tensors) for value in args]
    on_host = {key: _on_host(value, tensors) for key, value in kwargs.items()}
    sims = [tensor for tensor in tensors if isinstance(tensor, SimTensor)]
    if len(sims) < len(tensors) and sims and name not in TRANSFERS:
        _check_devices(name, args, tensors)
    if on_host:
        on_host.pop("pin_memory", None)
        if is_sim(on_host.get("device")):
            on_host["device"] = torch.device("cpu")
    result = operation(*host_args, **on_host)
    calls[name] += 1
    if name == "_local_scalar_dense":
        copies["to host"] += 1
        return result
    is_on_device = bool(sims)
    if kwargs.get("device") is not None:
        is_on_device = is_sim(kwargs["device"])
    elif name == "copy_":
        is_on_device = isinstance(args[0], SimTensor)
    if name in COPIES and (bool(sims) != is_on_device or len(sims) != len(tensors)):
        copies["to device" if is_on_device else "to host"] += 1
    return _wrapped(result, sims) if is_on_device else result


def _on_host(value: Any, tensors: list[Tensor]) -> Any:
    """Return an argument with host values. `tensors` receives its tensors."""
    if isinstance(value, Tensor):
        tensors.append(value)
        return value.host if isinstance(value, SimTensor) else value
    if isinstance(value, list | tuple):
        return type(value)([_on_host(item, tensors) for item in value])
    return value


def _wrapped(value: Any, sims: Sequence[SimTensor]) -> Any:
    """Return a result on the device; `sims` are the arguments, which may be the result."""
    if isinstance(value, Tensor):
        for sim in sims:
            if sim.host is value:
                return sim
        return SimTensor(value)
    if isinstance(value, list | tuple):
        return type(value)([_wrapped(item, sims) for item in value])
    return value


def _check_devices(name: str, args: tuple[Any, ...], tensors: Sequence[Tensor]) -> None:
    """Check an operation on tensors of both devices."""
    if name in INDEXING:
        if not isinstance(args[0], SimTensor):
            raise RuntimeError(f"Indices on {NAME}:0 for a tensor on the CPU ({name}).")
        tensors = [value for value in args[2:3] if isinstance(value, Tensor)]
    # a number as a tensor is allowed next to tensors on a GPU
    if any(tensor.dim() and not isinstance(tensor, SimTensor) for tensor in tensors):
        raise RuntimeError(
            "Expected all tensors to be on the same device, but found at least two devices, "
            f"{NAME}:0 and cpu! ({name})"
        )


class SimModule(backend_registration._DummyBackendModule):
    """The functions that PyTorch and libraries look up in the module of a device."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    def is_bf16_supported(self, including_emulation: bool = True) -> bool:
        return True

    def synchronize(self, *_: Any) -> None: ...

    def empty_cache(self) -> None: ...

    def set_device(self, *_: Any) -> None: ...

    def mem_get_info(self, *_: Any) -> tuple[int, int]:
        return MEMORY_BYTES, MEMORY_BYTES

    def reset_peak_memory_stats(self, *_: Any) -> None: ...

    def max_memory_reserved(self, *_: Any) -> int:
        return 0

    def get_device_name(self, *_: Any) -> str:
        return "Stand-in accelerator"


_operations: list[torch.library.Library] = []  # a library ends with its object


def install() -> torch.device:
    """Add the device to this process, and teach safetensors to read from and write to it."""
    device_module: Any = SimModule()
    backend_registration._setup_privateuseone_for_python_backend(NAME, device_module)
    library = torch.library.Library("aten", "IMPL")
    library.impl("empty_strided", _empty_strided, "PrivateUse1")
    library.impl("empty.memory_format", _empty, "PrivateUse1")
    library.impl("_copy_from", _copy_from, "PrivateUse1")
    for factory in RESIZING_FACTORIES:
        library.impl(factory, _on_host_first(factory), "PrivateUse1")
    autocast = torch.library.Library("_", "IMPL")
    autocast.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    for name in LOWER_PRECISION:
        library.impl(name, _in_autocast_dtype(name), "AutocastPrivateUse1")
    _operations.extend([library, autocast])
    _teach_safetensors()
    return torch.device(NAME, 0)


def _in_autocast_dtype(name: str) -> Callable[..., Tensor]:
    """Return an implementation that casts floating-point tensors to the dtype of autocast first."""
    key_set = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)

    def cast(value: Tensor) -> Tensor:
        return value.to(torch.get_autocast_dtype(NAME)) if value.is_floating_point() else value

    def call(*args: Any, **kwargs: Any) -> Tensor:
        with torch._C._ExcludeDispatchKeyGuard(key_set):
            args, kwargs = tree_map_only(Tensor, cast, (args, kwargs))
            result: Tensor = getattr(torch.ops.aten, name)(*args, **kwargs)
            return result

    return call


def _on_host_first(factory: str) -> Callable[..., SimTensor]:
    """Return an implementation that calls `factory` on the CPU. PyTorch's own creates an empty
    tensor and resizes it, which a wrapper cannot follow."""
    name, _, overload = factory.partition(".")
    operation = getattr(getattr(torch.ops.aten, name), overload or "default")

    def create(*args: Any, device: Any = None, pin_memory: Any = None, **kwargs: Any) -> SimTensor:
        return SimTensor(operation(*args, device=torch.device("cpu"), **kwargs))

    return create


def _empty_strided(size: Any, stride: Any, dtype: Any = None, **_: Any) -> SimTensor:
    return SimTensor(torch.empty_strided(size, stride, dtype=dtype, device="cpu"))


def _empty(size: Any, dtype: Any = None, **_: Any) -> SimTensor:
    return SimTensor(torch.empty(size, dtype=dtype, device="cpu"))


def _copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    copies["to device" if isinstance(target, SimTensor) else "to host"] += 1
    host_of(target).copy_(host_of(source))
    return target


def _teach_safetensors() -> None:
    """Let files be written from and read to the device, as safetensors does for CUDA."""
    module: Any = safetensors.torch
    flatten, open_file = module._flatten_as_ptr, safetensors.safe_open

    def flattened(tensors: dict[str, Tensor], buffer: list[Any]) -> Any:
        return flatten({name: host_of(tensor) for name, tensor in tensors.items()}, buffer)

    def opened(path: Any, framework: str, device: Any = "cpu", **kwargs: Any) -> Any:
        if not is_sim(device):
            return open_file(path, framework, device=device, **kwargs)
        return _SimFile(open_file(path, framework, **kwargs), torch.device(device))

    module._flatten_as_ptr = flattened
    for loaded in [*sys.modules.values()]:  # modules that have imported it by name
        if getattr(loaded, "safe_open", None) is open_file:
            loaded.safe_open = opened  # type: ignore[attr-defined]


class _SimFile:
    """A safetensors file whose tensors are put on the device."""

    def __init__(self, file: Any, device: torch.device) -> None:
        self._file, self._device = file, device

    def __enter__(self) -> "_SimFile":
        self._file.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._file.__exit__(*error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def get_tensor(self, name: str) -> Tensor:
        tensor: Tensor = self._file.get_tensor(name).to(self._device)
        return tensor

    def get_tensors(self) -> dict[str, Tensor]:
        return {name: self.get_tensor(name) for name in self._file.keys()}  # noqa: SIM118

"""The C structures of `cpp/matrix.h` and `cpp/decoder.cpp`, field by field, and the functions that
take them; shapes are there."""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import (
    CDLL,
    POINTER,
    Structure,
    c_char_p,
    c_float,
    c_int32,
    c_int64,
    c_void_p,
    sizeof,
)  # fmt: skip
from typing import Any


class Matrix(Structure):
    _fields_ = (
        *((name, c_int32) for name in ("format", "outputs", "inputs", "group")),
        *((name, c_void_p) for name in ("weights", "masks", "starts")),
        *((name, c_void_p) for name in ("scales", "offsets", "bias")),
    )


class Layer(Structure):
    _fields_ = (
        *((name, Matrix) for name in ("qkv", "out", "gate", "up", "down")),
        *((name, c_void_p) for name in ("attention_norm", "mlp_norm", "query_norm", "key_norm")),
    )


class Model(Structure):
    _fields_ = (
        *((name, c_int32) for name in ("layers", "width", "heads", "kv_heads", "head", "inner")),
        ("epsilon", c_float),
        ("embedding", c_void_p),
        ("layer", POINTER(Layer)),
        ("final_norm", c_void_p),
        ("read_out", Matrix),
        ("cosines", c_void_p),
        ("sines", c_void_p),
    )


class Cache(Structure):
    _fields_ = (
        ("capacity", c_int32), ("length", c_int32), ("keys", c_void_p), ("values", c_void_p),
    )  # fmt: skip


class Pass(Structure):
    _fields_ = (
        *((name, c_int32) for name in ("tokens", "read_out", "threads", "sequences")),
        ("caches", POINTER(POINTER(Cache))),
        *((name, c_void_p) for name in ("ids", "inputs", "positions", "visible")),
        ("hidden", c_void_p), ("logits", c_void_p),
    )  # fmt: skip


PACKS = (c_void_p, c_void_p, c_int32, c_int32)
FUNCTIONS: dict[str, tuple[Any, Sequence[Any]]] = {  # name -> what it returns, what it takes
    "instructions": (c_char_p, ()),
    "supports": (c_int32, (c_int32,)),
    "size_of": (c_int32, (c_int32,)),
    "pack_bf16": (None, PACKS),
    "pack_int8": (None, PACKS),
    "pack_int4": (None, PACKS),
    "pack_int4_2_4": (c_int32, PACKS),
    "leave_out_zeros": (c_int64, (*(c_void_p,) * 4, c_int32, c_int32)),
    "forward": (c_int32, (POINTER(Model), POINTER(Pass))),
    "linear": (c_int32, (POINTER(Matrix), c_void_p, c_void_p, c_int32, c_int32)),
    "top_k": (None, (c_void_p, *(c_int32,) * 3, *(c_void_p,) * 3)),
    "keep": (None, (POINTER(Model), POINTER(Cache), c_int32, POINTER(c_int32), c_int32)),
}
NOT_EVERYWHERE = "leave_out_zeros"  # a function for some processors only


def declare(library: CDLL) -> CDLL:
    """The library, whose functions check the types of what they are called with.

    Raises:
        OSError: its structures have other sizes: it would read and write somewhere else.
    """
    for name, (result, arguments) in FUNCTIONS.items():
        if name != NOT_EVERYWHERE or hasattr(library, name):
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
    for place, structure in enumerate((Matrix, Layer, Model, Cache, Pass)):
        if (found := library.size_of(place)) != sizeof(structure):
            what = f"{structure.__name__} has {found} bytes in the library"
            raise OSError(f"{what}, and {sizeof(structure)} here")
    return library

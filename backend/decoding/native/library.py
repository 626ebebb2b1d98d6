"""The C structures and functions of `cpp/` (shapes are there)."""

from collections.abc import Sequence
from ctypes import CDLL, POINTER, Structure, c_char_p, c_float, c_int32, c_int64, c_void_p, sizeof
from functools import lru_cache
from pathlib import Path
from typing import Any

from backend.compiler import NATIVE, load

SOURCES = Path(__file__).with_name("cpp")


def _fields(names: str, kind: Any = c_void_p) -> tuple[tuple[str, Any], ...]:
    return tuple((name, kind) for name in names.split())


ROTARIES = 2  # kinds of layers that rotate in ways of their own
BLOCK = 16  # tokens of a block of a cache


class Matrix(Structure):
    _fields_ = (
        *_fields("format outputs inputs group", c_int32),
        *_fields("weights masks starts scales zeros bias"),
    )


class Layer(Structure):
    _fields_ = (
        *_fields("qkv out gate up down", Matrix),
        *_fields("attention_norm mlp_norm query_norm key_norm attention_out_norm mlp_out_norm"),
        *_fields("window rotary", c_int32),
    )


class Model(Structure):
    _fields_ = (
        *_fields("layers width heads kv_heads head inner rotated activation", c_int32),
        *_fields("epsilon embedding_scale", c_float),
        *_fields("attention_scale attention_cap logit_scale logit_cap", c_float),
        ("embedding", c_void_p),
        ("layer", POINTER(Layer)),
        ("final_norm", c_void_p),
        ("read_out", Matrix),
        *_fields("cosines sines", c_void_p * ROTARIES),
    )


class Cache(Structure):
    _fields_ = (*_fields("capacity length", c_int32), ("blocks", c_void_p))


class Pass(Structure):
    _fields_ = (
        *_fields("tokens read_out threads sequences", c_int32),
        ("caches", POINTER(POINTER(Cache))),
        *_fields("starts ids inputs positions visible rows hidden logits"),
    )


PACKS = (c_void_p, c_void_p, c_int32, c_int32)
FUNCTIONS: dict[str, tuple[Any, Sequence[Any]]] = {  # name -> what it returns, what it takes
    "slimscope_instructions": (c_char_p, ()),
    "slimscope_acquire_threads": (None, ()),
    "slimscope_release_threads": (None, ()),
    "slimscope_supports": (c_int32, (c_int32,)),
    "slimscope_size_of": (c_int32, (c_int32,)),
    "slimscope_pack_bf16": (None, PACKS),
    "slimscope_pack_codes": (None, (*PACKS, c_int32)),
    "slimscope_pack_int4_2_4": (c_int32, PACKS),
    "slimscope_leave_out_zeros": (c_int64, (*(c_void_p,) * 4, c_int32, c_int32)),
    "slimscope_forward": (c_int32, (POINTER(Model), POINTER(Pass))),
    "slimscope_linear": (c_int32, (POINTER(Matrix), c_void_p, c_void_p, c_int32, c_int32)),
    "slimscope_top_k": (None, (c_void_p, *(c_int32,) * 3, *(c_void_p,) * 3)),
    "slimscope_keep": (None, (POINTER(Model), POINTER(Cache), c_int32, POINTER(c_int32), c_int32)),
}
NOT_EVERYWHERE = "slimscope_leave_out_zeros"  # a function for some processors only


def declare(library: CDLL) -> CDLL:
    """The library, whose functions then check the types of their arguments. Raises OSError: its
    structures or blocks have other sizes: it would read and write elsewhere."""
    for name, (result, arguments) in FUNCTIONS.items():
        if name != NOT_EVERYWHERE or hasattr(library, name):
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
    sizes = {x.__name__: sizeof(x) for x in (Matrix, Layer, Model, Cache, Pass)} | {"block": BLOCK}
    for place, (name, size) in enumerate(sizes.items()):
        if (found := library.slimscope_size_of(place)) != size:
            raise OSError(f"the size of a {name} is {found} in the library, and {size} here")
    return library


@lru_cache
def library(target: tuple[str, ...] = NATIVE) -> CDLL:
    """The decoder, loaded into this process; built first if it has not been. Raises CompilerError:
    it is turned off, there is no compiler, or it fails."""
    return load(SOURCES / "decoder.cpp", declare, target)


def instructions(target: tuple[str, ...] = NATIVE) -> str:
    """The instructions the decoder was built for, such as AVX2; see `library`."""
    return str(library(target).slimscope_instructions().decode())

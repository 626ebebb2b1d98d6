"""The C structures of `cpp/matrix.h` and `cpp/decoder.cpp`, field by field; shapes are there."""

from __future__ import annotations

from ctypes import POINTER, Structure, c_float, c_int32, c_void_p


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

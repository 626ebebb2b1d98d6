"""The stream of bits, against the unpacker of compressed-tensors."""

from __future__ import annotations

import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32
from hypothesis import given
from hypothesis import strategies as st

from backend.export.bit_packing import pack, unpack, words_for


@given(st.integers(2, 8), st.integers(1, 9), st.integers(1, 130), st.integers(0, 10**6))
def test_what_was_packed_is_read_again(bits: int, rows: int, columns: int, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 2**bits, (rows, columns), generator=random, dtype=torch.uint8)
    words = pack(codes, bits)
    assert words.dtype == torch.int32 and words.shape == (rows, words_for(columns, bits))
    assert torch.equal(unpack(words, bits, columns), codes)


@given(st.integers(2, 8), st.integers(1, 9), st.integers(1, 130), st.integers(0, 10**6))
def test_another_library_reads_the_same(bits: int, rows: int, columns: int, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 2**bits, (rows, columns), generator=random, dtype=torch.uint8)
    signed = (codes.int() - 2 ** (bits - 1)).to(torch.int8)
    assert torch.equal(unpack_from_int32(pack(codes, bits), bits, signed.shape), signed)
    assert torch.equal(pack_to_int32(signed, bits), pack(codes, bits))

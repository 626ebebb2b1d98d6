"""Pack n-bit codes into 32-bit words without gaps, lowest bits first.

32 codes take exactly n words, for every n. compressed-tensors packs weights along rows, GPTQ along
columns; 3-bit codes take 3 bits in both.
"""

import math

import torch
from torch import Tensor

WORD = 32
MASK = 2**WORD - 1


def words_for(count: int, bits: int) -> int:
    """Number of words for `count` codes."""
    return math.ceil(count * bits / WORD)


def check_shape(name: str, tensor: Tensor, expected: tuple[int, ...]) -> None:
    """Raise `ValueError` unless a tensor of packed codes has this shape."""
    if tuple(tensor.shape) != expected:
        raise ValueError(f"its {name} is {list(tensor.shape)}, not {list(expected)}")


def pack(codes: Tensor, bits: int) -> Tensor:
    """uint8 [rows, columns] in 0 .. 2^bits - 1 -> int32 [rows, ceil(columns * bits / 32)]."""
    rows, columns = codes.shape
    padded = torch.nn.functional.pad(codes, (0, -columns % WORD)).contiguous()
    runs = padded.view(rows, -1, WORD).long()  # each becomes `bits` words
    words = runs.new_zeros(rows, runs.shape[1], bits)
    for i in range(WORD):
        word, shift = divmod(i * bits, WORD)
        words[..., word] |= (runs[..., i] << shift) & MASK
        if shift + bits > WORD:
            words[..., word + 1] |= runs[..., i] >> (WORD - shift)
    words = torch.where(words > MASK >> 1, words - 2**WORD, words)
    return words.int().view(rows, -1)[:, : words_for(columns, bits)].contiguous()


def unpack(words: Tensor, bits: int, columns: int) -> Tensor:
    """int32 [rows, ceil(columns * bits / 32)] -> uint8 [rows, columns]."""
    rows, top = len(words), 2**bits - 1
    padded = torch.nn.functional.pad(words, (0, -words.shape[1] % bits)).contiguous()
    runs = padded.view(rows, -1, bits).long() & MASK
    codes = torch.empty(rows, runs.shape[1], WORD, dtype=torch.uint8, device=words.device)
    for i in range(WORD):
        word, shift = divmod(i * bits, WORD)
        code = runs[..., word] >> shift
        if shift + bits > WORD:
            code |= runs[..., word + 1] << (WORD - shift)
        codes[..., i] = (code & top).byte()
    return codes.view(rows, -1)[:, :columns].contiguous()

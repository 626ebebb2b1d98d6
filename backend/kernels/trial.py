"""Trial of an instruction set in a child process, which may die of an illegal instruction
(`python -m backend.kernels.trial NAME`). Computes W x = 64 for 5 tokens with weights of 16 and of 8
bits; fails if a result is wrong. Does not load torch."""

import sys
from ctypes import addressof, c_float, c_uint8, c_uint16

from backend.kernels.library import Kernels, Matrix, check, library, tiles_permitted

TOKENS, OUTPUTS, INPUTS = 5, 16, 64
ONE = 0x3F80  # 1 in bfloat16
TOLERANCE = 0.01  # inputs are rounded to 8 bits


def main(name: str) -> int:
    """Return 0 if the products are right, else 1."""
    if name == "amx" and not tiles_permitted():
        return 1
    functions, size = Kernels(library(), name), OUTPUTS * INPUTS
    ones, codes = (c_uint16 * size)(*[ONE] * size), (c_uint8 * size)(*[129] * size)
    halves, packed, scales = type(ones)(), type(codes)(), (c_uint16 * OUTPUTS)(*[ONE] * OUTPUTS)
    functions.pack_bf16(addressof(ones), addressof(halves), OUTPUTS, INPUTS)
    functions.pack_codes(addressof(codes), addressof(packed), OUTPUTS, INPUTS, 8)
    shape = OUTPUTS, INPUTS, INPUTS
    matrices = (
        Matrix(0, *shape, addressof(halves)),
        Matrix(8, *shape, addressof(packed), scales=addressof(scales)),
    )
    x, y = (
        (c_float * (TOKENS * INPUTS))(*[1.0] * (TOKENS * INPUTS)),
        (c_float * (TOKENS * OUTPUTS))(),
    )
    for matrix in matrices:
        check(functions.linear(matrix, addressof(x), addressof(y), TOKENS, 1))
        if any(abs(value - INPUTS) > TOLERANCE for value in y):
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))

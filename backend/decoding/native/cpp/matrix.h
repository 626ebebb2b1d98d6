// Weight matrices in the order in which they are read: blocks of 16 outputs, and within a block a
// few inputs of all 16 outputs side by side.

#pragma once
#include "vectors.h"

namespace {

// Codes are of the format that is the number of their bits.
enum Format : int32_t { BF16 = 0, SPARSE_BF16 = 1, INT4 = 4, INT8 = 8, INT4_2_4 = 24 };
constexpr int LINE = 64;         // bytes of a block that are read at once
constexpr int RUN = 32;          // inputs whose codes lie together
constexpr int QUADS = 8;         // fours of inputs in a run
constexpr int RUN_2_4 = 3 * 64;  // bytes of a run in 2:4

constexpr bool bits_16(Format f) { return f == BF16 || f == SPARSE_BF16; }

// Codes lie in planes of 8, 4, 2 or 1 of their bits, so that they are put together from few parts:
// 3 bits in planes of 2 and 1, 5 of 4 and 1, 6 of 4 and 2. The low bits are in the first plane. Of
// p bits it has p lines for a run, and a byte 8 / p codes, of inputs that lie 4 apart: those of
// quad j, which are inputs 4 j to 4 j + 3 of the 16 outputs, are in one line at one shift.
constexpr int low_plane(int bits) { return bits == 8 ? 8 : bits >= 4 ? 4 : 2; }
constexpr int line_of(int plane, int quad) { return quad / (8 / plane); }
constexpr int shift_of(int plane, int quad) { return quad % (8 / plane) * plane; }

// The second plane of 3 bits has the third bits of quads j and j + 2 four bits apart, as the first
// has their low ones, so that a shift and a selection put two codes together.
constexpr int third_bit(int quad) {
  constexpr int FIRST[] = {2, 3, 1, 0};
  return FIRST[quad / 4 * 2 + quad % 2] + quad % 4 / 2 * 4;
}
constexpr int high_shift(int bits, int low, int quad) {
  return bits == 3 ? third_bit(quad) : shift_of(bits - low, quad);
}

}  // namespace

extern "C" {

// y = W x + bias, W [outputs, inputs]; outputs are padded to a multiple of 16. A quantized weight
// is scale (code - zero), with one scale and zero-point for `group` inputs of an output.
//
// SPARSE_BF16 has a bit for every weight, in the order of BF16, and the weights that are not 0, one
// behind the other. INT4_2_4 has the codes of two of every four inputs, and their places among the
// four; the codes of the others are 8, which is their zero-point.
struct Matrix {
  int32_t format, outputs, inputs, group;
  const void* weights;    // BF16: [outputs/16][inputs/2][16][2]
                          // codes: [outputs/16][inputs/32][bits][16][4], see `low_plane`
                          // INT4_2_4: [outputs/16][inputs/32] of
                          //   [2][16][4] codes, those of inputs 8 to 15 and 24 to 31 in high halves
                          //   [16][4] places, of inputs 8 i to 8 i + 7 in the bits 2 i and 2 i + 1
  const uint32_t* masks;  // [outputs/16][inputs/2], of SPARSE_BF16; else null
  const int64_t* starts;  // [outputs/16], of SPARSE_BF16: the byte at which a block begins
  const bf16* scales;     // [outputs/16][inputs/group][16]
  const bf16* zeros;      // the same, less 2^(bits - 1), or null if all are that
  const float* bias;      // [outputs], or null
};
}

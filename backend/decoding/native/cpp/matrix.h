// Weight matrices in the order in which they are read: blocks of 16 outputs, and within a block a
// few inputs of all 16 outputs side by side.

#pragma once
#include "vectors.h"

namespace {

enum Format : int32_t { BF16 = 0, INT8 = 1, INT4 = 2, SPARSE_BF16 = 3, INT4_2_4 = 4 };
constexpr int LINE = 64;     // bytes of a block that are read at once
constexpr int RUN = 3 * 64;  // bytes of 32 inputs of a block in 2:4

constexpr bool bits_16(Format f) { return f == BF16 || f == SPARSE_BF16; }

}  // namespace

extern "C" {

// y = W x + bias, W [outputs, inputs]; outputs are padded to a multiple of 16. A quantised weight
// is scale (code - middle) + offset, with one scale and offset for `group` inputs of an output, and
// middle 128 or 8.
//
// SPARSE_BF16 has a bit for every weight, in the order of BF16, and the weights that are not 0, one
// behind the other. INT4_2_4 has the codes of two of every four inputs, and their places among the
// four; the codes of the others are 8, and all offsets 0.
struct Matrix {
  int32_t format, outputs, inputs, group;
  const void* weights;  // BF16: [outputs/16][inputs/2][16][2]; INT8: [outputs/16][inputs/4][16][4];
                        // INT4: [outputs/16][inputs/8][16][4], inputs k and k + 4 in one byte
                        // INT4_2_4: [outputs/16][inputs/32] of
                        //   [2][16][4] codes, those of inputs 8 to 15 and 24 to 31 in high halves
                        //   [16][4] places, of inputs 8 i to 8 i + 7 in the bits 2 i and 2 i + 1
  const uint32_t* masks;  // [outputs/16][inputs/2], of SPARSE_BF16; else null
  const int64_t* starts;  // [outputs/16], of SPARSE_BF16: the byte at which a block begins
  const bf16* scales;     // [outputs/16][inputs/group][16]
  const bf16* offsets;    // the same, or null if all are 0
  const float* bias;      // [outputs], or null
};
}

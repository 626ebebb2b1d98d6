// Packed layouts of weight matrices, in the order in which the kernels read them: blocks of 16
// outputs, and within a block a few adjacent inputs of all 16 outputs. Weights are packed when a
// model is loaded.

#pragma once
#include "vectors.h"

namespace {

// Formats of weights. The value of a code format is its number of bits.
enum Format : int32_t { BF16 = 0, SPARSE_BF16 = 1, INT4 = 4, INT8 = 8, INT4_2_4 = 24 };
constexpr int LINE = 64;         // bytes of a line, the unit of reads
constexpr int RUN = 32;          // inputs per run, the unit of packed codes
constexpr int QUADS = 8;         // quads (four inputs) per run
constexpr int RUN_2_4 = 3 * 64;  // bytes of a run in INT4_2_4

constexpr bool bits_16(Format f) { return f == BF16 || f == SPARSE_BF16; }

// Bytes of a block of 16 outputs. Blocks of SPARSE_BF16 differ in size.
constexpr size_t block_bytes(Format f, int inputs) {
  return (size_t)inputs / 2 * (f == BF16 ? 16 : f == INT4_2_4 ? 3 : f) * LINE / 16;
}

// Codes are split into bit planes of 8, 4, 2 or 1 bits: 3 bits into planes of 2 and 1, 5 bits into
// 4 and 1, 6 bits into 4 and 2. The first plane holds the low bits. A plane of p bits takes p lines
// per run. A byte of it holds 8 / p codes of inputs with a stride of 4, so that the codes of quad j
// (inputs 4 j to 4 j + 3 of the 16 outputs) are in one line at one shift.
constexpr int low_plane(int bits) { return bits == 8 ? 8 : bits >= 4 ? 4 : 2; }
constexpr int line_of(int plane, int quad) { return quad / (8 / plane); }
constexpr int shift_of(int plane, int quad) { return quad % (8 / plane) * plane; }

// The second plane of 3-bit codes stores the third bits of quads j and j + 2 four bits apart, as
// the first plane stores their low bits, so that one shift and one select assemble two codes.
constexpr int third_bit(int quad) {
  constexpr int FIRST[] = {2, 3, 1, 0};
  return FIRST[quad / 4 * 2 + quad % 2] + quad % 4 / 2 * 4;
}
constexpr int high_shift(int bits, int low, int quad) {
  return bits == 3 ? third_bit(quad) : shift_of(bits - low, quad);
}

// Packs W [outputs, inputs] in bfloat16 into the layout of `Matrix::weights`. Rows past `outputs`
// are padded with zeros.
void pack_bf16(const bf16* from, bf16* to, int32_t outputs, int32_t inputs) {
  for (size_t first = 0; first < (size_t)outputs; first += LANES)
    for (size_t k = 0; k < (size_t)inputs; k += 2)
      for (size_t n = first; n < first + LANES; n++)
        for (size_t odd = 0; odd < 2; odd++)
          *to++ = n < (size_t)outputs ? from[n * inputs + k + odd] : 0;
}

// Packs codes 0 to 2^bits - 1 [outputs, inputs] into the layout of `Matrix::weights`.
void pack_codes(const uint8_t* from, uint8_t* to, int32_t outputs, int32_t inputs, int32_t bits) {
  const int low = low_plane(bits), high = bits - low;
  for (size_t first = 0; first < (size_t)outputs; first += LANES)
    for (size_t k = 0; k < (size_t)inputs; k += RUN, to += bits * LINE) {
      std::memset(to, 0, bits * LINE);
      for (int place = 0; place < LANES * RUN; place++) {
        const int n = place / RUN, i = place % RUN, quad = i / 4, byte = n * 4 + i % 4;
        const int code = from[(first + n) * inputs + k + i];
        to[line_of(low, quad) * LINE + byte] |= (code & ((1 << low) - 1)) << shift_of(low, quad);
        if (high)
          to[(low + line_of(high, quad)) * LINE + byte] |=
              code >> low << high_shift(bits, low, quad);
      }
    }
}

#if HAVE_BF16
// Converts a matrix packed by `pack_bf16` to SPARSE_BF16: writes the masks, the byte offsets of the
// blocks and the nonzero weights. Returns the bytes of the weights. `to` needs room for all weights
// and one line.
int64_t leave_out_zeros(const uint16_t* from, uint32_t* masks, int64_t* starts, uint16_t* to,
                        int32_t outputs, int32_t inputs) {
  const uint16_t* begin = to;
  const __m512i magnitude =
      _mm512_set1_epi16(0x7fff);  // ignores the sign, so that -0 counts as zero
  for (int block = 0; block < outputs / LANES; block++) {
    *starts++ = (to - begin) * 2;
    for (int line = 0; line < inputs / 2; line++, from += 32) {
      const __m512i all = _mm512_loadu_si512(from);
      const uint32_t mask = _mm512_test_epi16_mask(all, magnitude);
      _mm512_storeu_si512(to, _mm512_maskz_compress_epi16(mask, all));
      *masks++ = mask, to += __builtin_popcount(mask);
    }
  }
  return (to - begin) * 2;
}
#else
constexpr auto leave_out_zeros = nullptr;
#endif

// Packs codes 0 to 15 [outputs, inputs] into the layout of INT4_2_4. Returns 1, or 0 if the matrix
// is not 2:4, that is, if more than two of any four codes differ from 8.
int32_t pack_2_4(const uint8_t* from, uint8_t* to, int32_t outputs, int32_t inputs) {
  for (size_t first = 0; first < (size_t)outputs; first += LANES)
    for (size_t k = 0; k < (size_t)inputs; k += RUN, to += RUN_2_4) {
      std::memset(to, 0, RUN_2_4);
      for (int four = 0; four < LANES * 8; four++) {  // eight fours per output and run
        const int n = four / 8, line = four % 8 / 2, slot = four % 2 * 2;
        const uint8_t* codes = from + (first + n) * inputs + k + four % 8 * 4;
        int places[4], kept = 0;
        for (int i = 0; i < 4; i++)
          if (codes[i] != 8) places[kept++] = i;
        if (kept > 2) return 0;
        for (int i = 0; kept < 2; i++)  // fill up with codes of 8, which add nothing
          if (codes[i] == 8) places[kept++] = i;
        for (int i = 0; i < 2; i++) {
          const int byte = n * 4 + slot + i;
          to[line / 2 * LINE + byte] |= codes[places[i]] << (line % 2 * 4);
          to[2 * LINE + byte] |= places[i] << (2 * line);
        }
      }
    }
  return 1;
}

}  // namespace

// Weight matrices in the order in which they are read: blocks of 16 outputs, and within a block a
// few inputs of all 16 outputs side by side. Weights are put into it when a model is loaded.

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

// W [outputs, inputs] as bfloat16 -> the order of `Matrix::weights`, rows beyond `outputs` zero.
void pack_bf16(const bf16* from, bf16* to, int32_t outputs, int32_t inputs) {
  for (size_t first = 0; first < (size_t)outputs; first += LANES)
    for (size_t k = 0; k < (size_t)inputs; k += 2)
      for (size_t n = first; n < first + LANES; n++)
        for (size_t odd = 0; odd < 2; odd++)
          *to++ = n < (size_t)outputs ? from[n * inputs + k + odd] : 0;
}

// Codes 0 to 2^bits - 1 [outputs, inputs] -> the order of `Matrix::weights`.
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

#if HAVE_EXPAND
// A matrix in the order of `pack_bf16` -> its masks, the starts of its blocks, and the bytes of its
// weights, which are returned. `to` has room for all of them and a line.
int64_t leave_out_zeros(const uint16_t* from, uint32_t* masks, int64_t* starts, uint16_t* to,
                        int32_t outputs, int32_t inputs) {
  const uint16_t* begin = to;
  const __m512i magnitude = _mm512_set1_epi16(0x7fff);  // -0 is left out, too
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

// Codes 0 to 15 [outputs, inputs] -> the order of INT4_2_4. Returns 0 as soon as more than two of
// four are not 8: the matrix is not 2:4.
int32_t pack_2_4(const uint8_t* from, uint8_t* to, int32_t outputs, int32_t inputs) {
  for (size_t first = 0; first < (size_t)outputs; first += LANES)
    for (size_t k = 0; k < (size_t)inputs; k += RUN, to += RUN_2_4) {
      std::memset(to, 0, RUN_2_4);
      for (int four = 0; four < LANES * 8; four++) {  // of an output, eight of these
        const int n = four / 8, line = four % 8 / 2, slot = four % 2 * 2;
        const uint8_t* codes = from + (first + n) * inputs + k + four % 8 * 4;
        int places[4], kept = 0;
        for (int i = 0; i < 4; i++)
          if (codes[i] != 8) places[kept++] = i;
        if (kept > 2) return 0;
        for (int i = 0; kept < 2; i++)  // others, of which nothing comes
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

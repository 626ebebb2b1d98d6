// Puts weights into the order of `Matrix`, once, when a model is loaded.

#pragma once
#include "matrix.h"

extern "C" {

// W [outputs, inputs] as bfloat16 -> the order of `Matrix::weights`, rows beyond `outputs` zero.
void slimscope_pack_bf16(const bf16* from, bf16* to, int32_t outputs, int32_t inputs) {
  for (size_t first = 0; first < (size_t)outputs; first += LANES)
    for (size_t k = 0; k < (size_t)inputs; k += 2)
      for (size_t n = first; n < first + LANES; n++)
        for (size_t odd = 0; odd < 2; odd++)
          *to++ = n < (size_t)outputs ? from[n * inputs + k + odd] : 0;
}

// Codes 0 to 2^bits - 1 [outputs, inputs] -> the order of `Matrix::weights`.
void slimscope_pack_codes(const uint8_t* from, uint8_t* to, int32_t outputs, int32_t inputs,
                          int32_t bits) {
  const int low = low_plane(bits), high = bits - low;
  for (size_t first = 0; first < (size_t)outputs; first += LANES)
    for (size_t k = 0; k < (size_t)inputs; k += RUN, to += bits * LINE) {
      std::memset(to, 0, bits * LINE);
      for (int place = 0; place < LANES * RUN; place++) {
        const int n = place / RUN, i = place % RUN, quad = i / 4, byte = n * 4 + i % 4;
        const int code = from[(first + n) * inputs + k + i];
        to[line_of(low, quad) * LINE + byte] |= (code & ((1 << low) - 1)) << shift_of(low, quad);
        if (high)
          to[(low + line_of(high, quad)) * LINE + byte] |= code >> low << shift_of(high, quad);
      }
    }
}

#if HAVE_EXPAND
// A matrix in the order of `pack_bf16` -> its masks, the starts of its blocks, and the bytes of its
// weights, which are returned. `to` has room for all of them and a line.
int64_t slimscope_leave_out_zeros(const uint16_t* from, uint32_t* masks, int64_t* starts,
                                  uint16_t* to, int32_t outputs, int32_t inputs) {
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
#endif

// Codes 0 to 15 [outputs, inputs] -> the order of INT4_2_4. Returns 0 as soon as more than two of
// four are not 8: the matrix is not 2:4.
int32_t slimscope_pack_int4_2_4(const uint8_t* from, uint8_t* to, int32_t outputs, int32_t inputs) {
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
}

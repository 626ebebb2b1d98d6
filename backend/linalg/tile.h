// Products by the instruction for bfloat16, with sums in float32: it takes two terms of a sum in
// one word. The right factor lies in panels: words[panel][pair][WIDE].

#pragma once
#include <cstddef>
#include <cstdint>

constexpr int LANES = 16, ACROSS = 3, DOWN = 8, WIDE = ACROSS * LANES;  // 24 sums in registers

// With AMX, PyTorch's own products are faster.
#if defined(__AVX512BF16__) && !defined(__AMX_BF16__)
#include <immintrin.h>
#define SUPPORTED 1

typedef __m512 Tile[DOWN][ACROSS];

// Adds DOWN rows, whose words lie `by_row` and `by_pair` apart, times a panel.
static inline void multiply(const uint32_t* down, size_t by_row, size_t by_pair,
                            const uint32_t* panel, int pairs, Tile& sums) {
  for (int t = 0; t < pairs; t++, down += by_pair, panel += WIDE) {
    __m512bh right[ACROSS];
    for (int c = 0; c < ACROSS; c++) right[c] = (__m512bh)_mm512_loadu_si512(panel + c * LANES);
    for (int r = 0; r < DOWN; r++) {
      const __m512bh left = (__m512bh)_mm512_set1_epi32(down[r * by_row]);
      for (int c = 0; c < ACROSS; c++) sums[r][c] = _mm512_dpbf16_ps(sums[r][c], left, right[c]);
    }
  }
}

// The lanes of a vector of which `left` entries are left.
static inline __mmask16 lanes(int left) {
  return left >= LANES ? 0xffff : left > 0 ? (__mmask16)((1u << left) - 1) : 0;
}
#else
#define SUPPORTED 0
#endif

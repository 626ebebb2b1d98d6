// H += X^T X of inputs X [tokens, inputs] in bfloat16, on and above the diagonal; see `gram.py`.
//
// Two tokens of an input lie in one word, as the instruction takes them: words[panel][pair][WIDE].
// A panel stays in the cache while all columns before it pass.

#include <algorithm>
#include <cstddef>
#include <cstdint>

constexpr int LANES = 16, ACROSS = 3, DOWN = 8, WIDE = ACROSS * LANES;  // 24 sums in registers

// With AMX, PyTorch's own products are faster.
#if defined(__AVX512BF16__) && !defined(__AMX_BF16__)
#include <immintrin.h>
constexpr int SUPPORTED = 1;

static void tile(const uint32_t* down, const uint32_t* across, int pairs, int width, float* H,
                 size_t stride, int rows) {
  __m512 sums[DOWN][ACROSS] = {};
  for (int t = 0; t < pairs; t++, down += WIDE, across += WIDE) {
    __m512bh right[ACROSS];
    for (int c = 0; c < ACROSS; c++) right[c] = (__m512bh)_mm512_loadu_si512(across + c * LANES);
    for (int r = 0; r < DOWN; r++) {
      const __m512bh left = (__m512bh)_mm512_set1_epi32(down[r]);
      for (int c = 0; c < ACROSS; c++) sums[r][c] = _mm512_dpbf16_ps(sums[r][c], left, right[c]);
    }
  }
  for (int r = 0; r < rows; r++, H += stride)
    for (int c = 0; c < ACROSS; c++) {
      const int left = std::clamp(width - c * LANES, 0, LANES);
      const __mmask16 mask = (__mmask16)((1u << left) - 1);
      float* to = H + c * LANES;
      _mm512_mask_storeu_ps(to, mask, _mm512_add_ps(_mm512_maskz_loadu_ps(mask, to), sums[r][c]));
    }
}
#else
constexpr int SUPPORTED = 0;
static void tile(const uint32_t*, const uint32_t*, int, int, float*, size_t, int) {}
#endif

extern "C" {

int32_t slimscope_gram_panel() { return SUPPORTED ? WIDE : 0; }

// Puts panels `part`, `part` + `parts`, … into words; columns and a token that are missing are 0.
void slimscope_gram_pack(const uint16_t* x, uint32_t* words, int32_t tokens, int32_t inputs,
                         int32_t parts, int32_t part) {
  const int pairs = (tokens + 1) / 2;
  for (int panel = part; panel * WIDE < inputs; panel += parts) {
    uint32_t* to = words + (size_t)panel * pairs * WIDE;
    const int width = std::min(WIDE, inputs - panel * WIDE);
    for (int t = 0; t < pairs; t++, to += WIDE) {
      const uint16_t* one = x + (size_t)2 * t * inputs + panel * WIDE;
      const uint16_t* other = one + inputs;
      const bool both = 2 * t + 1 < tokens;
      for (int i = 0; i < width; i++) to[i] = one[i] | (both ? (uint32_t)other[i] << 16 : 0);
      std::fill(to + width, to + WIDE, 0);
    }
  }
}

// Adds the columns of panels `part`, `part` + `parts`, … to H [inputs, inputs].
void slimscope_gram_add(const uint32_t* words, float* H, int32_t tokens, int32_t inputs,
                        int32_t parts, int32_t part) {
  const int pairs = (tokens + 1) / 2;
  for (int panel = part; panel * WIDE < inputs; panel += parts) {
    const int first = panel * WIDE, end = std::min(first + WIDE, inputs);
    for (int row = 0; row < end; row += DOWN)
      tile(words + (size_t)(row / WIDE) * pairs * WIDE + row % WIDE,
           words + (size_t)panel * pairs * WIDE, pairs, end - first,
           H + (size_t)row * inputs + first, inputs, std::min(DOWN, end - row));
  }
}
}

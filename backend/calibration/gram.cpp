// H += X^T X of inputs X [tokens, inputs] in bfloat16, on and above the diagonal; see `gram.py`.
//
// Two tokens of an input lie in one word (`tile.h`). A panel stays in the cache while all columns
// before it pass.

#include <algorithm>

#include "tile.h"

#if SUPPORTED
static void add(const uint32_t* down, const uint32_t* across, int pairs, int width, float* H,
                size_t stride, int rows) {
  Tile sums = {};
  multiply(down, 1, WIDE, across, pairs, sums);
  for (int r = 0; r < rows; r++, H += stride)
    for (int c = 0; c < ACROSS; c++) {
      const __mmask16 mask = lanes(width - c * LANES);
      float* to = H + c * LANES;
      _mm512_mask_storeu_ps(to, mask, _mm512_add_ps(_mm512_maskz_loadu_ps(mask, to), sums[r][c]));
    }
}
#else
static void add(const uint32_t*, const uint32_t*, int, int, float*, size_t, int) {}
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
      add(words + (size_t)(row / WIDE) * pairs * WIDE + row % WIDE,
          words + (size_t)panel * pairs * WIDE, pairs, end - first,
          H + (size_t)row * inputs + first, inputs, std::min(DOWN, end - row));
  }
}
}

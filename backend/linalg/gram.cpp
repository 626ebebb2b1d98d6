// H += X^T X of inputs X [tokens, inputs] in bfloat16, on and above the diagonal, and the sum of
// the entries of X^T X times those of H; see `gram.py`.
//
// Two tokens of an input lie in one word (`tile.h`). A panel stays in the cache while all columns
// before it pass.

#include <algorithm>

#include "tile.h"

#if SUPPORTED
// Adds a tile of X^T X to rows of H; columns from `width` on are none.
static void add(const Tile& sums, int width, float* H, size_t stride, int rows) {
  for (int r = 0; r < rows; r++, H += stride)
    for (int c = 0; c < ACROSS; c++) {
      const __mmask16 mask = lanes(width - c * LANES);
      float* to = H + c * LANES;
      _mm512_mask_storeu_ps(to, mask, _mm512_add_ps(_mm512_maskz_loadu_ps(mask, to), sums[r][c]));
    }
}

// The sum of a tile of X^T X times H, that of entries before column `diagonal` + r of a row left
// out, of those behind it twice.
static float dot(const Tile& sums, int width, const float* H, size_t stride, int rows,
                 int diagonal) {
  __m512 found = _mm512_setzero_ps();
  for (int r = 0; r < rows; r++, H += stride)
    for (int c = 0; c < ACROSS; c++) {
      const int own = diagonal + r - c * LANES;  // the place of the diagonal
      const __mmask16 inside = lanes(width - c * LANES) & ~lanes(own), behind = ~lanes(own + 1);
      const __m512 h = _mm512_maskz_loadu_ps(inside, H + c * LANES);
      found = _mm512_fmadd_ps(sums[r][c], _mm512_mask_add_ps(h, behind, h, h), found);
    }
  return _mm512_reduce_add_ps(found);
}

// Calls `use` for the tiles of X^T X on and above the diagonal, of panels `part`, `part` + `parts`,
// …: with the tile, its first row and column, and how many of each it has.
template <class Use>
static void each_tile(const uint32_t* words, int tokens, int inputs, int parts, int part, Use use) {
  const int pairs = (tokens + 1) / 2;
  for (int panel = part; panel * WIDE < inputs; panel += parts) {
    const int first = panel * WIDE, end = std::min(first + WIDE, inputs);
    for (int row = 0; row < end; row += DOWN) {
      Tile sums = {};
      multiply(words + (size_t)(row / WIDE) * pairs * WIDE + row % WIDE, 1, WIDE,
               words + (size_t)panel * pairs * WIDE, pairs, sums);
      use(sums, row, first, std::min(DOWN, end - row), end - first);
    }
  }
}
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
#if SUPPORTED
  each_tile(words, tokens, inputs, parts, part,
            [&](const Tile& sums, int row, int column, int rows, int width) {
              add(sums, width, H + (size_t)row * inputs + column, inputs, rows);
            });
#endif
}

// The sum over these panels of X^T X times a symmetric H.
double slimscope_gram_dot(const uint32_t* words, const float* H, int32_t tokens, int32_t inputs,
                          int32_t parts, int32_t part) {
  double found = 0;
#if SUPPORTED
  each_tile(words, tokens, inputs, parts, part,
            [&](const Tile& sums, int row, int column, int rows, int width) {
              const float* from = H + (size_t)row * inputs + column;
              found += dot(sums, width, from, inputs, rows, row - column);
            });
#endif
  return found;
}
}

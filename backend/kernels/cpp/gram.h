// Gram matrices of layer inputs X [tokens, inputs] in bfloat16: the update H += X^T X of the upper
// triangle, and the inner product of X^T X and H.
//
// Both factors of the product are X^T. It is packed in chunks of tokens, so that a panel of columns
// stays in the cache while it is multiplied by all rows up to the diagonal.

#pragma once
#include "threads.h"
#include "tiles.h"

namespace {

constexpr int PANEL = ACROSS * LANES;  // columns of a register tile; a multiple of DOWN

#if HAVE_BF16
// Packed chunk of X in blocks of 16 inputs: words [block][pair of tokens][16].
class PackedTokens {
 public:
  PackedTokens(int tokens, int inputs)
      : inputs_(inputs), blocks_((inputs + PANEL - 1) / PANEL * ACROSS),
        words_((size_t)blocks_ * ((tokens + 1) / 2) * LANES),
        rows_(HAVE_TILES ? words_.size() : 0) {}

  int pairs() const { return pairs_; }
  int blocks() const { return blocks_; }
  void begin(int tokens) { pairs_ = (tokens + 1) / 2; }

  // Packs a block of 16 inputs. Missing inputs and a missing last token are padded with zeros.
  void pack(const bf16* x, int tokens, int block) {
    const int first = block * LANES, width = std::min(LANES, inputs_ - first);
    uint32_t* to = &words_[(size_t)block * pairs_ * LANES];
    for (int t = 0; t < pairs_; t++, to += LANES) {
      const bf16 *one = x + (size_t)2 * t * inputs_ + first, *other = one + inputs_;
      const bool both = 2 * t + 1 < tokens;
      for (int i = 0; i < LANES; i++)
        to[i] = i < width ? one[i] | (both ? (uint32_t)other[i] << 16 : 0) : 0;
      for (int i = 0; HAVE_TILES && i < LANES; i++)  // AMX needs a row-major left factor
        rows_[((size_t)first + i) * pairs_ + t] = to[i];
    }
  }
  Left left(int row) const {
    if (HAVE_TILES) return {(const bf16*)&rows_[(size_t)row * pairs_], (size_t)2 * pairs_, 2};
    const size_t at = (size_t)row / LANES * pairs_ * LANES + row % LANES;
    return {(const bf16*)&words_[at], 2, 2 * LANES};
  }
  const bf16* right(int column) const { return (const bf16*)&words_[(size_t)column * pairs_]; }

 private:
  const int inputs_, blocks_;
  int pairs_ = 0;
  std::vector<uint32_t> words_, rows_;
};

// Calls use(rank, sums, row, column) for the register tiles of X^T X on and above the diagonal.
// Each thread computes every `threads`-th panel of columns.
template <class Use>
int32_t each_gram_tile(const bf16* x, int tokens, int inputs, int threads, Use use) try {
  constexpr int TOKENS = 1024;  // chunk size: a panel of this many tokens stays in the cache
  PackedTokens packed(std::min(tokens, TOKENS), inputs);
  return in_team(threads, [&](int rank, Barrier& barrier) {
    for (int first = 0; first < tokens; first += TOKENS) {
      const int some = std::min(TOKENS, tokens - first);
      wait_for_all(barrier, [&] { packed.begin(some); });
      for (int block = rank; block < packed.blocks(); block += threads)
        packed.pack(x + (size_t)first * inputs, some, block);
      wait_for_all(barrier);
      for (int column = rank * PANEL; column < inputs; column += threads * PANEL)
        for (int row = 0; row < std::min(column + PANEL, inputs); row += DOWN) {
          Sums sums;
          multiply_tile(packed.left(row), packed.right(column), packed.pairs(), sums);
          use(rank, sums, row, column);
        }
    }
  });
} catch (...) {
  return 1;
}

// H += X^T X, on and above the diagonal.
int32_t add_gram(const bf16* x, float* H, int32_t tokens, int32_t inputs, int32_t threads) {
  const auto add = [&](int, const Sums& sums, int row, int column) {
    for (int r = 0; r < std::min(DOWN, inputs - row); r++)
      for (int c = 0; c < ACROSS; c++) {
        const int at = column + c * LANES, width = inputs - at;
        float* to = H + (size_t)(row + r) * inputs + at;
        if (width > 0) store_some(to, load_some(to, width) + sums[r][c], width);
      }
  };
  return each_gram_tile(x, tokens, inputs, threads, add);
}

// Computes sum_ij (X^T X)_ij H_ij for a symmetric H from its upper triangle: entries above the
// diagonal count twice.
int32_t gram_dot(const bf16* x, const float* H, double* total, int32_t tokens, int32_t inputs,
                 int32_t threads) try {
  const Ints lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  std::vector<double> found(threads);
  const auto dot = [&](int rank, const Sums& sums, int row, int column) {
    Floats part = {};
    for (int r = 0; r < std::min(DOWN, inputs - row); r++)
      for (int c = 0; c < ACROSS; c++) {
        const int at = column + c * LANES, width = inputs - at;
        if (width <= 0) continue;
        const Ints behind = lane + at - (row + r);  // column - row
        const Floats h = load_some(H + (size_t)(row + r) * inputs + at, width);
        const Floats counted = select(behind > 0, h + h, select(behind == 0, h, Floats{}));
        part = fused(sums[r][c], counted, part);
      }
    found[rank] += sum(part);
  };
  const int32_t failed = each_gram_tile(x, tokens, inputs, threads, dot);
  *total = 0;
  for (double each : found) *total += each;
  return failed;
} catch (...) {
  return 1;
}
#else  // without AVX512_BF16, PyTorch is as fast
constexpr auto add_gram = nullptr;
constexpr auto gram_dot = nullptr;
#endif

}  // namespace

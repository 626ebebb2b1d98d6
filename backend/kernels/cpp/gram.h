// Gram matrices of layer inputs X [tokens, inputs] in bfloat16: the update H += X^T X of the upper
// triangle.
//
// Both factors of the product are X^T. It is packed in chunks of tokens, so that a panel of columns
// stays in the cache while it is multiplied by all rows up to the diagonal.

#pragma once
#include "threads.h"
#include "tiles.h"

namespace {

constexpr int PANEL = TILE_BLOCKS * LANES;  // columns of a register tile; a multiple of TILE_ROWS

#if HAVE_BF16
// Packed chunk of X in blocks of 16 inputs: words [block][pair of tokens][16].
class PackedTokens {
 public:
  PackedTokens(int tokens, int inputs)
      : inputs_(inputs), blocks_((inputs + PANEL - 1) / PANEL * TILE_BLOCKS),
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
      const bf16 *even = x + (size_t)2 * t * inputs_ + first, *odd = even + inputs_;
      const bool complete = 2 * t + 1 < tokens;
      for (int i = 0; i < LANES; i++)
        to[i] = i < width ? even[i] | (complete ? (uint32_t)odd[i] << 16 : 0) : 0;
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

// H += X^T X, on and above the diagonal. Each thread computes every `threads`-th panel of columns.
int32_t add_gram(const bf16* x, float* H, int32_t tokens, int32_t inputs, int32_t threads) try {
  constexpr int TOKENS = 1024;  // chunk size: a panel of this many tokens stays in the cache
  PackedTokens packed(std::min(tokens, TOKENS), inputs);
  const auto add = [&](const Sums& sums, int row, int column) {
    for (int r = 0; r < std::min(TILE_ROWS, inputs - row); r++)
      for (int at = column, c = 0; c < TILE_BLOCKS && at < inputs; c++, at += LANES) {
        float* to = H + (size_t)(row + r) * inputs + at;
        store_some(to, load_some(to, inputs - at) + sums[r][c], inputs - at);
      }
  };
  return in_team(threads, [&](int rank, Barrier& barrier) {
    for (int first = 0; first < tokens; first += TOKENS) {
      const int count = std::min(TOKENS, tokens - first);
      wait_for_all(barrier, [&] { packed.begin(count); });
      for (int block = rank; block < packed.blocks(); block += threads)
        packed.pack(x + (size_t)first * inputs, count, block);
      wait_for_all(barrier);
      for (int column = rank * PANEL; column < inputs; column += threads * PANEL)
        for (int row = 0; row < std::min(column + PANEL, inputs); row += TILE_ROWS) {
          Sums sums;
          multiply_tile(packed.left(row), packed.right(column), packed.pairs(), sums);
          add(sums, row, column);
        }
    }
  });
} catch (...) {
  return 1;
}
#else  // without AVX512_BF16, PyTorch is as fast
constexpr auto add_gram = nullptr;
#endif

}  // namespace

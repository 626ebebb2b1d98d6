// Register-tiled matrix products of 16-bit inputs with float32 accumulators:
//
//   sums[r][c] = sum_k  left[r][2k] right[c][2k] + left[r][2k + 1] right[c][2k + 1]
//
// r is a row of the left factor, c a block of 16 outputs of the right factor, k a pair of inputs.
// The summation order does not depend on the number of rows and blocks, so results do not either.

#pragma once
#include <algorithm>

#include "packing.h"

namespace {

#if HAVE_BF16
using Entry = bf16;  // element type of the left factor
#else
using Entry = float;
#endif

// Rounds `size` values to bfloat16, the input type of the products.
inline void round_to(const float* from, int size, bf16* to) {
  for (int i = 0; i < size; i += LANES) store(to + i, narrow(load<Floats>(from + i)));
}

#if HAVE_TILES
constexpr int DOWN = 32, ACROSS = 2;  // rows and blocks of a 2 x 2 grid of AMX tiles
#elif defined(__AVX512F__)
constexpr int DOWN = 8, ACROSS = 3;  // 24 accumulators in the 32 registers
#else
constexpr int DOWN = 4, ACROSS = 1;
#endif
using Sums = Floats[DOWN][ACROSS];

// Read streams and prefetch distance, as measured. With AVX512_BF16 but no AMX (AMD EPYC), a single
// stream with a prefetch distance of 8 KiB is fastest; otherwise (Intel Xeon) four streams with a
// distance of `AHEAD` bytes.
constexpr bool MANY_STREAMS = !HAVE_BF16 || HAVE_TILES;
template <int AHEAD> inline void prefetch(const void* from) {
  __builtin_prefetch((const char*)from + (MANY_STREAMS ? AHEAD : 8192));
}

// Reader of the cache lines of a block of 16-bit weights. Lines must be read in order.
template <Format F> struct Lines {
  const char* from;

  void open(const Matrix& m, int block) {
    from = (const char*)m.weights + (size_t)block * m.inputs / 2 * LINE;
  }
  Words read(int line) {
    const char* here = from + (size_t)line * LINE;
    prefetch<1024>(here);
    return load<Words>(here);
  }
};

#if HAVE_EXPAND
template <> class Lines<SPARSE_BF16> {
 public:
  void open(const Matrix& m, int block) {
    from_ = (const char*)m.weights + m.starts[block];
    masks_ = m.masks + (size_t)block * (m.inputs / 2);
  }
  Words read(int line) {
    const __m512i kept = _mm512_loadu_si512(from_);
    prefetch<512>(from_), prefetch<64>(masks_ + line);
    from_ += 2 * __builtin_popcount(masks_[line]);
    return (Words)_mm512_maskz_expand_epi16(masks_[line], kept);
  }

 private:
  const char* from_;
  const uint32_t* masks_;
};
#endif

// Accumulates the products of R rows and C blocks over `pairs` pairs of inputs. `by_row` and
// `by_pair` are the strides of the left factor in entries, between rows and between pairs.
template <int R, int C, class Right>
inline void add_products(const Entry* left, size_t by_row, size_t by_pair, Right (&right)[C],
                         int pairs, Floats (&sums)[R][C]) {
  for (int k = 0; k < pairs; k++, left += by_pair) {
    Words both[C];
    for (int c = 0; c < C; c++) both[c] = right[c].read(k);
    for (int r = 0; r < R; r++) {
      const Entry* two = left + r * by_row;
#if HAVE_BF16
      const __m512bh x = (__m512bh)_mm512_set1_epi32(load<int>(two));
      for (int c = 0; c < C; c++)
        sums[r][c] = (Floats)_mm512_dpbf16_ps((__m512)sums[r][c], x, (__m512bh)both[c]);
#else
      for (int c = 0; c < C; c++) {
        const Floats even = bits<Floats>(both[c] << 16), odd = bits<Floats>(both[c] & 0xffff0000u);
        sums[r][c] = fused(odd, all(two[1]), fused(even, all(two[0]), sums[r][c]));
      }
#endif
    }
  }
}

#if HAVE_TILES
// AMX tile registers of the calling thread: 0 to 3 hold accumulators, 4 and 5 rows of the left
// factor, 6 and 7 blocks of the right factor.
class Tiles {
 public:
  explicit Tiles(int rows) : rows_(rows) {
    struct {
      uint8_t palette = 1, start = 0, reserved[14] = {};
      uint16_t bytes[16] = {};
      uint8_t rows[16] = {};
    } shapes;
    for (int t = 0; t < 8; t++) {
      const int upper = std::min(rows, 16), lower = std::max(rows - 16, 1);
      shapes.bytes[t] = LINE;
      shapes.rows[t] = t >= 6 ? 16 : t == 2 || t == 3 || t == 5 ? lower : upper;
    }
    _tile_loadconfig(&shapes);
  }
  ~Tiles() { _tile_release(); }
  Tiles(const Tiles&) = delete;

  // Multiplies by one block, or by two blocks with a stride of `by_block` bytes if that is not 0.
  void multiply(const bf16* left, size_t by_row, const char* right, size_t by_block, int pairs,
                Sums& sums) const {
    begin();
    int k = 0;
    for (; k + 16 <= pairs; k += 16, left += 32, right += 16 * LINE)
      add(left, by_row, right, by_block);
    if (k < pairs) add_rest(left, by_row, right, by_block, pairs - k);
    end(sums, by_block);
  }
  // The same for 8-bit inputs: signed left factor, unsigned codes. `quads` counts groups of four
  // inputs, of which a tile holds 16.
  void multiply(const int8_t* left, size_t by_row, const char* right, size_t by_block, int quads,
                Ints (&sums)[DOWN][ACROSS]) const {
    begin();
    for (int k = 0; k < quads; k += 16, left += 64, right += 16 * LINE) {
      read(left, by_row, right, by_block);
      _tile_dpbsud(0, 4, 6);
      if (by_block) _tile_dpbsud(1, 4, 7);
      if (rows_ > 16) _tile_dpbsud(2, 5, 6);
      if (rows_ > 16 && by_block) _tile_dpbsud(3, 5, 7);
    }
    end(sums, by_block);
  }

 private:
  void begin() const {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }

  template <class T> void end(T (&sums)[DOWN][ACROSS], size_t by_block) const {
    _tile_stored(0, &sums[0][0], ACROSS * LINE);
    if (by_block) _tile_stored(1, &sums[0][1], ACROSS * LINE);
    if (rows_ > 16) _tile_stored(2, &sums[16][0], ACROSS * LINE);
    if (rows_ > 16 && by_block) _tile_stored(3, &sums[16][1], ACROSS * LINE);
  }

  // Loads tiles 4 to 7, and prefetches the next tiles of the right factor.
  template <class T>
  void read(const T* left, size_t by_row, const char* right, size_t by_block) const {
    for (int line = 16; line < 32; line++) {
      __builtin_prefetch(right + line * LINE);
      if (by_block) __builtin_prefetch(right + by_block + line * LINE);
    }
    _tile_loadd(4, left, by_row * sizeof(T));
    _tile_loadd(6, right, LINE);
    if (rows_ > 16) _tile_loadd(5, left + 16 * by_row, by_row * sizeof(T));
    if (by_block) _tile_loadd(7, right + by_block, LINE);
  }

  void add(const bf16* left, size_t by_row, const char* right, size_t by_block) const {
    read(left, by_row, right, by_block);
    _tile_dpbf16ps(0, 4, 6);
    if (by_block) _tile_dpbf16ps(1, 4, 7);
    if (rows_ > 16) _tile_dpbf16ps(2, 5, 6);
    if (rows_ > 16 && by_block) _tile_dpbf16ps(3, 5, 7);
  }

  // Accumulates the last, incomplete tile; missing pairs are padded with zeros.
  void add_rest(const bf16* left, size_t by_row, const char* right, size_t by_block,
                int pairs) const {
    bf16 rows[DOWN][LINE / 2] = {};
    char blocks[ACROSS][16 * LINE] = {};
    for (int r = 0; r < rows_; r++) std::copy_n(left + r * by_row, 2 * pairs, rows[r]);
    for (int c = 0; c < (by_block ? 2 : 1); c++)
      std::copy_n(right + c * by_block, pairs * LINE, blocks[c]);
    add(rows[0], LINE / 2, blocks[0], by_block ? sizeof blocks[0] : 0);
  }

  const int rows_;
};
#else
#endif

#if HAVE_BF16
// Left factor with its strides in entries: between rows, and between pairs of inputs.
struct Left {
  const bf16* rows;
  size_t by_row, by_pair;
};

// Computes a register tile of DOWN rows and ACROSS blocks; `right` is packed without gaps.
inline void multiply_tile(Left left, const bf16* right, int pairs, Sums& sums) {
  const size_t by_block = (size_t)pairs * LINE;
#if HAVE_TILES
  Tiles(DOWN).multiply(left.rows, left.by_row, (const char*)right, by_block, pairs, sums);
#else
  Lines<BF16> lines[ACROSS];
  for (int c = 0; c < ACROSS; c++) lines[c] = {(const char*)right + c * by_block};
  Sums total = {};  // a local array stays in registers, unlike `sums`
  add_products<DOWN, ACROSS>(left.rows, left.by_row, left.by_pair, lines, pairs, total);
  std::memcpy(sums, total, sizeof total);
#endif
}
#endif

}  // namespace

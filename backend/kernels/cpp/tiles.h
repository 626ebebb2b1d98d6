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

// Rows of the left factor and blocks of the right factor in a register tile.
#if HAVE_TILES
constexpr int TILE_ROWS = 32, TILE_BLOCKS = 2;  // 2 x 2 AMX tiles
#elif defined(__AVX512F__)
constexpr int TILE_ROWS = 8, TILE_BLOCKS = 3;  // 24 accumulators in the 32 registers
#else
constexpr int TILE_ROWS = 4, TILE_BLOCKS = 1;
#endif
using Sums = Floats[TILE_ROWS][TILE_BLOCKS];

// Number of blocks of weights that are read in parallel, and prefetch distance. The fastest values
// were found by measurement: with AVX512_BF16 but no AMX (AMD EPYC) one block and 8 KiB, otherwise
// (Intel Xeon) four blocks and `AHEAD` bytes.
constexpr bool MANY_STREAMS = !HAVE_BF16 || HAVE_TILES;
template <int AHEAD> inline void prefetch(const void* from) {
  __builtin_prefetch((const char*)from + (MANY_STREAMS ? AHEAD : 8192));
}

// Reader of the cache lines of a block of 16-bit weights. Lines must be read in order.
template <Format F> struct Lines {
  const char* from;

  void open(const Matrix& m, int block) {
    from = (const char*)m.weights + block * block_bytes(BF16, m.inputs);
  }
  Words read(int line) {
    const char* here = from + (size_t)line * LINE;
    prefetch<1024>(here);
    return load<Words>(here);
  }
};

#if HAVE_BF16
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

// Accumulates the products of R rows and C blocks over `pairs` pairs of inputs. `row_stride` and
// `pair_stride` are the strides of the left factor in entries, between rows and between pairs.
template <int R, int C, class Right>
inline void add_products(const Entry* left, size_t row_stride, size_t pair_stride,
                         Right (&right)[C], int pairs, Floats (&sums)[R][C]) {
  for (int k = 0; k < pairs; k++, left += pair_stride) {
    Words weights[C];
    for (int c = 0; c < C; c++) weights[c] = right[c].read(k);
    for (int r = 0; r < R; r++) {
      const Entry* pair = left + r * row_stride;
#if HAVE_BF16
      const __m512bh x = (__m512bh)_mm512_set1_epi32(load<int>(pair));
      for (int c = 0; c < C; c++)
        sums[r][c] = (Floats)_mm512_dpbf16_ps((__m512)sums[r][c], x, (__m512bh)weights[c]);
#else
      for (int c = 0; c < C; c++) {
        const Floats even = bits<Floats>(weights[c] << 16);
        const Floats odd = bits<Floats>(weights[c] & 0xffff0000u);
        sums[r][c] = fused(odd, all(pair[1]), fused(even, all(pair[0]), sums[r][c]));
      }
#endif
    }
  }
}

#if HAVE_TILES
// AMX tile registers of the calling thread: 0 to 3 hold accumulators, 4 and 5 rows 0 to 15 and 16
// to 31 of the left factor, 6 and 7 blocks of the right factor. If there are fewer rows or blocks,
// the first ones are loaded again, and the sums of the copies are not used.
class Tiles {
 public:
  explicit Tiles(int rows) : rows_(rows), lower_(rows > 16 ? 16 : 0) {
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

  // Multiplies bfloat16 inputs, or signed 8-bit inputs and unsigned codes, by two blocks with a
  // stride of `block_stride` bytes, or by one block if that is 0. `lines`: number of lines in a
  // block.
  template <class T, class V>
  void multiply(const T* left, size_t row_stride, const char* right, size_t block_stride, int lines,
                V (&sums)[TILE_ROWS][TILE_BLOCKS]) const {
    constexpr int INPUTS = LINE / sizeof(T);  // per row of a tile
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    int line = 0;
    for (; line + 16 <= lines; line += 16, left += INPUTS, right += 16 * LINE)
      add(left, row_stride, right, block_stride);
    if (line < lines) {  // pad an incomplete tile with zeros
      T rows[TILE_ROWS][INPUTS] = {};
      char blocks[TILE_BLOCKS][16 * LINE] = {};
      for (int r = 0; r < rows_; r++)
        std::copy_n(left + r * row_stride, (lines - line) * 4 / sizeof(T), rows[r]);
      for (int c = 0; c < TILE_BLOCKS; c++)
        std::copy_n(right + c * block_stride, (lines - line) * LINE, blocks[c]);
      add(rows[0], INPUTS, blocks[0], sizeof blocks[0]);
    }
    _tile_stored(0, &sums[0][0], TILE_BLOCKS * LINE);
    _tile_stored(1, &sums[0][1], TILE_BLOCKS * LINE);
    _tile_stored(2, &sums[16][0], TILE_BLOCKS * LINE);
    _tile_stored(3, &sums[16][1], TILE_BLOCKS * LINE);
  }

 private:
  // Multiplies one tile from each row of tiles by one tile from each block, and adds the products
  // to the accumulators. Prefetches the next tiles of the right factor.
  template <class T>
  void add(const T* left, size_t row_stride, const char* right, size_t block_stride) const {
    for (int line = 16; line < 32; line++) {
      __builtin_prefetch(right + line * LINE);
      __builtin_prefetch(right + block_stride + line * LINE);
    }
    _tile_loadd(4, left, row_stride * sizeof(T));
    _tile_loadd(5, left + lower_ * row_stride, row_stride * sizeof(T));
    _tile_loadd(6, right, LINE);
    _tile_loadd(7, right + block_stride, LINE);
    if constexpr (sizeof(T) == sizeof(bf16)) {
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    } else {
      _tile_dpbsud(0, 4, 6);
      _tile_dpbsud(1, 4, 7);
      _tile_dpbsud(2, 5, 6);
      _tile_dpbsud(3, 5, 7);
    }
  }

  const int rows_, lower_;
};
#endif

#if HAVE_BF16
// Left factor with its strides in entries: between rows, and between pairs of inputs.
struct Left {
  const bf16* rows;
  size_t row_stride, pair_stride;
};

// Computes a register tile; `right` is packed without gaps.
inline void multiply_tile(Left left, const bf16* right, int pairs, Sums& sums) {
  const size_t block_stride = (size_t)pairs * LINE;
#if HAVE_TILES
  Tiles(TILE_ROWS).multiply(left.rows, left.row_stride, (const char*)right, block_stride, pairs,
                            sums);
#else
  Lines<BF16> lines[TILE_BLOCKS];
  for (int c = 0; c < TILE_BLOCKS; c++) lines[c] = {(const char*)right + c * block_stride};
  Sums total = {};  // a local array stays in registers, unlike `sums`
  add_products<TILE_ROWS, TILE_BLOCKS>(left.rows, left.row_stride, left.pair_stride, lines, pairs,
                                       total);
  std::memcpy(sums, total, sizeof total);
#endif
}
#endif

}  // namespace

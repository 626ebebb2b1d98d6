// Products of a weight matrix and a few tokens: y = W x + bias.
//
// Inputs are rounded. For bfloat16 weights they are rounded to bfloat16 if the processor has
// bfloat16 instructions, and else kept in float32. For codes of 2 to 8 bits they are rounded to 8
// bits with one scale per group of inputs. Sparse bfloat16 weights need VBMI2, which expands the
// nonzero weights of a line; 2:4 codes need VNNI.

#pragma once
#include <algorithm>
#include <vector>

#include "dots.h"
#include "tiles.h"

namespace {

// Rounded inputs of a product for n tokens.
struct Input {
  std::vector<bf16> halves;         // [n, inputs] for 16-bit weights
  std::vector<int8_t> codes;        // [n, inputs] for codes; unsigned, + 128, for INT4_2_4
  std::vector<float> scales, sums;  // [n, inputs / group]; sums: scale * sum of the codes

  void hold(size_t size) {
    halves.resize(size), codes.resize(size), scales.resize(size / LANES), sums.resize(size / LANES);
  }
};

// Returns true if the same rounded inputs serve two matrices with the same number of inputs.
inline bool same_input(const Matrix& a, const Matrix& b) {
  const bool halves = bits_16((Format)a.format);
  if (halves || bits_16((Format)b.format)) return halves == bits_16((Format)b.format);
  return (a.format == INT4_2_4) == (b.format == INT4_2_4) && a.group == b.group;
}

// Rounds the input x [inputs] of a token for the format of a matrix.
void prepare(const Matrix& m, const float* x, int token, Input& to) {
  const size_t start = (size_t)token * m.inputs;
  if (bits_16((Format)m.format)) {
    if (HAVE_BF16) round_to(x, m.inputs, &to.halves[start]);
    return;
  }
  const int groups = m.inputs / m.group;
  for (int g = 0; g < groups; g++, x += m.group) {
    Floats most = {}, codes = {};
    for (int k = 0; k < m.group; k += LANES) {
      const Floats v = load<Floats>(x + k);
      most = larger(-v, larger(v, most));
    }
    const float scale = std::max(largest(most), 1e-30f) / 127.0f;
    for (int k = 0; k < m.group; k += LANES) {
      const Ints rounded = nearest(load<Floats>(x + k) / scale);
      Bytes narrow = convert<Bytes>(rounded);
      if (m.format == INT4_2_4) narrow = narrow ^ (int8_t)-128;  // + 128
      store(&to.codes[start + g * m.group + k], narrow);
      codes += convert<Floats>(rounded);
    }
    const size_t place = (size_t)token * groups + g;
    to.scales[place] = scale, to.sums[place] = scale * sum(codes);
  }
}

// Arguments of a product.
struct Product {
  const Matrix& matrix;
  const float* x;  // [n, inputs], not rounded
  const Input& input;
  float* y;  // [n, stride]
  int stride;

  // Returns the inputs of a token for 16-bit weights.
  const Entry* row(int token) const {
#if HAVE_BF16
    return &input.halves[(size_t)token * matrix.inputs];
#else
    return x + (size_t)token * matrix.inputs;
#endif
  }
  void store_block(int block, int token, Floats total) const {
    const int output = block * LANES;
    if (matrix.bias) total += load<Floats>(matrix.bias + output);
    store(y + (size_t)token * stride + output, total);
  }
};

// Unpacks the codes of quad j of a run; line(n) returns line n of the run.
template <int BITS, class Line> inline Words quad(Line line, int j) {
  constexpr int LOW = low_plane(BITS), HIGH = BITS - LOW;
  const auto every = [](int bits) { return ((1u << bits) - 1) * 0x01010101u; };
  if constexpr (BITS == 8) {
    return line(j);
  } else if constexpr (BITS == 3) {  // a byte has two 3-bit codes, in bits 0 to 2 and 4 to 6
    const int by = 2 - third_bit(j) % 4;
    const Words low = line(j / 4) >> j % 2 * 2, third = by > 0 ? line(2) << by : line(2) >> -by;
    return selected(0x44444444, third, low) >> j % 4 / 2 * 4 & every(3);
  } else {
    const Words low = line(line_of(LOW, j)) >> shift_of(LOW, j) & every(LOW);
    if constexpr (HIGH == 0) {
      return low;
    } else {  // shift the bits of the second plane above those of the first
      const Words bits = line(LOW + line_of(HIGH, j));
      const int by = LOW - shift_of(HIGH, j);
      return joined(by > 0 ? bits << by : bits >> -by, every(HIGH) << LOW, low);
    }
  }
}

// Dequantization of a group: sum_k scale (code[k] - zero) x[k]. Codes are multiplied unsigned; the
// zero-point is applied to the sum of the inputs.
template <int BITS> class Group {
 public:
  Group(const Product& p, int block, int g) : g_(g), groups_(p.matrix.inputs / p.matrix.group) {
    const size_t place = ((size_t)block * groups_ + g) * LANES;
    scale_ = widen(load<Halves>(p.matrix.scales + place));
    Floats zero = all(BITS == 8 ? MIDDLE_OF_8_BITS : 1 << (BITS - 1));  // see dots.h
    if (p.matrix.zeros) zero += widen(load<Halves>(p.matrix.zeros + place));
    offset_ = scale_ * -zero;
  }
  // Adds the group to the total of a token. `sum` is the integer dot product of codes and inputs.
  void add(const Product& p, int token, Ints sum, Floats& total) const {
    const size_t at = (size_t)token * groups_ + g_;
    total = fused(offset_, all(p.input.sums[at]), total);
    total = fused(scale_ * p.input.scales[at], convert<Floats>(sum), total);
  }

 private:
  const int g_, groups_;
  Floats scale_, offset_;
};

// Register tile of R blocks of 16 outputs and M tokens. Its R * M accumulators stay in registers
// for all inputs.
template <int R, int M> struct Tile {
  template <Format F> static void bfloat16(const Product& p, int block, int token) {
    Lines<F> lines[R];
    for (int r = 0; r < R; r++) lines[r].open(p.matrix, block + r);
    Floats total[M][R] = {};
    add_products<M, R>(p.row(token), p.matrix.inputs, 2, lines, p.matrix.inputs / 2, total);
    for (int r = 0; r < R; r++)
      for (int i = 0; i < M; i++) p.store_block(block + r, token + i, total[i][r]);
  }

  template <int BITS> static void codes(const Product& p, int block, int token) {
    // A tile of one token and one block reads all lines of a run first, and uses four independent
    // accumulators to hide the latency of the instructions.
    constexpr bool ALONE = R * M == 1;
    constexpr int CHAINS = ALONE ? 4 : 1;
    const Matrix& m = p.matrix;
    const int K = m.inputs, groups = K / m.group;
    const size_t stride = block_bytes((Format)BITS, K);
    const char* first = (const char*)m.weights + block * stride;
    Floats total[M][R] = {};
    for (int g = 0; g < groups; g++) {
      Ints part[M][R][CHAINS] = {};
      for (int k = g * m.group; k < (g + 1) * m.group; k += RUN) {
        const char* run = first + (size_t)k / RUN * BITS * LINE;
        const int8_t* x = &p.input.codes[(size_t)token * K + k];
        const auto read = [&](int r, int n) { return load<Words>(run + r * stride + n * LINE); };
        Words held[ALONE ? BITS : 1];
        for (int n = 0; n < (ALONE ? BITS : 1); n++) held[n] = read(0, n);
        for (int r = 0; r < R; r++)
          for (int n = 0; n < BITS; n++) prefetch<1024>(run + r * stride + n * LINE);
#pragma GCC unroll 4
        for (int j = 0; j < QUADS; j += 2) {
          Words one[R], next[R];
          for (int r = 0; r < R; r++) {
            const auto line = [&](int n) { return ALONE ? held[n] : read(r, n); };
            one[r] = quad<BITS>(line, j), next[r] = quad<BITS>(line, j + 1);
          }
          for (int i = 0; i < M; i++)
            for (int r = 0; r < R; r++) {
              Ints& sum = part[i][r][j / 2 % CHAINS];
              sum = add<BITS>(sum, one[r], next[r], x + (size_t)i * K + 4 * j);
            }
        }
      }
      for (int r = 0; r < R; r++) {
        const Group<BITS> group(p, block + r, g);
        for (int i = 0; i < M; i++) {
          Ints sum = part[i][r][0];
          for (int c = 1; c < CHAINS; c++) sum = sum + part[i][r][c];
          group.add(p, token + i, sum, total[i][r]);
        }
      }
    }
    for (int r = 0; r < R; r++)
      for (int i = 0; i < M; i++) p.store_block(block + r, token + i, total[i][r]);
  }

#if HAVE_VNNI
  // Product with 2:4 codes: sum of (code[k] - 8) x[k] over the two stored inputs k of every four. A
  // shuffle gathers these inputs for each output. Since the instruction needs an unsigned factor,
  // inputs are stored as x + 128, and 128 times the sum of the levels is subtracted. That sum is
  // the same for all tokens.
  static void two_of_four(const Product& p, int block, int token) {
    const Matrix& m = p.matrix;
    const int K = m.inputs, groups = K / m.group;
    const size_t stride = block_bytes(INT4_2_4, K);
    const char* first = (const char*)m.weights + block * stride;
    Floats total[R][M] = {};
    for (int g = 0; g < groups; g++) {
      Ints part[R][M] = {}, levels[R] = {};
      for (int k = g * m.group; k < (g + 1) * m.group; k += RUN)
        for (int r = 0; r < R; r++)
          add_run(first + r * stride + (size_t)k / RUN * RUN_2_4, p.input, (size_t)token * K + k, K,
                  part[r], levels[r]);
      for (int r = 0; r < R; r++) {
        const size_t place = ((size_t)(block + r) * groups + g) * LANES;
        const Floats scale = widen(load<Halves>(m.scales + place));
        for (int i = 0; i < M; i++)
          total[r][i] = fused(scale * p.input.scales[(size_t)(token + i) * groups + g],
                              convert<Floats>(part[r][i] - 128 * levels[r]), total[r][i]);
      }
    }
    for (int r = 0; r < R; r++)
      for (int i = 0; i < M; i++) p.store_block(block + r, token + i, total[r][i]);
  }

  // Accumulates a run for M tokens, and the sum of its levels.
  static void add_run(const char* run, const Input& input, size_t at, int K, Ints* part,
                      Ints& levels) {
    prefetch<512>(run), prefetch<512 + LINE>(run), prefetch<512 + 2 * LINE>(run);
    const Words places = load<Words>(run + 2 * LINE);
    for (int line = 0; line < 4; line++) {
      const Words codes = load<Words>(run + line / 2 * LINE) >> (line % 2 * 4) & HALF;
      const __m512i level = _mm512_sub_epi8((__m512i)codes, _mm512_set1_epi8(8));
      // Bytes 0 and 1 of four select one of inputs 0 to 3 of the line, bytes 2 and 3 one of 4 to 7.
      const __m512i from = (__m512i)((places >> (2 * line) & 0x03030303) | 0x04040000);
      levels = (Ints)_mm512_dpbusd_epi32((__m512i)levels, _mm512_set1_epi8(1), level);
      for (int i = 0; i < M; i++) {
        const int64_t eight = load<int64_t>(input.codes.data() + at + (size_t)i * K + 8 * line);
        const __m512i x = _mm512_shuffle_epi8(_mm512_set1_epi64(eight), from);
        part[i] = (Ints)_mm512_dpbusd_epi32((__m512i)part[i], x, level);
      }
    }
  }
#endif
};

// Maximum number of tokens per register tile, and number of blocks for m tokens.
#if defined(__AVX512F__)
constexpr int most(Format f) { return bits_16(f) || f == INT4_2_4 ? 8 : 4; }
constexpr int blocks_for(Format f, int m) {
  if (m == 1) return MANY_STREAMS ? 4 : 1;
  if (f == INT4_2_4) return m == 2 ? 4 : m <= 4 ? 2 : 1;  // needs a third accumulator, for levels
  return bits_16(f) || m > 2 ? 3 : 4;  // codes: accumulators per group and in total
}
#else  // one stream is fastest, as measured on an AMD EPYC with AVX-512 disabled
constexpr int most(Format) { return 4; }
constexpr int blocks_for(Format, int) { return 1; }
#endif

// Computes one register tile.
template <Format F, int R, int M> void tile(const Product& p, int block, int token) {
  if constexpr (bits_16(F)) Tile<R, M>::template bfloat16<F>(p, block, token);
#if HAVE_VNNI
  else if constexpr (F == INT4_2_4)
    Tile<R, M>::two_of_four(p, block, token);
#endif
  else
    Tile<R, M>::template codes<F>(p, block, token);
}

// Computes the blocks [first, last) for M tokens.
template <Format F, int M> void rows(const Product& p, int first, int last, int token) {
  constexpr int R = blocks_for(F, M);
  for (; first + R <= last; first += R) tile<F, R, M>(p, first, token);
  for (; first < last; first++) tile<F, 1, M>(p, first, token);
}

// Computes the blocks [first, last) for n tokens, in tiles of M tokens and then of fewer.
template <Format F, int M = most(F)>
void chunk(const Product& p, int first, int last, int n, int at = 0) {
  if constexpr (M > 0) {
    while (n - at >= M) rows<F, M>(p, first, last, at), at += M;
    chunk<F, M - 1>(p, first, last, n, at);
  }
}

#if HAVE_TILES
// Unpacks blocks of weights for AMX tiles: sparse bfloat16 weights to dense ones, codes to bytes.
template <Format F> void expand(const Matrix& m, int first, int last, char* to) {
  for (int block = first; block < last; block++)
    if constexpr (F == SPARSE_BF16) {
      Lines<F> lines;
      lines.open(m, block);
      for (int k = 0; k < m.inputs / 2; k++, to += LINE) store(to, lines.read(k));
    } else {
      const char* from = (const char*)m.weights + block * block_bytes(F, m.inputs);
      for (int run = 0; run < m.inputs / RUN; run++, from += F * LINE) {
        const auto line = [&](int n) { return load<Words>(from + n * LINE); };
#pragma GCC unroll 8
        for (int j = 0; j < QUADS; j++, to += LINE) store(to, quad<F>(line, j));
      }
    }
}

// Computes the blocks [first, last) on AMX tiles. `right` has their weights in the layout of BF16
// or INT8. Other codes have the zero-point of their number of bits.
template <Format F> void by_tiles(const Product& p, const char* right, int first, int last, int n) {
  constexpr bool CODES = !bits_16(F);
  const int K = p.matrix.inputs, size = CODES ? p.matrix.group : K;
  const size_t stride = block_bytes(CODES ? INT8 : BF16, K);
  for (int token = 0; token < n; token += TILE_ROWS) {
    const int rows = std::min(TILE_ROWS, n - token);
    const Tiles tiles(rows);
    for (int block = first; block < last; block += TILE_BLOCKS) {
      const int blocks = std::min(TILE_BLOCKS, last - block);
      const char* weights = right + (block - first) * stride;
      Sums total = {};
      for (int g = 0; g < K / size; g++, weights += size * LANES)
        if constexpr (CODES) {
          Ints part[TILE_ROWS][TILE_BLOCKS];
          tiles.multiply(&p.input.codes[(size_t)token * K + g * size], K, weights,
                         blocks > 1 ? stride : 0, size / 4, part);
          for (int c = 0; c < blocks; c++) {
            const Group<F> group(p, block + c, g);
            for (int r = 0; r < rows; r++) group.add(p, token + r, part[r][c], total[r][c]);
          }
        } else {
          tiles.multiply(p.row(token), K, weights, blocks > 1 ? stride : 0, size / 2, total);
        }
      for (int r = 0; r < rows; r++)
        for (int c = 0; c < blocks; c++) p.store_block(block + c, token + r, total[r][c]);
    }
  }
}

// Maximum number of tokens for which dot products are faster than AMX tiles, which have to be
// configured, and for which most codes have to be unpacked to memory. Measured on an Intel Xeon.
constexpr int few_for_tiles(Format f) { return bits_16(f) ? 0 : f == INT8 ? 8 : 16; }

// Computes blocks on AMX tiles, unpacked first if needed. Returns false if that is not faster.
template <Format F> bool chunk_by_tiles(const Product& p, int first, int last, int n) {
  if (F == INT4_2_4 || n <= few_for_tiles(F) || (!bits_16(F) && p.matrix.group % LINE))
    return false;
  const char* weights = (const char*)p.matrix.weights;
  if constexpr (F == BF16 || F == INT8) {
    by_tiles<F>(p, weights + first * block_bytes(F, p.matrix.inputs), first, last, n);
  } else if constexpr (F != INT4_2_4) {
    static thread_local std::vector<char> room;  // reused: allocation would cost more than a chunk
    const size_t size =
        (last - first) * block_bytes(F == SPARSE_BF16 ? BF16 : INT8, p.matrix.inputs);
    if (room.size() < size) room.resize(size);
    expand<F>(p.matrix, first, last, room.data());
    by_tiles<F>(p, room.data(), first, last, n);
  }
  return true;
}
#else
template <Format F> bool chunk_by_tiles(const Product&, int, int, int) { return false; }
#endif

// Computes the blocks [first, last) if the matrix has one of the formats F.
template <Format... F> void chunk_as(const Product& p, int first, int last, int n) {
  (void)((p.matrix.format == F &&
          (chunk_by_tiles<F>(p, first, last, n) || (chunk<F>(p, first, last, n), true))) ||
         ...);
}

// Computes the blocks [first, last) of y for n tokens, in chunks that stay in the cache for all
// tokens.
void multiply(const Product& p, int first, int last, int n) {
  constexpr int CHUNK = 12;
  for (int end; first < last; first = end) {
    end = std::min(first + CHUNK, last);
    chunk_as<BF16, (Format)2, (Format)3, INT4, (Format)5, (Format)6, INT8>(p, first, end, n);
#if HAVE_BF16
    chunk_as<SPARSE_BF16>(p, first, end, n);
#endif
#if HAVE_VNNI
    chunk_as<INT4_2_4>(p, first, end, n);
#endif
  }
}

}  // namespace

// Products of a matrix and a few tokens: y = W x + bias.
//
// What enters is rounded: to bfloat16 where the weights are bfloat16 (not without instructions for
// it), and to 8 bits, with a scale for each group of inputs, where they are codes of 2 to 8 bits.
// Zeros are left out of bfloat16 weights with VBMI2, which puts the others back in their places,
// and of 2:4 codes with VNNI.

#pragma once
#include <algorithm>
#include <vector>

#include "dots.h"
#include "matrix.h"

namespace {

// What enters a product, for n tokens: rounded as the weights need it.
struct Input {
  std::vector<bf16> halves;   // [n, inputs], for BF16
  std::vector<int8_t> codes;  // [n, inputs], for codes; for INT4_2_4 + 128, without sign; with
  std::vector<float> scales, sums;  // [n, inputs / group]

  void hold(size_t size) {
    halves.resize(size), codes.resize(size), scales.resize(size / LANES), sums.resize(size / LANES);
  }
};

void round_to(const float* from, int size, bf16* to) {
  for (int i = 0; i < size; i += LANES) store(to + i, narrow(load<Floats>(from + i)));
}

// Whether what was prepared for one matrix also suits another with as many inputs.
inline bool same_input(const Matrix& a, const Matrix& b) {
  const bool halves = bits_16((Format)a.format);
  if (halves || bits_16((Format)b.format)) return halves == bits_16((Format)b.format);
  return (a.format == INT4_2_4) == (b.format == INT4_2_4) && a.group == b.group;
}

// Rounds x [inputs] of a token as the weights of the matrix need it.
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

struct Product {
  const Matrix& matrix;
  const float* x;  // [n, inputs], as it was
  const Input& input;
  float* y;  // [n, stride]
  int stride;

  void store_block(int block, int token, Floats total) const {
    const int output = block * LANES;
    if (matrix.bias) total += load<Floats>(matrix.bias + output);
    store(y + (size_t)token * stride + output, total);
  }
};

// With BF16 (an AMD EPYC) one stream through memory is read fastest, by itself; without (an Intel
// Xeon) four, told beforehand what comes next. Both were measured.
constexpr bool MANY_STREAMS = !HAVE_BF16;
template <int AHEAD> inline void prefetch(const void* from) {
  if (MANY_STREAMS) __builtin_prefetch((const char*)from + AHEAD);
}

// The lines of a block of 16-bit weights, which have to be read in their order.
template <Format F> class Lines {
 public:
  void open(const Matrix& m, int block) {
    from_ = (const char*)m.weights + (size_t)block * m.inputs / 2 * LINE;
  }
  Words read(int line) {
    const char* here = from_ + (size_t)line * LINE;
    prefetch<1024>(here);
    return load<Words>(here);
  }

 private:
  const char* from_;
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

// The codes of quad j of a run, of whose lines line(n) is the n-th.
template <int BITS, class Line> inline Words quad(Line line, int j) {
  constexpr int LOW = low_plane(BITS), HIGH = BITS - LOW;
  const auto every = [](int bits) { return ((1u << bits) - 1) * 0x01010101u; };
  if constexpr (BITS == 8) {
    return line(j);
  } else if constexpr (BITS == 3) {  // two codes in each byte, of 3 bits from 0 and from 4 on
    const int by = 2 - third_bit(j) % 4;
    const Words low = line(j / 4) >> j % 2 * 2, third = by > 0 ? line(2) << by : line(2) >> -by;
    return selected(0x44444444, third, low) >> j % 4 / 2 * 4 & every(3);
  } else {
    const Words low = line(line_of(LOW, j)) >> shift_of(LOW, j) & every(LOW);
    if constexpr (HIGH == 0) {
      return low;
    } else {  // the bits of the second plane, moved above those of the first
      const Words bits = line(LOW + line_of(HIGH, j));
      const int by = LOW - shift_of(HIGH, j);
      return joined(by > 0 ? bits << by : bits >> -by, every(HIGH) << LOW, low);
    }
  }
}

// R blocks of 16 outputs for M tokens, kept in R * M registers while the inputs pass by.
template <int R, int M> struct Tile {
  template <Format F> static void bfloat16(const Product& p, int block, int token) {
    const int K = p.matrix.inputs;
    Lines<F> lines[R];
    for (int r = 0; r < R; r++) lines[r].open(p.matrix, block + r);
#if HAVE_BF16
    const bf16* x = &p.input.halves[(size_t)token * K];
#else
    const float* x = p.x + (size_t)token * K;
#endif
    Floats total[R][M] = {};
    for (int k = 0; k < K; k += 2)
      for (int r = 0; r < R; r++) {
        const Words both = lines[r].read(k / 2);
#if HAVE_BF16
        const __m512bh w = (__m512bh)both;
        for (int i = 0; i < M; i++) {
          const __m512bh two = (__m512bh)_mm512_set1_epi32(load<int>(x + (size_t)i * K + k));
          total[r][i] = (Floats)_mm512_dpbf16_ps((__m512)total[r][i], w, two);
        }
#else
        const Floats even = bits<Floats>(both << 16), odd = bits<Floats>(both & 0xffff0000u);
        for (int i = 0; i < M; i++) {
          const float* two = x + (size_t)i * K + k;
          total[r][i] = fused(odd, all(two[1]), fused(even, all(two[0]), total[r][i]));
        }
#endif
      }
    for (int r = 0; r < R; r++)
      for (int i = 0; i < M; i++) p.store_block(block + r, token + i, total[r][i]);
  }

  // sum over k of scale (code[k] - zero) x[k], group by group: codes are 0 and above, so the
  // zero-point comes off with the sum of the inputs.
  template <int BITS> static void codes(const Product& p, int block, int token) {
    // Of a single token and block, the lines of a run are read at once, and four sums are kept side
    // by side: one would wait for itself.
    constexpr bool ALONE = R * M == 1;
    constexpr int CHAINS = ALONE ? 4 : 1;
    const Matrix& m = p.matrix;
    const int K = m.inputs, groups = K / m.group;
    const size_t block_bytes = (size_t)K / RUN * BITS * LINE;
    const char* first = (const char*)m.weights + block * block_bytes;
    Floats total[R][M] = {};
    for (int g = 0; g < groups; g++) {
      Ints part[R][M][CHAINS] = {};
      for (int k = g * m.group; k < (g + 1) * m.group; k += RUN) {
        const char* run = first + (size_t)k / RUN * BITS * LINE;
        const int8_t* x = &p.input.codes[(size_t)token * K + k];
        const auto read = [&](int r, int n) {
          return load<Words>(run + r * block_bytes + n * LINE);
        };
        Words held[ALONE ? BITS : 1];
        for (int n = 0; n < (ALONE ? BITS : 1); n++) held[n] = read(0, n);
        for (int r = 0; r < R; r++)
          for (int n = 0; n < BITS; n++) prefetch<1024>(run + r * block_bytes + n * LINE);
#pragma GCC unroll 4
        for (int j = 0; j < QUADS; j += 2)
          for (int r = 0; r < R; r++) {
            const auto line = [&](int n) { return ALONE ? held[n] : read(r, n); };
            const Words one = quad<BITS>(line, j), next = quad<BITS>(line, j + 1);
            for (int i = 0; i < M; i++) {
              Ints& sum = part[r][i][j / 2 % CHAINS];
              sum = add<BITS>(sum, one, next, x + (size_t)i * K + 4 * j);
            }
          }
      }
      for (int r = 0; r < R; r++) add_group<BITS>(p, block + r, token, g, part[r], total[r]);
    }
    for (int r = 0; r < R; r++)
      for (int i = 0; i < M; i++) p.store_block(block + r, token + i, total[r][i]);
  }

  template <int BITS, int CHAINS>
  static void add_group(const Product& p, int block, int token, int g,
                        const Ints (&part)[M][CHAINS], Floats (&total)[M]) {
    constexpr float LESS = BITS == 8 ? 128 - MIDDLE_OF_8_BITS : 0;  // than the codes, is multiplied
    const Matrix& m = p.matrix;
    const int groups = m.inputs / m.group;
    const size_t place = ((size_t)block * groups + g) * LANES;
    const Floats scale = widen(load<Halves>(m.scales + place));
    Floats zero = all((1 << (BITS - 1)) - LESS);
    if (m.zeros) zero += widen(load<Halves>(m.zeros + place));
    const Floats offset = scale * -zero;
    for (int i = 0; i < M; i++) {
      const size_t at = (size_t)(token + i) * groups + g;
      Ints sum = part[i][0];
      for (int c = 1; c < CHAINS; c++) sum = sum + part[i][c];
      total[i] = fused(offset, all(p.input.sums[at]), total[i]);
      total[i] = fused(scale * p.input.scales[at], convert<Floats>(sum), total[i]);
    }
  }

#if HAVE_VNNI
  // sum over the two of every four inputs k that count of (code[k] - 8) x[k]: the inputs of a line
  // are gathered for each output. x + 128 is not negative, as the instruction needs it; what that
  // adds comes off with the sum of the levels, which is the same for all tokens.
  static void two_of_four(const Product& p, int block, int token) {
    const Matrix& m = p.matrix;
    const int K = m.inputs, groups = K / m.group;
    const size_t block_bytes = (size_t)K / RUN * RUN_2_4;
    const char* first = (const char*)m.weights + block * block_bytes;
    Floats total[R][M] = {};
    for (int g = 0; g < groups; g++) {
      Ints part[R][M] = {}, levels[R] = {};
      for (int k = g * m.group; k < (g + 1) * m.group; k += RUN)
        for (int r = 0; r < R; r++)
          add_run(first + r * block_bytes + (size_t)k / RUN * RUN_2_4, p.input,
                  (size_t)token * K + k, K, part[r], levels[r]);
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

  static void add_run(const char* run, const Input& input, size_t at, int K, Ints* part,
                      Ints& levels) {
    prefetch<512>(run), prefetch<512 + LINE>(run), prefetch<512 + 2 * LINE>(run);
    const Words places = load<Words>(run + 2 * LINE);
    for (int line = 0; line < 4; line++) {
      const Words codes = load<Words>(run + line / 2 * LINE) >> (line % 2 * 4) & HALF;
      const __m512i level = _mm512_sub_epi8((__m512i)codes, _mm512_set1_epi8(8));
      // the first two of four bytes take one of inputs 0 to 3 of the line, the others of 4 to 7
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

// Tokens in one tile, and blocks for as many as fit into the registers.
#if defined(__AVX512F__)
constexpr int MOST = 8;
constexpr int blocks_for(Format f, int m) {
  if (m == 1) return MANY_STREAMS ? 4 : 1;
  if (bits_16(f)) return m <= 6 ? 4 : 3;
  if (f == INT4_2_4) return m == 2 ? 4 : m <= 4 ? 2 : 1;  // a third sum
  return m == 2 ? 4 : m <= 4 ? 3 : m <= 6 ? 2 : 1;        // sums of a group, and of all
}
#else  // one stream, as measured on an AMD EPYC without its AVX-512
constexpr int MOST = 4;
constexpr int blocks_for(Format, int) { return 1; }
#endif

template <Format F, int R, int M> void tile(const Product& p, int block, int token) {
  if constexpr (bits_16(F)) Tile<R, M>::template bfloat16<F>(p, block, token);
#if HAVE_VNNI
  else if constexpr (F == INT4_2_4)
    Tile<R, M>::two_of_four(p, block, token);
#endif
  else
    Tile<R, M>::template codes<F>(p, block, token);
}

template <Format F, int M> void rows(const Product& p, int first, int last, int token) {
  constexpr int R = blocks_for(F, M);
  int block = first;
  for (; block + R <= last; block += R) tile<F, R, M>(p, block, token);
  for (; block < last; block++) tile<F, 1, M>(p, block, token);
}

// Chunks of blocks stay in the cache while all tokens pass.
template <Format F, int M = MOST> void chunk(const Product& p, int first, int last, int n, int at) {
  if constexpr (M > 0) {
    while (n - at >= M) rows<F, M>(p, first, last, at), at += M;
    chunk<F, M - 1>(p, first, last, n, at);
  }
}

// The chunk in the one of these formats that the matrix has.
template <Format... F> void chunk_as(const Product& p, int first, int last, int n) {
  (void)((p.matrix.format == F && (chunk<F>(p, first, last, n, 0), true)) || ...);
}

// Computes the blocks [first, last) of y for n tokens.
void multiply(const Product& p, int first, int last, int n) {
  constexpr int CHUNK = 12;
  for (; first < last; first += CHUNK) {
    const int end = std::min(first + CHUNK, last);
    chunk_as<BF16, (Format)2, (Format)3, INT4, (Format)5, (Format)6, INT8>(p, first, end, n);
#if HAVE_EXPAND
    chunk_as<SPARSE_BF16>(p, first, end, n);
#endif
#if HAVE_VNNI
    chunk_as<INT4_2_4>(p, first, end, n);
#endif
  }
}

}  // namespace

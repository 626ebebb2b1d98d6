// The forward pass of a LLaMA-like decoder on a CPU, for a few tokens at a time.
//
//   x   = embedding[token]                                                     [n, width]
//   per layer:
//     q, k, v = rotate(W_qkv rms(x))            k and v are appended to the cache
//     x  += W_o softmax(q k^T / sqrt(head) + mask) v
//     x  += W_down (silu(W_gate rms(x)) * W_up rms(x))
//   hidden = rms(x),   logits = W_head hidden
//
// Generating a token reads every weight once, so the time is that of reading them. Weights are
// therefore stored in the order they are read: blocks of 16 outputs, and within a block a few inputs
// of all 16 outputs side by side. Zeros of pruned matrices are left out. The residual x, sums, and softmax are float32. What enters a
// product is rounded: to bfloat16 where the weights are bfloat16, and to 8 bits, with a scale for
// each group of inputs, where they are codes of 8 or 4 bits.
//
// Compiled for the processor at hand. With AVX-512-BF16 an instruction takes 32 weights, with VNNI
// 64 codes; without, GCC's and Clang's vector types become AVX-512, AVX2, NEON or plain
// instructions, and inputs are not rounded. Zeros are left out of bfloat16 weights with VBMI2, which
// puts the others back in their places, and of 2:4 codes with VNNI.
//
// The n tokens of a pass are those of one sequence, or the next ones of several sequences, each with
// a cache of its own. Those of one sequence may be the nodes of a tree: token i sees the cache and
// those j for which visible[i, j].

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>
#if defined(__AVX512F__)
#include <immintrin.h>
#endif
#if defined(__AVX512BF16__)
#define HAVE_BF16 1
#else
#define HAVE_BF16 0
#endif
#if defined(__AVX512VNNI__)
#define HAVE_VNNI 1
#else
#define HAVE_VNNI 0
#endif
#if defined(__AVX512VBMI2__)
#define HAVE_EXPAND 1
#else
#define HAVE_EXPAND 0
#endif

namespace {

using bf16 = uint16_t;
constexpr int LANES = 16;  // outputs of a block

typedef float Floats __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));
typedef uint32_t Words __attribute__((vector_size(64)));
typedef uint16_t Halves __attribute__((vector_size(32)));
typedef int8_t Bytes __attribute__((vector_size(16)));

template <class T> inline T load(const void* from) {
  T value;
  std::memcpy(&value, from, sizeof value);
  return value;
}
inline void store(float* to, Floats value) { std::memcpy(to, &value, sizeof value); }
inline Floats all(float value) { return Floats{} + value; }
#if defined(__AVX512F__)  // compilers write it in two halves
inline Words words(Halves v) { return (Words)_mm512_cvtepu16_epi32((__m256i)v); }
inline Halves halves(Words v) { return (Halves)_mm512_cvtepi32_epi16((__m512i)v); }
#else
inline Words words(Halves v) { return __builtin_convertvector(v, Words); }
inline Halves halves(Words v) { return __builtin_convertvector(v, Halves); }
#endif
inline Floats widen(Halves v) { return (Floats)(words(v) << 16); }
inline float widen(bf16 v) {
  uint32_t bits = (uint32_t)v << 16;
  return load<float>(&bits);
}

// Rounds to the nearest bfloat16, ties to even.
inline Halves narrow(Floats v) {
  Words bits = (Words)v;
  return halves((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

#if defined(__AVX512F__)
inline float sum(Floats v) { return _mm512_reduce_add_ps((__m512)v); }
inline float largest(Floats v) { return _mm512_reduce_max_ps((__m512)v); }
inline Floats fused(Floats a, float b, Floats c) {  // or compilers fuse some of the tiles only
  return (Floats)_mm512_fmadd_ps((__m512)a, _mm512_set1_ps(b), (__m512)c);
}
#else
inline Floats fused(Floats a, float b, Floats c) { return a * b + c; }
// One half of the lanes joined with the other, until one is left.
template <class Join> inline float reduce(Floats v, Join join) {
  typedef float Eight __attribute__((vector_size(32)));
  typedef float Four __attribute__((vector_size(16)));
  const char* bytes = (const char*)&v;
  const Eight eight = join(load<Eight>(bytes), load<Eight>(bytes + 32));
  bytes = (const char*)&eight;
  const Four four = join(load<Four>(bytes), load<Four>(bytes + 16));
  return join(join(four[0], four[1]), join(four[2], four[3]));
}
inline float sum(Floats v) {
  return reduce(v, [](auto a, auto b) { return a + b; });
}
inline float largest(Floats v) {
  return reduce(v, [](auto a, auto b) { return a > b ? a : b; });
}
#endif

// Whether a comparison holds in any lane.
inline bool any(Ints lanes) {
#if defined(__AVX512F__)
  return _mm512_test_epi32_mask((__m512i)lanes, (__m512i)lanes) != 0;
#else
  int32_t found = 0;
  for (int i = 0; i < LANES; i++) found |= lanes[i];
  return found != 0;
#endif
}

constexpr float ROUNDING = 12582912.0f;  // 1.5 * 2^23: adding it leaves whole numbers, in the low bits
inline Ints nearest(Floats v) { return (Ints)(v + ROUNDING) - (Ints)all(ROUNDING); }

// e^x to 2e-7 relative: 2^n (1 + polynomial of the rest), for x <= 88.
inline Floats exponential(Floats x) {
  x = x < all(-87.0f) ? all(-87.0f) : x;
  Ints n = nearest(x * 1.44269504f);
  Floats whole = __builtin_convertvector(n, Floats);
  Floats r = x - whole * 0.693359375f + whole * 2.12194440e-4f;
  Floats p = all(1.9875691500e-4f);
  for (float c : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 0.5f})
    p = p * r + c;
  return (p * r * r + r + 1.0f) * (Floats)((n + 127) << 23);
}

// ------------------------------------------------------------------------------------------------
// weights

enum Format : int32_t { BF16 = 0, INT8 = 1, INT4 = 2, SPARSE_BF16 = 3, INT4_2_4 = 4 };
constexpr int LINE = 64;     // bytes of a block that are read at once
constexpr int RUN = 3 * 64;  // bytes of 32 inputs of a block in 2:4

constexpr bool bits_16(Format f) { return f == BF16 || f == SPARSE_BF16; }

}  // namespace

extern "C" {

// y = W x + bias, W [outputs, inputs]; outputs are padded to a multiple of 16. A quantised weight
// is scale (code - middle) + offset, with one scale and offset for `group` inputs of an output, and
// middle 128 or 8.
//
// SPARSE_BF16 has a bit for every weight, in the order of BF16, and the weights that are not 0, one
// behind the other. INT4_2_4 has the codes of two of every four inputs, and their places among the
// four; the codes of the others are 8, and all offsets 0.
struct Matrix {
  int32_t format, outputs, inputs, group;
  const void* weights;  // BF16: [outputs/16][inputs/2][16][2]; INT8: [outputs/16][inputs/4][16][4];
                        // INT4: [outputs/16][inputs/8][16][4], inputs k and k + 4 in one byte
                        // INT4_2_4: [outputs/16][inputs/32] of
                        //   [2][16][4] codes, those of inputs 8 to 15 and 24 to 31 in high halves
                        //   [16][4] places, of inputs 8 i to 8 i + 7 in the bits 2 i and 2 i + 1
  const uint32_t* masks;  // of SPARSE_BF16: [outputs/16][inputs/2]; else null
  const int64_t* starts;  // of SPARSE_BF16: where the weights of a block begin, [outputs/16]
  const bf16* scales;   // [outputs/16][inputs/group][16]
  const bf16* offsets;  // the same, or null if all are 0
  const float* bias;    // [outputs], or null
};

struct Layer {
  Matrix qkv, out, gate, up, down;
  const float *attention_norm, *mlp_norm;  // [width]
  const float *query_norm, *key_norm;      // [head], or null
};

struct Model {
  int32_t layers, width, heads, kv_heads, head, inner;
  float epsilon;
  const bf16* embedding;  // [vocabulary][width], or null
  const Layer* layer;
  const float* final_norm;  // [width], or null
  Matrix read_out;
  const float *cosines, *sines;  // [positions][head / 2]
};

struct Cache {
  int32_t capacity, length;
  bf16 *keys, *values;  // [layers][kv_heads][capacity][head]
};

// n tokens, as many of each sequence: those of the first come first.
struct Pass {
  int32_t tokens, read_out, threads;  // n; for how many of the last tokens logits are wanted
  int32_t sequences;
  Cache* const* caches;            // [sequences]
  const int64_t* ids;              // [n], or null:
  const float* inputs;             // [n][width], what enters the first layer
  const int64_t* positions;        // [n]
  const uint8_t* visible;          // [n][n], or null: causal; of one sequence
  float* hidden;                   // [n][width]
  float* logits;                   // [read_out][outputs of the head]
};
}

namespace {

// What enters a product, for n tokens: rounded as the weights need it.
struct Input {
  const float* plain;              // [n, inputs], not rounded
  std::vector<bf16> halves;        // [n, inputs], for BF16
  std::vector<int8_t> codes;       // [n, inputs], for codes, with
  std::vector<float> scales, sums; // [n, inputs / group]

#if HAVE_BF16
  const bf16* for_bf16() const { return halves.data(); }
#else
  const float* for_bf16() const { return plain; }
#endif
};

struct Product {
  const Matrix& matrix;
  const Input& input;
  float* y;  // [n, stride]
  int stride;

  void store_block(int block, int token, Floats total) const {
    const int output = block * LANES;
    if (matrix.bias) total += load<Floats>(matrix.bias + output);
    store(y + (size_t)token * stride + output, total);
  }
};

constexpr int inputs_of_line(Format f) { return bits_16(f) ? 2 : f == INT4 ? 8 : 4; }

// With BF16 (an AMD EPYC) one stream through memory is read fastest, by itself; without (an Intel
// Xeon) four, told beforehand what comes next. Both were measured.
constexpr bool MANY_STREAMS = !HAVE_BF16;
template <int AHEAD> inline void prefetch(const void* from) {
  if (MANY_STREAMS) __builtin_prefetch((const char*)from + AHEAD);
}

// The lines of a block, which have to be read in their order.
template <Format F> class Lines {
 public:
  void open(const Matrix& m, int block) {
    from_ = (const char*)m.weights + (size_t)block * m.inputs / inputs_of_line(F) * LINE;
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

// R blocks of 16 outputs for M tokens, kept in R * M registers while the inputs pass by.
template <int R, int M> struct Tile {
  template <Format F> static void bfloat16(const Product& p, int block, int token) {
    const int K = p.matrix.inputs;
    Lines<F> lines[R];
    for (int r = 0; r < R; r++) lines[r].open(p.matrix, block + r);
    const auto* x = p.input.for_bf16() + (size_t)token * K;
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
        const Floats even = (Floats)(both << 16), odd = (Floats)(both & 0xffff0000u);
        for (int i = 0; i < M; i++) {
          const float* two = x + (size_t)i * K + k;
          total[r][i] = fused(odd, two[1], fused(even, two[0], total[r][i]));
        }
#endif
      }
    for (int r = 0; r < R; r++)
      for (int i = 0; i < M; i++) p.store_block(block + r, token + i, total[r][i]);
  }

  // sum over k of code[k] x[k], group by group: codes are 0 and above, so the middle comes off with
  // the sum of the inputs.
  template <Format F> static void integers(const Product& p, int block, int token) {
    constexpr int STEP = inputs_of_line(F);
    const float middle = F == INT4 ? 8 : 128;
    const Matrix& m = p.matrix;
    const int K = m.inputs, groups = K / m.group;
    Lines<F> lines[R];
    for (int r = 0; r < R; r++) lines[r].open(m, block + r);
    Floats total[R][M] = {};
    for (int g = 0; g < groups; g++) {
      Sums part[R][M] = {};
      for (int k = g * m.group; k < (g + 1) * m.group; k += STEP)
        for (int r = 0; r < R; r++) {
          const Words codes = lines[r].read(k / STEP);
          for (int i = 0; i < M; i++)
            part[r][i] = add<F>(part[r][i], codes, p.input, (size_t)(token + i) * K + k);
        }
      for (int r = 0; r < R; r++) {
        const size_t place = ((size_t)(block + r) * groups + g) * LANES;
        const Floats scale = widen(load<Halves>(m.scales + place));
        Floats offset = scale * -middle;
        if (m.offsets) offset += widen(load<Halves>(m.offsets + place));
        for (int i = 0; i < M; i++) {
          const size_t at = (size_t)(token + i) * groups + g;
          total[r][i] += scale * p.input.scales[at] * whole(part[r][i]) + offset * p.input.sums[at];
        }
      }
    }
    for (int r = 0; r < R; r++)
      for (int i = 0; i < M; i++) p.store_block(block + r, token + i, total[r][i]);
  }

#if HAVE_VNNI
  // sum over the two of every four inputs k that count of (code[k] - 8) x[k]: the inputs of a line are
  // gathered for each output. x + 128 is not negative, as the instruction needs it; what that adds
  // comes off with the sum of the levels, which is the same for all tokens.
  static void two_of_four(const Product& p, int block, int token) {
    const Matrix& m = p.matrix;
    const int K = m.inputs, groups = K / m.group;
    const size_t block_bytes = (size_t)K / 32 * RUN;
    const char* first = (const char*)m.weights + block * block_bytes;
    Floats total[R][M] = {};
    for (int g = 0; g < groups; g++) {
      Ints part[R][M] = {}, levels[R] = {};
      for (int k = g * m.group; k < (g + 1) * m.group; k += 32)
        for (int r = 0; r < R; r++)
          add_run(first + r * block_bytes + (size_t)k / 32 * RUN, p.input, (size_t)token * K + k, K,
                  part[r], levels[r]);
      for (int r = 0; r < R; r++) {
        const size_t place = ((size_t)(block + r) * groups + g) * LANES;
        const Floats scale = widen(load<Halves>(m.scales + place));
        for (int i = 0; i < M; i++)
          total[r][i] += scale * p.input.scales[(size_t)(token + i) * groups + g] *
                         whole(part[r][i] - 128 * levels[r]);
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

  static constexpr uint32_t HALF = 0x0f0f0f0f;
  using Sums = Ints;
  static Floats whole(Ints v) { return __builtin_convertvector(v, Floats); }
  template <Format F>
  static Ints add(Ints to, Words codes, const Input& input, size_t at) {
    const int8_t* x = input.codes.data() + at;
    if (F == INT8) return four(to, codes, x);
    return four(four(to, codes & HALF, x), codes >> 4 & HALF, x + 4);
  }
  static Ints four(Ints to, Words codes, const int8_t* x) {
    return (Ints)_mm512_dpbusd_epi32((__m512i)to, (__m512i)codes, _mm512_set1_epi32(load<int>(x)));
  }
#else
  using Sums = Floats;
  static Floats whole(Floats v) { return v; }
  template <Format F>
  static Floats add(Floats to, Words codes, const Input& input, size_t at) {
    const float* x = input.plain + at;
    for (int b = 0; b < 4; b++) {
      const Words each = codes >> (8 * b) & (F == INT4 ? 15 : 255);
      to += __builtin_convertvector((Ints)each, Floats) * x[b];
      if (F == INT4)
        to += __builtin_convertvector((Ints)(codes >> (8 * b + 4) & 15), Floats) * x[4 + b];
    }
    return to;
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
  return m == 2 ? 4 : m <= 4 ? 3 : m <= 6 ? 2 : 1;  // sums of a group, and of all
}
#else
constexpr int MOST = 4;
constexpr int blocks_for(Format, int m) { return m == 1 ? 2 : 1; }
#endif

template <Format F, int R, int M> void tile(const Product& p, int block, int token) {
  if constexpr (bits_16(F))
    Tile<R, M>::template bfloat16<F>(p, block, token);
#if HAVE_VNNI
  else if constexpr (F == INT4_2_4)
    Tile<R, M>::two_of_four(p, block, token);
#endif
  else
    Tile<R, M>::template integers<F>(p, block, token);
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

// The blocks [first, last) of y for n tokens.
void multiply(const Product& p, int first, int last, int n) {
  constexpr int CHUNK = 12;
  for (; first < last; first += CHUNK) {
    const int end = std::min(first + CHUNK, last);
    if (p.matrix.format == BF16) chunk<BF16>(p, first, end, n, 0);
    if (p.matrix.format == INT8) chunk<INT8>(p, first, end, n, 0);
    if (p.matrix.format == INT4) chunk<INT4>(p, first, end, n, 0);
#if HAVE_EXPAND
    if (p.matrix.format == SPARSE_BF16) chunk<SPARSE_BF16>(p, first, end, n, 0);
#endif
#if HAVE_VNNI
    if (p.matrix.format == INT4_2_4) chunk<INT4_2_4>(p, first, end, n, 0);
#endif
  }
}

// ------------------------------------------------------------------------------------------------
// a team of threads that run the same pass, each its part of every product

class Barrier {
 public:
  explicit Barrier(int size) : size_(size) {}
  void wait() {
    if (size_ == 1) return;
    const int turn = turn_.load();
    if (arrived_.fetch_add(1) + 1 == size_) {
      arrived_ = 0;
      turn_.fetch_add(1);
      return;
    }
    for (int tries = 0; turn_.load(std::memory_order_acquire) == turn; tries++)
      if (tries > 1000) std::this_thread::yield();
  }

 private:
  const int size_;
  std::atomic<int> arrived_{0}, turn_{0};
};

struct Share {
  int first, last;
};
inline Share share(int units, int rank, int size) {
  return {(int)((int64_t)units * rank / size), (int)((int64_t)units * (rank + 1) / size)};
}

// ------------------------------------------------------------------------------------------------
// the pass

struct Buffers {  // shared by the team
  std::vector<float> x, heads;         // [n, width], [n, (heads + 2 kv_heads) head]
  std::vector<float> attended, gated;  // [n, heads head], [n, inner]
  std::vector<float> mixed;            // [n, 2 inner] or [n, width]
};

// y = x / sqrt(mean(x^2) + epsilon) * weight
void rms_norm(const float* x, const float* weight, float epsilon, int size, float* y) {
  Floats squares = {};
  for (int i = 0; i < size; i += LANES) squares += load<Floats>(x + i) * load<Floats>(x + i);
  const float factor = 1.0f / std::sqrt(sum(squares) / size + epsilon);
  for (int i = 0; i < size; i += LANES)
    store(y + i, load<Floats>(x + i) * factor * load<Floats>(weight + i));
}

void round_to(const float* from, int size, bf16* to) {
  int i = 0;
  for (; i + LANES <= size; i += LANES) {
    Halves v = narrow(load<Floats>(from + i));
    std::memcpy(to + i, &v, sizeof v);
  }
  for (; i < size; i++) {
    uint32_t bits = load<uint32_t>(from + i);
    to[i] = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  }
}

// Rounds x [n, inputs] as the weights of the matrix need it.
void prepare(const Matrix& m, const float* x, int n, Input& to) {
  const size_t size = (size_t)n * m.inputs;
  to.plain = x;
  if (bits_16((Format)m.format)) {
    if (HAVE_BF16) to.halves.resize(size), round_to(x, size, to.halves.data());
    return;
  }
  const size_t groups = size / m.group;
  to.scales.resize(groups), to.sums.resize(groups), to.codes.resize(size);
  for (size_t g = 0; g < groups; g++) {
    const float* from = x + g * m.group;
    Floats most = {}, total = {};
    for (int k = 0; k < m.group; k += LANES) {
      const Floats v = load<Floats>(from + k);
      most = v > most ? v : -v > most ? -v : most;
      total += v;
    }
    to.scales[g] = 1.0f, to.sums[g] = sum(total);
    if (!HAVE_VNNI) continue;
    const float scale = std::max(largest(most), 1e-30f) / 127.0f;
    Floats codes = {};
    for (int k = 0; k < m.group; k += LANES) {
      const Ints rounded = nearest(load<Floats>(from + k) / scale);
      Bytes narrow = __builtin_convertvector(rounded, Bytes);
      if (m.format == INT4_2_4) narrow ^= (int8_t)-128;  // + 128
      std::memcpy(&to.codes[g * m.group + k], &narrow, sizeof narrow);
      codes += __builtin_convertvector(rounded, Floats);
    }
    to.scales[g] = scale, to.sums[g] = scale * sum(codes);
  }
}

// (a, b) -> (a cos - b sin, b cos + a sin) for the two halves of a head.
void rotate(float* head, const float* cosines, const float* sines, int half) {
  for (int i = 0; i < half; i++) {
    const float a = head[i], b = head[i + half];
    head[i] = a * cosines[i] - b * sines[i];
    head[i + half] = b * cosines[i] + a * sines[i];
  }
}

class Worker {
 public:
  Worker(const Model& model, const Pass& pass, Buffers& shared, Barrier& barrier, int rank)
      : m_(model), p_(pass), each_(pass.tokens / pass.sequences), s_(shared), barrier_(barrier),
        rank_(rank), normed_((size_t)pass.tokens * model.width) {}

  void run() {
    embed();
    for (int l = 0; l < m_.layers; l++) {
      const Layer& layer = m_.layer[l];
      normalise(layer.attention_norm);
      heads(layer, l);
      barrier_.wait();
      attend(l);
      barrier_.wait();
      add(layer.out, s_.attended);
      barrier_.wait();
      normalise(layer.mlp_norm);
      gate(layer);
      barrier_.wait();
      add(layer.down, s_.gated);
      barrier_.wait();
    }
    read_out();
  }

 private:
  Share mine(int units) const { return share(units, rank_, p_.threads); }

  void embed() {
    const Share some = mine(p_.tokens);
    for (int i = some.first; i < some.last; i++)
      for (int d = 0; d < m_.width; d++) {
        const size_t place = (size_t)i * m_.width + d;
        s_.x[place] = p_.ids ? widen(m_.embedding[p_.ids[i] * m_.width + d]) : p_.inputs[place];
      }
    barrier_.wait();
  }

  // Every thread for itself: it is cheaper than to wait for one another.
  void normalise(const float* weight) {
    for (int i = 0; i < p_.tokens; i++) {
      const size_t row = (size_t)i * m_.width;
      rms_norm(&s_.x[row], weight, m_.epsilon, m_.width, &normed_[row]);
    }
  }

  // Queries, keys and values of some heads; keys and values go to the cache.
  void heads(const Layer& layer, int l) {
    const int d = m_.head, all_heads = m_.heads + 2 * m_.kv_heads, stride = all_heads * d;
    const Share some = mine(all_heads);
    prepare(layer.qkv, normed_.data(), p_.tokens, input_);
    const Product p{layer.qkv, input_, s_.heads.data(), stride};
    multiply(p, some.first * d / LANES, some.last * d / LANES, p_.tokens);
    for (int i = 0; i < p_.tokens; i++)
      for (int h = some.first; h < some.last; h++) {
        float* head = &s_.heads[(size_t)i * stride + h * d];
        const bool query = h < m_.heads, value = h >= m_.heads + m_.kv_heads;
        const float* norm = query ? layer.query_norm : value ? nullptr : layer.key_norm;
        if (norm) rms_norm(head, norm, m_.epsilon, d, head);
        const size_t place = p_.positions[i] * (d / 2);
        if (!value) rotate(head, m_.cosines + place, m_.sines + place, d / 2);
        if (query) continue;
        const Cache& cache = cache_of(i);
        const size_t rows = rows_of(cache, l, (h - m_.heads) % m_.kv_heads);
        const size_t at = rows + (size_t)(cache.length + i % each_) * d;
        round_to(head, d, (value ? cache.values : cache.keys) + at);
      }
  }

  const Cache& cache_of(int token) const { return *p_.caches[token / each_]; }

  // Where the rows of a layer and head begin, in the keys and in the values.
  size_t rows_of(const Cache& cache, int layer, int kv) const {
    return ((size_t)layer * m_.kv_heads + kv) * cache.capacity * m_.head;
  }

  // softmax(q k^T / sqrt(head)) v of some heads and tokens.
  void attend(int l) {
    const int d = m_.head, stride = (m_.heads + 2 * m_.kv_heads) * d;
    const Share some = mine(m_.heads * p_.tokens);
    for (int unit = some.first; unit < some.last; unit++) {
      const int h = unit / p_.tokens, i = unit % p_.tokens, kv = h / (m_.heads / m_.kv_heads);
      const Cache& cache = cache_of(i);
      const float* query = &s_.heads[(size_t)i * stride + h * d];
      float* to = &s_.attended[((size_t)i * m_.heads + h) * d];
      const size_t rows = rows_of(cache, l, kv);
      const float total = weigh(query, cache.keys + rows, cache.length, i % each_);
      const bf16* values = cache.values + rows;
      switch (d / LANES) {
        case 4: mean_of<4>(values, cache.length, total, to); break;
        case 8: mean_of<8>(values, cache.length, total, to); break;
        default:
          for (int at = 0; at < d; at += LANES)
            mean_of<1>(values + at, cache.length, total, to + at);
      }
    }
  }

  bool sees(int i, int j) const { return p_.visible ? p_.visible[i * each_ + j] : j <= i; }

  // Fills the scores of the cached rows, and of those of the pass that token i of its sequence
  // sees, with e^(score - largest); returns their sum. Rows it does not see are left out, so that
  // a node of a tree adds up the same numbers in the same order as its path alone.
  float weigh(const float* query, const bf16* keys, int cached, int i) {
    const int d = m_.head;
    const float scale = 1.0f / std::sqrt((float)d);
    float largest = -INFINITY;
    own_.clear();
    for (int j = 0; j < each_; j++)
      if (sees(i, j)) own_.push_back(cached + j);
    const int rows = cached + (int)own_.size();
    scores_.resize(rows + LANES);
    for (int t = 0; t < rows; t++) {
      const bf16* key = keys + (size_t)(t < cached ? t : own_[t - cached]) * d;
      Floats products = {};
      for (int at = 0; at < d; at += LANES)
        products += load<Floats>(query + at) * widen(load<Halves>(key + at));
      scores_[t] = sum(products) * scale;
      largest = std::max(largest, scores_[t]);
    }
    std::fill(scores_.begin() + rows, scores_.end(), -INFINITY);
    Floats total = {};
    for (int t = 0; t < rows; t += LANES) {
      Floats score = load<Floats>(&scores_[t]) - largest;
      Floats weight = score < all(-80.0f) ? Floats{} : exponential(score);
      store(&scores_[t], weight);
      total += weight;
    }
    return sum(total);
  }

  // 16 C columns of the mean of the values.
  template <int C> void mean_of(const bf16* values, int cached, float total, float* to) {
    Floats mean[C] = {};
    auto add = [&](float weight, const bf16* row) {
      for (int c = 0; c < C; c++) mean[c] += weight * widen(load<Halves>(row + c * LANES));
    };
    for (int t = 0; t < cached; t++) add(scores_[t], values + (size_t)t * m_.head);
    for (size_t j = 0; j < own_.size(); j++)
      add(scores_[cached + j], values + (size_t)own_[j] * m_.head);
    for (int c = 0; c < C; c++) store(to + c * LANES, mean[c] / total);
  }

  // x += W input, for some of the outputs.
  void add(const Matrix& matrix, const std::vector<float>& input) {
    const Share some = mine(matrix.outputs / LANES);
    float* y = s_.mixed.data();
    prepare(matrix, input.data(), p_.tokens, input_);
    multiply({matrix, input_, y, matrix.outputs}, some.first, some.last, p_.tokens);
    const int first = some.first * LANES, last = std::min(some.last * LANES, m_.width);
    for (int i = 0; i < p_.tokens; i++)
      for (int d = first; d < last; d++)
        s_.x[(size_t)i * m_.width + d] += y[(size_t)i * matrix.outputs + d];
  }

  // silu(gate) * up, for some of the outputs.
  void gate(const Layer& layer) {
    const Share some = mine(m_.inner / LANES);
    const int first = some.first * LANES, size = (some.last - some.first) * LANES;
    float *gates = s_.mixed.data(), *ups = gates + (size_t)p_.tokens * m_.inner;
    prepare(layer.gate, normed_.data(), p_.tokens, input_);
    multiply({layer.gate, input_, gates, m_.inner}, some.first, some.last, p_.tokens);
    if (layer.up.format != layer.gate.format || layer.up.group != layer.gate.group)
      prepare(layer.up, normed_.data(), p_.tokens, input_);
    multiply({layer.up, input_, ups, m_.inner}, some.first, some.last, p_.tokens);
    for (int i = 0; i < p_.tokens; i++)
      for (int at = 0; at < size; at += LANES) {
        const size_t place = (size_t)i * m_.inner + first + at;
        Floats g = load<Floats>(gates + place);
        store(&s_.gated[place], g / (1.0f + exponential(-g)) * load<Floats>(ups + place));
      }
  }

  void read_out() {
    if (m_.final_norm) normalise(m_.final_norm);
    const std::vector<float>& states = m_.final_norm ? normed_ : s_.x;
    if (rank_ == 0) std::copy_n(states.begin(), normed_.size(), p_.hidden);
    if (!p_.read_out) return;
    const Share some = mine(m_.read_out.outputs / LANES);
    const float* last = &states[(size_t)(p_.tokens - p_.read_out) * m_.width];
    prepare(m_.read_out, last, p_.read_out, input_);
    multiply({m_.read_out, input_, p_.logits, m_.read_out.outputs}, some.first, some.last, p_.read_out);
  }

  const Model& m_;
  const Pass& p_;
  const int each_;  // tokens of a sequence
  Buffers& s_;
  Barrier& barrier_;
  const int rank_;
  Input input_;
  std::vector<float> normed_;  // [n, width]
  std::vector<float> scores_;  // of one token: of the cached rows, and of those of
  std::vector<int> own_;       // the pass that it sees
};

}  // namespace

extern "C" {

const char* instructions() {
#if HAVE_BF16 && HAVE_VNNI
  return "AVX-512 with BF16 and VNNI";
#elif HAVE_VNNI
  return "AVX-512 with VNNI";
#elif defined(__AVX512F__)
  return "AVX-512";
#elif defined(__AVX2__)
  return "AVX2";
#else
  return "plain";
#endif
}

// Whether products with matrices of this format can be computed.
int32_t supports(int32_t format) {
  return format == SPARSE_BF16 ? HAVE_EXPAND : format == INT4_2_4 ? HAVE_VNNI : 1;
}

// Appends the tokens to the caches, and fills `hidden` and `logits`.
void forward(const Model* model, const Pass* pass) {
  const size_t n = pass->tokens, d = model->head;
  Buffers shared;
  shared.x.resize(n * model->width);
  shared.heads.resize(n * (model->heads + 2 * model->kv_heads) * d);
  shared.mixed.resize(n * std::max(2 * model->inner, model->width + LANES));
  shared.attended.resize(n * model->heads * d);
  shared.gated.resize(n * model->inner);
  Barrier barrier(pass->threads);
  auto work = [&](int rank) { Worker(*model, *pass, shared, barrier, rank).run(); };
  std::vector<std::thread> team;
  for (int rank = 1; rank < pass->threads; rank++) team.emplace_back(work, rank);
  work(0);
  for (auto& thread : team) thread.join();
  for (int i = 0; i < pass->sequences; i++)
    pass->caches[i]->length += pass->tokens / pass->sequences;
}

// y [n, outputs] = W x + bias, x [n, inputs].
void linear(const Matrix* matrix, const float* x, float* y, int32_t n, int32_t threads) {
  Input input;
  prepare(*matrix, x, n, input);
  const Product product{*matrix, input, y, matrix->outputs};
  auto work = [&](int rank) {
    const Share some = share(matrix->outputs / LANES, rank, threads);
    multiply(product, some.first, some.last, n);
  };
  std::vector<std::thread> team;
  for (int rank = 1; rank < threads; rank++) team.emplace_back(work, rank);
  work(0);
  for (auto& thread : team) thread.join();
}

// Of each row of x [rows, columns] the `ranks` largest values, descending, and where they are; and
// log sum e^x of the row. -infinity and NaN are never among them: what is missing is -infinity, at 0.
void top_k(const float* x, int32_t rows, int32_t columns, int32_t ranks, float* values,
             int32_t* places, float* sums) {
  for (int r = 0; r < rows; r++, x += columns, values += ranks, places += ranks) {
    std::fill(values, values + ranks, -INFINITY);
    std::fill(places, places + ranks, 0);
    auto insert = [&](int at) {
      int rank = ranks - 1;
      for (; rank > 0 && values[rank - 1] < x[at]; rank--)
        values[rank] = values[rank - 1], places[rank] = places[rank - 1];
      values[rank] = x[at], places[rank] = at;
    };
    int at = 0;
    for (; at + LANES <= columns; at += LANES) {
      const Floats here = load<Floats>(x + at);
      if (!any(here > all(values[ranks - 1]))) continue;
      for (int i = at; i < at + LANES; i++)
        if (x[i] > values[ranks - 1]) insert(i);
    }
    for (; at < columns; at++)
      if (x[at] > values[ranks - 1]) insert(at);
    Floats total = {};
    float rest = 0;
    for (at = 0; at + LANES <= columns; at += LANES)
      total += exponential(load<Floats>(x + at) - values[0]);
    for (; at < columns; at++) rest += std::exp(x[at] - values[0]);
    sums[r] = values[0] + std::log(sum(total) + rest);
  }
}

// Of the rows from `start` on, keeps those at start + chosen (ascending).
void keep(const Model* model, Cache* cache, int32_t start, const int32_t* chosen, int32_t count) {
  const size_t row = model->head, block = (size_t)cache->capacity * row;
  for (bf16* rows : {cache->keys, cache->values})
    for (int b = 0; b < model->layers * model->kv_heads; b++)
      for (int i = 0; i < count; i++)
        if (chosen[i] != i)
          std::copy_n(rows + b * block + (start + chosen[i]) * row, row,
                      rows + b * block + (start + i) * row);
  cache->length = start + count;
}

// W [outputs, inputs] as bfloat16 -> the order of `Matrix::weights`, rows beyond `outputs` zero.
void pack_bf16(const bf16* from, bf16* to, int32_t outputs, int32_t inputs) {
  for (size_t first = 0; first < (size_t)outputs; first += LANES)
    for (size_t k = 0; k < (size_t)inputs; k += 2)
      for (size_t n = first; n < first + LANES; n++)
        for (size_t odd = 0; odd < 2; odd++)
          *to++ = n < (size_t)outputs ? from[n * inputs + k + odd] : 0;
}

// Codes 0 to 255 [outputs, inputs] -> the order of `Matrix::weights`.
void pack_int8(const uint8_t* from, uint8_t* to, int32_t outputs, int32_t inputs) {
  for (size_t first = 0; first < (size_t)outputs; first += LANES)
    for (size_t k = 0; k < (size_t)inputs; k += 4)
      for (size_t n = first; n < first + LANES; n++)
        for (size_t i = 0; i < 4; i++) *to++ = from[n * inputs + k + i];
}

// Codes 0 to 15 [outputs, inputs] -> two in a byte, k in the low and k + 4 in the high half.
void pack_int4(const uint8_t* from, uint8_t* to, int32_t outputs, int32_t inputs) {
  for (size_t first = 0; first < (size_t)outputs; first += LANES)
    for (size_t k = 0; k < (size_t)inputs; k += 8)
      for (size_t n = first; n < first + LANES; n++)
        for (size_t i = 0; i < 4; i++)
          *to++ = from[n * inputs + k + i] | from[n * inputs + k + 4 + i] << 4;
}

// A matrix in the order of `pack_bf16` -> its masks, the starts of its blocks, and the bytes of its
// weights, which are returned. `to` has room for all of them.
int64_t leave_out_zeros(const uint16_t* from, uint32_t* masks, int64_t* starts, uint16_t* to,
                       int32_t outputs, int32_t inputs) {
  const uint16_t* begin = to;
  for (int block = 0; block < outputs / LANES; block++) {
    *starts++ = (to - begin) * 2;
    for (int line = 0; line < inputs / 2; line++, from += 32) {
      uint32_t mask = 0;
      for (int i = 0; i < 32; i++)
        if (from[i] & 0x7fff) mask |= 1u << i, *to++ = from[i];  // not -0 either
      *masks++ = mask;
    }
  }
  return (to - begin) * 2;
}

// Codes 0 to 15 [outputs, inputs] -> the order of INT4_2_4. Returns 0 as soon as more than two of four
// are not 8: the matrix is not 2:4.
int32_t pack_int4_2_4(const uint8_t* from, uint8_t* to, int32_t outputs, int32_t inputs) {
  for (size_t first = 0; first < (size_t)outputs; first += LANES)
    for (size_t k = 0; k < (size_t)inputs; k += 32, to += RUN) {
      std::memset(to, 0, RUN);
      for (int four = 0; four < LANES * 8; four++) {  // of an output, eight of these
        const int n = four / 8, line = four % 8 / 2, slot = four % 2 * 2;
        const uint8_t* codes = from + (first + n) * inputs + k + four % 8 * 4;
        int places[4], kept = 0;
        for (int i = 0; i < 4; i++)
          if (codes[i] != 8) places[kept++] = i;
        if (kept > 2) return 0;
        for (int i = 0; kept < 2; i++)  // others, of which nothing comes
          if (codes[i] == 8) places[kept++] = i;
        for (int i = 0; i < 2; i++) {
          const int byte = n * 4 + slot + i;
          to[line / 2 * LINE + byte] |= codes[places[i]] << (line % 2 * 4);
          to[2 * LINE + byte] |= places[i] << (2 * line);
        }
      }
    }
  return 1;
}
}

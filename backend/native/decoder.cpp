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
// therefore stored in the order they are read: blocks of 16 outputs, and within a block two or four
// inputs of all 16 outputs side by side. The residual x, sums, and softmax are float32; what enters
// a product is rounded to bfloat16.
//
// Compiled for the processor at hand. With AVX-512-BF16 a product takes 32 weights an instruction;
// without, GCC's and Clang's vector types become AVX2, NEON or plain instructions.
//
// n tokens are the nodes of a tree: token i sees the cache and those j for which visible[i, j].

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>
#if defined(__AVX512BF16__) && defined(__AVX512BW__)
#include <immintrin.h>
#define HAVE_DOT_BF16 1
#else
#define HAVE_DOT_BF16 0
#endif

namespace {

using bf16 = uint16_t;
constexpr int LANES = 16;  // outputs of a block

typedef float Floats __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));
typedef uint32_t Words __attribute__((vector_size(64)));
typedef uint16_t Halves __attribute__((vector_size(32)));

template <class T> inline T load(const void* from) {
  T value;
  std::memcpy(&value, from, sizeof value);
  return value;
}
inline void store(float* to, Floats value) { std::memcpy(to, &value, sizeof value); }
inline Floats all(float value) { return Floats{} + value; }
inline Floats widen(Halves v) { return (Floats)(__builtin_convertvector(v, Words) << 16); }
inline float widen(bf16 v) {
  uint32_t bits = (uint32_t)v << 16;
  return load<float>(&bits);
}

// Rounds to the nearest bfloat16, ties to even.
inline Halves narrow(Floats v) {
  Words bits = (Words)v;
  return __builtin_convertvector((bits + 0x7fff + ((bits >> 16) & 1)) >> 16, Halves);
}

inline float sum(Floats v) {
  float total = 0;
  for (int i = 0; i < LANES; i++) total += v[i];
  return total;
}

// e^x to 2e-7 relative: 2^n (1 + polynomial of the rest), for x <= 88.
inline Floats exponential(Floats x) {
  x = x < all(-87.0f) ? all(-87.0f) : x;
  Floats scaled = x * 1.44269504f + 12582912.0f;  // rounds to a whole number in the low bits
  Ints n = (Ints)scaled - (Ints)all(12582912.0f);
  Floats whole = scaled - 12582912.0f;
  Floats r = x - whole * 0.693359375f + whole * 2.12194440e-4f;
  Floats p = all(1.9875691500e-4f);
  for (float c : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 0.5f})
    p = p * r + c;
  return (p * r * r + r + 1.0f) * (Floats)((n + 127) << 23);
}

// ------------------------------------------------------------------------------------------------
// weights

enum Format : int32_t { BF16 = 0, INT8 = 1, INT4 = 2 };

}  // namespace

extern "C" {

// y = W x + bias, W [outputs, inputs]; outputs are padded to a multiple of 16. A quantised weight
// is scale (code - middle) + offset, with one scale and offset for `group` inputs of an output;
// middle is 128 or 8.
struct Matrix {
  int32_t format, outputs, inputs, group;
  const void* weights;   // BF16: [outputs/16][inputs/2][16][2]; INT8: bytes in the same order;
                         // INT4: [outputs/16][inputs/4][16][2], inputs k and k+2 in one byte
  const float* scales;   // [outputs/16][inputs/group][16]
  const float* offsets;  // the same, or null if all are 0
  const float* bias;     // [outputs], or null
};

struct Layer {
  Matrix qkv, out, gate, up, down;
  const float *attention_norm, *mlp_norm;  // [width]
  const float *query_norm, *key_norm;      // [head], or null
};

struct Model {
  int32_t layers, width, heads, kv_heads, head, inner;
  float epsilon;
  const bf16* embedding;  // [vocabulary][width]
  const Layer* layer;
  const float* final_norm;
  Matrix read_out;
  const float *cosines, *sines;  // [positions][head / 2]
};

struct Cache {
  int32_t capacity, length;
  bf16 *keys, *values;  // [layers][kv_heads][capacity][head]
};

struct Pass {
  int32_t tokens, read_out, threads;  // n; for how many of the last tokens logits are wanted
  const int64_t *ids, *positions;     // [n]
  const uint8_t* visible;             // [n][n], or null: causal
  float* hidden;                      // [n][width]
  float* logits;                      // [read_out][outputs of the head]
};
}

namespace {

// Two inputs of 16 outputs, ready to be multiplied by the same two inputs of a token.
#if HAVE_DOT_BF16
using Pairs = __m512i;
using Inputs = __m512bh;
inline Inputs inputs(const bf16* x) { return (__m512bh)_mm512_set1_epi32(load<int>(x)); }
inline Floats dot(Floats to, Pairs w, Inputs x) {
  return (Floats)_mm512_dpbf16_ps((__m512)to, (__m512bh)w, x);
}
inline Pairs pairs(const bf16* w) { return _mm512_loadu_si512(w); }

// Codes are turned into bfloat16 by looking them up among 16 values.
struct Table {
  __m512i values;
  Table(float step, float first) {
    bf16 each[32];
    for (int i = 0; i < 32; i++) {
      float value = step * (i % 16) + first;
      each[i] = load<uint32_t>(&value) >> 16;  // small whole numbers are exact
    }
    values = _mm512_loadu_si512(each);
  }
  Pairs operator()(__m512i codes) const { return _mm512_permutexvar_epi16(codes, values); }
};
inline __m512i bytes(const uint8_t* w) {
  return _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i*)w));
}
inline __m512i low(__m512i v) { return _mm512_and_si512(v, _mm512_set1_epi16(15)); }
inline __m512i high(__m512i v) { return _mm512_srli_epi16(v, 4); }
#else
struct Pairs {
  Floats even, odd;
};
struct Inputs {
  float even, odd;
};
inline Inputs inputs(const bf16* x) { return {widen(x[0]), widen(x[1])}; }
inline Floats dot(Floats to, Pairs w, Inputs x) { return to + w.even * x.even + w.odd * x.odd; }
inline Pairs pairs(const bf16* w) {
  Words both = load<Words>(w);
  return {(Floats)(both << 16), (Floats)(both & 0xffff0000u)};
}
inline Floats whole(Words codes) { return __builtin_convertvector((Ints)codes, Floats); }
#endif

// One format of weights: STEP inputs of a block at a time, as PARTS pairs. A reader lives as long
// as a tile, so that its tables stay in registers.
template <Format> struct Reader;

template <> struct Reader<BF16> {
  static constexpr int STEP = 2, PARTS = 1, BYTES = 64;  // bytes a block takes for STEP inputs
  void read(const uint8_t* w, Pairs* to) const { to[0] = pairs((const bf16*)w); }
  static constexpr int input(int) { return 0; }
};

template <> struct Reader<INT8> {
  static constexpr int STEP = 2, BYTES = 32;
#if HAVE_DOT_BF16
  static constexpr int PARTS = 2;  // 16 (high - 8), and low
  const Table coarse{16, -128}, fine{1, 0};
  void read(const uint8_t* w, Pairs* to) const {
    __m512i codes = bytes(w);
    to[0] = coarse(high(codes)), to[1] = fine(low(codes));
  }
#else
  static constexpr int PARTS = 1;
  void read(const uint8_t* w, Pairs* to) const {
    Words codes = __builtin_convertvector(load<Halves>(w), Words);
    to[0] = {whole(codes & 255) - 128.0f, whole(codes >> 8) - 128.0f};
  }
#endif
  static constexpr int input(int) { return 0; }
};

template <> struct Reader<INT4> {
  static constexpr int STEP = 4, PARTS = 2, BYTES = 32;
#if HAVE_DOT_BF16
  const Table table{1, -8};
  void read(const uint8_t* w, Pairs* to) const {
    __m512i codes = bytes(w);
    to[0] = table(low(codes)), to[1] = table(high(codes));
  }
#else
  void read(const uint8_t* w, Pairs* to) const {
    Words codes = __builtin_convertvector(load<Halves>(w), Words);
    to[0] = {whole(codes & 15) - 8.0f, whole(codes >> 8 & 15) - 8.0f};
    to[1] = {whole(codes >> 4 & 15) - 8.0f, whole(codes >> 12) - 8.0f};
  }
#endif
  static constexpr int input(int part) { return 2 * part; }
};

// ------------------------------------------------------------------------------------------------
// products

// Where results go: y [n, stride], and the sums over each group of x that offsets multiply.
struct Product {
  const Matrix& matrix;
  const bf16* x;     // [n, inputs]
  const float* sums; // [n, inputs / group], or null
  float* y;
  int stride;
};

// R blocks of 16 outputs for M tokens, kept in R * M registers while the inputs pass by.
template <Format F, int R, int M> void tile(const Product& p, int block, int token) {
  using W = Reader<F>;
  const W reader;
  const Matrix& m = p.matrix;
  const int K = m.inputs, group = F == BF16 ? K : m.group, groups = K / group;
  const size_t block_bytes = (size_t)K / W::STEP * W::BYTES;
  const uint8_t* weights = (const uint8_t*)m.weights + block * block_bytes;
  const bf16* x = p.x + (size_t)token * K;
  Floats total[R][M] = {};
  for (int g = 0; g < groups; g++) {
    Floats part[R][M] = {};
    for (int k = g * group; k < (g + 1) * group; k += W::STEP) {
      Pairs w[R][W::PARTS];
      for (int r = 0; r < R; r++) {
        const uint8_t* here = weights + r * block_bytes + (size_t)k / W::STEP * W::BYTES;
        reader.read(here, w[r]);
        if (M <= 2) __builtin_prefetch(here + 1024);
      }
      for (int i = 0; i < M; i++)
        for (int s = 0; s < W::PARTS; s++) {
          Inputs in = inputs(x + (size_t)i * K + k + W::input(s));
          for (int r = 0; r < R; r++) part[r][i] = dot(part[r][i], w[r][s], in);
        }
    }
    for (int r = 0; r < R; r++)
      for (int i = 0; i < M; i++) {
        if (F == BF16) {
          total[r][i] = part[r][i];
          continue;
        }
        const size_t place = ((size_t)(block + r) * groups + g) * LANES;
        total[r][i] += load<Floats>(m.scales + place) * part[r][i];
        if (p.sums)
          total[r][i] += load<Floats>(m.offsets + place) * p.sums[(token + i) * groups + g];
      }
  }
  for (int r = 0; r < R; r++)
    for (int i = 0; i < M; i++) {
      const int output = (block + r) * LANES;
      Floats bias = m.bias ? load<Floats>(m.bias + output) : Floats{};
      store(p.y + (size_t)(token + i) * p.stride + output, total[r][i] + bias);
    }
}

// Tokens in one tile, and blocks for as many as fit into the registers.
#if HAVE_DOT_BF16
constexpr int MOST = 8;
constexpr int blocks_for(Format f, int m) {
  return f == BF16 ? (m == 1 ? 6 : m <= 6 ? 4 : 3) : m <= 2 ? 4 : m <= 4 ? 2 : 1;
}
#else
constexpr int MOST = 4;
constexpr int blocks_for(Format, int m) { return m == 1 ? 2 : 1; }
#endif

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
  std::vector<float> x, heads, mixed;  // [n, width], [n, (heads + 2 kv_heads) head], [n, inner]
  std::vector<bf16> attended, gated;   // [n, heads head], [n, inner]
};

// y = x / sqrt(mean(x^2) + epsilon) * weight
void rms_norm(const float* x, const float* weight, float epsilon, int size, float* y) {
  float squares = 0;
  for (int i = 0; i < size; i++) squares += x[i] * x[i];
  const float factor = 1.0f / std::sqrt(squares / size + epsilon);
  for (int i = 0; i < size; i++) y[i] = x[i] * factor * weight[i];
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
  Worker(const Model& model, const Cache& cache, const Pass& pass, Buffers& shared,
         Barrier& barrier, int rank)
      : m_(model), c_(cache), p_(pass), s_(shared), barrier_(barrier), rank_(rank),
        input_((size_t)pass.tokens * std::max(model.width, model.inner)),
        normed_(model.width), scores_(cache.length + pass.tokens + LANES) {}

  void run() {
    embed();
    for (int l = 0; l < m_.layers; l++) {
      const Layer& layer = m_.layer[l];
      normalise(layer.attention_norm);
      heads(layer, l);
      barrier_.wait();
      attend(l);
      barrier_.wait();
      add(layer.out, s_.attended.data());
      barrier_.wait();
      normalise(layer.mlp_norm);
      gate(layer);
      barrier_.wait();
      add(layer.down, s_.gated.data());
      barrier_.wait();
    }
    read_out();
  }

 private:
  Share mine(int units) const { return share(units, rank_, p_.threads); }

  void embed() {
    const Share some = mine(p_.tokens);
    for (int i = some.first; i < some.last; i++)
      for (int d = 0; d < m_.width; d++)
        s_.x[(size_t)i * m_.width + d] = widen(m_.embedding[p_.ids[i] * m_.width + d]);
    barrier_.wait();
  }

  // Every thread for itself: it is cheaper than to wait for one another.
  void normalise(const float* weight) {
    for (int i = 0; i < p_.tokens; i++) {
      const size_t row = (size_t)i * m_.width;
      rms_norm(&s_.x[row], weight, m_.epsilon, m_.width, normed_.data());
      round_to(normed_.data(), m_.width, &input_[row]);
    }
  }

  Product product(const Matrix& matrix, const bf16* x, float* y, int stride) {
    if (!matrix.offsets) return {matrix, x, nullptr, y, stride};
    const int groups = matrix.inputs / matrix.group;
    sums_.resize((size_t)p_.tokens * groups);
    for (int g = 0; g < p_.tokens * groups; g++) {
      float total = 0;
      for (int k = 0; k < matrix.group; k++) total += widen(x[(size_t)g * matrix.group + k]);
      sums_[g] = total;
    }
    return {matrix, x, sums_.data(), y, stride};
  }

  // Queries, keys and values of some heads; keys and values go to the cache.
  void heads(const Layer& layer, int l) {
    const int d = m_.head, all_heads = m_.heads + 2 * m_.kv_heads, stride = all_heads * d;
    const Share some = mine(all_heads);
    const Product p = product(layer.qkv, input_.data(), s_.heads.data(), stride);
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
        const int kv = (h - m_.heads) % m_.kv_heads;
        round_to(head, d, row(value ? c_.values : c_.keys, l, kv, c_.length + i));
      }
  }

  bf16* row(bf16* cache, int layer, int kv, int token) const {
    return cache + (((size_t)layer * m_.kv_heads + kv) * c_.capacity + token) * m_.head;
  }

  // softmax(q k^T / sqrt(head)) v of some heads and tokens.
  void attend(int l) {
    const int d = m_.head, stride = (m_.heads + 2 * m_.kv_heads) * d;
    const Share some = mine(m_.heads * p_.tokens);
    for (int unit = some.first; unit < some.last; unit++) {
      const int h = unit / p_.tokens, i = unit % p_.tokens, kv = h / (m_.heads / m_.kv_heads);
      const float* query = &s_.heads[(size_t)i * stride + h * d];
      bf16* to = &s_.attended[((size_t)i * m_.heads + h) * d];
      const float total = weigh(query, row(c_.keys, l, kv, 0), i);
      switch (d / LANES) {
        case 4: mean_of<4>(row(c_.values, l, kv, 0), total, to); break;
        case 8: mean_of<8>(row(c_.values, l, kv, 0), total, to); break;
        default:
          for (int at = 0; at < d; at += LANES)
            mean_of<1>(row(c_.values, l, kv, 0) + at, total, to + at);
      }
    }
  }

  bool sees(int i, int j) const { return p_.visible ? p_.visible[i * p_.tokens + j] : j <= i; }

  // Fills the scores with e^(score - largest), zero where i does not look; returns their sum.
  float weigh(const float* query, const bf16* keys, int i) {
    const int d = m_.head, rows = c_.length + p_.tokens;
    const float scale = 1.0f / std::sqrt((float)d);
    float largest = -INFINITY;
    for (int t = 0; t < rows; t++) {
      if (t >= c_.length && !sees(i, t - c_.length)) {
        scores_[t] = -INFINITY;
        continue;
      }
      Floats products = {};
      for (int at = 0; at < d; at += LANES)
        products += load<Floats>(query + at) * widen(load<Halves>(keys + (size_t)t * d + at));
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
  template <int C> void mean_of(const bf16* values, float total, bf16* to) {
    Floats mean[C] = {};
    for (int t = 0; t < c_.length + p_.tokens; t++)
      for (int c = 0; c < C; c++)
        mean[c] += scores_[t] * widen(load<Halves>(values + (size_t)t * m_.head + c * LANES));
    for (int c = 0; c < C; c++) {
      Halves rounded = narrow(mean[c] / total);
      std::memcpy(to + c * LANES, &rounded, sizeof rounded);
    }
  }

  // x += W input, for some of the outputs.
  void add(const Matrix& matrix, const bf16* input) {
    const Share some = mine(matrix.outputs / LANES);
    float* y = s_.mixed.data();
    multiply(product(matrix, input, y, matrix.outputs), some.first, some.last, p_.tokens);
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
    multiply(product(layer.gate, input_.data(), gates, m_.inner), some.first, some.last, p_.tokens);
    multiply(product(layer.up, input_.data(), ups, m_.inner), some.first, some.last, p_.tokens);
    for (int i = 0; i < p_.tokens; i++)
      for (int at = 0; at < size; at += LANES) {
        const size_t place = (size_t)i * m_.inner + first + at;
        Floats g = load<Floats>(gates + place);
        Halves v = narrow(g / (1.0f + exponential(-g)) * load<Floats>(ups + place));
        std::memcpy(&s_.gated[place], &v, sizeof v);
      }
  }

  void read_out() {
    const int skipped = p_.tokens - p_.read_out;
    for (int i = 0; i < p_.tokens; i++) {
      const size_t row = (size_t)i * m_.width;
      rms_norm(&s_.x[row], m_.final_norm, m_.epsilon, m_.width, normed_.data());
      if (rank_ == 0) std::copy_n(normed_.begin(), m_.width, p_.hidden + row);
      if (i >= skipped) round_to(normed_.data(), m_.width, &input_[row - (size_t)skipped * m_.width]);
    }
    const Share some = mine(m_.read_out.outputs / LANES);
    const Product p = product(m_.read_out, input_.data(), p_.logits, m_.read_out.outputs);
    if (p_.read_out) multiply(p, some.first, some.last, p_.read_out);
  }

  const Model& m_;
  const Cache& c_;
  const Pass& p_;
  Buffers& s_;
  Barrier& barrier_;
  const int rank_;
  std::vector<bf16> input_;
  std::vector<float> normed_, scores_, sums_;
};

}  // namespace

extern "C" {

const char* instructions() {
#if HAVE_DOT_BF16
  return "AVX-512-BF16";
#elif defined(__AVX512F__)
  return "AVX-512";
#elif defined(__AVX2__)
  return "AVX2";
#else
  return "plain";
#endif
}

// Appends the tokens to the cache, and fills `hidden` and `logits`.
void forward(const Model* model, Cache* cache, const Pass* pass) {
  const size_t n = pass->tokens, d = model->head;
  Buffers shared;
  shared.x.resize(n * model->width);
  shared.heads.resize(n * (model->heads + 2 * model->kv_heads) * d);
  shared.mixed.resize(n * std::max(2 * model->inner, model->width + LANES));
  shared.attended.resize(n * model->heads * d);
  shared.gated.resize(n * model->inner);
  Barrier barrier(pass->threads);
  auto work = [&](int rank) { Worker(*model, *cache, *pass, shared, barrier, rank).run(); };
  std::vector<std::thread> team;
  for (int rank = 1; rank < pass->threads; rank++) team.emplace_back(work, rank);
  work(0);
  for (auto& thread : team) thread.join();
  cache->length += pass->tokens;
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

// Codes 0 to 255 [outputs, inputs] -> the same order.
void pack_int8(const uint8_t* from, uint8_t* to, int32_t outputs, int32_t inputs) {
  for (size_t first = 0; first < (size_t)outputs; first += LANES)
    for (size_t k = 0; k < (size_t)inputs; k += 2)
      for (size_t n = first; n < first + LANES; n++)
        for (size_t odd = 0; odd < 2; odd++) *to++ = from[n * inputs + k + odd];
}

// Codes 0 to 15 [outputs, inputs] -> two in a byte, k in the low and k + 2 in the high half.
void pack_int4(const uint8_t* from, uint8_t* to, int32_t outputs, int32_t inputs) {
  for (size_t first = 0; first < (size_t)outputs; first += LANES)
    for (size_t k = 0; k < (size_t)inputs; k += 4)
      for (size_t n = first; n < first + LANES; n++)
        for (size_t odd = 0; odd < 2; odd++)
          *to++ = from[n * inputs + k + odd] | from[n * inputs + k + odd + 2] << 4;
}
}

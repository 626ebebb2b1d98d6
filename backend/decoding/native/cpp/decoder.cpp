// The forward pass of a LLaMA-like decoder on a CPU, for a few tokens at a time.
//
//   x   = embedding[token]                                                     [n, width]
//   per layer:
//     q, k, v = rotate(W_qkv rms(x))            k and v are appended to the cache
//     x  += W_o softmax(q k^T / sqrt(head) + mask) v
//     x  += W_down (silu(W_gate rms(x)) * W_up rms(x))
//   hidden = rms(x),   logits = W_head hidden
//
// Generating a token reads every weight once, so the time is that of reading them: `matrix.h` says
// how they are stored, `products.h` how what enters a product is rounded. The residual x, sums, and
// softmax are float32.
//
// The n tokens of a pass are those of one sequence, or the next ones of several sequences, each
// with a cache of its own. Those of one sequence may be the nodes of a tree: token i sees the cache
// and those j for which visible[i, j].

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "packing.h"
#include "products.h"
#include "threads.h"

extern "C" {

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
  Cache* const* caches;      // [sequences]
  const int64_t* ids;        // [n], or null:
  const float* inputs;       // [n][width], what enters the first layer
  const int64_t* positions;  // [n]
  const uint8_t* visible;    // [n][n], or null: causal; of one sequence
  float* hidden;             // [n][width]
  float* logits;             // [read_out][outputs of the head]
};
}

namespace {

struct Buffers {                        // shared by the threads of a pass
  std::vector<float> x, normed, heads;  // [n, width] twice, [n, (heads + 2 kv_heads) head]
  std::vector<float> attended, gated;   // [n, heads head], [n, inner]
  std::vector<float> mixed;             // [n, 2 inner] or [n, width]
  Input input, up_input;                // of a product, and of `up` where that of `gate` differs

  Buffers(const Model& m, size_t n) {
    const size_t width = m.width, inner = m.inner, row = (size_t)m.heads * m.head;
    x.resize(n * width), normed.resize(n * width);
    heads.resize(n * (row + 2 * (size_t)m.kv_heads * m.head));
    attended.resize(n * row), gated.resize(n * inner);
    mixed.resize(n * std::max(2 * inner, width + LANES));
    input.hold(n * std::max({width, row, inner})), up_input.hold(n * width);
  }
};

// y = x / sqrt(mean(x^2) + epsilon) * weight
void rms_norm(const float* x, const float* weight, float epsilon, int size, float* y) {
  Floats squares = {};
  for (int i = 0; i < size; i += LANES) squares += load<Floats>(x + i) * load<Floats>(x + i);
  const float factor = 1.0f / std::sqrt(sum(squares) / size + epsilon);
  for (int i = 0; i < size; i += LANES)
    store(y + i, load<Floats>(x + i) * factor * load<Floats>(weight + i));
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
        rank_(rank) {}

  void run() {
    rows([&](int i) { embed(i); });
    for (int l = 0; l < m_.layers; l++) {
      const Layer& layer = m_.layer[l];
      rows([&](int i) { prepare(layer.qkv, normed(i, layer.attention_norm), i, s_.input); });
      heads(layer, l);
      barrier_.wait();
      attend(l);
      add(layer.out, s_.attended);
      rows([&](int i) {
        const float* row = normed(i, layer.mlp_norm);
        prepare(layer.gate, row, i, s_.input);
        if (!same_input(layer.gate, layer.up)) prepare(layer.up, row, i, s_.up_input);
      });
      gate(layer);
      add(layer.down, s_.gated);
    }
    read_out();
  }

 private:
  Share mine(int units) const { return share(units, rank_, p_.threads); }

  // Does `work` for every token, once all threads have come here. Few tokens are the last one's to
  // do, as the others would wait for it anyway; many are divided.
  template <class Work> void rows(Work work) {
    constexpr int FEW = 8;
    auto some = [&](Share tokens) {
      for (int i = tokens.first; i < tokens.last; i++) work(i);
    };
    if (p_.tokens <= FEW) return barrier_.wait([&] { some({0, p_.tokens}); });
    barrier_.wait();
    some(mine(p_.tokens));
    barrier_.wait();
  }

  void embed(int i) {
    for (int d = 0; d < m_.width; d++) {
      const size_t place = (size_t)i * m_.width + d;
      s_.x[place] = p_.ids ? widen(m_.embedding[p_.ids[i] * m_.width + d]) : p_.inputs[place];
    }
  }

  // The row of a token, after the norm.
  const float* normed(int i, const float* weight) {
    const size_t row = (size_t)i * m_.width;
    rms_norm(&s_.x[row], weight, m_.epsilon, m_.width, &s_.normed[row]);
    return &s_.normed[row];
  }

  // Queries, keys and values of some heads; keys and values go to the cache.
  void heads(const Layer& layer, int l) {
    const int d = m_.head, all_heads = m_.heads + 2 * m_.kv_heads, stride = all_heads * d;
    const Share some = mine(all_heads);
    const Product p{layer.qkv, s_.normed.data(), s_.input, s_.heads.data(), stride};
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
        case 4:
          mean_of<4>(values, cache.length, total, to);
          break;
        case 8:
          mean_of<8>(values, cache.length, total, to);
          break;
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
      Floats weight = exponential(score);
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
    rows([&](int i) { prepare(matrix, &input[(size_t)i * matrix.inputs], i, s_.input); });
    multiply({matrix, input.data(), s_.input, y, matrix.outputs}, some.first, some.last, p_.tokens);
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
    const float* x = s_.normed.data();
    const Input& up_input = same_input(layer.gate, layer.up) ? s_.input : s_.up_input;
    multiply({layer.gate, x, s_.input, gates, m_.inner}, some.first, some.last, p_.tokens);
    multiply({layer.up, x, up_input, ups, m_.inner}, some.first, some.last, p_.tokens);
    for (int i = 0; i < p_.tokens; i++)
      for (int at = 0; at < size; at += LANES) {
        const size_t place = (size_t)i * m_.inner + first + at;
        Floats g = load<Floats>(gates + place);
        store(&s_.gated[place], g / (1.0f + exponential(-g)) * load<Floats>(ups + place));
      }
  }

  void read_out() {
    const int skipped = p_.tokens - p_.read_out;
    rows([&](int i) {
      const float* row = m_.final_norm ? normed(i, m_.final_norm) : &s_.x[(size_t)i * m_.width];
      std::copy_n(row, m_.width, p_.hidden + (size_t)i * m_.width);
      if (i >= skipped) prepare(m_.read_out, row, i - skipped, s_.input);
    });
    if (!p_.read_out) return;
    const Share some = mine(m_.read_out.outputs / LANES);
    const float* x = p_.hidden + (size_t)skipped * m_.width;
    multiply({m_.read_out, x, s_.input, p_.logits, m_.read_out.outputs}, some.first, some.last,
             p_.read_out);
  }

  const Model& m_;
  const Pass& p_;
  const int each_;  // tokens of a sequence
  Buffers& s_;
  Barrier& barrier_;
  const int rank_;
  std::vector<float> scores_;  // of one token: of the cached rows, and of those of
  std::vector<int> own_;       // the pass that it sees
};

}  // namespace

extern "C" {

const char* slimscope_instructions() {
#if HAVE_BF16 && HAVE_VNNI
  return "AVX-512 with BF16 and VNNI";
#elif HAVE_VNNI
  return "AVX-512 with VNNI";
#elif defined(__AVX512F__)
  return "AVX-512";
#elif defined(__AVX2__)
  return "AVX2";
#elif defined(__ARM_FEATURE_DOTPROD)
  return "NEON with dot products";
#elif defined(__aarch64__)
  return "NEON";
#else
  return "plain";
#endif
}

// Whether products with matrices of this format can be computed.
int32_t slimscope_supports(int32_t format) {
  return format == SPARSE_BF16 ? HAVE_EXPAND : format == INT4_2_4 ? HAVE_VNNI : 1;
}

// Bytes of Matrix, Layer, Model, Cache and Pass, of which the caller has declarations of its own.
int32_t slimscope_size_of(int32_t place) {
  constexpr size_t sizes[] = {sizeof(Matrix), sizeof(Layer), sizeof(Model), sizeof(Cache),
                              sizeof(Pass)};
  return (int32_t)sizes[place];
}

// Counts the models that use the threads of this process, which end with the last.
void slimscope_acquire_threads() { ThreadPool::acquire(); }
void slimscope_release_threads() try { ThreadPool::release(); } catch (...) {  // then they sleep on
}

// Appends the tokens to the caches, and fills `hidden` and `logits`. Returns 1 if memory ran out.
int32_t slimscope_forward(const Model* model, const Pass* pass) try {
  Buffers shared(*model, pass->tokens);
  auto work = [&](int rank, Barrier& barrier) {
    Worker(*model, *pass, shared, barrier, rank).run();
  };
  if (in_team(pass->threads, work)) return 1;
  for (int i = 0; i < pass->sequences; i++)
    pass->caches[i]->length += pass->tokens / pass->sequences;
  return 0;
} catch (...) {
  return 1;
}

// y [n, outputs] = W x + bias, x [n, inputs]. Returns 1 if memory ran out.
int32_t slimscope_linear(const Matrix* matrix, const float* x, float* y, int32_t n,
                         int32_t threads) try {
  Input input;
  input.hold((size_t)n * matrix->inputs);
  for (int i = 0; i < n; i++) prepare(*matrix, x + (size_t)i * matrix->inputs, i, input);
  const Product product{*matrix, x, input, y, matrix->outputs};
  return in_team(threads, [&](int rank, Barrier&) {
    const Share some = share(matrix->outputs / LANES, rank, threads);
    multiply(product, some.first, some.last, n);
  });
} catch (...) {
  return 1;
}

// Of each row of x [rows, columns] the `ranks` largest values, descending, and where they are; and
// log sum e^x of the row. -infinity and NaN are never among them: what is missing is -infinity, at
// 0.
void slimscope_top_k(const float* x, int32_t rows, int32_t columns, int32_t ranks, float* values,
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
void slimscope_keep(const Model* model, Cache* cache, int32_t start, const int32_t* chosen,
                    int32_t count) {
  const size_t row = model->head, block = (size_t)cache->capacity * row;
  for (bf16* rows : {cache->keys, cache->values})
    for (int b = 0; b < model->layers * model->kv_heads; b++)
      for (int i = 0; i < count; i++)
        if (chosen[i] != i)
          std::copy_n(rows + b * block + (start + chosen[i]) * row, row,
                      rows + b * block + (start + i) * row);
  cache->length = start + count;
}
}

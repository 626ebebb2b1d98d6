// The forward pass of a LLaMA-like decoder on a CPU, for a few tokens at a time.
//
//   x   = embedding[token]                                                     [n, width]
//   per layer:
//     q, k, v = rotate(W_qkv rms(x))            k and v are appended to the cache
//     x  += W_o softmax(q k^T / sqrt(head) + mask) v
//     x  += W_down (silu(W_gate rms(x)) * W_up rms(x))
//   hidden = rms(x),   logits = W_head hidden
//
// Generating a token reads every weight once, so the time is that of reading them: `matrix.h` says how
// they are stored, `products.h` how what enters a product is rounded. The residual x, sums, and softmax
// are float32.
//
// The n tokens of a pass are those of one sequence, or the next ones of several sequences, each with
// a cache of its own. Those of one sequence may be the nodes of a tree: token i sees the cache and
// those j for which visible[i, j].

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

#include "packing.h"
#include "products.h"

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

// ------------------------------------------------------------------------------------------------
// a team of threads that run the same pass, each its part of every product

class Barrier {
 public:
  explicit Barrier(int size) : size_(size) {}
  void wait() {
    if (failed_) throw TeamFailed();
    if (size_ == 1) return;
    const int turn = turn_.load();
    if (arrived_.fetch_add(1) + 1 == size_) {
      arrived_ = 0;
      turn_.fetch_add(1);
      return;
    }
    for (int tries = 0; turn_.load(std::memory_order_acquire) == turn; tries++) {
      if (failed_.load(std::memory_order_relaxed)) throw TeamFailed();
      if (tries > 1000) std::this_thread::yield();
    }
  }
  // Lets nobody wait for whoever will not come.
  void fail() { failed_ = true; }
  bool failed() const { return failed_; }

 private:
  struct TeamFailed {};
  const int size_;
  std::atomic<bool> failed_{false};
  std::atomic<int> arrived_{0}, turn_{0};
};

// Runs work(0) to work(threads - 1) at the same time. Returns 1 if memory or threads ran out, else 0:
// nothing may be thrown to C.
template <class Work> int32_t in_team(int threads, Barrier& barrier, Work work) noexcept {
  auto safely = [&](int rank) noexcept {
    try {
      work(rank);
    } catch (...) {
      barrier.fail();
    }
  };
  std::vector<std::thread> team;
  try {
    for (int rank = 1; rank < threads; rank++) team.emplace_back(safely, rank);
  } catch (...) {
    barrier.fail();
  }
  safely(0);
  for (auto& thread : team) thread.join();
  return barrier.failed();
}

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
    if (!same_input(layer.gate, layer.up))
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

// Bytes of Matrix, Layer, Model, Cache and Pass, of which the caller has declarations of its own.
int32_t size_of(int32_t place) {
  constexpr size_t sizes[] = {sizeof(Matrix), sizeof(Layer), sizeof(Model), sizeof(Cache), sizeof(Pass)};
  return (int32_t)sizes[place];
}

// Appends the tokens to the caches, and fills `hidden` and `logits`. Returns 1 if memory ran out.
int32_t forward(const Model* model, const Pass* pass) try {
  const size_t n = pass->tokens, d = model->head;
  Buffers shared;
  shared.x.resize(n * model->width);
  shared.heads.resize(n * (model->heads + 2 * model->kv_heads) * d);
  shared.mixed.resize(n * std::max(2 * (size_t)model->inner, (size_t)model->width + LANES));
  shared.attended.resize(n * model->heads * d);
  shared.gated.resize(n * model->inner);
  Barrier barrier(pass->threads);
  auto work = [&](int rank) { Worker(*model, *pass, shared, barrier, rank).run(); };
  if (in_team(pass->threads, barrier, work)) return 1;
  for (int i = 0; i < pass->sequences; i++)
    pass->caches[i]->length += pass->tokens / pass->sequences;
  return 0;
} catch (...) {
  return 1;
}

// y [n, outputs] = W x + bias, x [n, inputs]. Returns 1 if memory ran out.
int32_t linear(const Matrix* matrix, const float* x, float* y, int32_t n, int32_t threads) try {
  Input input;
  prepare(*matrix, x, n, input);
  const Product product{*matrix, input, y, matrix->outputs};
  auto work = [&](int rank) {
    const Share some = share(matrix->outputs / LANES, rank, threads);
    multiply(product, some.first, some.last, n);
  };
  Barrier barrier(threads);
  return in_team(threads, barrier, work);
} catch (...) {
  return 1;
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
}

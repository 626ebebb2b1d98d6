// Forward pass of a LLaMA-like decoder on a CPU, optimized for a few tokens at a time.
//
//   x   = scale embedding[token]                                               [n, width]
//   per layer:
//     q, k, v = rotate(rms(W_qkv rms(x)))       k and v are appended to the cache
//     x  += rms(W_o softmax(cap(q k^T scale) + mask) v)
//     x  += rms(W_down (f(W_gate rms(x)) * W_up rms(x)))                         f = silu, gelu
//   hidden = rms(x),   logits = cap(scale W_head hidden)
//
// Only some model families have norms of heads or after attention and MLP, scales and caps. A layer
// may have a sliding window.
//
// Decoding is bound by memory bandwidth: a token reads every weight once. `packing.h` describes the
// layout of the weights, `products.h` the rounding of the inputs of a product. The residual x, the
// accumulators and the softmax are float32.
//
// The n tokens of a pass belong to one or several sequences: the next token of a sequence, a chunk
// of a prompt, or the nodes of a draft tree. Node i of a tree attends to the cache and to the nodes
// j with visible[i, j]. No sum crosses tokens, and the summation order does not depend on their
// number, so the result for a token does not depend on the rest of the pass.

#pragma once
#include <algorithm>
#include <vector>

#include "attention.h"
#include "products.h"
#include "threads.h"

namespace {

enum Activation : int32_t { SILU = 0, GELU = 1 };

// Activations of a pass, shared by its threads.
struct Buffers {
  std::vector<float> x, normed, heads;  // [n, width] twice, [n, (heads + 2 kv_heads) head]
  std::vector<float> attended, gated;   // [n, heads head], [n, inner]
  std::vector<float> mixed;             // [n, 2 inner] or [n, width]
  Input input, up_input;  // rounded inputs of a product; of `up` if it differs from `gate`
  std::vector<int> sequence, place;  // [n], sequence and logit row of each token; -1: no logits

  Buffers(const Model& m, const Pass& p) : sequence(p.tokens), place(p.tokens, -1) {
    for (int s = 0; s < p.sequences; s++)
      std::fill(&sequence[p.starts[s]], sequence.data() + p.starts[s + 1], s);
    for (int r = 0; r < p.read_out; r++) place[p.rows[r]] = r;
    const size_t n = p.tokens;
    const size_t width = m.width, inner = m.inner, row = (size_t)m.heads * m.head;
    x.resize(n * width), normed.resize(n * width);
    heads.resize(n * (row + 2 * (size_t)m.kv_heads * m.head));
    attended.resize(n * row), gated.resize(n * inner);
    mixed.resize(n * std::max(2 * inner, width + LANES));
    input.hold(n * std::max({width, row, inner})), up_input.hold(n * width);
  }
};

// One thread of a forward pass.
class Worker {
 public:
  Worker(const Model& model, const Pass& pass, Buffers& shared, Barrier& barrier, int rank)
      : m_(model), p_(pass), s_(shared), barrier_(barrier), rank_(rank), attention_(model),
        rounded_(model.head) {}

  void run() {
    rows([&](int i) { embed(i); });
    for (int l = 0; l < m_.layers; l++) {
      const Layer& layer = m_.layer[l];
      rows([&](int i) { prepare(layer.qkv, normed(i, layer.attention_norm), i, s_.input); });
      heads(layer, l);
      wait_for_all(barrier_);
      attend(layer, l);
      add(layer.out, s_.attended, layer.attention_out_norm);
      rows([&](int i) {
        const float* row = normed(i, layer.mlp_norm);
        prepare(layer.gate, row, i, s_.input);
        if (!same_input(layer.gate, layer.up)) prepare(layer.up, row, i, s_.up_input);
      });
      gate(layer);
      add(layer.down, s_.gated, layer.mlp_out_norm);
    }
    read_out();
  }

 private:
  Share mine(int units) const { return share(units, rank_, p_.threads); }

  // Runs `work` for every token between two barriers. Few tokens are processed by the last thread
  // to arrive, which saves a barrier; many tokens are split between the threads.
  template <class Work> void rows(Work work) {
    constexpr int FEW = 8;
    auto some = [&](Share tokens) {
      for (int i = tokens.first; i < tokens.last; i++) work(i);
    };
    if (p_.tokens <= FEW) return wait_for_all(barrier_, [&] { some({0, p_.tokens}); });
    wait_for_all(barrier_);
    some(mine(p_.tokens));
    wait_for_all(barrier_);
  }

  void embed(int i) {
    float* x = &s_.x[(size_t)i * m_.width];
    if (p_.inputs) return (void)std::copy_n(p_.inputs + (size_t)i * m_.width, m_.width, x);
    const bf16* row = m_.embedding + p_.ids[i] * m_.width;
    for (int d = 0; d < m_.width; d++) x[d] = m_.embedding_scale * widen(row[d]);
  }

  // Normalizes the hidden state of a token; returns the row in `normed`.
  const float* normed(int i, const float* weight) {
    const size_t row = (size_t)i * m_.width;
    rms_norm(&s_.x[row], weight, m_.epsilon, m_.width, &s_.normed[row]);
    return &s_.normed[row];
  }

  // Computes queries, keys and values for this thread's heads; appends keys and values to the
  // cache.
  void heads(const Layer& layer, int l) {
    const int d = m_.head, all_heads = m_.heads + 2 * m_.kv_heads, stride = all_heads * d;
    const int half = m_.rotated / 2;
    const float *cosines = m_.cosines[layer.rotary], *sines = m_.sines[layer.rotary];
    const Share some = mine(all_heads);
    const Product p{layer.qkv, s_.normed.data(), s_.input, s_.heads.data(), stride};
    multiply(p, some.first * d / LANES, some.last * d / LANES, p_.tokens);
    for (int i = 0; i < p_.tokens; i++)
      for (int h = some.first; h < some.last; h++) {
        float* head = &s_.heads[(size_t)i * stride + h * d];
        const bool query = h < m_.heads, value = h >= m_.heads + m_.kv_heads;
        const float* norm = query ? layer.query_norm : value ? nullptr : layer.key_norm;
        if (norm) rms_norm(head, norm, m_.epsilon, d, head);
        const size_t angle = p_.positions[i] * half;
        if (!value) rotate(head, cosines + angle, sines + angle, half);
        if (query) continue;
        const Cache& cache = *p_.caches[s_.sequence[i]];
        const int row = cache.length + i - p_.starts[s_.sequence[i]];
        bf16* block = cache.blocks[row / BLOCK] + rows_of(value, l, (h - m_.heads) % m_.kv_heads);
        round_to(head, d, rounded_.data());
        for (int k = 0; k < d; k++)
          block[value ? row % BLOCK * d + k : k * BLOCK + row % BLOCK] = rounded_[k];
      }
  }

  // Offset of the keys or values of a layer and head in a cache block.
  size_t rows_of(bool values, int layer, int kv) const {
    return (((size_t)values * m_.layers + layer) * m_.kv_heads + kv) * BLOCK * m_.head;
  }

  // Computes attention for this thread's heads and tokens. G query heads that share keys are
  // processed together, if that leaves work for all threads.
  template <int G = 4> void attend(const Layer& layer, int l) {
    const int d = m_.head, stride = (m_.heads + 2 * m_.kv_heads) * d;
    if constexpr (G > 1)
      if (m_.heads / m_.kv_heads % G || m_.heads / G * p_.tokens < p_.threads)
        return attend<G - 1>(layer, l);
    const Share some = mine(m_.heads / G * p_.tokens);
    for (int unit = some.first, done; unit < some.last; unit += done) {
      const int h = unit / p_.tokens * G, i = unit % p_.tokens, kv = h / (m_.heads / m_.kv_heads);
      const int sequence = s_.sequence[i], start = p_.starts[sequence];
      const int end = p_.starts[sequence + 1], cached = p_.caches[sequence]->length;
      constexpr int T = TOGETHER / G;  // causal tokens that are processed together
      const bool text =
          !p_.visible[sequence] && (!layer.window || p_.positions[i] + T < layer.window);
      done = text && i + T <= end && unit + T <= some.last ? T : 1;
      const Cache& cache = *p_.caches[sequence];
      attention_.look(p_.visible[sequence], p_.positions + start, end - start, i - start, done,
                      layer.window, cached);
      const float* queries = &s_.heads[(size_t)i * stride + h * d];
      float* to = &s_.attended[((size_t)i * m_.heads + h) * d];
      const size_t keys = rows_of(false, l, kv), values = rows_of(true, l, kv), row = m_.heads * d;
      if (done == T)
        attention_.attend<G, T>(queries, stride, cache, keys, values, to, row);
      else
        attention_.attend<G, 1>(queries, stride, cache, keys, values, to, row);
    }
  }

  // x += W input, normalized first if `norm` is not null.
  void add(const Matrix& matrix, const std::vector<float>& input, const float* norm) {
    const Share some = mine(matrix.outputs / LANES);
    float* y = s_.mixed.data();
    rows([&](int i) { prepare(matrix, &input[(size_t)i * matrix.inputs], i, s_.input); });
    multiply({matrix, input.data(), s_.input, y, matrix.outputs}, some.first, some.last, p_.tokens);
    const auto add_row = [&](int i, int first, int last) {
      const float* row = y + (size_t)i * matrix.outputs;
      for (int d = first; d < last; d++) s_.x[(size_t)i * m_.width + d] += row[d];
    };
    if (norm)
      return rows([&](int i) {
        float* row = y + (size_t)i * matrix.outputs;
        rms_norm(row, norm, m_.epsilon, m_.width, row);
        add_row(i, 0, m_.width);
      });
    const int first = some.first * LANES, last = std::min(some.last * LANES, m_.width);
    for (int i = 0; i < p_.tokens; i++) add_row(i, first, last);
  }

  // Computes f(gate) * up for this thread's outputs.
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
        const Floats g = load<Floats>(gates + place);
        const Floats open = m_.activation == GELU ? gelu(g) : silu(g);
        store(&s_.gated[place], open * load<Floats>(ups + place));
      }
  }

  // Writes the final hidden states and the logits.
  void read_out() {
    float* x = s_.mixed.data();  // hidden states of the logit rows
    rows([&](int i) {
      const float* row = m_.final_norm ? normed(i, m_.final_norm) : &s_.x[(size_t)i * m_.width];
      std::copy_n(row, m_.width, p_.hidden + (size_t)i * m_.width);
      const int place = s_.place[i];
      if (place < 0) return;
      std::copy_n(row, m_.width, x + (size_t)place * m_.width);
      prepare(m_.read_out, row, place, s_.input);
    });
    if (!p_.read_out) return;
    const Share some = mine(m_.read_out.outputs / LANES);
    multiply({m_.read_out, x, s_.input, p_.logits, m_.read_out.outputs}, some.first, some.last,
             p_.read_out);
    if (m_.logit_scale != 1 || m_.logit_cap) transform_logits(some);
  }

  // l = cap(scale l)
  void transform_logits(Share some) {
    for (int i = 0; i < p_.read_out; i++)
      for (int block = some.first; block < some.last; block++) {
        float* place = p_.logits + (size_t)i * m_.read_out.outputs + block * LANES;
        const Floats scaled = load<Floats>(place) * m_.logit_scale;
        store(place, m_.logit_cap ? capped(scaled, m_.logit_cap) : scaled);
      }
  }

  // Number of queries processed at once, such that their accumulators fit the registers.
  static constexpr int TOGETHER = REGISTER == 16 ? 6 : 4;

  const Model& m_;
  const Pass& p_;
  Buffers& s_;
  Barrier& barrier_;
  const int rank_;
  Attention attention_;
  std::vector<bf16> rounded_;
};

// Runs a pass: appends its tokens to the caches and writes `hidden` and `logits`.
int32_t forward(const Model* model, const Pass* pass) try {
  Buffers shared(*model, *pass);
  auto work = [&](int rank, Barrier& barrier) {
    Worker(*model, *pass, shared, barrier, rank).run();
  };
  if (in_team(pass->threads, work)) return 1;
  for (int i = 0; i < pass->sequences; i++)
    pass->caches[i]->length += pass->starts[i + 1] - pass->starts[i];
  return 0;
} catch (...) {
  return 1;
}

// y [n, outputs] = W x + bias, x [n, inputs].
int32_t linear(const Matrix* matrix, const float* x, float* y, int32_t n, int32_t threads) try {
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

// Finds the `ranks` largest values of each row of x [rows, columns] in descending order, their
// columns [rows, ranks], and the log-sum-exp of each row [rows]. -infinity and NaN are never
// selected; missing values are -infinity at column 0.
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

// Compacts the cache: of the rows from `start` on, keeps the rows start + chosen[i] (ascending).
void keep(const Model* model, Cache* cache, int32_t start, const int32_t* chosen, int32_t count) {
  const size_t size = model->head, heads = (size_t)model->layers * model->kv_heads;
  for (int i = 0; i < count; i++) {
    if (chosen[i] == i) continue;
    const int from = start + chosen[i], to = start + i;
    const bf16* source = cache->blocks[from / BLOCK];
    bf16* target = cache->blocks[to / BLOCK];
    for (size_t at = 0; at < heads * size; at++)
      target[at * BLOCK + to % BLOCK] = source[at * BLOCK + from % BLOCK];
    for (size_t h = heads; h < 2 * heads; h++)
      std::copy_n(source + (h * BLOCK + from % BLOCK) * size, size,
                  target + (h * BLOCK + to % BLOCK) * size);
  }
  cache->length = start + count;
}

}  // namespace

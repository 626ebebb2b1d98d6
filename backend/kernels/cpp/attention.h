// Attention of a group of query heads that share keys and values:
// softmax(cap(q k^T scale) + mask) v.

#pragma once
#include <algorithm>
#include <type_traits>
#include <vector>

#include "functions.h"

namespace {

static_assert(BLOCK == LANES, "the keys of a block are read side by side");

// Attention of one or several tokens to the visible rows of the cache: the rows from `first_` to
// `cached_`, and the rows `own_` of the same pass. Masked rows are skipped rather than weighted by
// 0, so that results are bitwise independent of batching: a node of a draft tree gives the same
// result as its path alone, and a head or token the same alone as together with others.
class Attention {
 public:
  explicit Attention(const Model& model) : m_(model) {}

  // Selects the visible rows for `tokens` tokens of a sequence, beginning with token i. The
  // sequence has `each` tokens in this pass, at `positions`. Without a tree mask, each token sees
  // one row more than the previous token.
  void look(const uint8_t* visible, const int64_t* positions, int each, int i, int tokens,
            int window, int cached) {
    const auto near = [&](int64_t place) { return !window || positions[i] - place < window; };
    const int64_t before = window ? positions[i] - window + 1 : 0;
    if (!visible) cached += i + 1;  // causal: tokens of the pass follow the cached ones
    first_ = (int)std::clamp<int64_t>(before, 0, cached), cached_ = cached, more_ = tokens - 1;
    own_.clear();
    for (int j = 0; visible && j < each; j++)
      if (visible[(size_t)i * each + j] && near(positions[j])) own_.push_back(cached + j);
    const bool any_cached = first_ < cached_ || own_.empty();
    const int64_t place = any_cached ? first_ : positions[own_[0] - cached];
    start_ = (any_cached ? first_ : own_[0]) / BLOCK * BLOCK, lead_ = place % BLOCK;
    end_ = own_.empty() ? cached_ + more_ : own_.back() + 1;
    rows_ = lead_ + cached_ - first_ + (int)own_.size();
    stride_ = rows_ + more_ + 2 * LANES;
  }

  // Computes attention for T tokens with G queries [G][head] each, whose heads share keys and
  // values. `keys` and `values` are the offsets of these in each cache block; `next_query` and
  // `next` are the token strides of the queries and of the output.
  template <int G, int T>
  void attend(const float* queries, size_t next_query, const Cache& cache, size_t keys,
              size_t values, float* to, size_t next) {
    const float* from[T * G];
    float *means[T * G], totals[T * G];
    for (int q = 0; q < T * G; q++) {
      from[q] = queries + q / G * next_query + q % G * m_.head;
      means[q] = to + q / G * next + q % G * m_.head;
    }
    scores_.resize((size_t)T * G * stride_);
    score<T * G>(from, cache.blocks, keys, values);
    for (int q = 0; q < T * G; q++) totals[q] = weigh(&scores_[q * (size_t)stride_], rows_ + q / G);
    constexpr int C = T * G > 6 ? 2 : 4;
    int at = 0;
    for (; at + C * LANES <= m_.head; at += C * LANES)
      mean_of<T, G, C>(cache.blocks, values, totals, means, at);
    for (; at < m_.head; at += LANES) mean_of<T, G, 1>(cache.blocks, values, totals, means, at);
  }

 private:
  // Computes the scores of the rows from `first_` on, followed by those of `own_`. The scores are
  // preceded by `lead_` unused entries, so that a row falls into the same lane whatever is cached.
  // Blocks are read completely; scores of masked rows are overwritten. The parts of a block for
  // other heads and layers lie between those for this head, so that the processor foresees neither
  // the keys of the next block nor the values, which are read next: both are prefetched.
  template <int Q>
  void score(const float* const* queries, bf16* const* blocks, size_t keys, size_t values) {
    constexpr int CHAINS = 2;  // independent accumulators hide the latency of the FMA
    size_t own = 0;
    for (int at = start_; at < end_; at += BLOCK) {
      const bf16* here = blocks[at / BLOCK] + keys;
      const bf16* next_keys = blocks[std::min(at + BLOCK, end_ - 1) / BLOCK] + keys;
      const bf16* soon = blocks[at / BLOCK] + values;
      Floats sums[Q][CHAINS] = {};
      for (int d = 0; d < m_.head; d += CHAINS) {
        __builtin_prefetch(next_keys + (size_t)d * BLOCK);
        __builtin_prefetch(soon + (size_t)d * BLOCK);
        for (int c = 0; c < CHAINS; c++) {
          const Floats key = widen(load<Halves>(here + (size_t)(d + c) * BLOCK));
          for (int q = 0; q < Q; q++) sums[q][c] = fused(all(queries[q][d + c]), key, sums[q][c]);
        }
      }
      size_t next = own;
      for (int q = 0; q < Q; q++) {
        float *scores = &scores_[(size_t)q * stride_], found[LANES];
        store(found, (sums[q][0] + sums[q][1]) * m_.attention_scale);
        if (at < cached_ + more_) std::copy_n(found, LANES, scores + at - start_);
        for (next = own; next < own_.size() && own_[next] < at + BLOCK; next++)
          scores[own_place() + next] = found[own_[next] - at];
      }
      own = next;
    }
  }

  // Replaces the scores by e^(score - largest score) and returns their sum. It is not inlined,
  // because compilers would contract multiplications and additions differently at each call.
  __attribute__((noinline)) float weigh(float* scores, int rows) const {
    for (int t = 0; m_.attention_cap && t < rows; t += LANES)
      store(scores + t, capped(load<Floats>(scores + t), m_.attention_cap));
    std::fill(scores, scores + lead_, -INFINITY);
    std::fill(scores + rows, scores + rows + LANES, -INFINITY);
    Floats most = all(-INFINITY), total = {};
    for (int t = 0; t < rows; t += LANES) most = larger(load<Floats>(scores + t), most);
    const float highest = largest(most);
    for (int t = 0; t < rows; t += LANES) {
      const Floats weight = exponential(load<Floats>(scores + t) - highest);
      store(scores + t, weight);
      total += weight;
    }
    return sum(total);
  }

  // Computes 16 C columns, from column `at` on, of the weighted means of the values.
  template <int T, int G, int C>
  void mean_of(bf16* const* blocks, size_t values, const float* totals, float* const* to,
               int at) const {
    Floats mean[T * G][C] = {};
    const auto value = [&](int t) {
      return blocks[t / BLOCK] + values + at + (size_t)(t % BLOCK) * m_.head;
    };
    const auto add = [&](int n, const bf16* from) {
      for (int c = 0; c < C; c++) {
        const Floats some = widen(load<Halves>(from + c * LANES));
        for (int q = 0; q < T * G; q++)
          mean[q][c] = fused(all(scores_[(size_t)q * stride_ + n]), some, mean[q][c]);
      }
    };
    for (int t = first_; t < cached_; t++) add(lead_ + t - first_, value(t));
    for (size_t n = 0; n < own_.size(); n++) add(own_place() + (int)n, value(own_[n]));
    for (int q = G; q < T * G; q++)  // rows that only the later of the T tokens see
      for (int t = cached_; t < cached_ + q / G; t++)
        for (int c = 0; c < C; c++) {
          const float weight = scores_[(size_t)q * stride_ + lead_ + t - first_];
          const Floats some = widen(load<Halves>(value(t) + c * LANES));
          mean[q][c] = fused(all(weight), some, mean[q][c]);
        }
    for (int q = 0; q < T * G; q++)
      for (int c = 0; c < C; c++) store(to[q] + at + c * LANES, mean[q][c] / totals[q]);
  }

  int own_place() const { return lead_ + cached_ - first_; }

  const Model& m_;
  int first_ = 0, cached_ = 0, more_ = 0;
  int start_ = 0, end_ = 0;               // range of rows that are read, whole blocks
  int lead_ = 0, rows_ = 0, stride_ = 0;  // unused entries; lead and scores; query stride
  std::vector<int> own_;
  std::vector<float> scores_;
};

}  // namespace

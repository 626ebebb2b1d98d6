// Attention of one head and token: softmax(cap(q k^T scale) + mask) v.

#pragma once
#include <algorithm>
#include <type_traits>
#include <vector>

#include "functions.h"
#include "model.h"

namespace {

// The keys or values of a head of a layer, of which a token sees some: those from `first` to
// `cached`, and those of its pass in `own`. What it does not see is left out, so that a node of a
// tree adds up the same numbers in the same order as its path alone.
class Attention {
 public:
  explicit Attention(const Model& model) : m_(model) {}

  // Chooses the rows for token i of the `each` tokens of a sequence, which are at `positions`.
  void look(const uint8_t* visible, const int64_t* positions, int each, int i, int window,
            int cached) {
    const auto near = [&](int64_t place) { return !window || positions[i] - place < window; };
    const int64_t before = window ? positions[i] - window + 1 : 0;
    first_ = (int)std::clamp<int64_t>(before, 0, cached), cached_ = cached;
    own_.clear();
    for (int j = 0; j < (visible ? each : i + 1); j++)
      if ((!visible || visible[(size_t)i * each + j]) && near(positions[j]))
        own_.push_back(cached + j);
  }

  // Keys and values begin in every block of the cache at these places.
  void attend(const float* query, const Cache& cache, size_t keys, size_t values, float* to) {
    const float total = weigh(query, cache.blocks, keys);
    int at = 0;
    auto some = [&](auto lanes) {
      constexpr int C = decltype(lanes)::value;
      for (; at + C * LANES <= m_.head; at += C * LANES)
        mean_of<C>(cache.blocks, values + at, total, to + at);
    };
    some(std::integral_constant<int, 8>()), some(std::integral_constant<int, 4>());
    some(std::integral_constant<int, 1>());
  }

 private:
  // Calls work(n, row) for the n-th of the rows it sees, which begin at `place` of their blocks.
  template <class Work> void each_row(bf16* const* blocks, size_t place, Work work) const {
    const auto row = [&](int t) {
      return blocks[t / BLOCK] + place + (size_t)(t % BLOCK) * m_.head;
    };
    int n = 0;
    for (int t = first_; t < cached_;) {
      const int end = std::min(cached_, (t / BLOCK + 1) * BLOCK);
      for (const bf16* here = row(t); t < end; t++, here += m_.head) work(n++, here);
    }
    for (const int t : own_) work(n++, row(t));
  }

  // Fills the scores with e^(score - largest); returns their sum.
  float weigh(const float* query, bf16* const* blocks, size_t keys) {
    const int rows = cached_ - first_ + (int)own_.size();
    scores_.resize(rows + LANES);
    float largest = -INFINITY;
    each_row(blocks, keys, [&](int n, const bf16* key) {
      Floats products = {};
      for (int at = 0; at < m_.head; at += LANES)
        products += load<Floats>(query + at) * widen(load<Halves>(key + at));
      scores_[n] = sum(products) * m_.attention_scale;
      largest = std::max(largest, scores_[n]);
    });
    if (m_.attention_cap) largest = cap_scores(rows, largest);
    std::fill(scores_.begin() + rows, scores_.end(), -INFINITY);
    Floats total = {};
    for (int t = 0; t < rows; t += LANES) {
      const Floats weight = exponential(load<Floats>(&scores_[t]) - largest);
      store(&scores_[t], weight);
      total += weight;
    }
    return sum(total);
  }

  float cap_scores(int rows, float largest) {
    for (int t = 0; t < rows; t += LANES)
      store(&scores_[t], capped(load<Floats>(&scores_[t]), m_.attention_cap));
    return ::largest(capped(all(largest), m_.attention_cap));
  }

  // 16 C columns of the mean of the values.
  template <int C>
  void mean_of(bf16* const* blocks, size_t values, float total, float* to) const {
    Floats mean[C] = {};
    each_row(blocks, values, [&](int n, const bf16* value) {
      for (int c = 0; c < C; c++) mean[c] += scores_[n] * widen(load<Halves>(value + c * LANES));
    });
    for (int c = 0; c < C; c++) store(to + c * LANES, mean[c] / total);
  }

  const Model& m_;
  int first_ = 0, cached_ = 0;
  std::vector<int> own_;
  std::vector<float> scores_;  // of the rows from `first` on, then of those in `own`
};

}  // namespace

// Attention of one head and token: softmax(cap(q k^T scale) + mask) v.

#pragma once
#include <algorithm>
#include <vector>

#include "functions.h"
#include "model.h"

namespace {

// The keys or values [.., head] of a head of a layer, of which a token sees some: those from
// `first` to `cached`, and those of its pass in `own`. What it does not see is left out, so that a
// node of a tree adds up the same numbers in the same order as its path alone.
class Attention {
 public:
  explicit Attention(const Model& model) : m_(model) {}

  // Chooses the rows for token i of a sequence, whose tokens of this pass are at `positions`.
  void look(const Pass& pass, const int64_t* positions, int each, int i, int window, int cached) {
    const auto near = [&](int64_t place) { return !window || positions[i] - place < window; };
    const int64_t before = window ? positions[i] - window + 1 : 0;
    first_ = (int)std::clamp<int64_t>(before, 0, cached), cached_ = cached;
    own_.clear();
    for (int j = 0; j < each; j++) {
      const bool seen = pass.visible ? pass.visible[(size_t)i * each + j] : j <= i;
      if (seen && near(positions[j])) own_.push_back(cached + j);
    }
  }

  void attend(const float* query, const bf16* keys, const bf16* values, float* to) {
    const float total = weigh(query, keys);
    int at = 0;
    for (; at + 8 * LANES <= m_.head; at += 8 * LANES) mean_of<8>(values + at, total, to + at);
    for (; at + 4 * LANES <= m_.head; at += 4 * LANES) mean_of<4>(values + at, total, to + at);
    for (; at < m_.head; at += LANES) mean_of<1>(values + at, total, to + at);
  }

 private:
  // Fills the scores with e^(score - largest); returns their sum.
  float weigh(const float* query, const bf16* keys) {
    const int before = cached_ - first_, rows = before + (int)own_.size();
    scores_.resize(rows + LANES);
    float largest = -INFINITY;
    for (int t = 0; t < rows; t++) {
      const bf16* key = keys + (size_t)(t < before ? first_ + t : own_[t - before]) * m_.head;
      Floats products = {};
      for (int at = 0; at < m_.head; at += LANES)
        products += load<Floats>(query + at) * widen(load<Halves>(key + at));
      scores_[t] = sum(products) * m_.attention_scale;
      largest = std::max(largest, scores_[t]);
    }
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
  template <int C> void mean_of(const bf16* values, float total, float* to) const {
    const int before = cached_ - first_;
    Floats mean[C] = {};
    auto add = [&](float weight, int row) {
      const bf16* value = values + (size_t)row * m_.head;
      for (int c = 0; c < C; c++) mean[c] += weight * widen(load<Halves>(value + c * LANES));
    };
    for (int t = 0; t < before; t++) add(scores_[t], first_ + t);
    for (size_t j = 0; j < own_.size(); j++) add(scores_[before + j], own_[j]);
    for (int c = 0; c < C; c++) store(to + c * LANES, mean[c] / total);
  }

  const Model& m_;
  int first_ = 0, cached_ = 0;
  std::vector<int> own_;
  std::vector<float> scores_;  // of the rows from `first` on, then of those in `own`
};

}  // namespace

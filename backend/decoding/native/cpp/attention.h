// Attention of some heads of a token that share keys and values:
// softmax(cap(q k^T scale) + mask) v.

#pragma once
#include <algorithm>
#include <type_traits>
#include <vector>

#include "functions.h"
#include "model.h"

namespace {

static_assert(BLOCK == LANES, "the keys of a block are read side by side");

// The keys or values of a head of a layer, of which a token sees some: those from `first` to
// `cached`, and those of its pass in `own`. What it does not see is left out, so that a node of a
// tree adds up the same numbers in the same order as its path alone; and a head alone as together
// with others.
class Attention {
 public:
  explicit Attention(const Model& model) : m_(model) {}

  // Chooses the rows for token i of the `each` tokens of a sequence, which are at `positions`.
  void look(const uint8_t* visible, const int64_t* positions, int each, int i, int window,
            int cached) {
    const auto near = [&](int64_t place) { return !window || positions[i] - place < window; };
    const int64_t before = window ? positions[i] - window + 1 : 0;
    if (!visible) cached += i + 1;  // of a text, the tokens of the pass follow the others
    first_ = (int)std::clamp<int64_t>(before, 0, cached), cached_ = cached;
    own_.clear();
    for (int j = 0; visible && j < each; j++)
      if (visible[(size_t)i * each + j] && near(positions[j])) own_.push_back(cached + j);
    const bool any_cached = first_ < cached_ || own_.empty();
    const int64_t place = any_cached ? first_ : positions[own_[0] - cached];
    start_ = (any_cached ? first_ : own_[0]) / BLOCK * BLOCK, lead_ = place % BLOCK;
    end_ = own_.empty() ? cached_ : own_.back() + 1;
    rows_ = lead_ + cached_ - first_ + (int)own_.size(), stride_ = rows_ + 2 * LANES;
  }

  // G queries [G][head] of heads that share keys and values, which begin in every block of the
  // cache at these places.
  template <int G>
  void attend(const float* queries, const Cache& cache, size_t keys, size_t values, float* to) {
    scores_.resize((size_t)G * stride_);
    score<G>(queries, cache.blocks, keys);
    float totals[G];
    for (int g = 0; g < G; g++) totals[g] = weigh(&scores_[(size_t)g * stride_]);
    int at = 0;
    for (; at + 4 * LANES <= m_.head; at += 4 * LANES)
      mean_of<G, 4>(cache.blocks, values + at, totals, to + at);
    for (; at < m_.head; at += LANES) mean_of<G, 1>(cache.blocks, values + at, totals, to + at);
  }

 private:
  // The scores of the rows from `first` on, then of those in `own`, behind a lead that makes them
  // fall into the same lanes whatever was cached. Blocks are read whole: what is not seen is
  // overwritten.
  template <int G> void score(const float* queries, bf16* const* blocks, size_t keys) {
    constexpr int CHAINS = 2;  // one sum would wait for itself
    size_t own = 0;
    for (int at = start_; at < end_; at += BLOCK) {
      const bf16* here = blocks[at / BLOCK] + keys;
      Floats sums[G][CHAINS] = {};
      for (int d = 0; d < m_.head; d += CHAINS)
        for (int c = 0; c < CHAINS; c++) {
          const Floats key = widen(load<Halves>(here + (size_t)(d + c) * BLOCK));
          for (int g = 0; g < G; g++)
            sums[g][c] = fused(all(queries[g * m_.head + d + c]), key, sums[g][c]);
        }
      size_t next = own;
      for (int g = 0; g < G; g++) {
        float *scores = &scores_[(size_t)g * stride_], found[LANES];
        store(found, (sums[g][0] + sums[g][1]) * m_.attention_scale);
        if (at < cached_) std::copy_n(found, LANES, scores + at - start_);
        for (next = own; next < own_.size() && own_[next] < at + BLOCK; next++)
          scores[own_place() + next] = found[own_[next] - at];
      }
      own = next;
    }
  }

  // Makes e^(score - largest) of the scores; returns their sum. In one place, as compilers fuse
  // products with sums here and there.
  __attribute__((noinline)) float weigh(float* scores) const {
    for (int t = 0; m_.attention_cap && t < rows_; t += LANES)
      store(scores + t, capped(load<Floats>(scores + t), m_.attention_cap));
    std::fill(scores, scores + lead_, -INFINITY);
    std::fill(scores + rows_, scores + rows_ + LANES, -INFINITY);
    Floats most = all(-INFINITY), total = {};
    for (int t = 0; t < rows_; t += LANES) most = larger(load<Floats>(scores + t), most);
    const float highest = largest(most);
    for (int t = 0; t < rows_; t += LANES) {
      const Floats weight = exponential(load<Floats>(scores + t) - highest);
      store(scores + t, weight);
      total += weight;
    }
    return sum(total);
  }

  // 16 C columns of the means of the values.
  template <int G, int C>
  void mean_of(bf16* const* blocks, size_t values, const float (&totals)[G], float* to) const {
    Floats mean[G][C] = {};
    const auto add = [&](int n, int t) {
      const bf16* value = blocks[t / BLOCK] + values + (size_t)(t % BLOCK) * m_.head;
      for (int c = 0; c < C; c++) {
        const Floats some = widen(load<Halves>(value + c * LANES));
        for (int g = 0; g < G; g++)
          mean[g][c] = fused(all(scores_[(size_t)g * stride_ + n]), some, mean[g][c]);
      }
    };
    for (int t = first_; t < cached_; t++) add(lead_ + t - first_, t);
    for (size_t n = 0; n < own_.size(); n++) add(own_place() + (int)n, own_[n]);
    for (int g = 0; g < G; g++)
      for (int c = 0; c < C; c++) store(to + g * m_.head + c * LANES, mean[g][c] / totals[g]);
  }

  int own_place() const { return lead_ + cached_ - first_; }

  const Model& m_;
  int first_ = 0, cached_ = 0;
  int start_ = 0, end_ = 0;               // of the rows of the blocks that are read
  int lead_ = 0, rows_ = 0, stride_ = 0;  // before the scores; with them; from head to head
  std::vector<int> own_;
  std::vector<float> scores_;
};

}  // namespace

// Accelerated proximal gradient descent of `pruning/redense.py`: one call
// runs all steps.
//
// The update of W is fused into the product: it is computed while the tile of P = D H is still in
// registers. A step therefore reads and writes each entry of W, P and the rounded D once. H is
// packed like every right factor.

#pragma once
#include <cmath>
#include <utility>

#include "gram.h"

namespace {

#if HAVE_BF16
// Operation after a gradient step (`prox`). A value of 2, 4, 8 or 16 keeps the largest weights of
// each group of this size.
constexpr int SHRINK = 0, FIXED = 1, ROWS = -1;
constexpr int CHUNK_ROWS = HAVE_TILES ? 64 : 48;  // a multiple of TILE_ROWS

// Per-thread state of a chunk: matrices with a row stride of `wide`, padded with zeros.
struct Chunk {
  const Descent& task;
  const int wide;
  std::vector<Floats> room;
  float *start, *dense, *W, *before, *P;  // initial and dense weights, W_t, W_t-1, D_t-1 H
  bf16 *D, *next;                         // D_t, D_t+1
  float errors[CHUNK_ROWS];               // D_t H D_t^T of each row
  int rows;
  float beta;
  bool moves;  // false in the last pass, which only computes the errors

  explicit Chunk(const Descent& task)
      : task(task), wide((task.inputs + PANEL - 1) / PANEL * PANEL),
        room((size_t)6 * CHUNK_ROWS * wide / LANES) {
    float* to = (float*)room.data();
    for (float** each : {&start, &dense, &W, &before, &P}) *each = to, to += CHUNK_ROWS * wide;
    D = (bf16*)to, next = D + CHUNK_ROWS * wide;
  }
  Floats difference(const float* from, size_t at) const {
    return load<Floats>(from + at) - load<Floats>(dense + at);
  }
};

inline Ints size_of(Floats v) { return bits<Ints>(v) & 0x7fffffff; }  // ordered like |v|

// Keeps the `keep` entries of largest magnitude in each group and zeros the others. Of equal
// entries, the first are kept.
inline Floats largest_of(Floats V, int group, int keep) {
  const Ints lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const Ints size = size_of(V);
  Ints larger = {};  // number of entries that come before
  for (int k = 1; k < group; k++) {
    const Ints at = lane ^ k;
    const Ints other = (Ints)_mm512_permutexvar_epi32((__m512i)at, (__m512i)size);
    larger -= (other > size) | ((other == size) & (at < lane));
  }
  return select(larger < keep, V, Floats{});
}

// Applies the operation that follows a gradient step to V; `at` is the offset in the chunk.
inline Floats prox(const Chunk& c, Floats V, size_t at) {
  const Floats most = all(c.task.shrink), low = select(V > -most, V, -most);
  switch (c.task.kind) {
    case SHRINK:
      return V - select(low > most, most, low);
    case FIXED:
      return select(load<Floats>(c.start + at) == 0, Floats{}, V);
    case ROWS:
      return V;  // `keep_largest` needs the complete row
    default:
      return largest_of(V, c.task.kind, c.task.keep);
  }
}

// Multiplies TILE_ROWS rows by a panel of H and adds to the errors. Except in the last pass, writes
// W_t+1 over W_t-1, and D_t+1.
inline void descend_tile(Chunk& c, int row, int column) {
  const int pairs = (c.task.inputs + 1) / 2, rows = std::min(TILE_ROWS, c.rows - row);
  Sums P;
  multiply_tile({c.D + (size_t)row * c.wide, (size_t)c.wide, 2},
                c.task.H + (size_t)column * 2 * pairs, pairs, P);
  for (int r = 0; r < rows; r++) {
    Floats error = {};
    for (int v = 0; v < TILE_BLOCKS; v++) {
      const size_t at = (size_t)(row + r) * c.wide + column + v * LANES;
      const Floats W = load<Floats>(c.W + at), p = P[r][v];
      error = fused(p, c.difference(c.W, at), error);
      if (!c.moves) continue;
      const Floats moved = W - load<Floats>(c.before + at), turned = p - load<Floats>(c.P + at);
      const Floats gradient = fused(all(c.beta), turned, p);
      const Floats V = fused(all(-c.task.step), gradient, fused(all(c.beta), moved, W));
      store(c.before + at, prox(c, V, at));
      store(c.P + at, p);
      store(c.next + at, narrow(c.difference(c.before, at)));
    }
    c.errors[row + r] += sum(error);
  }
}

// Counts the entries whose magnitude, as bits, is at least `cut`.
inline int count(const float* V, int wide, int cut) {
  Ints found = {};
  for (int i = 0; i < wide; i += LANES) found -= size_of(load<Floats>(V + i)) >= cut;
  return (int)sum(convert<Floats>(found));
}

// Zeros all but the largest entries of a row of W_t+1, as many as the row has nonzeros at the
// start. A binary search over the bits of the magnitude finds the threshold. Of equal entries, the
// first are kept.

void keep_largest(Chunk& c, int row) {
  const float* start = c.start + (size_t)row * c.wide;
  float* V = c.before + (size_t)row * c.wide;
  int keep = 0, cut = 0, found = c.wide;
  for (int i = 0; i < c.task.inputs; i++) keep += start[i] != 0;
  for (int bit = 1 << 30; bit && found != keep; bit >>= 1)
    if (const int many = count(V, c.wide, cut | bit); many >= keep) cut |= bit, found = many;
  for (int i = c.task.inputs - 1; cut && found > keep; i--)
    if ((load<int>(V + i) & 0x7fffffff) == cut) V[i] = 0, found--;
  for (int i = 0; i < c.wide; i += LANES) {
    const Floats v = load<Floats>(V + i);
    store(V + i, select(size_of(v) >= cut, v, Floats{}));
  }
}

void round_differences(const Chunk& c, const float* W, bf16* D, int row) {
  for (size_t at = (size_t)row * c.wide; at < (size_t)(row + 1) * c.wide; at += LANES)
    store(D + at, narrow(c.difference(W, at)));
}

void descend_step(Chunk& c) {
  std::fill(c.errors, c.errors + c.rows, 0.0f);
  for (int column = 0; column < c.task.inputs; column += PANEL)
    for (int row = 0; row < c.rows; row += TILE_ROWS) descend_tile(c, row, column);
  for (int row = 0; c.task.kind == ROWS && row < c.rows && c.moves; row++) {
    keep_largest(c, row);
    round_differences(c, c.before, c.next, row);
  }
}

// Runs all steps on a chunk of rows that begins at row `first`.
void descend_rows(Chunk& c, int first) {
  const Descent& d = c.task;
  c.rows = std::min(CHUNK_ROWS, d.rows - first);
  std::fill(c.room.begin(), c.room.end(), Floats{});
  for (int row = 0; row < c.rows; row++) {
    const size_t from = (size_t)(first + row) * d.inputs, to = (size_t)row * c.wide;
    for (float* copy : {c.start, c.W, c.before}) std::copy_n(d.start + from, d.inputs, copy + to);
    std::copy_n(d.dense + from, d.inputs, c.dense + to);
    round_differences(c, c.W, c.D, row);
  }
  float *initial = d.errors + first, *lowest = initial + d.rows;
  double t = 1;
  for (int n = 0; n <= d.steps; n++) {
    const double further = (1 + std::sqrt(1 + 4 * t * t)) / 2;
    c.beta = (float)((t - 1) / further), t = further, c.moves = n < d.steps;
    if (c.moves || d.kind != SHRINK) descend_step(c);
    for (int row = 0; row < c.rows; row++) {
      if (!n) initial[row] = c.errors[row];
      if (d.kind == SHRINK ? c.moves : n && !(c.errors[row] < lowest[row])) continue;
      lowest[row] = c.errors[row];
      std::copy_n(c.W + (size_t)row * c.wide, d.inputs, d.W + (size_t)(first + row) * d.inputs);
    }
    std::swap(c.W, c.before), std::swap(c.D, c.next);
  }
  std::copy_n(c.errors, c.rows, lowest + d.rows);
}

// Runs the descent; threads take chunks of rows from a shared counter.
int32_t descend(const Descent* task, int32_t threads) {
  int next = 0;
  return in_team(threads, [&](int, Barrier&) {
    Chunk chunk(*task);
    for (int row; (row = __atomic_fetch_add(&next, CHUNK_ROWS, __ATOMIC_RELAXED)) < task->rows;)
      descend_rows(chunk, row);
  });
}
#else  // without AVX512_BF16, PyTorch is as fast
constexpr auto descend = nullptr;
#endif

}  // namespace

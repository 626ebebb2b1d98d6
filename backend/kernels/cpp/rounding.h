// Fused elementwise kernels for quantization. In PyTorch, each of them would take about a dozen
// passes over the weights. The equations are in `quantization/dlqat/linear.py`, `gptq.py` and
// `range_search.py`.
//
// Notation: W is the merged weight matrix of a layer [rows, columns], W_hat the quantized one. Each
// row is split into groups of `group` columns. A group has a scale s, a zero-point z and a
// magnitude m. A weight with the code q has the level q - z and the value m s (q - z).

#pragma once
#include <cmath>

#include "threads.h"
#include "vectors.h"

namespace {

constexpr int VECTORS = 4, TILE = LANES * VECTORS;
constexpr int PREFETCH_DISTANCE = 2048;  // weights
constexpr int MAX_GPTQ_COLUMNS = 128;    // maximum number of columns in a block of GPTQ

// Loads n <= LANES values and sets the other lanes to 0.
inline Floats load_some(const bf16* from, int n) {
  bf16 padded[LANES] = {};
  if (n < LANES) std::memcpy(padded, from, n * sizeof *from);
  return widen(load<Halves>(n < LANES ? padded : from));
}

// Stores the first n <= LANES values.
inline void store_some(bf16* to, Floats v, int n) {
  bf16 padded[LANES];
  store(n < LANES ? padded : to, narrow(v));
  if (n < LANES) std::memcpy(to, padded, n * sizeof *to);
}

constexpr float ONES[LANES] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};

// Rounds to the nearest integer, ties to even. Values above 2^22 are inexact, but they are clipped.
inline Floats round_to_integer(Floats v) { return v + ROUNDING - ROUNDING; }

inline Floats clamp(Floats v, Floats low, Floats high) {
  v = select(low > v, low, v);
  return select(v > high, high, v);
}

// Tile of up to 64 columns within one group of one row.
struct RowTile {
  int row, group, column, width;
  Floats level[VECTORS], unclipped[VECTORS];  // levels; 1 where a level was not clipped, else 0
};

// Computes the merged weights W = W0 + factor B A of a tile.
inline void merge(const Rows& r, const RowTile& t, Floats* W) {
  Floats update[VECTORS] = {};
  const float *B = r.B + int64_t(t.row) * r.rank, *A = r.A + t.column;
  if (t.width == TILE)
    for (int q = 0; q < r.rank; q++, A += r.columns)
      for (int v = 0; v < VECTORS; v++) update[v] += load<Floats>(A + v * LANES) * B[q];
  else
    for (int q = 0; q < r.rank; q++, A += r.columns)
      for (int v = 0; v * LANES < t.width; v++)
        update[v] += load_some(A + v * LANES, t.width - v * LANES) * B[q];
  const float* start = r.start + int64_t(t.row) * r.columns + t.column;
  for (int v = 0; v * LANES < t.width; v++) {
    __builtin_prefetch(start + v * LANES + PREFETCH_DISTANCE);
    W[v] = load_some(start + v * LANES, t.width - v * LANES) + update[v] * r.factor;
  }
}

// Computes `level` and `unclipped` of a tile.
inline void quantize(const Rows& r, RowTile& t) {
  int64_t group = int64_t(t.row) * (r.columns / r.group) + t.group;
  float s = r.scale[group], zero = std::rint(r.zero[group]), fraction = r.zero[group] - zero;
  Floats W[VECTORS], low = all(-zero - fraction), high = all(r.top - zero - fraction);
  merge(r, t, W);
  for (int v = 0; v * LANES < t.width; v++) {
    Floats rounded = round_to_integer(W[v] / s + fraction) - fraction;
    t.level[v] = clamp(rounded, low, high);
    t.unclipped[v] = select(rounded == t.level[v], all(1), all(0));
    if (!r.dense) continue;
    const float* from = r.dense + int64_t(t.row) * r.columns + t.column + v * LANES;
    const auto pruned = load_some(from, t.width - v * LANES) == all(0);
    t.level[v] = select(pruned, all(0), t.level[v]);
    t.unclipped[v] = select(pruned, all(0), t.unclipped[v]);
  }
}

// Calls visit(tile, index of its first weight, index of its group) for the tiles of the rows
// [first_row, end).
template <class Visit>
void for_each_tile(const Rows& r, int first_row, int end, Visit visit) {
  RowTile t;
  for (t.row = first_row; t.row < end; t.row++)
    for (t.group = 0; t.group < r.columns / r.group; t.group++)
      for (int first = 0; first < r.group; first += TILE) {
        t.column = t.group * r.group + first;
        t.width = r.group - first < TILE ? r.group - first : TILE;
        quantize(r, t);
        visit(t, int64_t(t.row) * r.columns + t.column,
              int64_t(t.row) * (r.columns / r.group) + t.group);
      }
}

// Calls `visit` for the tiles of all rows, in parallel.
template <class Visit>
int32_t for_each_tile(const Rows& r, int threads, Visit visit) {
  return in_team(threads, [&](int rank, Barrier&) {
    const Share rows = share(r.rows, rank, threads);
    for_each_tile(r, rows.first, rows.last, visit);
  });
}

// Calls visit(vector, offset in the tile, number of valid lanes) for the vectors of a tile.
template <class Visit>
inline void for_each_vector(const RowTile& t, Visit visit) {
  for (int v = 0; v * LANES < t.width; v++)
    visit(v, v * LANES, t.width - v * LANES < LANES ? t.width - v * LANES : LANES);
}

template <class T>
int32_t write_values(const Rows& r, T* out, int threads) {
  return for_each_tile(r, threads, [=, &r](const RowTile& t, int64_t first, int64_t group) {
    float step = r.m[group] * r.scale[group];
    for_each_vector(
        t, [&](int v, int i, int n) { store_some(out + first + i, t.level[v] * step, n); });
  });
}

template <class T>
int32_t write_gradients(const Rows& r, T* G, T* out, float* dm, int threads) {
  return for_each_tile(r, threads, [=, &r](const RowTile& t, int64_t first, int64_t group) {
    float m = r.m[group], step = m * r.scale[group];
    Floats products = {};  // dL/dW_hat times the level
    for_each_vector(t, [&](int v, int i, int n) {
      Floats g = load_some(G + first + i, n);
      if (out) store_some(out + first + i, t.level[v] * step, n);
      products += g * t.level[v];
      store_some(G + first + i, g * t.unclipped[v] * m, n);
    });
    dm[group] = (t.column % r.group ? dm[group] : 0) + r.scale[group] * sum(products);
  });
}

// Writes W_hat [rows, columns] in bfloat16 if `half`, else in float32.
int32_t values(const Rows* r, void* out, int32_t half, int32_t threads) {
  return half ? write_values(*r, (bf16*)out, threads) : write_values(*r, (float*)out, threads);
}

// Backward pass. Replaces G = dL/dW_hat with dL/dW in place. Writes dL/dm [rows, groups] to `dm`,
// and W_hat to `out` unless it is null.
int32_t backward(const Rows* r, void* G, void* out, float* dm, int32_t half, int32_t threads) {
  return half ? write_gradients(*r, (bf16*)G, (bf16*)out, dm, threads)
              : write_gradients(*r, (float*)G, (float*)out, dm, threads);
}

// Writes the levels q - z, and a mask that is 1 for weights inside the range and 0 for clipped
// weights. Both are float32 [rows, columns].
int32_t levels(const Rows* r, float* level, float* inside, int32_t threads) {
  return for_each_tile(*r, threads, [=](const RowTile& t, int64_t first, int64_t) {
    for_each_vector(t, [&](int v, int i, int n) {
      store_some(level + first + i, t.level[v], n);
      store_some(inside + first + i, t.unclipped[v], n);
    });
  });
}

// Computes the statistics of a training snapshot on the calling thread.
//
// Adds the histogram of the codes to `counts` [top + 1], and the number of codes that differ from
// the codes of W0 to `changed` [1]. For each group, writes the squared error sum (W_hat - dense)^2
// to `error` [rows, groups], and the number of weights inside the range to `unclipped` [rows,
// groups].
void snapshot_statistics(const Rows* r, const float* dense, int64_t* counts, int64_t* changed,
                         float* error, float* inside) {
  Rows start = *r;
  start.rank = 0;
  int64_t histograms[4][256] = {};  // consecutive equal codes update different counters
  for_each_tile(*r, 0, r->rows, [&](const RowTile& t, int64_t first, int64_t group) {
    RowTile initial = t;
    quantize(start, initial);
    float step = r->m[group] * r->scale[group], zero = r->zero[group];
    Floats squares = {}, unclipped = {}, moved = {};
    for_each_vector(t, [&](int v, int i, int n) {
      Floats codes = clamp(round_to_integer(t.level[v] + zero), all(0), all(r->top));
      __builtin_prefetch(dense + first + i + PREFETCH_DISTANCE);
      Floats D = t.level[v] * step - load_some(dense + first + i, n);
      // 1 for valid lanes, 0 for lanes past the end of the group
      Floats valid = load_some(ONES, n);
      squares += D * D * valid;
      unclipped += t.unclipped[v] * valid;
      moved += select(initial.level[v] == t.level[v], all(0), valid);
      int32_t integers[LANES];  // NaN is counted as code 0
      store(integers, nearest(select(codes == codes, codes, all(0))));
      for (int l = 0; l < n; l++) histograms[l % 4][integers[l]]++;
    });
    bool is_first = t.column % r->group == 0;
    changed[0] += (int64_t)sum(moved);
    error[group] = (is_first ? 0 : error[group]) + sum(squares);
    inside[group] = (is_first ? 0 : inside[group]) + sum(unclipped);
  });
  for (auto& histogram : histograms)
    for (int code = 0; code <= r->top; code++) counts[code] += histogram[code];
}

// Quantizes a block of columns with GPTQ. Compensates the errors in W in place, and writes the
// scaled errors (w - w_hat) / U_jj to E.
//
// W:           [rows, width] with a row stride of `stride`
// U:           [width, width] with a row stride of `U_stride`
// scale, zero: [rows, groups]; `groups` is 1 (one grid for all columns) or `width`
// top:         [rows], largest code
// mask:        [rows, width], 0 for pruned weights; null if no weight is pruned
// E:           [rows, width]
void gptq_columns(float* W, int64_t stride, const float* U, int64_t U_stride, const float* scale,
                  const float* zero, int32_t groups, const float* top, const uint8_t* mask,
                  float* E, int32_t rows, int32_t width) {
  // 16 rows, transposed
  float V[MAX_GPTQ_COLUMNS][LANES], error[MAX_GPTQ_COLUMNS][LANES], grid[2][LANES] = {};
  for (int first = 0; first < rows; first += LANES) {
    int n = rows - first < LANES ? rows - first : LANES;
    Floats Q = load_some(top + first, n), s = all(1), z = {}, integer = {}, fraction = {};
    std::memset(V, 0, sizeof V);
    for (int i = 0; i < n; i++)
      for (int j = 0; j < width; j++) V[j][i] = W[(first + i) * stride + j];
    for (int j = 0; j < width; j++) {
      if (!j || groups > 1) {
        for (int i = 0; i < n; i++) {
          int64_t group = int64_t(first + i) * groups + (groups > 1 ? j : 0);
          grid[0][i] = scale[group], grid[1][i] = zero[group];
        }
        for (int i = n; i < LANES; i++) grid[0][i] = 1;
        s = load<Floats>(grid[0]), z = load<Floats>(grid[1]);
        integer = round_to_integer(z), fraction = z - integer;
      }
      Floats w = load<Floats>(V[j]);
      for (int i = 0; mask && i < n; i++)
        if (!mask[int64_t(first + i) * width + j]) V[j][i] = 0;
      Floats q = clamp(round_to_integer(load<Floats>(V[j]) / s + fraction) + integer, all(0), Q);
      Floats e = (w - (q - z) * s) / U[j * U_stride + j];
      store(error[j], e);
      for (int l = j + 1; l < width; l++) store(V[l], load<Floats>(V[l]) - e * U[j * U_stride + l]);
    }
    for (int i = 0; i < n; i++)
      for (int j = 0; j < width; j++) {
        W[(first + i) * stride + j] = V[j][i];
        E[int64_t(first + i) * width + j] = error[j][i];
      }
  }
}

// Computes the weighted error sum_j h_j (w_j - s (q_j - z))^2 of each group on several grids.
//
// W:           [count, size]
// scale, zero: [grids, count]
// weight:      [groups, size], h of the groups of a row; all rows share it
// errors:      [grids, count]
void grid_errors(const float* W, const float* scale, const float* zero, const float* weight,
                 float* errors, int64_t count, int32_t grids, int32_t groups, int32_t size,
                 int32_t top) {
  for (int64_t k = 0; k < count; k++)
    for (int g = 0; g < grids; g++) {
      const float *w = W + k * size, *h = weight + k % groups * size;
      float s = scale[g * count + k], z = zero[g * count + k];
      float integer = std::rint(z), fraction = z - integer;
      Floats total = {};
      for (int i = 0; i < size; i += LANES) {
        Floats v = load_some(w + i, size - i), q = round_to_integer(v / s + fraction) + integer;
        Floats D = (clamp(q, all(0), all(top)) - z) * s - v;
        total += D * D * load_some(h + i, size - i);
      }
      errors[g * count + k] = sum(total);
    }
}

}  // namespace

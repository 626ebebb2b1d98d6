// The descent of `redense.py` on rows of a layer: all steps of a chunk in one call.
//
// A tile of P = D H is still in registers when the next W of its entries is computed: a step reads
// and writes each entry of W, P and, rounded, D once. H lies in panels (`linalg/tile.h`).

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "../linalg/tile.h"

namespace {

// What follows a gradient step; others: the largest of groups of 2, 4, 8 or 16.
constexpr int SHRINK = 0, FIXED = 1, ROWS = -1;

struct Chunk {
  const float *start, *dense;  // [rows, inputs]
  const uint32_t* H;
  float *W, *before, *P;  // W_t, W_t-1, D_t-1 H: rows `wide` apart, 0 behind the inputs
  uint16_t *D, *next;     // D_t and D_t+1, in bfloat16, likewise
  float* errors;          // D_t H D_t^T of each row
  int rows, inputs, wide, keep;
  float step, shrink, beta;
  bool moves;  // or only the errors are wanted
};

// V where it is among the `keep` largest of its group, the first of equal ones; else 0.
template <int GROUP>
inline __m512 largest(__m512 V, int keep) {
  const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512i size = _mm512_castps_si512(_mm512_abs_ps(V));
  __m512i beaten = _mm512_setzero_si512();
  for (int k = 1; k < GROUP; k++) {
    const __m512i at = _mm512_xor_si512(lane, _mm512_set1_epi32(k));
    const __m512i other = _mm512_permutexvar_epi32(at, size);
    const __mmask16 first = _mm512_cmplt_epi32_mask(at, lane);
    const __mmask16 wins =
        _mm512_cmpgt_epi32_mask(other, size) | _mm512_mask_cmpeq_epi32_mask(first, other, size);
    beaten = _mm512_mask_add_epi32(beaten, wins, beaten, _mm512_set1_epi32(1));
  }
  return _mm512_maskz_mov_ps(_mm512_cmplt_epi32_mask(beaten, _mm512_set1_epi32(keep)), V);
}

template <int KIND>
inline __m512 prox(const Chunk& c, __m512 V, size_t at, __mmask16 inside) {
  if constexpr (KIND == SHRINK) {
    const __m512 most = _mm512_set1_ps(c.shrink), least = _mm512_set1_ps(-c.shrink);
    return _mm512_sub_ps(V, _mm512_max_ps(_mm512_min_ps(V, most), least));
  } else if constexpr (KIND == FIXED) {
    const __m512 start = _mm512_maskz_loadu_ps(inside, c.start + at);
    const __mmask16 kept = _mm512_cmp_ps_mask(start, _mm512_setzero_ps(), _CMP_NEQ_UQ);
    return _mm512_maskz_mov_ps(kept, V);
  } else if constexpr (KIND == ROWS) {
    return V;  // when it is complete
  } else {
    return largest<KIND>(V, c.keep);
  }
}

inline void round_to(uint16_t* to, __m512 v) {
  _mm256_store_si256((__m256i*)to, (__m256i)_mm512_cvtneps_pbh(v));
}

// The products of DOWN rows with a panel: errors, and unless it is the last, W and D of the next
// step, in place of W_t-1 and D_t+1.
template <int KIND>
inline void tile(const Chunk& c, int row, int column) {
  Tile P = {};
  const int pairs = (c.inputs + 1) / 2, rows = std::min(DOWN, c.rows - row);
  multiply((const uint32_t*)(c.D + (size_t)row * c.wide), c.wide / 2, 1,
           c.H + (size_t)(column / WIDE) * pairs * WIDE, pairs, P);
  const __m512 beta = _mm512_set1_ps(c.beta), step = _mm512_set1_ps(c.step);
  for (int r = 0; r < rows; r++) {
    __m512 error = _mm512_setzero_ps();
    for (int v = 0; v < ACROSS; v++) {
      const int first = column + v * LANES;
      const __mmask16 inside = lanes(c.inputs - first);
      const size_t at = (size_t)(row + r) * c.wide + first;
      const size_t from = (size_t)(row + r) * c.inputs + first;
      const __m512 W = _mm512_load_ps(c.W + at), p = P[r][v];
      const __m512 dense = _mm512_maskz_loadu_ps(inside, c.dense + from);
      if (KIND != SHRINK) error = _mm512_fmadd_ps(p, _mm512_sub_ps(W, dense), error);
      if (!c.moves) continue;
      const __m512 moved = _mm512_sub_ps(W, _mm512_load_ps(c.before + at));
      const __m512 turned = _mm512_sub_ps(p, _mm512_load_ps(c.P + at));
      const __m512 gradient = _mm512_fmadd_ps(beta, turned, p);
      const __m512 V = _mm512_fnmadd_ps(step, gradient, _mm512_fmadd_ps(beta, moved, W));
      const __m512 to = prox<KIND>(c, V, from, inside);
      _mm512_store_ps(c.before + at, to);
      _mm512_store_ps(c.P + at, p);
      if (KIND != ROWS) round_to(c.next + at, _mm512_sub_ps(to, dense));
    }
    if (KIND != SHRINK) c.errors[row + r] += _mm512_reduce_add_ps(error);
  }
}

// Positive numbers are in the order of their bits.
inline __mmask16 at_least(const float* V, int cut) {
  const __m512i size = _mm512_castps_si512(_mm512_abs_ps(_mm512_load_ps(V)));
  return _mm512_cmpge_epi32_mask(size, _mm512_set1_epi32(cut));
}

inline int count(const float* V, int wide, int cut) {
  int found = 0;
  for (int i = 0; i < wide; i += LANES) found += __builtin_popcount(at_least(V + i, cut));
  return found;
}

// Keeps as many of a row's next W as it has at the start: the largest, the first of equal ones.
void keep_largest(const Chunk& c, int row) {
  const float* start = c.start + (size_t)row * c.inputs;
  float* V = c.before + (size_t)row * c.wide;
  int keep = 0, cut = 0, found = c.wide;
  for (int i = 0; i < c.inputs; i++) keep += start[i] != 0;
  for (int bit = 1 << 30; bit && found != keep; bit >>= 1)
    if (const int many = count(V, c.wide, cut | bit); many >= keep) cut |= bit, found = many;
  for (int i = c.inputs - 1; cut && found > keep; i--) {
    int size;
    std::memcpy(&size, V + i, sizeof size);
    if ((size & 0x7fffffff) == cut) V[i] = 0, found--;
  }
  for (int i = 0; i < c.wide; i += LANES)
    _mm512_store_ps(V + i, _mm512_maskz_load_ps(at_least(V + i, cut), V + i));
}

void round_differences(const Chunk& c, const float* W, uint16_t* D, int row) {
  for (int i = 0; i < c.inputs; i += LANES) {
    const size_t at = (size_t)row * c.wide + i, from = (size_t)row * c.inputs + i;
    const __m512 dense = _mm512_maskz_loadu_ps(lanes(c.inputs - i), c.dense + from);
    round_to(D + at, _mm512_sub_ps(_mm512_load_ps(W + at), dense));
  }
}

template <int KIND>
void pass(const Chunk& c) {
  std::fill(c.errors, c.errors + c.rows, 0.0f);
  for (int column = 0; column < c.inputs; column += WIDE)
    for (int row = 0; row < c.rows; row += DOWN) tile<KIND>(c, row, column);
  for (int row = 0; KIND == ROWS && row < c.rows && c.moves; row++) {
    keep_largest(c, row);
    round_differences(c, c.before, c.next, row);
  }
}

template <int... KINDS>
void pass(const Chunk& c, int kind) {
  ((kind == KINDS ? pass<KINDS>(c) : void()), ...);
}

// All steps of rows whose room is empty. W, first and lowest: as of `slimscope_descend`.
void descend(Chunk c, int kind, int steps, float* W, float* first, float* lowest) {
  for (int row = 0; row < c.rows; row++) {
    const float* from = c.start + (size_t)row * c.inputs;
    for (float* to : {c.W, c.before}) std::copy_n(from, c.inputs, to + (size_t)row * c.wide);
    round_differences(c, c.W, c.D, row);
  }
  double t = 1;
  for (int n = 0; n <= steps; n++) {
    const double further = (1 + std::sqrt(1 + 4 * t * t)) / 2;
    c.beta = (float)((t - 1) / further), t = further, c.moves = n < steps;
    if (c.moves || kind != SHRINK) pass<ROWS, SHRINK, FIXED, 2, 4, 8, 16>(c, kind);
    for (int row = 0; row < c.rows; row++) {
      if (!n) first[row] = c.errors[row];
      if (kind == SHRINK ? c.moves : n && !(c.errors[row] < lowest[row])) continue;
      lowest[row] = c.errors[row];
      std::copy_n(c.W + (size_t)row * c.wide, c.inputs, W + (size_t)row * c.inputs);
    }
    std::swap(c.W, c.before), std::swap(c.D, c.next);
  }
}

}  // namespace

extern "C" {

// W [rows, inputs] after `steps` steps from `start`; but after thresholding (any `kind` but SHRINK)
// each row where its error is lowest. errors [3, rows]: at the start, there, and at the end.
// Threads that call it at once take `chunk` rows at a time, a multiple of DOWN, from row `next` on;
// room, of each: 4 floats for each of their entries, inputs rounded up to whole panels.
void slimscope_descend(const float* start, const float* dense, const uint32_t* H, float* W,
                       float* errors, float* room, int32_t* next, int32_t rows, int32_t inputs,
                       int32_t chunk, int32_t steps, int32_t kind, int32_t keep, float step,
                       float shrink) {
  const int wide = (inputs + WIDE - 1) / WIDE * WIDE;
  const size_t size = (size_t)chunk * wide;
  uint16_t* halves = (uint16_t*)(room + 3 * size);
  for (int row; (row = __atomic_fetch_add(next, chunk, __ATOMIC_RELAXED)) < rows;) {
    const size_t at = (size_t)row * inputs;
    Chunk c{start + at, dense + at, H, room, room + size, room + 2 * size, halves, halves + size};
    c.errors = errors + 2 * rows + row, c.rows = std::min(chunk, rows - row);
    c.inputs = inputs, c.wide = wide, c.keep = keep, c.step = step, c.shrink = shrink;
    std::fill(room, room + 4 * size, 0.0f);
    descend(c, kind, steps, W + at, errors + row, errors + rows + row);
  }
}
}

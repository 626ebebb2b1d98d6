// Loops over the weights of a layer that PyTorch passes over a dozen times; the equations are in
// `dlqat/linear.py`, `gptq.py` and `range_search.py`.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <system_error>
#include <thread>
#include <vector>

namespace {

constexpr int LANES = 16, VECTORS = 4, TILE = LANES * VECTORS;
constexpr int AHEAD = 2048;   // weights, as those of a whole model come from memory
constexpr int COLUMNS = 128;  // of a block of GPTQ

typedef float Vector __attribute__((vector_size(4 * LANES)));
typedef uint32_t Bits __attribute__((vector_size(4 * LANES)));
typedef uint16_t Halves __attribute__((vector_size(2 * LANES)));

inline Vector load(const float* from, int n) {
  Vector v = {};
  if (n == LANES)
    std::memcpy(&v, from, sizeof v);
  else
    for (int i = 0; i < n; i++) v[i] = from[i];
  return v;
}

inline void store(float* to, Vector v, int n) {
  if (n == LANES)
    std::memcpy(to, &v, sizeof v);
  else
    for (int i = 0; i < n; i++) to[i] = v[i];
}

inline Vector load(const uint16_t* from, int n) {  // bfloat16
  Halves half = {};
  if (n == LANES)
    std::memcpy(&half, from, sizeof half);
  else
    for (int i = 0; i < n; i++) half[i] = from[i];
  return (Vector)(__builtin_convertvector(half, Bits) << 16);
}

inline void store(uint16_t* to, Vector v, int n) {
  Bits x = (Bits)v, rounded = (x + 0x7fff + ((x >> 16) & 1)) >> 16;  // to even
  rounded = v == v ? rounded : 0x7fc0 | (x & 0);
  Halves half = __builtin_convertvector(rounded, Halves);
  if (n == LANES)
    std::memcpy(to, &half, sizeof half);
  else
    for (int i = 0; i < n; i++) to[i] = half[i];
}

inline Vector all(float x) { return Vector{} + x; }

inline Vector nearest(Vector v) {
  for (int i = 0; i < LANES; i++) v[i] = std::rint(v[i]);
  return v;
}

inline Vector clamp(Vector v, Vector low, Vector high) {
  v = v < low ? low : v;
  return v > high ? high : v;
}

inline float sum(Vector v) {
  float total = 0;
  for (int i = 0; i < LANES; i++) total += v[i];
  return total;
}

}  // namespace

extern "C" {

struct Rows {                          // of a layer that is trained inside its grid, all float32
  const float *start, *dense, *A, *B;  // W0, weights whose zeros stay or null, factors
  const float *scale, *zero, *m;       // [rows, columns / group]
  int32_t rows, columns, group, rank, top;
  float factor;
};

int32_t slimscope_size_of_rows() { return sizeof(Rows); }
}

namespace {

struct Tile {  // up to 64 columns of a group of a row
  int row, group, column, width;
  Vector level[VECTORS], inside[VECTORS];
};

// W0 + c B A of a tile.
inline void merge(const Rows& r, const Tile& t, Vector* W) {
  Vector update[VECTORS] = {};
  const float *B = r.B + int64_t(t.row) * r.rank, *A = r.A + t.column;
  if (t.width == TILE)
    for (int q = 0; q < r.rank; q++, A += r.columns)
      for (int v = 0; v < VECTORS; v++) update[v] += load(A + v * LANES, LANES) * B[q];
  else
    for (int q = 0; q < r.rank; q++, A += r.columns)
      for (int i = 0; i < t.width; i++) update[i / LANES][i % LANES] += A[i] * B[q];
  const float* start = r.start + int64_t(t.row) * r.columns + t.column;
  for (int v = 0; v * LANES < t.width; v++) {
    int n = t.width - v * LANES < LANES ? t.width - v * LANES : LANES;
    __builtin_prefetch(start + v * LANES + AHEAD);
    W[v] = load(start + v * LANES, n) + update[v] * r.factor;
  }
}

// Levels of a tile, and 1 where rounding was not clipped.
inline void round(const Rows& r, Tile& t) {
  int64_t at = int64_t(t.row) * (r.columns / r.group) + t.group;
  float s = r.scale[at], whole = std::rint(r.zero[at]), part = r.zero[at] - whole;
  Vector W[VECTORS], low = all(-whole - part), high = all(r.top - whole - part);
  merge(r, t, W);
  for (int v = 0; v * LANES < t.width; v++) {
    Vector rounded = nearest(W[v] / s + part) - part;
    t.level[v] = clamp(rounded, low, high);
    t.inside[v] = rounded == t.level[v] ? all(1) : all(0);
    if (!r.dense) continue;
    int n = t.width - v * LANES < LANES ? t.width - v * LANES : LANES;
    Vector dense = load(r.dense + int64_t(t.row) * r.columns + t.column + v * LANES, n);
    t.level[v] = dense == 0 ? all(0) : t.level[v];
    t.inside[v] = dense == 0 ? all(0) : t.inside[v];
  }
}

template <class Use>
void each_tile(const Rows& r, int first_row, int end, Use use) {
  Tile t;
  for (t.row = first_row; t.row < end; t.row++)
    for (t.group = 0; t.group < r.columns / r.group; t.group++)
      for (int first = 0; first < r.group; first += TILE) {
        t.column = t.group * r.group + first;
        t.width = r.group - first < TILE ? r.group - first : TILE;
        round(r, t);
        use(t, int64_t(t.row) * r.columns + t.column,
            int64_t(t.row) * (r.columns / r.group) + t.group);
      }
}

// The tiles of a layer, rows side by side on so many threads.
template <class Use>
void each_tile(const Rows& r, int threads, Use use) {
  std::vector<std::thread> others;
  for (int n = threads - 1; n >= 0; n--) {
    int first = int64_t(r.rows) * n / threads, end = int64_t(r.rows) * (n + 1) / threads;
    auto part = [&r, first, end, use] { each_tile(r, first, end, use); };
    try {
      if (n) others.emplace_back(part);
    } catch (const std::system_error&) {  // no more threads
      part();
    }
    if (!n) part();
  }
  for (auto& other : others) other.join();
}

template <class Use>
inline void each_vector(const Tile& t, Use use) {
  for (int v = 0; v * LANES < t.width; v++)
    use(v, v * LANES, t.width - v * LANES < LANES ? t.width - v * LANES : LANES);
}

template <class T>
void values(const Rows& r, T* out, int threads) {
  each_tile(r, threads, [&](const Tile& t, int64_t at, int64_t of) {
    float step = r.m[of] * r.scale[of];
    each_vector(t, [&](int v, int i, int n) { store(out + at + i, t.level[v] * step, n); });
  });
}

template <class T>
void backward(const Rows& r, T* G, T* out, float* dm, int threads) {
  each_tile(r, threads, [&](const Tile& t, int64_t at, int64_t of) {
    float m = r.m[of], step = m * r.scale[of];
    Vector moved = {};
    each_vector(t, [&](int v, int i, int n) {
      Vector g = load(G + at + i, n);
      if (out) store(out + at + i, t.level[v] * step, n);
      moved += g * t.level[v];
      store(G + at + i, g * t.inside[v] * m, n);
    });
    dm[of] = (t.column % r.group ? dm[of] : 0) + r.scale[of] * sum(moved);
  });
}

}  // namespace

extern "C" {

// What [rows, columns], bfloat16 or float32.
void slimscope_values(const Rows* r, void* out, int32_t half, int32_t threads) {
  if (half)
    values(*r, static_cast<uint16_t*>(out), threads);
  else
    values(*r, static_cast<float*>(out), threads);
}

// G = dL/dWhat becomes D = dL/dW'; What (unless null) and dL/dm [rows, groups] are written.
void slimscope_backward(const Rows* r, void* G, void* out, float* dm, int32_t half,
                        int32_t threads) {
  if (half)
    backward(*r, static_cast<uint16_t*>(G), static_cast<uint16_t*>(out), dm, threads);
  else
    backward(*r, static_cast<float*>(G), static_cast<float*>(out), dm, threads);
}

// Levels q - z and 1 where inside the range, float32 [rows, columns].
void slimscope_levels(const Rows* r, float* level, float* inside, int32_t threads) {
  each_tile(*r, threads, [&](const Tile& t, int64_t at, int64_t) {
    each_vector(t, [&](int v, int i, int n) {
      store(level + at + i, t.level[v], n);
      store(inside + at + i, t.inside[v], n);
    });
  });
}

// Of one thread: what a snapshot of a training tells. Adds to counts [top + 1] of codes and to the
// number of those that differ from the ones of W0; of each group [rows, groups] the sum of
// (What - dense)^2 and the number of weights inside the range.
void slimscope_figures(const Rows* r, const float* dense, int64_t* counts, int64_t* changed,
                       float* error, float* inside) {
  Rows start = *r;
  start.rank = 0;
  int64_t found[4][256] = {};  // side by side, as neighbors often have the same code
  each_tile(*r, 0, r->rows, [&](const Tile& t, int64_t at, int64_t of) {
    Tile begun = t;
    round(start, begun);
    float step = r->m[of] * r->scale[of], zero = r->zero[of];
    Vector squares = {}, kept = {};
    each_vector(t, [&](int v, int i, int n) {
      Vector codes = clamp(nearest(t.level[v] + zero), all(0), all(r->top));
      __builtin_prefetch(dense + at + i + AHEAD);
      Vector D = t.level[v] * step - load(dense + at + i, n), in = t.inside[v];
      Vector moved = begun.level[v] != t.level[v] ? all(1) : all(0);
      for (int l = n; l < LANES; l++) D[l] = in[l] = moved[l] = 0;
      squares += D * D;
      kept += in;
      changed[0] += sum(moved);
      codes = codes == codes ? codes : all(0);  // what is not a number has no place
      auto places = __builtin_convertvector(codes, Bits);
      for (int l = 0; l < n; l++) found[l % 4][places[l]]++;
    });
    bool first = t.column % r->group == 0;
    error[of] = (first ? 0 : error[of]) + sum(squares);
    inside[of] = (first ? 0 : inside[of]) + sum(kept);
  });
  for (auto& part : found)
    for (int code = 0; code <= r->top; code++) counts[code] += part[code];
}

// Columns of GPTQ, compensated in place, and the errors (w - q) / U_jj [rows, width].
// W: rows lie `stride` apart; U: [width, width], rows `of_U` apart; scale, zero: [rows, groups],
// one group for all columns or one for each; top: Q of each row; kept: [rows, width] or null.
void slimscope_gptq_columns(float* W, int64_t stride, const float* U, int64_t of_U,
                            const float* scale, const float* zero, int32_t groups, const float* top,
                            const uint8_t* kept, float* E, int32_t rows, int32_t width) {
  Vector V[COLUMNS], error[COLUMNS];  // of 16 rows
  for (int first = 0; first < rows; first += LANES) {
    int n = rows - first < LANES ? rows - first : LANES;
    Vector Q = load(top + first, n), s = all(1), z = {}, whole = {}, part = {};
    for (int i = 0; i < n; i++)
      for (int j = 0; j < width; j++) V[j][i] = W[(first + i) * stride + j];
    for (int j = 0; j < width; j++) {
      for (int i = 0; i < n && (!j || groups > 1); i++) {
        int64_t at = int64_t(first + i) * groups + (groups > 1 ? j : 0);
        s[i] = scale[at], z[i] = zero[at];
        whole[i] = std::rint(z[i]), part[i] = z[i] - whole[i];
      }
      Vector w = V[j];
      for (int i = 0; kept && i < n; i++)
        if (!kept[int64_t(first + i) * width + j]) V[j][i] = 0;
      Vector q = clamp(nearest(V[j] / s + part) + whole, all(0), Q);
      Vector e = error[j] = (w - (q - z) * s) / U[j * of_U + j];
      for (int l = j + 1; l < width; l++) V[l] -= e * U[j * of_U + l];
    }
    for (int i = 0; i < n; i++)
      for (int j = 0; j < width; j++) {
        W[(first + i) * stride + j] = V[j][i];
        E[int64_t(first + i) * width + j] = error[j][i];
      }
  }
}

// sum_j h_j (w_j - s (q_j - z))^2 of `count` groups [size] on each of `grids` grids: [grids,
// count]. weight: [groups, size], of a group in its row.
void slimscope_grid_errors(const float* W, const float* scale, const float* zero,
                           const float* weight, float* errors, int64_t count, int32_t grids,
                           int32_t groups, int32_t size, int32_t top) {
  for (int64_t k = 0; k < count; k++)
    for (int g = 0; g < grids; g++) {
      const float *w = W + k * size, *h = weight + k % groups * size;
      float s = scale[g * count + k], z = zero[g * count + k];
      float whole = std::rint(z), part = z - whole;
      Vector total = {};
      for (int i = 0; i < size; i += LANES) {
        int n = size - i < LANES ? size - i : LANES;
        Vector v = load(w + i, n), q = nearest(v / s + part) + whole;
        Vector D = (clamp(q, all(0), all(top)) - z) * s - v;
        total += D * D * load(h + i, n);
      }
      errors[g * count + k] = sum(total);
    }
}
}

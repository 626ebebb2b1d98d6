// Instructions that this compiler run has no flags for, in plain C++: included before the kernels,
// so that each instruction set can be tested on any machine. EMULATED is its level: 1 AVX2,
// 2 AVX-512, 3 with VNNI, 4 with BF16 and VBMI2, 5 with AMX; NEON_EMULATED is NEON.

#pragma once
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>
#include <vector>

#define SLIMSCOPE_EMULATED 1

namespace emulated {

template <class T, class V> std::array<T, sizeof(V) / sizeof(T)> lanes(V v) {
  std::array<T, sizeof(V) / sizeof(T)> found;
  std::memcpy(&found, &v, sizeof v);
  return found;
}
template <class V, class A> V joined(const A& lanes) {
  static_assert(sizeof(V) == sizeof lanes);
  V v;
  std::memcpy(&v, &lanes, sizeof v);
  return v;
}
// A vector whose lane i is of(i).
template <class V, class T, class Of> V each(Of of) {
  std::array<T, sizeof(V) / sizeof(T)> found;
  for (size_t i = 0; i < found.size(); i++) found[i] = of(i);
  return joined<V>(found);
}
inline float widen(uint16_t half) {
  const uint32_t word = (uint32_t)half << 16;
  float value;
  std::memcpy(&value, &word, sizeof value);
  return value;
}

}  // namespace emulated

#if defined(EMULATED)
#include <immintrin.h>

namespace emulated {

inline int16_t saturated(int v) { return (int16_t)std::min(std::max(v, -32768), 32767); }

// of AVX2 and AVX-512
template <class V> V fmadd(V a, V b, V c) {
  const auto x = lanes<float>(a), y = lanes<float>(b), z = lanes<float>(c);
  return each<V, float>([&](size_t i) { return std::fma(x[i], y[i], z[i]); });
}
template <class V> V maddubs(V a, V b) {
  const auto x = lanes<uint8_t>(a);
  const auto y = lanes<int8_t>(b);
  return each<V, int16_t>(
      [&](size_t i) { return saturated(x[2 * i] * y[2 * i] + x[2 * i + 1] * y[2 * i + 1]); });
}
template <class V> V madd(V a, V b) {
  const auto x = lanes<int16_t>(a), y = lanes<int16_t>(b);
  return each<V, int32_t>(
      [&](size_t i) { return x[2 * i] * y[2 * i] + x[2 * i + 1] * y[2 * i + 1]; });
}
template <class V, class T> V set1(T value) {
  return each<V, T>([&](size_t) { return value; });
}

// of AVX-512
inline __m512i widen_16(__m256i v) {
  const auto x = lanes<uint16_t>(v);
  return each<__m512i, uint32_t>([&](size_t i) { return x[i]; });
}
inline __m256i narrow_32(__m512i v) {
  const auto x = lanes<uint32_t>(v);
  return each<__m256i, uint16_t>([&](size_t i) { return (uint16_t)x[i]; });
}
inline float sum(__m512 v) {
  auto x = lanes<float>(v);
  for (size_t half = 8; half; half /= 2)
    for (size_t i = 0; i < half; i++) x[i] += x[i + half];
  return x[0];
}
inline float largest(__m512 v) {
  const auto x = lanes<float>(v);
  return *std::max_element(x.begin(), x.end());
}
inline __m512i load(const void* from) {
  __m512i v;
  std::memcpy(&v, from, sizeof v);
  return v;
}
inline void store(void* to, __m512i v) { std::memcpy(to, &v, sizeof v); }
inline __m512i permuted(__m512i places, __m512i v) {
  const auto at = lanes<uint32_t>(places), x = lanes<uint32_t>(v);
  return each<__m512i, uint32_t>([&](size_t i) { return x[at[i] % 16]; });
}
inline __m512i shuffled(__m512i v, __m512i places) {
  const auto x = lanes<uint8_t>(v), at = lanes<uint8_t>(places);
  return each<__m512i, uint8_t>(
      [&](size_t i) { return at[i] & 0x80 ? 0 : x[i / 16 * 16 + at[i] % 16]; });
}
inline __m512i less_8(__m512i a, __m512i b) {
  const auto x = lanes<uint8_t>(a), y = lanes<uint8_t>(b);
  return each<__m512i, uint8_t>([&](size_t i) { return (uint8_t)(x[i] - y[i]); });
}
inline __m512i ternary(__m512i a, __m512i b, __m512i c, int table) {
  const auto x = lanes<uint32_t>(a), y = lanes<uint32_t>(b), z = lanes<uint32_t>(c);
  return each<__m512i, uint32_t>([&](size_t i) {
    uint32_t found = 0;
    for (int bit = 0; bit < 32; bit++) {
      const int row = (x[i] >> bit & 1) << 2 | (y[i] >> bit & 1) << 1 | (z[i] >> bit & 1);
      found |= (uint32_t)(table >> row & 1) << bit;
    }
    return found;
  });
}
template <class T> uint32_t tested(__m512i a, __m512i b) {
  const auto x = lanes<T>(a), y = lanes<T>(b);
  uint32_t mask = 0;
  for (size_t i = 0; i < x.size(); i++) mask |= (uint32_t)((x[i] & y[i]) != 0) << i;
  return mask;
}

// of VNNI: bytes without sign times bytes with one
inline __m512i dot_bytes(__m512i to, __m512i a, __m512i b) {
  const auto sums = lanes<int32_t>(to);
  const auto x = lanes<uint8_t>(a);
  const auto y = lanes<int8_t>(b);
  return each<__m512i, int32_t>([&](size_t i) {
    int sum = sums[i];
    for (size_t j = 4 * i; j < 4 * i + 4; j++) sum += x[j] * y[j];
    return sum;
  });
}

// of BF16 and VBMI2
template <class H> __m512 dot_halves(__m512 to, H a, H b) {
  const auto sums = lanes<float>(to);
  const auto x = lanes<uint16_t>(a), y = lanes<uint16_t>(b);
  return each<__m512, float>([&](size_t i) {
    const float odd = std::fma(widen(x[2 * i + 1]), widen(y[2 * i + 1]), sums[i]);
    return std::fma(widen(x[2 * i]), widen(y[2 * i]), odd);
  });
}
inline __m512i expanded(uint32_t mask, __m512i v) {
  const auto x = lanes<uint16_t>(v);
  size_t next = 0;
  return each<__m512i, uint16_t>([&](size_t i) { return mask >> i & 1 ? x[next++] : 0; });
}
inline __m512i compressed(uint32_t mask, __m512i v) {
  const auto x = lanes<uint16_t>(v);
  std::array<uint16_t, 32> found{};
  for (size_t i = 0, next = 0; i < 32; i++)
    if (mask >> i & 1) found[next++] = x[i];
  return joined<__m512i>(found);
}

// of AMX
struct TileRegisters {
  uint16_t bytes[8];
  uint8_t rows[8], configured;
  uint8_t values[8][16][64];
};
inline thread_local TileRegisters tiles;

// A processor ends the process, too.
inline void require(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "tiles: %s\n", what);
  std::abort();
}
inline void load_config(const void* from) {  // 64 bytes: 48 of rows and columns
  const uint8_t* at = (const uint8_t*)from;
  require(at[0] == 1, "the palette is not 1");
  std::memset(&tiles, 0, sizeof tiles);
  for (int t = 0; t < 8; t++) {
    std::memcpy(&tiles.bytes[t], at + 16 + 2 * t, 2);
    tiles.rows[t] = at[48 + t];
    require(tiles.bytes[t] && tiles.bytes[t] <= 64, "wrong bytes of a row");
    require(tiles.rows[t] && tiles.rows[t] <= 16, "a wrong number of rows");
  }
  tiles.configured = 1;
}
inline void release() { tiles.configured = 0; }
inline void zero(int t) {
  require(tiles.configured, "not configured");
  std::memset(tiles.values[t], 0, sizeof tiles.values[t]);
}
inline void load_tile(int t, const void* from, size_t stride) {
  zero(t);
  for (int r = 0; r < tiles.rows[t]; r++)
    std::memcpy(tiles.values[t][r], (const char*)from + r * stride, tiles.bytes[t]);
}
inline void store_tile(int t, void* to, size_t stride) {
  require(tiles.configured, "not configured");
  for (int r = 0; r < tiles.rows[t]; r++)
    std::memcpy((char*)to + r * stride, tiles.values[t][r], tiles.bytes[t]);
}
inline void require_fit(int to, int a, int b) {
  require(tiles.configured, "not configured");
  require(tiles.rows[to] == tiles.rows[a], "rows of a product differ");
  require(tiles.bytes[to] == tiles.bytes[b], "columns of a product differ");
  require(tiles.bytes[a] == 4 * tiles.rows[b], "inputs of a product differ");
}
// Even and odd inputs are added up by themselves.
inline void multiply_halves(int to, int a, int b) {
  require_fit(to, a, b);
  for (int m = 0; m < tiles.rows[to]; m++)
    for (int n = 0; n < tiles.bytes[to] / 4; n++) {
      float sums[2] = {}, total;
      for (int k = 0; k < tiles.bytes[a] / 4; k++)
        for (int odd = 0; odd < 2; odd++) {
          uint16_t x, y;
          std::memcpy(&x, &tiles.values[a][m][4 * k + 2 * odd], 2);
          std::memcpy(&y, &tiles.values[b][k][4 * n + 2 * odd], 2);
          sums[odd] = std::fma(widen(x), widen(y), sums[odd]);
        }
      std::memcpy(&total, &tiles.values[to][m][4 * n], 4);
      total += sums[0] + sums[1];
      std::memcpy(&tiles.values[to][m][4 * n], &total, 4);
    }
}
// Bytes with sign times bytes without.
inline void multiply_bytes(int to, int a, int b) {
  require_fit(to, a, b);
  for (int m = 0; m < tiles.rows[to]; m++)
    for (int n = 0; n < tiles.bytes[to] / 4; n++) {
      int32_t total;
      std::memcpy(&total, &tiles.values[to][m][4 * n], 4);
      for (int k = 0; k < tiles.bytes[a]; k++)
        total += (int8_t)tiles.values[a][m][k] * tiles.values[b][k / 4][4 * n + k % 4];
      std::memcpy(&tiles.values[to][m][4 * n], &total, 4);
    }
}

}  // namespace emulated

#if EMULATED >= 1 && !defined(__AVX2__)
#define __AVX2__ 1
#define __FMA__ 1
#define _mm256_fmadd_ps emulated::fmadd<__m256>
#define _mm256_maddubs_epi16 emulated::maddubs<__m256i>
#define _mm256_madd_epi16 emulated::madd<__m256i>
#define _mm256_set1_epi32 emulated::set1<__m256i, int32_t>
#define _mm256_set1_epi16 emulated::set1<__m256i, int16_t>
#endif
#if EMULATED >= 2 && !defined(__AVX512F__)
#define __AVX512F__ 1
#define __AVX512BW__ 1
#define _mm512_cvtepu16_epi32 emulated::widen_16
#define _mm512_cvtepi32_epi16 emulated::narrow_32
#define _mm512_reduce_add_ps emulated::sum
#define _mm512_reduce_max_ps emulated::largest
#define _mm512_fmadd_ps emulated::fmadd<__m512>
#define _mm512_maddubs_epi16 emulated::maddubs<__m512i>
#define _mm512_madd_epi16 emulated::madd<__m512i>
#define _mm512_set1_epi32 emulated::set1<__m512i, int32_t>
#define _mm512_set1_epi16 emulated::set1<__m512i, int16_t>
#define _mm512_set1_epi8 emulated::set1<__m512i, int8_t>
#define _mm512_set1_epi64 emulated::set1<__m512i, int64_t>
#define _mm512_loadu_si512 emulated::load
#define _mm512_storeu_si512 emulated::store
#define _mm512_permutexvar_epi32 emulated::permuted
#define _mm512_shuffle_epi8 emulated::shuffled
#define _mm512_sub_epi8 emulated::less_8
#define _mm512_ternarylogic_epi32 emulated::ternary
#define _mm512_test_epi16_mask emulated::tested<uint16_t>
#define _mm512_test_epi32_mask emulated::tested<uint32_t>
#endif
#if EMULATED >= 3 && !defined(__AVX512VNNI__)
#define __AVX512VNNI__ 1
#define _mm512_dpbusd_epi32 emulated::dot_bytes
#endif
#if EMULATED >= 4 && !defined(__AVX512BF16__)
#define __AVX512BF16__ 1
#define __AVX512VBMI2__ 1
#define _mm512_dpbf16_ps emulated::dot_halves
#define _mm512_maskz_expand_epi16 emulated::expanded
#define _mm512_maskz_compress_epi16 emulated::compressed
#endif
#if EMULATED >= 5 && !defined(__AMX_TILE__)
#define __AMX_BF16__ 1
#define __AMX_INT8__ 1
#undef _tile_loadd
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbf16ps
#undef _tile_dpbsud
#define _tile_loadconfig emulated::load_config
#define _tile_release emulated::release
#define _tile_loadd emulated::load_tile
#define _tile_stored emulated::store_tile
#define _tile_zero emulated::zero
#define _tile_dpbf16ps emulated::multiply_halves
#define _tile_dpbsud emulated::multiply_bytes
#endif

// True while this thread has tiles that it has not released.
extern "C" __attribute__((visibility("default"))) int32_t emulated_tiles_in_use() {
  return emulated::tiles.configured;
}
#endif

#if defined(NEON_EMULATED)
#define __aarch64__ 1

typedef float float32x4_t __attribute__((vector_size(16)));
typedef int32_t int32x4_t __attribute__((vector_size(16)));
typedef uint32_t uint32x4_t __attribute__((vector_size(16)));
typedef int16_t int16x8_t __attribute__((vector_size(16)));
typedef int8_t int8x16_t __attribute__((vector_size(16)));
typedef int8_t int8x8_t __attribute__((vector_size(8)));

inline float32x4_t vfmaq_f32(float32x4_t c, float32x4_t a, float32x4_t b) {
  return emulated::each<float32x4_t, float>([&](size_t i) { return std::fma(a[i], b[i], c[i]); });
}
inline int8x16_t vreinterpretq_s8_u32(uint32x4_t v) { return (int8x16_t)v; }
inline int8x16_t vreinterpretq_s8_s32(int32x4_t v) { return (int8x16_t)v; }
inline int32x4_t vdupq_n_s32(int32_t value) { return int32x4_t{} + value; }
inline int32x4_t vdotq_s32(int32x4_t to, int8x16_t a, int8x16_t b) {
  for (int i = 0; i < 16; i++) to[i / 4] += a[i] * b[i];
  return to;
}
inline int8x8_t vget_low_s8(int8x16_t v) {
  int8x8_t low;
  std::memcpy(&low, &v, sizeof low);
  return low;
}
inline int16x8_t vmull_s8(int8x8_t a, int8x8_t b) {
  return emulated::each<int16x8_t, int16_t>([&](size_t i) { return a[i] * b[i]; });
}
inline int16x8_t vmull_high_s8(int8x16_t a, int8x16_t b) {
  return emulated::each<int16x8_t, int16_t>([&](size_t i) { return a[i + 8] * b[i + 8]; });
}
inline int16x8_t vpaddq_s16(int16x8_t a, int16x8_t b) {
  return emulated::each<int16x8_t, int16_t>([&](size_t i) {
    const int16x8_t v = i < 4 ? a : b;
    return v[2 * (i % 4)] + v[2 * (i % 4) + 1];
  });
}
inline int32x4_t vpadalq_s16(int32x4_t to, int16x8_t v) {
  for (int i = 0; i < 8; i++) to[i / 2] += v[i];
  return to;
}
#endif

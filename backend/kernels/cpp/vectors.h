// Vectors of 16 lanes for the instruction set this file is compiled for. With AVX-512 a vector is
// one register. Otherwise it is split in halves down to registers of AVX2, NEON or SSE, since GCC
// keeps wider vectors in memory.

#pragma once
#include <cstring>
#include <type_traits>

#include "interface.h"
#if defined(SLIMSCOPE_EMULATED)  // set by tests, which define the intrinsics as functions
#elif defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif
#if defined(__AMX_BF16__) && defined(__AMX_INT8__)
#define HAVE_TILES 1
#else
#define HAVE_TILES 0
#endif
#if defined(__AVX512BF16__) && defined(__AVX512VBMI2__)
#define HAVE_BF16 1
#else
#define HAVE_BF16 0
#endif
#if defined(__AVX512VNNI__)
#define HAVE_VNNI 1
#else
#define HAVE_VNNI 0
#endif

namespace {

#if defined(__AVX512F__)
constexpr int REGISTER = 16;  // float32 lanes per register
#elif defined(__AVX2__)
constexpr int REGISTER = 8;
#else
constexpr int REGISTER = 4;
#endif

template <class T, int N, bool FITS = (N <= REGISTER)> struct VectorOf {
  typedef T type __attribute__((vector_size(N * sizeof(T))));
};

// Vector that spans several registers.
template <class T, int N> struct Pair {
  using Half = typename VectorOf<T, N / 2>::type;
  Half lo, hi;
  Pair() : lo{}, hi{} {}
  Pair(Half low, Half high) : lo(low), hi(high) {}
  Pair(T all) : lo(all - Half{}), hi(lo) {}
  Pair operator-() const { return {-lo, -hi}; }
  Pair& operator+=(Pair b) { return *this = *this + b; }
  friend Pair operator+(Pair a, Pair b) { return {a.lo + b.lo, a.hi + b.hi}; }
  friend Pair operator-(Pair a, Pair b) { return {a.lo - b.lo, a.hi - b.hi}; }
  friend Pair operator*(Pair a, Pair b) { return {a.lo * b.lo, a.hi * b.hi}; }
  friend Pair operator/(Pair a, Pair b) { return {a.lo / b.lo, a.hi / b.hi}; }
  friend Pair operator&(Pair a, Pair b) { return {a.lo & b.lo, a.hi & b.hi}; }
  friend Pair operator|(Pair a, Pair b) { return {a.lo | b.lo, a.hi | b.hi}; }
  friend Pair operator^(Pair a, Pair b) { return {a.lo ^ b.lo, a.hi ^ b.hi}; }
  friend Pair operator<<(Pair a, int bits) { return {a.lo << bits, a.hi << bits}; }
  friend Pair operator>>(Pair a, int bits) { return {a.lo >> bits, a.hi >> bits}; }
  friend Pair<int32_t, N> operator>(Pair a, Pair b) { return {a.lo > b.lo, a.hi > b.hi}; }
  friend Pair<int32_t, N> operator==(Pair a, Pair b) { return {a.lo == b.lo, a.hi == b.hi}; }
};
template <class T, int N> struct VectorOf<T, N, false> {
  using type = Pair<T, N>;
};

using Floats = VectorOf<float, LANES>::type;
using Ints = VectorOf<int32_t, LANES>::type;
using Words = VectorOf<uint32_t, LANES>::type;
using Halves = VectorOf<uint16_t, LANES>::type;
using Bytes = VectorOf<int8_t, LANES>::type;
template <class V> constexpr bool PAIRED = std::is_class_v<V>;

template <class V> inline V load(const void* from) {
  if constexpr (PAIRED<V>) {
    using Half = typename V::Half;
    return {load<Half>(from), load<Half>((const char*)from + sizeof(Half))};
  } else {
    V value;
    std::memcpy(&value, from, sizeof value);
    return value;
  }
}
template <class V> inline void store(void* to, V value) {
  if constexpr (PAIRED<V>)
    store(to, value.lo), store((char*)to + sizeof value.lo, value.hi);
  else
    std::memcpy(to, &value, sizeof value);
}
// Converts the values of a vector to another type.
template <class To, class V> inline To convert(V v) {
  if constexpr (PAIRED<V>)
    return {convert<typename To::Half>(v.lo), convert<typename To::Half>(v.hi)};
  else
    return __builtin_convertvector(v, To);
}
// Reinterprets the bits of a vector as another type.
template <class To, class V> inline To bits(V v) {
  if constexpr (PAIRED<V>)
    return {bits<typename To::Half>(v.lo), bits<typename To::Half>(v.hi)};
  else
    return (To)v;
}
template <class V, class Mask> inline V select(Mask mask, V yes, V no) {
  if constexpr (PAIRED<V>)
    return {select(mask.lo, yes.lo, no.lo), select(mask.hi, yes.hi, no.hi)};
  else
    return mask ? yes : no;
}
// Loads the first n lanes without reading past them; the other lanes are 0.
inline Floats load_some(const float* from, int n) {
  if (n >= LANES) return load<Floats>(from);
  float some[LANES] = {};
  for (int i = 0; i < n; i++) some[i] = from[i];
  return load<Floats>(some);
}
inline void store_some(float* to, Floats v, int n) {
  if (n >= LANES) return store(to, v);
  float some[LANES];
  store(some, v);
  for (int i = 0; i < n; i++) to[i] = some[i];
}
inline Floats all(float value) {
  return value - Floats{};
}  // x - 0 is folded; x + 0 is not, because of -0
inline Floats larger(Floats a, Floats b) { return select(a > b, a, b); }  // b if either is NaN
#if defined(__AVX512F__)  // for these, compilers emit two half-width conversions
inline Words words(Halves v) { return (Words)_mm512_cvtepu16_epi32((__m256i)v); }
inline Halves halves(Words v) { return (Halves)_mm512_cvtepi32_epi16((__m512i)v); }
#else
inline Words words(Halves v) { return convert<Words>(v); }
inline Halves halves(Words v) { return convert<Halves>(v); }
#endif
inline Floats widen(Halves v) { return bits<Floats>(words(v) << 16); }
inline float widen(bf16 v) {
  uint32_t word = (uint32_t)v << 16;
  return load<float>(&word);
}

// Rounds to the nearest bfloat16, ties to even; NaN stays NaN.
inline Halves narrow(Floats v) {
  const Words word = bits<Words>(v), rounded = (word + 0x7fff + ((word >> 16) & 1)) >> 16;
  return halves(select(v == v, rounded, Words{} + 0x7fc0));
}

#if defined(__AVX512F__)
inline float sum(Floats v) { return _mm512_reduce_add_ps((__m512)v); }
inline float largest(Floats v) { return _mm512_reduce_max_ps((__m512)v); }
#else
// Reduces the lanes pairwise: joins the two halves until one value is left.
template <class V, class Join> inline float reduce(V v, Join join) {
  if constexpr (PAIRED<V>) {
    return reduce(join(v.lo, v.hi), join);
  } else if constexpr (sizeof v > 16) {
    typedef float Four __attribute__((vector_size(16)));
    return reduce(join(load<Four>(&v), load<Four>((char*)&v + 16)), join);
  } else {
    return join(join(v[0], v[1]), join(v[2], v[3]));
  }
}
inline float sum(Floats v) {
  return reduce(v, [](auto a, auto b) { return a + b; });
}
inline float largest(Floats v) {
  return reduce(v, [](auto a, auto b) { return select(a > b, a, b); });
}
#endif

// a b + c with a single rounding if the instruction set has FMA. It is explicit because compilers
// contract the expression in some tile shapes only, and results would then depend on the shape.
template <class V> inline V fused(V a, V b, V c) {
  if constexpr (PAIRED<V>) return {fused(a.lo, b.lo, c.lo), fused(a.hi, b.hi, c.hi)};
#if defined(__AVX512F__)
  else
    return (V)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__) && defined(__FMA__)
  else
    return (V)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__aarch64__)
  else
    return (V)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
  else
    return a * b + c;
#endif
}

// Computes (bits & mask) | others.
inline Words joined(Words bits, uint32_t mask, Words others) {
#if defined(__AVX512F__)
  return (Words)_mm512_ternarylogic_epi32((__m512i)bits, _mm512_set1_epi32(mask), (__m512i)others,
                                          0xea);
#else
  return (bits & mask) | others;
#endif
}

// Selects the bits of `bits` where the mask is 1, else those of `others`.
inline Words selected(uint32_t mask, Words bits, Words others) {
#if defined(__AVX512F__)
  return (Words)_mm512_ternarylogic_epi32(_mm512_set1_epi32(mask), (__m512i)bits, (__m512i)others,
                                          0xca);
#else
  return (bits & mask) | (others & ~mask);
#endif
}

// Returns true if a comparison holds in any lane.
inline bool any(Ints lanes) {
#if defined(__AVX512F__)
  return _mm512_test_epi32_mask((__m512i)lanes, (__m512i)lanes) != 0;
#else
  return sum(convert<Floats>(lanes)) != 0;
#endif
}

// 1.5 * 2^23. Adding it rounds a float to an integer, in the low bits of the mantissa.
constexpr float ROUNDING = 12582912.0f;
// Rounds to the nearest integer, ties to even.
inline Ints nearest(Floats v) { return bits<Ints>(v + ROUNDING) - bits<Ints>(all(ROUNDING)); }

// e^x = 2^n (1 + polynomial of the remainder), with a relative error of 2e-7. The result is 0 below
// x = -87, and e^88 above x = 88.
inline Floats exponential(Floats exponent) {
  const Floats x = -larger(all(-88.0f), -larger(all(-87.0f), exponent));
  Ints n = nearest(x * 1.44269504f);
  const Floats N = convert<Floats>(n);
  const Floats r = x - N * 0.693359375f + N * 2.12194440e-4f;  // ln 2 in two parts
  Floats p = all(1.9875691500e-4f);
  for (float c : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 0.5f})
    p = p * r + c;
  const Floats power = (p * r * r + r + 1.0f) * bits<Floats>((n + 127) << 23);
  return select(all(-87.0f) > exponent, Floats{}, power);
}

}  // namespace

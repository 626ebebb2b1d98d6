// Vectors of 16 numbers, in the instructions of the processor at hand. With AVX-512-BF16 an
// instruction takes 32 weights, with VNNI 64 codes; without, GCC's and Clang's vector types become
// AVX-512, AVX2, NEON or plain instructions.

#pragma once
#include <cstdint>
#include <cstring>
#if defined(__AVX512F__)
#include <immintrin.h>
#endif
#if defined(__AVX512BF16__)
#define HAVE_BF16 1
#else
#define HAVE_BF16 0
#endif
#if defined(__AVX512VNNI__)
#define HAVE_VNNI 1
#else
#define HAVE_VNNI 0
#endif
#if defined(__AVX512VBMI2__)
#define HAVE_EXPAND 1
#else
#define HAVE_EXPAND 0
#endif

namespace {

using bf16 = uint16_t;
constexpr int LANES = 16;  // outputs of a block

typedef float Floats __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));
typedef uint32_t Words __attribute__((vector_size(64)));
typedef uint16_t Halves __attribute__((vector_size(32)));
typedef int8_t Bytes __attribute__((vector_size(16)));

template <class T> inline T load(const void* from) {
  T value;
  std::memcpy(&value, from, sizeof value);
  return value;
}
inline void store(float* to, Floats value) { std::memcpy(to, &value, sizeof value); }
inline Floats all(float value) { return Floats{} + value; }
#if defined(__AVX512F__)  // compilers write it in two halves
inline Words words(Halves v) { return (Words)_mm512_cvtepu16_epi32((__m256i)v); }
inline Halves halves(Words v) { return (Halves)_mm512_cvtepi32_epi16((__m512i)v); }
#else
inline Words words(Halves v) { return __builtin_convertvector(v, Words); }
inline Halves halves(Words v) { return __builtin_convertvector(v, Halves); }
#endif
inline Floats widen(Halves v) { return (Floats)(words(v) << 16); }
inline float widen(bf16 v) {
  uint32_t bits = (uint32_t)v << 16;
  return load<float>(&bits);
}

// Rounds to the nearest bfloat16, ties to even.
inline Halves narrow(Floats v) {
  Words bits = (Words)v;
  return halves((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

#if defined(__AVX512F__)
inline float sum(Floats v) { return _mm512_reduce_add_ps((__m512)v); }
inline float largest(Floats v) { return _mm512_reduce_max_ps((__m512)v); }
inline Floats fused(Floats a, float b, Floats c) {  // or compilers fuse some of the tiles only
  return (Floats)_mm512_fmadd_ps((__m512)a, _mm512_set1_ps(b), (__m512)c);
}
#else
inline Floats fused(Floats a, float b, Floats c) { return a * b + c; }
// One half of the lanes joined with the other, until one is left.
template <class Join> inline float reduce(Floats v, Join join) {
  typedef float Eight __attribute__((vector_size(32)));
  typedef float Four __attribute__((vector_size(16)));
  const char* bytes = (const char*)&v;
  const Eight eight = join(load<Eight>(bytes), load<Eight>(bytes + 32));
  bytes = (const char*)&eight;
  const Four four = join(load<Four>(bytes), load<Four>(bytes + 16));
  return join(join(four[0], four[1]), join(four[2], four[3]));
}
inline float sum(Floats v) {
  return reduce(v, [](auto a, auto b) { return a + b; });
}
inline float largest(Floats v) {
  return reduce(v, [](auto a, auto b) { return a > b ? a : b; });
}
#endif

// Whether a comparison holds in any lane.
inline bool any(Ints lanes) {
#if defined(__AVX512F__)
  return _mm512_test_epi32_mask((__m512i)lanes, (__m512i)lanes) != 0;
#else
  int32_t found = 0;
  for (int i = 0; i < LANES; i++) found |= lanes[i];
  return found != 0;
#endif
}

constexpr float ROUNDING = 12582912.0f;  // 1.5 * 2^23: adding it leaves whole numbers, in the low bits
inline Ints nearest(Floats v) { return (Ints)(v + ROUNDING) - (Ints)all(ROUNDING); }

// e^x to 2e-7 relative: 2^n (1 + polynomial of the rest), for x <= 88.
inline Floats exponential(Floats x) {
  x = x < all(-87.0f) ? all(-87.0f) : x;
  Ints n = nearest(x * 1.44269504f);
  Floats whole = __builtin_convertvector(n, Floats);
  Floats r = x - whole * 0.693359375f + whole * 2.12194440e-4f;
  Floats p = all(1.9875691500e-4f);
  for (float c : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 0.5f})
    p = p * r + c;
  return (p * r * r + r + 1.0f) * (Floats)((n + 127) << 23);
}

}  // namespace

// Integer dot products of unsigned weight codes and signed 8-bit inputs, four inputs per output at
// a time, for each instruction set.

#pragma once
#include "vectors.h"

namespace {

constexpr uint32_t HALF = 0x0f0f0f0f;  // low nibble of each byte

// Zero-point of 8-bit codes as they are multiplied.
#if HAVE_VNNI || defined(__AVX2__)
constexpr int MIDDLE_OF_8_BITS = 128;
#else
constexpr int MIDDLE_OF_8_BITS = 0;  // 128 is subtracted to make the codes signed
#endif

#if HAVE_VNNI

inline Ints dot(Ints to, Words codes, const int8_t* x) {
  return (Ints)_mm512_dpbusd_epi32((__m512i)to, (__m512i)codes, _mm512_set1_epi32(load<int>(x)));
}

#elif defined(__AVX512BW__) || defined(__AVX2__)

#if defined(__AVX512BW__)
using Register = __m512i;
inline Register every_32(int v) { return _mm512_set1_epi32(v); }
inline Register every_16(short v) { return _mm512_set1_epi16(v); }
inline Register pairs_8(Register a, Register b) { return _mm512_maddubs_epi16(a, b); }
inline Register pairs_16(Register a, Register b) { return _mm512_madd_epi16(a, b); }
#else
using Register = __m256i;
inline Register every_32(int v) { return _mm256_set1_epi32(v); }
inline Register every_16(short v) { return _mm256_set1_epi16(v); }
inline Register pairs_8(Register a, Register b) { return _mm256_maddubs_epi16(a, b); }
inline Register pairs_16(Register a, Register b) { return _mm256_madd_epi16(a, b); }
#endif

// Sums of two adjacent products in 16 bits. Codes must be below 64, so that neither a sum nor the
// sum of two of them overflows, as products of 8-bit codes would.
template <class W> inline Register products(W codes, const int8_t* x) {
  return pairs_8((Register)codes, every_32(load<int>(x)));
}

#elif defined(__aarch64__)

inline int32x4_t dot(int32x4_t to, uint32x4_t codes, const int8_t* x) {
  const int8x16_t w = vreinterpretq_s8_u32(codes);
  const int8x16_t four = vreinterpretq_s8_s32(vdupq_n_s32(load<int>(x)));
#if defined(__ARM_FEATURE_DOTPROD)
  return vdotq_s32(to, w, four);
#else
  const int16x8_t low = vmull_s8(vget_low_s8(w), vget_low_s8(four));
  return vpadalq_s16(to, vpaddq_s16(low, vmull_high_s8(w, four)));
#endif
}

#endif

// Accumulates eight products per output: codes `one` of four inputs times x[0] to x[3], and codes
// `next` of the next four inputs times x[4] to x[7].
template <int BITS, class I, class W> inline I add(I to, W one, W next, const int8_t* x) {
  if constexpr (PAIRED<I>) {
    return {add<BITS>(to.lo, one.lo, next.lo, x), add<BITS>(to.hi, one.hi, next.hi, x)};
  } else {
    using Shorts [[maybe_unused]] = typename VectorOf<int16_t, sizeof(W) / 2, true>::type;
#if HAVE_VNNI
    return dot(dot(to, one, x), next, x + 4);
#elif defined(__AVX512BW__) || defined(__AVX2__)
    const auto both = [&](W a, W b) {
      const Shorts sums = (Shorts)products(a, x) + (Shorts)products(b, x + 4);
      return (Register)sums;
    };
    if (BITS < 8) return to + (I)pairs_16(both(one, next), every_16(1));
    to += (I)pairs_16(both(one & HALF, next & HALF), every_16(1));
    return to + (I)pairs_16(both(one >> 4 & HALF, next >> 4 & HALF), every_16(16));
#elif defined(__aarch64__)
    const uint32_t sign = BITS == 8 ? 0x80808080 : 0;
    return dot(dot(to, one ^ sign, x), next ^ sign, x + 4);
#else
    // Codes of bytes 0 and 2, or of 1 and 3, as int16. Their sums of products do not overflow.
    auto products = [&](W codes, const int8_t* four, int bit) {
      const Shorts two = (Shorts)(codes >> bit & 0x00ff00ff) - (short)(BITS == 8 ? 128 : 0);
      const int8_t* at = four + bit / 8;
      return two * (Shorts)(W{} + ((uint32_t)at[2] << 16 | (uint16_t)at[0]));
    };
    auto quad = [&](W codes, const int8_t* four) {
      const Shorts sums = products(codes, four, 0) + products(codes, four, 8);
      return ((I)sums << 16 >> 16) + ((I)sums >> 16);
    };
    return to + quad(one, x) + quad(next, x + 4);
#endif
  }
}

}  // namespace

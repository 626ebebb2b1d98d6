// Normalization, rotary embedding and activations.

#pragma once
#include <cmath>

#include "packing.h"

namespace {

// y = x / sqrt(mean(x^2) + epsilon) * weight
void rms_norm(const float* x, const float* weight, float epsilon, int size, float* y) {
  Floats squares = {};
  for (int i = 0; i < size; i += LANES) squares += load<Floats>(x + i) * load<Floats>(x + i);
  const float factor = 1.0f / std::sqrt(sum(squares) / size + epsilon);
  for (int i = 0; i < size; i += LANES)
    store(y + i, load<Floats>(x + i) * factor * load<Floats>(weight + i));
}

// Applies the rotary embedding (a, b) -> (a cos - b sin, b cos + a sin) to the two halves of the
// rotated values of a head.
void rotate(float* head, const float* cosines, const float* sines, int half) {
  for (int i = 0; i < half; i++) {
    const float a = head[i], b = head[i + half];
    head[i] = a * cosines[i] - b * sines[i];
    head[i + half] = b * cosines[i] + a * sines[i];
  }
}

inline Floats silu(Floats x) { return x / (1.0f + exponential(-x)); }

// x (1 + tanh u) / 2 = x / (1 + e^(-2 u)),   u = sqrt(2 / pi) (x + 0.044715 x^3)
inline Floats gelu(Floats x) {
  return x / (1.0f + exponential(-1.59576912f * (x + 0.044715f * x * x * x)));
}

// cap tanh(x / cap) = cap - 2 cap / (1 + e^(2 x / cap))
inline Floats capped(Floats x, float cap) {
  return cap - 2.0f * cap / (1.0f + exponential(x * (2.0f / cap)));
}

}  // namespace

// The structures that callers fill: a model, its caches, and a pass over tokens.

#pragma once
#include "matrix.h"

namespace {

enum Activation : int32_t { SILU = 0, GELU = 1 };
constexpr int ROTARIES = 2;  // kinds of layers that rotate in ways of their own
constexpr int BLOCK = 16;    // tokens of a block of a cache

}  // namespace

extern "C" {

struct Layer {
  Matrix qkv, out, gate, up, down;
  const float *attention_norm, *mlp_norm;          // [width], of what enters
  const float *query_norm, *key_norm;              // [head], or null
  const float *attention_out_norm, *mlp_out_norm;  // [width], of what is added to x, or null
  int32_t window;  // a token sees as many of the last, itself included; 0: all
  int32_t rotary;  // which of the tables of the model
};

struct Model {
  int32_t layers, width, heads, kv_heads, head, inner;
  int32_t rotated, activation;  // how many of the values of a head; an `Activation`
  float epsilon, embedding_scale;
  // caps: 0 is none
  float attention_scale, attention_cap, logit_scale, logit_cap;
  const bf16* embedding;  // [vocabulary][width], or null
  const Layer* layer;
  const float* final_norm;  // [width], or null
  Matrix read_out;
  const float *cosines[ROTARIES], *sines[ROTARIES];  // [positions][rotated / 2]
};

// Of one sequence. Token t is in row t % BLOCK of block t / BLOCK; caches may share a block.
struct Cache {
  int32_t capacity, length;
  bf16* const* blocks;  // each [layers][kv_heads][head][BLOCK] keys, [..][BLOCK][head] values
};

// n tokens, some of each sequence: those of the first come first.
struct Pass {
  int32_t tokens, read_out, threads;  // n; for how many of the tokens logits are wanted
  int32_t sequences;
  Cache* const* caches;           // [sequences]
  const int32_t* starts;          // [sequences + 1], the first token of each, and n
  const int64_t* ids;             // [n], or null:
  const float* inputs;            // [n][width], what enters the first layer
  const int64_t* positions;       // [n]
  const uint8_t* const* visible;  // [sequences], of m tokens [m][m], or null: causal
  const int32_t* rows;            // [read_out], the tokens whose logits are wanted, ascending
  float* hidden;                  // [n][width]
  float* logits;                  // [read_out][outputs of the head]
};
}

// Structures that callers fill; `library.py` mirrors them in ctypes.

#pragma once
#include <cstddef>
#include <cstdint>

using bf16 = uint16_t;

constexpr int LANES = 16;    // outputs per block of a matrix
constexpr int BLOCK = 16;    // tokens per block of a cache
constexpr int ROTARIES = 2;  // maximum number of rotary tables of a model

extern "C" {

// Weight matrix of y = W x + bias, W [outputs, inputs], with outputs padded to a multiple of 16. A
// quantized weight is scale (code - zero); each output has one scale and one zero-point per `group`
// inputs.
//
// SPARSE_BF16 stores a bitmask of all weights in the order of BF16, and the nonzero weights without
// gaps. INT4_2_4 stores the codes of two of every four inputs and their indices within the four;
// the other two codes are 8, the zero-point.
struct Matrix {
  int32_t format, outputs, inputs, group;
  const void* weights;    // BF16: [outputs/16][inputs/2][16][2]
                          // codes: [outputs/16][inputs/32][bits][16][4], see `low_plane`
                          // INT4_2_4: [outputs/16][inputs/32] of
                          //   [2][16][4] codes; high nibbles: inputs 8 to 15 and 24 to 31
                          //   [16][4] indices; bits 2 i and 2 i + 1: inputs 8 i to 8 i + 7
  const uint32_t* masks;  // [outputs/16][inputs/2] for SPARSE_BF16; else null
  const int64_t* starts;  // [outputs/16] for SPARSE_BF16, byte offset of each block; else null
  const bf16* scales;     // [outputs/16][inputs/group][16]
  const bf16* zeros;      // zero - 2^(bits - 1), same shape; null if all of them are 0
  const float* bias;      // [outputs], or null
};

struct Layer {
  Matrix qkv, out, gate, up, down;
  const float *attention_norm, *mlp_norm;          // [width], before attention and MLP
  const float *query_norm, *key_norm;              // [head], or null
  const float *attention_out_norm, *mlp_out_norm;  // [width], after attention and MLP, or null
  int32_t window;  // attention window in tokens, including the token itself; 0: unlimited
  int32_t rotary;  // index of its rotary tables
};

struct Model {
  int32_t layers, width, heads, kv_heads, head, inner;
  int32_t rotated, activation;  // rotated values per head; an `Activation`
  float epsilon, embedding_scale;
  // A cap of 0 disables it.
  float attention_scale, attention_cap, logit_scale, logit_cap;
  const bf16* embedding;  // [vocabulary][width], or null
  const Layer* layer;
  const float* final_norm;  // [width], or null
  Matrix read_out;
  const float *cosines[ROTARIES], *sines[ROTARIES];  // [positions][rotated / 2]
};

// Keys and values of one sequence. Token t is in row t % BLOCK of block t / BLOCK. Several caches
// may share a block.
struct Cache {
  int32_t capacity, length;
  bf16* const* blocks;  // each [layers][kv_heads][head][BLOCK] keys, [..][BLOCK][head] values
};

// Forward pass over n tokens of one or more sequences, ordered by sequence.
struct Pass {
  int32_t tokens, read_out, threads;  // n; number of logit rows; number of threads
  int32_t sequences;
  Cache* const* caches;           // [sequences]
  const int32_t* starts;          // [sequences + 1], first token of each sequence, then n
  const int64_t* ids;             // [n] token ids; null if `inputs` is set
  const float* inputs;            // [n][width], hidden states before the first layer
  const int64_t* positions;       // [n]
  const uint8_t* const* visible;  // [sequences], tree mask [m][m] of its m tokens; null: causal
  const int32_t* rows;            // [read_out], tokens to compute logits for, ascending
  float* hidden;                  // [n][width], output
  float* logits;                  // [read_out][outputs of the head], output
};

// Descent of weights [rows, inputs] on the output error relative to the dense weights; see
// `descent.h`.
struct Descent {
  const float *start, *dense;
  const bf16* H;  // [inputs, inputs], packed as a right factor
  float* W;  // result: last iterate for SHRINK, else the iterate with the lowest error of each row
  // Errors of the start, the result and the last iterate [3, rows]; not computed for SHRINK.
  float* errors;
  int32_t rows, inputs, steps;
  int32_t kind, keep;  // operation after a gradient step; weights kept per group
  float step, shrink;
};

// Rows of a layer in quantization-aware training, all float32; see `rounding.h`.
struct Rows {
  const float *start, *dense, *A, *B;  // W0, weights whose zeros stay zero (or null), LoRA factors
  const float *scale, *zero, *m;       // [rows, columns / group]
  int32_t rows, columns, group, rank, top;
  float factor;
};
}

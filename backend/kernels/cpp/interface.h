// What callers see: the structures they fill, and the functions of one instruction set.

#pragma once
#include <cstddef>
#include <cstdint>

using bf16 = uint16_t;

constexpr int LANES = 16;    // outputs of a block of a matrix
constexpr int BLOCK = 16;    // tokens of a block of a cache
constexpr int ROTARIES = 2;  // kinds of layers with rotary tables of their own

extern "C" {

// y = W x + bias, W [outputs, inputs]; outputs are padded to a multiple of 16. A quantized weight
// is scale (code - zero), with one scale and zero-point for `group` inputs of an output.
//
// SPARSE_BF16 has a bit for every weight, in the order of BF16, and the weights that are not 0, one
// behind the other. INT4_2_4 has the codes of two of every four inputs, and their places among the
// four; the codes of the others are 8, which is their zero-point.
struct Matrix {
  int32_t format, outputs, inputs, group;
  const void* weights;    // BF16: [outputs/16][inputs/2][16][2]
                          // codes: [outputs/16][inputs/32][bits][16][4], see `low_plane`
                          // INT4_2_4: [outputs/16][inputs/32] of
                          //   [2][16][4] codes, those of inputs 8 to 15 and 24 to 31 in high halves
                          //   [16][4] places, of inputs 8 i to 8 i + 7 in the bits 2 i and 2 i + 1
  const uint32_t* masks;  // [outputs/16][inputs/2], of SPARSE_BF16; else null
  const int64_t* starts;  // [outputs/16], of SPARSE_BF16: the byte at which a block begins
  const bf16* scales;     // [outputs/16][inputs/group][16]
  const bf16* zeros;      // the same, less 2^(bits - 1), or null if all are that
  const float* bias;      // [outputs], or null
};

struct Layer {
  Matrix qkv, out, gate, up, down;
  const float *attention_norm, *mlp_norm;          // [width], of the inputs
  const float *query_norm, *key_norm;              // [head], or null
  const float *attention_out_norm, *mlp_out_norm;  // [width], of what is added to x, or null
  int32_t window;  // a token sees as many of the last, itself included; 0: all
  int32_t rotary;  // number of its rotary tables
};

struct Model {
  int32_t layers, width, heads, kv_heads, head, inner;
  int32_t rotated, activation;  // number of rotated values of a head; an `Activation`
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
  int32_t tokens, read_out, threads;  // n; number of tokens whose logits are wanted
  int32_t sequences;
  Cache* const* caches;           // [sequences]
  const int32_t* starts;          // [sequences + 1], the first token of each, and n
  const int64_t* ids;             // [n], or null:
  const float* inputs;            // [n][width], of the first layer
  const int64_t* positions;       // [n]
  const uint8_t* const* visible;  // [sequences], of m tokens [m][m], or null: causal
  const int32_t* rows;            // [read_out], the tokens whose logits are wanted, ascending
  float* hidden;                  // [n][width]
  float* logits;                  // [read_out][outputs of the head]
};

// Weights [rows, inputs] that descend to the outputs of the dense ones; see `descent.h`.
struct Descent {
  const float *start, *dense;
  const bf16* H;  // [inputs, inputs], packed as a right factor
  float* W;       // after the last step; after thresholding, each row where its error is lowest
  float* errors;  // [3, rows]: at the start, of W, and at the end
  int32_t rows, inputs, steps;
  int32_t kind, keep;  // what follows a gradient step; of each group
  float step, shrink;
};

struct Rows {                          // of a layer that is trained inside its grid, all float32
  const float *start, *dense, *A, *B;  // W0, weights whose zeros stay or null, factors
  const float *scale, *zero, *m;       // [rows, columns / group]
  int32_t rows, columns, group, rank, top;
  float factor;
};

// The functions of one instruction set. Those that return int32_t return 1 if memory or threads
// ran out, unless they say otherwise.
struct Kernels {
  int32_t sizes[7];             // of the structures above, in their order; see `library.py`
  int32_t bfloat16;             // products of 16 bits have instructions of their own
  int32_t sparse, two_of_four;  // SPARSE_BF16 and INT4_2_4 can be multiplied
  int32_t block, panel;  // tokens of a block of a cache; outputs to which H of a descent is padded

  void (*pack_bf16)(const bf16*, bf16*, int32_t outputs, int32_t inputs);
  void (*pack_codes)(const uint8_t*, uint8_t*, int32_t outputs, int32_t inputs, int32_t bits);
  int32_t (*pack_2_4)(const uint8_t*, uint8_t*, int32_t outputs, int32_t inputs);
  int64_t (*leave_out_zeros)(const uint16_t*, uint32_t*, int64_t*, uint16_t*, int32_t, int32_t);

  int32_t (*forward)(const Model*, const Pass*);
  int32_t (*linear)(const Matrix*, const float* x, float* y, int32_t n, int32_t threads);
  void (*top_k)(const float*, int32_t rows, int32_t columns, int32_t ranks, float*, int32_t*,
                float*);
  void (*keep)(const Model*, Cache*, int32_t start, const int32_t* chosen, int32_t count);

  int32_t (*add_gram)(const bf16* x, float* H, int32_t tokens, int32_t inputs, int32_t threads);
  int32_t (*gram_dot)(const bf16* x, const float* H, double*, int32_t tokens, int32_t inputs,
                      int32_t threads);
  int32_t (*descend)(const Descent*, int32_t threads);

  int32_t (*values)(const Rows*, void*, int32_t half, int32_t threads);
  int32_t (*backward)(const Rows*, void*, void*, float*, int32_t half, int32_t threads);
  int32_t (*levels)(const Rows*, float*, float*, int32_t threads);
  void (*figures)(const Rows*, const float*, int64_t*, int64_t*, float*, float*);
  void (*gptq_columns)(float*, int64_t, const float*, int64_t, const float*, const float*, int32_t,
                       const float*, const uint8_t*, float*, int32_t, int32_t);
  void (*grid_errors)(const float*, const float*, const float*, const float*, float*, int64_t,
                      int32_t, int32_t, int32_t, int32_t);
};
}

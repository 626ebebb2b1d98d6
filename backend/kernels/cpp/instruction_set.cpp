// Function table of the instruction set that this file is compiled for.

#include "decoder.h"
#include "descent.h"
#include "rounding.h"

// Functions that return int32_t return 1 if memory or threads ran out and else 0, unless documented
// otherwise. `library.py` mirrors the table and has the types of the functions.
struct Table {
  int32_t sizes[7];      // of the structures, in the order of `interface.h`
  int32_t bfloat16;      // 1 if there are bfloat16 products, and SPARSE_BF16 is supported
  int32_t two_of_four;   // 1 if INT4_2_4 is supported
  int32_t block, panel;  // tokens per cache block; H of a descent is padded to whole panels
  const void* functions[16];
};

extern "C" __attribute__((visibility("default"))) const Table SLIMSCOPE_SET = {
    {sizeof(Matrix), sizeof(Layer), sizeof(Model), sizeof(Cache), sizeof(Pass), sizeof(Descent),
     sizeof(Rows)},
    HAVE_BF16,
    HAVE_VNNI,
    BLOCK,
    PANEL,
    {(void*)pack_bf16, (void*)pack_codes, (void*)pack_2_4, (void*)leave_out_zeros, (void*)forward,
     (void*)linear, (void*)top_k, (void*)keep, (void*)add_gram, (void*)descend, (void*)values,
     (void*)backward, (void*)levels, (void*)snapshot_statistics, (void*)gptq_columns,
     (void*)grid_errors},
};

// Function table of the instruction set that this file is compiled for.

#include "decoder.h"
#include "descent.h"
#include "rounding.h"

extern "C" __attribute__((visibility("default"))) const Kernels SLIMSCOPE_SET = {
    {sizeof(Matrix), sizeof(Layer), sizeof(Model), sizeof(Cache), sizeof(Pass), sizeof(Descent),
     sizeof(Rows)},
    HAVE_BF16,
    HAVE_EXPAND,
    HAVE_VNNI,
    BLOCK,
    PANEL,
    pack_bf16,
    pack_codes,
    pack_2_4,
    leave_out_zeros,
    forward,
    linear,
    top_k,
    keep,
    add_gram,
    gram_dot,
    descend,
    values,
    backward,
    levels,
    figures,
    gptq_columns,
    grid_errors,
};

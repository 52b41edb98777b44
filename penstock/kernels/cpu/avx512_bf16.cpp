// The step for AVX-512 with dot products of bfloat16 pairs.
#define PK_SET avx512_bf16
#define PK_LANES 16
#define PK_HALF 1
#include "step.h"

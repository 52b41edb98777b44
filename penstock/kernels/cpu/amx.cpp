// The step for AVX-512 with tiles of bfloat16 (AMX).
#define PK_SET amx
#define PK_LANES 16
#define PK_HALF 2
#include "step.h"

// The step for one instruction set; the build gives this file its own flags.
#define PK_SET avx512
#define PK_LANES 16
#include "read_chunk.h"
#include "search.h"
#include "step.h"

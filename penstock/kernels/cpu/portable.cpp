// The step for one instruction set; the build gives this file its own flags.
#define PK_SET portable
#define PK_LANES 4
#include "read_chunk.h"
#include "search.h"
#include "step.h"

// The step for one instruction set; the build gives this file its own flags.
#define PK_SET portable
#define PK_LANES 4
#include "choose.h"
#include "read.h"
#include "step.h"

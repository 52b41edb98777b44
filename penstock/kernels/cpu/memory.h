// Allocations of a model: zeroed, aligned, in large pages where they are large; freed together.
#pragma once
#include "model.h"

namespace pk {

void *reserve(pk_model *model, int64_t bytes);
void release_all(pk_model *model);
// Room for steps of `tokens` tokens on `threads` threads; false when there is no memory.
bool make_room(pk_model *model, int64_t tokens, int threads, int groups, int sinks);
void free_room(pk_model *model);

}  // namespace pk

// What a model is inside: tiles of 16 outputs, and the room in which a step computes.
#pragma once
#include "penstock.h"
#include "pool.h"

namespace pk {

constexpr int TILE = 16;       // outputs of a tile
constexpr int FEW = 4;         // tokens up to which every thread prepares all of them itself, and saves a barrier
constexpr int HALF_ROWS = 8;  // rows from which products take longer than reading weights: bfloat16 is multiplied in hardware
constexpr int KEYS = 128;      // keys of a block when a chunk is read
constexpr int QUERY_ROWS = 192;  // queries x heads of a block, at most

// [tiles][cols / pack][16][pack]: pack is 1 for float32, 2 for bfloat16, 4 for int8 (stored with 128 added).
struct Matrix {
  int rows = 0, cols = 0, tiles = 0, kind = 0;
  bool half = false;  // bfloat16, and so is what the model stores: products may be those of the hardware
  const char *data = nullptr;
  const float *scale = nullptr;  // [tiles * 16], int8 only
  const float *bias = nullptr;   // [tiles * 16], or null
  int64_t tile_bytes() const { return int64_t(cols) * TILE * (kind == PK_FLOAT32 ? 4 : kind == PK_BFLOAT16 ? 2 : 1); }
};

struct LayerWeights {
  Matrix qkv, out, gate_up, down;
  const float *norm_in = nullptr, *norm_mlp = nullptr, *norm_query = nullptr, *norm_key = nullptr;
};

// Buffers of one thread.
struct Own {
  float *panel;                          // two tiles in float32
  float *packed;                         // rows of activations as products want them; whole blocks of 16 by 32 for tiles
  float *normed, *merged;                // [FEW, hidden], [FEW, heads * width]
  float *q, *qs, *k, *v, *raw;           // as Room's, for FEW tokens
  float *block_q, *block_qs, *scores;    // [QUERY_ROWS, width] twice, [QUERY_ROWS, KEYS]
  float *keys, *values, *out, *top, *sum;  // tiles of a block of keys; [QUERY_ROWS, width], [QUERY_ROWS] twice
  float *sinks;                          // rotated sinks of one row and head
};

// Buffers that threads share; `tokens` is what they have room for.
struct Room {
  int64_t tokens = 0, threads = 0, groups = 0, sinks = 0;
  char *memory = nullptr;
  int64_t bytes = 0;
  float *h, *normed, *qkv, *attended, *act;       // [tokens, ...]
  float *q, *qs, *k, *v, *raw;                    // rotated queries (for the window, for sinks), keys, values, raw keys
  float *angles;                                  // [groups, tokens, 4, width / 2]
  float *part_top, *part_sum, *part_out;          // [threads, tokens, heads] (and width)
  float *places;                                  // [tokens, hidden]
  Own *own = nullptr;
};

struct Step;

}  // namespace pk

struct pk_model {
  pk_shape shape;
  pk::LayerWeights *layers = nullptr;
  pk::Matrix head;
  const float *norm_last = nullptr;
  const void *embedding = nullptr;
  pk::Room room;
  void **owned = nullptr;  // allocations and their sizes
  int64_t *owned_bytes = nullptr;
  int owned_count = 0, owned_room = 0;
};

namespace pk {

// One step, as all threads see it.
struct Step {
  pk_model *model;
  const pk_step *asked;
  Barrier *barrier;
  int threads;
  bool shared;   // tokens are prepared once, by shares, with a barrier behind it
  int chunks;    // spans of more than one token
  const pk_stretch *stretch;  // null: the whole step
};

// One reading, as all threads see it.
struct ReadStep {
  const pk_reading *asked;
  Barrier *barrier;
  int threads;
};

// One choice among blocks, as all threads see it.
struct ChoiceStep {
  const pk_choice *asked;
  Barrier *barrier;
  int threads;
  int64_t count;  // of all candidates
};

constexpr int MOST_NEAR = 8;

// One search, as all threads see it.
struct SearchStep {
  const pk_search *asked;
  Barrier *barrier;
  int threads;
};

int64_t found_by(const pk_search *asked);  // once `worth` is known

// The same step, reading, choice and search, compiled for several instruction sets.
namespace portable { void run(void *step, int thread); void read(void *step, int thread); void choose(void *step, int thread); void lists(void *step, int thread); }
namespace avx2 { void run(void *step, int thread); void read(void *step, int thread); void choose(void *step, int thread); void lists(void *step, int thread); }
namespace avx512 { void run(void *step, int thread); void read(void *step, int thread); void choose(void *step, int thread); void lists(void *step, int thread); }
// Sets of their own products of bfloat16; a whole matrix times rows is for looking at them, see products_half.h.
namespace avx512_bf16 { void run(void *step, int thread); void products(const Matrix &m, const float *x, int64_t rows, const Own *own, float *out); }
namespace amx { void run(void *step, int thread); void products(const Matrix &m, const float *x, int64_t rows, const Own *own, float *out); }

}  // namespace pk

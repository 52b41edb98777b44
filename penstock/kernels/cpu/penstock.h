// The C interface of the native step.  No framework types: pointers, sizes, and structures that ctypes can spell.
//
// A model is made once from pointers to row-major weights, which are copied into tiles.  A step reads tokens, the fused
// rings of all layers (as penstock/memory/ring.py keeps them), writes the new entries, and gives logits.
#pragma once
#include <cstdint>

#if defined(__GNUC__)
#pragma GCC visibility push(default)
#endif
extern "C" {

enum pk_kind { PK_FLOAT32 = 0, PK_BFLOAT16 = 1, PK_INT8 = 2 };
enum pk_which { PK_QKV = 0, PK_OUT = 1, PK_GATE_UP = 2, PK_DOWN = 3, PK_HEAD = 4 };
enum pk_norm { PK_NORM_IN = 0, PK_NORM_MLP = 1, PK_NORM_QUERY = 2, PK_NORM_KEY = 3, PK_NORM_LAST = 4 };

struct pk_shape {
  int32_t hidden, layers, heads, kv_heads, width, intermediate, vocabulary;
  int32_t weights;  // pk_kind of the tiles
  int32_t stored;   // pk_kind of keys and values, of the embedding and of logits
  float eps, eps_heads;
  float scale;   // of scores
  float factor;  // what the model's own rotary embedding multiplies queries and keys with at position 0
};

// One matrix [rows, cols], or one of several that are stacked (query, key, value) or interleaved (gate, up).
struct pk_source {
  const void *data;
  const float *bias;  // [rows], or null
  int32_t rows, kind;
};

// What layers share: a cascade and an encoding.
struct pk_group {
  const double *inv_freq;     // [half]
  const float *sink_cos;      // [sinks, half], rotations of the sinks to their own indices
  const float *sink_sin;
  int64_t window;             // entries of the window; 0: it grows
  int64_t clamp;              // the largest position from which sinks are seen; -1: no limit
  int32_t half, interleaved, sinks, unused;
};

struct pk_layer_memory {
  void *ring;       // [2, rows, kv_heads, slots, width]
  void *raw_sinks;  // [rows, kv_heads, sinks, width], or null
  int64_t slots;
  int32_t group, rows;
};

struct pk_span {
  int64_t start;  // tokens of the row before the step
  int32_t row, count;
};

struct pk_step {
  const int64_t *tokens;  // [count]
  const pk_span *spans;
  const int64_t *places;  // tokens of the step whose logits are wanted
  void *logits;           // [wanted, vocabulary] in the kind of the shape
  const pk_group *groups;
  const pk_layer_memory *memory;  // [layers]
  int64_t count, wanted;
  int32_t span_count, group_count, threads, unused;
};

// A stretch of a step whose attention is computed by somebody else: what follows attention in layer `layer - 1` and what
// comes before it in layer `layer`.  Layer 0 begins with the embedding, layer `layers` ends with logits.
struct pk_stretch {
  const int64_t *tokens;  // [count]; layer 0 only
  float *hidden;          // [count, hidden], the caller's from stretch to stretch
  const void *attended;   // [count, heads, width] as stored; from layer 1 on
  void *query;            // [count, heads, width] as stored, raw (position 0), as are
  void *key, *value;      // [count, kv_heads, width]
  const int64_t *places;  // as in pk_step, layer `layers` only
  void *logits;
  int64_t count, wanted;
  int32_t layer, threads;
};

// What keys and values of an offer are: as stored (PK_FLOAT32, PK_BFLOAT16), or codes of 8 or 4 bits.
enum pk_codes { PK_CODES8 = 8, PK_CODES4 = 4 };

// Keys and values of one part of a memory, which queries [first, last) of a reading read.
struct pk_offer {
  const void *key, *value;  // per head rows of `width` numbers, or of codes (4 bits: channel i low, i + width / 2 high)
  const uint16_t *key_scale, *key_zero;      // codes: float16 per channel, [kv_heads, width]
  const uint16_t *value_scale, *value_zero;  // codes: float16 per 2 ** `shared` channels, [kv_heads, count, ...]
  const float *query_cos, *query_sin;        // [half], `query_step` floats from query to query: where they stand
  const float *key_cos, *key_sin;  // [count, half]: keys are turned as they are read; null: they are as they should be
  // Added to scores, or null: floats from key-value head to head, from query head to query head in it (`member`), and from
  // query to query behind `first`.  A number like -1e30 hides.
  const float *bias;
  int64_t key_head, value_head, bias_head;  // bytes from head to head of keys and of values
  int64_t count;
  int32_t kind, shared;
  // Entries in blocks of `block` each, wherever those lie: keys and values begin `key_at` and `value_at` bytes behind the
  // block's address.  `blocks_head` addresses from head to head, 0 where heads share blocks; null: key and value say it.
  const void *const *blocks;
  int64_t blocks_head, key_at, value_at, block;
  int64_t bias_member, bias_token, query_step;
  int32_t first, last;
  int32_t causal, unused;  // causal: the last entries are those of the queries, and none sees a later one than its own
};

// Some tokens of one layer read all that is offered: one exact softmax over the union.
struct pk_reading {
  const void *query;  // [heads, tokens, width] raw as stored, bytes from head to head and from token to token
  const pk_offer *offers;
  void *out;    // [heads, tokens, width] as stored
  float *lse;   // [heads, tokens]; -1e30 or less where nothing is seen
  float *work;  // [threads, pk_read_room]
  int64_t query_head, query_token;
  float scale;
  int32_t offer_count, heads, kv_heads, width, half, interleaved, stored, threads, tokens;
};

// How a block is summed up (penstock/memory/retrieval.py): the mean of its keys, some of its keys, least and greatest
// keys of pieces of it (pairs of vectors), some channels of every key.
enum pk_summary { PK_MEAN = 0, PK_SOME = 1, PK_BOUNDS = 2, PK_CHANNELS = 3 };

// Some blocks that may be chosen: their summaries, or where they lie.
struct pk_candidates {
  const float *rows;  // [kv_heads][count][rows][width], `rows_head` floats from head to head; or null:
  const void *const *blocks;  // as in pk_offer
  int64_t rows_head, blocks_head, key_head, key_at;
  int64_t marked_head, marked_at;  // a byte per entry says which are meant; at -1: all are
  int64_t count;
};

// What share of its attention each query would give each block, summed over the query heads that choose together.
struct pk_choice {
  const float *query;  // [kv_heads][group][tokens][width], scaled, in the channels of the summaries
  const pk_candidates *parts;
  const int64_t *channels;  // [kv_heads][width], PK_CHANNELS only
  float *scores;            // room: [kv_heads][group][tokens][all candidates]
  float *room;              // [threads, pk_choice_room]
  float *shares;            // [tokens][all candidates]; where heads part [tokens][kv_heads][all candidates]
  int64_t block;            // entries
  int32_t part_count, kv_heads, group, tokens, width, key_width, rows, summary, stored, apart, threads, unused;
};

// Lists of the consecutive blocks [first, last): those of list k are blocks[starts[k]:starts[k + 1]] + first.
struct pk_block_run {
  const uint16_t *blocks;
  const int32_t *starts;
  int64_t first, last;
};

// Blocks that stand in the lists whose centres would take the most of the queries' attention.
struct pk_search {
  const float *query;  // [kv_heads][queries][width], scaled
  const float *book;   // [kv_heads][lists][width], centres
  const float *sizes, *logs;  // [kv_heads][lists], how many blocks stand in a list, and its logarithm
  const pk_block_run *runs;   // in the order of their blocks
  float *scores, *worth;      // room: [kv_heads][queries][lists], [kv_heads][lists]
  int64_t *found;             // [most], in the order of the stream
  int64_t oldest, most, limit;  // no block is older; blocks found; blocks in the lists that are looked into, about
  int32_t run_count, kv_heads, queries, lists, width, near, best, threads;  // lists of a query, up to 8; of all
};

struct pk_model;

int32_t pk_abi(void);
// Instruction sets that were built, a bit each, and the one that this processor uses: 0 portable, 1 AVX2, 2 AVX-512,
// 3 AVX-512 with products of bfloat16 pairs, 4 with tiles (AMX).
int32_t pk_built(void);
int32_t pk_chosen(void);
// Use another one (for tests); false where the processor or the build lacks it.
int32_t pk_choose(int32_t which);
pk_model *pk_model_new(const pk_shape *shape);
void pk_model_free(pk_model *model);
int64_t pk_model_bytes(const pk_model *model);
int32_t pk_model_matrix(pk_model *model, int32_t layer, int32_t which, int32_t cols, const pk_source *sources, int32_t count);
int32_t pk_model_norm(pk_model *model, int32_t layer, int32_t which, const float *weight, int32_t size);
int32_t pk_model_embedding(pk_model *model, const void *rows);
// 0 when done; otherwise the step was not begun: 1 a piece is missing, 2 no memory for its intermediate results.
int32_t pk_run(pk_model *model, const pk_step *step);
// The same for one stretch.
int32_t pk_run_stretch(pk_model *model, const pk_stretch *stretch);
// Floats of work per thread, and a reading.
int64_t pk_read_room(const pk_reading *reading);
void pk_read(const pk_reading *reading);
// Floats of room per thread, and the shares.  Widths are multiples of 4; a block has up to 64 vectors.
int64_t pk_choice_room(int32_t width);
void pk_choice_run(const pk_choice *choice);
// How many were found; -1: there is no memory for the search.
int64_t pk_search_run(const pk_search *search);
}
#if defined(__GNUC__)
#pragma GCC visibility pop
#endif

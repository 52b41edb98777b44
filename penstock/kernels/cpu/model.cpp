// Weights into tiles, and the C interface around it all.
#include "model.h"

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <new>

#include "memory.h"
#include "sets.h"

namespace pk {
namespace {

uint16_t narrow(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  return uint16_t((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

float widen(uint16_t half) {
  const uint32_t bits = uint32_t(half) << 16;
  float out;
  memcpy(&out, &bits, 4);
  return out;
}

// Which row of which source is an output: sources are stacked, or (gate, up) alternate by tiles.
struct Packing {
  Matrix *matrix;
  const pk_source *sources;
  int count;
  bool alternate;
  char *data;
  float *scale, *bias;
  int threads;

  bool find(int64_t output, int *source, int64_t *row) const {
    if (alternate) {
      const int64_t tile = output / TILE;
      *source = int(tile % 2), *row = tile / 2 * TILE + output % TILE;
      return *row < sources[*source].rows;
    }
    for (int s = 0; s < count; s++) {
      if (output < sources[s].rows) return *source = s, *row = output, true;
      output -= sources[s].rows;
    }
    return false;
  }

  float read(int source, int64_t row, int64_t k) const {
    const int64_t index = row * matrix->cols + k;
    const pk_source &s = sources[source];
    return s.kind == PK_FLOAT32 ? static_cast<const float *>(s.data)[index] : widen(static_cast<const uint16_t *>(s.data)[index]);
  }

  void pack(int64_t output) const {
    const int cols = matrix->cols;
    int source = 0;
    int64_t row = 0;
    char *tile = data + output / TILE * matrix->tile_bytes();
    const int lane = int(output % TILE);
    const bool real = find(output, &source, &row);
    if (bias) bias[output] = real && sources[source].bias ? sources[source].bias[row] : 0.0f;
    float step = 0.0f;
    if (matrix->kind == PK_INT8 && real) {
      for (int k = 0; k < cols; k++) step = fmaxf(step, fabsf(read(source, row, k)));
      step /= 127.0f;
    }
    if (scale) scale[output] = step;
    for (int k = 0; k < cols; k++) {
      const float x = real ? read(source, row, k) : 0.0f;
      if (matrix->kind == PK_FLOAT32)
        reinterpret_cast<float *>(tile)[k * TILE + lane] = x;
      else if (matrix->kind == PK_BFLOAT16)
        reinterpret_cast<uint16_t *>(tile)[k / 2 * 2 * TILE + 2 * lane + k % 2] = narrow(x);
      else
        reinterpret_cast<uint8_t *>(tile)[k / 4 * 4 * TILE + 4 * lane + k % 4] = uint8_t(int(step > 0.0f ? nearbyintf(x / step) : 0.0f) + 128);
    }
  }

  static void work(void *given, int thread) {
    const auto *own = static_cast<const Packing *>(given);
    const int64_t tiles = own->matrix->tiles, begin = tiles * thread / own->threads, end = tiles * (thread + 1) / own->threads;
    for (int64_t output = begin * TILE; output < end * TILE; output++) own->pack(output);
  }
};

struct Functions {
  Work run, read, choose, lists;
};

// Sets with products of bfloat16 read and choose as AVX-512 does.
Functions functions() {
  const int which = pk_chosen();
  Functions found = {portable::run, portable::read, portable::choose, portable::lists};
#ifdef PK_HAS_AVX2
  if (which == AVX2) found = {avx2::run, avx2::read, avx2::choose, avx2::lists};
#endif
#ifdef PK_HAS_AVX512
  if (which >= AVX512) found = {avx512::run, avx512::read, avx512::choose, avx512::lists};
#endif
#ifdef PK_HAS_AVX512_BF16
  if (which == AVX512_BF16) found.run = avx512_bf16::run;
#endif
#ifdef PK_HAS_AMX
  if (which == AMX) found.run = amx::run;
#endif
  return found;
}

// cos and sin of a position's angles, in float64 as penstock/memory/positions.py computes them.
void turn(const pk_group &g, int64_t position, int half, float *cosine, float *sine) {
  const int64_t far = int64_t(1) << 26, low = position % far;
  for (int i = 0; i < half; i++) cosine[i] = 1.0f, sine[i] = 0.0f;
  for (int i = 0; i < g.half; i++) {
    const double theta = double(low) * g.inv_freq[i];
    double c = cos(theta), s = sin(theta);
    if (low != position) {  // the far part: its product with the leading bits of a frequency is exact
      const double leading = double(float(g.inv_freq[i])), high = double(position - low);
      for (const double more : {high * leading, high * (g.inv_freq[i] - leading)}) {
        const double a = cos(more), b = sin(more), turned = c * a - s * b;
        s = c * b + s * a, c = turned;
      }
    }
    cosine[i] = float(c), sine[i] = float(s);
  }
}

void make_angles(const pk_model *model, const pk_step *step) {
  const int half = model->shape.width / 2;
  for (int g = 0; g < step->group_count; g++) {
    const pk_group &group = step->groups[g];
    int64_t i = 0;
    for (int s = 0; s < step->span_count; s++)
      for (int64_t t = step->spans[s].start; t < step->spans[s].start + step->spans[s].count; t++, i++) {
        float *to = model->room.angles + (int64_t(g) * step->count + i) * 4 * half;
        turn(group, t, half, to, to + half);
        const bool near = group.clamp < 0 || t <= group.clamp;
        if (near)
          memcpy(to + 2 * half, to, sizeof(float) * size_t(2 * half));
        else
          turn(group, group.clamp, half, to + 2 * half, to + 3 * half);
      }
  }
}

bool whole(const pk_model *model) {
  const LayerWeights &last = model->layers[model->shape.layers - 1];
  return last.down.data && model->head.data && model->norm_last && model->embedding;
}

}  // namespace
}  // namespace pk

using namespace pk;

int32_t pk_abi(void) { return 5; }

pk_model *pk_model_new(const pk_shape *shape) {
  auto *model = new (std::nothrow) pk_model;
  if (!model) return nullptr;
  model->shape = *shape;
  model->layers = static_cast<LayerWeights *>(reserve(model, int64_t(sizeof(LayerWeights)) * shape->layers));
  if (!model->layers) return pk_model_free(model), nullptr;
  for (int i = 0; i < shape->layers; i++) new (model->layers + i) LayerWeights;
  return model;
}

void pk_model_free(pk_model *model) {
  if (!model) return;
  Hold hold;  // no step is running
  release_all(model);
  delete model;
}

int64_t pk_model_bytes(const pk_model *model) {
  int64_t total = model->room.bytes;
  for (int i = 0; i < model->owned_count; i++) total += model->owned_bytes[i];
  return total;
}

int32_t pk_model_matrix(pk_model *model, int32_t layer, int32_t which, int32_t cols, const pk_source *sources, int32_t count) {
  Hold hold;
  LayerWeights &own = model->layers[which == PK_HEAD ? 0 : layer];
  Matrix *matrix = which == PK_QKV ? &own.qkv : which == PK_OUT ? &own.out : which == PK_GATE_UP ? &own.gate_up : which == PK_DOWN ? &own.down : &model->head;
  Packing packing{matrix, sources, count, which == PK_GATE_UP, nullptr, nullptr, nullptr, 1};
  int64_t rows = 0;
  bool biased = false;
  for (int s = 0; s < count; s++) {
    rows += sources[s].rows;
    biased = biased || sources[s].bias;
  }
  matrix->rows = int(rows), matrix->cols = cols, matrix->kind = model->shape.weights;
  matrix->half = matrix->kind == PK_BFLOAT16 && model->shape.stored == PK_BFLOAT16;
  matrix->tiles = which == PK_GATE_UP ? 2 * ((sources[0].rows + TILE - 1) / TILE) : int((rows + TILE - 1) / TILE);
  packing.data = static_cast<char *>(reserve(model, matrix->tiles * matrix->tile_bytes()));
  if (matrix->kind == PK_INT8) packing.scale = static_cast<float *>(reserve(model, int64_t(matrix->tiles) * TILE * 4));
  if (biased) packing.bias = static_cast<float *>(reserve(model, int64_t(matrix->tiles) * TILE * 4));
  if (!packing.data || (matrix->kind == PK_INT8 && !packing.scale) || (biased && !packing.bias)) return 0;
  packing.threads = prepare_threads(4);
  run_held(packing.threads, Packing::work, &packing);
  matrix->data = packing.data, matrix->scale = packing.scale, matrix->bias = packing.bias;
  return 1;
}

int32_t pk_model_norm(pk_model *model, int32_t layer, int32_t which, const float *weight, int32_t size) {
  auto *copy = static_cast<float *>(reserve(model, int64_t(size) * 4));
  if (!copy) return 0;
  memcpy(copy, weight, sizeof(float) * size_t(size));
  LayerWeights &own = model->layers[which == PK_NORM_LAST ? 0 : layer];
  const float **to = which == PK_NORM_IN ? &own.norm_in : which == PK_NORM_MLP ? &own.norm_mlp : which == PK_NORM_QUERY ? &own.norm_query : which == PK_NORM_KEY ? &own.norm_key : &model->norm_last;
  *to = copy;
  return 1;
}

int32_t pk_model_embedding(pk_model *model, const void *rows) {
  model->embedding = rows;
  return 1;
}

int32_t pk_run(pk_model *model, const pk_step *asked) {
  if (!whole(model)) return 1;
  Hold hold;
  const int threads = prepare_threads(asked->threads);
  Step step{model, asked, shared_barrier(), threads, asked->count > FEW, 0, nullptr};
  int sinks = 0;
  for (int g = 0; g < asked->group_count; g++) sinks = asked->groups[g].sinks > sinks ? asked->groups[g].sinks : sinks;
  for (int s = 0; s < asked->span_count; s++) {
    step.chunks += asked->spans[s].count > 1;
    step.shared = step.shared || asked->spans[s].count > 1 || asked->spans[s].start < sinks;
  }
  const int64_t tokens = asked->count > asked->wanted ? asked->count : asked->wanted;
  if (!make_room(model, tokens, threads, asked->group_count, sinks)) return 2;
  make_angles(model, asked);
  run_held(threads, functions().run, &step);
  return 0;
}

int32_t pk_run_stretch(pk_model *model, const pk_stretch *stretch) {
  if (!whole(model)) return 1;
  Hold hold;
  const int threads = prepare_threads(stretch->threads);
  pk_step asked = {};
  asked.tokens = stretch->tokens, asked.places = stretch->places, asked.logits = stretch->logits;
  asked.count = stretch->count, asked.wanted = stretch->wanted;
  Step step{model, &asked, shared_barrier(), threads, true, 0, stretch};
  const int64_t tokens = asked.count > asked.wanted ? asked.count : asked.wanted;
  if (!make_room(model, tokens, threads, 0, 0)) return 2;
  run_held(threads, functions().run, &step);
  return 0;
}

// As read.h and read_chunk.h divide it.
int64_t pk_read_room(const pk_reading *reading) {
  const int64_t width = reading->width, rows = int64_t(reading->heads) * reading->tokens;
  int64_t floats = rows * (2 + width);
  if (reading->tokens == 1)
    floats += rows * width + (2 * 64 + 4) * width;
  else
    floats += rows / reading->kv_heads * width + QUERY_ROWS * (width + KEYS) + (3 * KEYS + TILE + 4) * width;
  return (floats + 63) / 64 * 64;
}

void pk_read(const pk_reading *reading) {
  Hold hold;
  const int threads = prepare_threads(reading->threads);
  ReadStep step{reading, shared_barrier(), threads};
  run_held(threads, functions().read, &step);
}

int64_t pk_choice_room(int32_t width) { return 64 * (2 * int64_t(width) + 8); }

void pk_choice_run(const pk_choice *choice) {
  Hold hold;
  const int threads = prepare_threads(choice->threads);
  ChoiceStep step{choice, shared_barrier(), threads, 0};
  for (int i = 0; i < choice->part_count; i++) step.count += choice->parts[i].count;
  run_held(threads, functions().choose, &step);
}

int64_t pk_search_run(const pk_search *search) {
  Hold hold;
  const int threads = prepare_threads(search->threads);
  SearchStep step{search, shared_barrier(), threads};
  run_held(threads, functions().lists, &step);
  return found_by(search);
}

#include "memory.h"

#include <sys/mman.h>

#include <cstdlib>
#include <cstring>

namespace pk {
namespace {

constexpr int64_t LARGE = 1 << 21;
constexpr int64_t SLACK = 4096;  // weights are asked for ahead of their use, past the end of the last tile

char *take(int64_t bytes) {
  const int64_t size = (bytes + SLACK + LARGE - 1) / LARGE * LARGE;
  void *found = mmap(nullptr, size_t(size), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (found == MAP_FAILED) return nullptr;
#ifdef MADV_HUGEPAGE
  if (bytes >= LARGE) madvise(found, size_t(size), MADV_HUGEPAGE);
#endif
  return static_cast<char *>(found);
}

void give(void *memory, int64_t bytes) { munmap(memory, size_t((bytes + SLACK + LARGE - 1) / LARGE * LARGE)); }

// Lays floats out one after the other; without a base it only counts.
struct Layout {
  char *base;
  int64_t used = 0;
  float *floats(int64_t count) {
    float *found = base ? reinterpret_cast<float *>(base + used) : nullptr;
    used += (count * 4 + 127) / 64 * 64;  // and a gap, so that threads share no line
    return found;
  }
};

int64_t lay_out(const pk_model *model, Room &room, Own *own, char *base) {
  const pk_shape &s = model->shape;
  const int64_t n = room.tokens, hidden = s.hidden, all = int64_t(s.heads) * s.width, kv = int64_t(s.kv_heads) * s.width, width = s.width;
  int64_t deepest = hidden > s.intermediate ? hidden : s.intermediate;
  deepest = deepest > all ? deepest : all;
  const int64_t packed = s.weights == PK_BFLOAT16 && n >= HALF_ROWS ? (n + 15) / 16 * 16 * ((deepest + 31) / 32 * 32) : n * deepest;
  Layout at{base};
  room.h = at.floats(n * hidden), room.normed = at.floats(n * hidden), room.places = at.floats(n * hidden);
  room.qkv = at.floats(n * (all + 2 * kv)), room.attended = at.floats(n * all), room.act = at.floats(n * s.intermediate);
  room.q = at.floats(n * all), room.qs = at.floats(n * all);
  room.k = at.floats(n * kv), room.v = at.floats(n * kv), room.raw = at.floats(n * kv);
  room.angles = at.floats(room.groups * n * 4 * (width / 2));
  const int64_t parts = room.threads * n * s.heads;
  room.part_top = at.floats(parts), room.part_sum = at.floats(parts), room.part_out = at.floats(parts * width);
  for (int64_t t = 0; t < room.threads; t++) {
    Own mine;
    mine.panel = at.floats(2 * deepest * TILE), mine.packed = at.floats(packed);
    mine.normed = at.floats(FEW * hidden), mine.merged = at.floats(FEW * all);
    mine.q = at.floats(FEW * all), mine.qs = at.floats(FEW * all);
    mine.k = at.floats(FEW * kv), mine.v = at.floats(FEW * kv), mine.raw = at.floats(FEW * kv);
    mine.block_q = at.floats(QUERY_ROWS * width), mine.block_qs = at.floats(QUERY_ROWS * width);
    mine.scores = at.floats(QUERY_ROWS * KEYS);
    mine.keys = at.floats(KEYS * width), mine.values = at.floats(KEYS * width), mine.out = at.floats(QUERY_ROWS * width);
    mine.top = at.floats(QUERY_ROWS), mine.sum = at.floats(QUERY_ROWS), mine.sinks = at.floats(2 * room.sinks * width);
    if (base) own[t] = mine;
  }
  return at.used;
}

}  // namespace

void *reserve(pk_model *model, int64_t bytes) {
  if (model->owned_count == model->owned_room) {
    const int room = model->owned_room ? 2 * model->owned_room : 64;
    void *owned = realloc(model->owned, sizeof(void *) * size_t(room));
    if (!owned) return nullptr;
    model->owned = static_cast<void **>(owned);
    void *sizes = realloc(model->owned_bytes, sizeof(int64_t) * size_t(room));
    if (!sizes) return nullptr;
    model->owned_bytes = static_cast<int64_t *>(sizes);
    model->owned_room = room;
  }
  void *found = bytes >= LARGE ? take(bytes) : aligned_alloc(64, size_t((bytes + SLACK + 63) / 64 * 64));
  if (!found) return nullptr;
  if (bytes < LARGE) memset(found, 0, size_t(bytes));
  model->owned[model->owned_count] = found;
  model->owned_bytes[model->owned_count++] = bytes;
  return found;
}

void release_all(pk_model *model) {
  for (int i = 0; i < model->owned_count; i++) {
    if (model->owned_bytes[i] >= LARGE)
      give(model->owned[i], model->owned_bytes[i]);
    else
      free(model->owned[i]);
  }
  free(model->owned);
  free(model->owned_bytes);
  free_room(model);
}

void free_room(pk_model *model) {
  if (model->room.memory) give(model->room.memory, model->room.bytes);
  free(model->room.own);
  model->room = Room();
}

bool make_room(pk_model *model, int64_t tokens, int threads, int groups, int sinks) {
  const Room &now = model->room;
  if (tokens <= now.tokens && threads <= now.threads && groups <= now.groups && sinks <= now.sinks) return true;
  Room room;
  room.tokens = tokens > now.tokens ? tokens : now.tokens;
  room.threads = threads > now.threads ? threads : now.threads;
  room.groups = groups > now.groups ? groups : now.groups;
  room.sinks = sinks > now.sinks ? sinks : now.sinks;
  room.bytes = lay_out(model, room, nullptr, nullptr);
  room.own = static_cast<Own *>(calloc(size_t(room.threads), sizeof(Own)));
  room.memory = room.own ? take(room.bytes) : nullptr;
  if (!room.memory) {
    free(room.own);
    return false;
  }
  lay_out(model, room, room.own, room.memory);
  free_room(model);
  model->room = room;
  return true;
}

}  // namespace pk

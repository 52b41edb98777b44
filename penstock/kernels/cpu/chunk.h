// Attention of many tokens of a row: queries x heads in blocks of rows, keys in blocks that are turned into tiles, so
// that both products are those of products.h.  Which key a query sees follows from two indices: no mask is stored.
#pragma once
#include "attention.h"
#include "products.h"

namespace pk {
namespace PK_SET {

PK_INLINE V4 load_four(const float *p) {
  V4 v;
  memcpy(&v, p, sizeof v);
  return v;
}
PK_INLINE V4 load_four(const uint16_t *p) { return V4{widen(p[0]), widen(p[1]), widen(p[2]), widen(p[3])}; }

// Sixteen keys (fewer: the last one again) as a tile [width][16].
template <class T>
static void turn(const T *const *keys, int width, float *tile) {
  for (int s = 0; s < TILE; s += 4)
    for (int d = 0; d < width; d += 4) {
      const V4 a = load_four(keys[s] + d), b = load_four(keys[s + 1] + d), c = load_four(keys[s + 2] + d), e = load_four(keys[s + 3] + d);
      const V4 ab0 = __builtin_shufflevector(a, b, 0, 4, 1, 5), ab1 = __builtin_shufflevector(a, b, 2, 6, 3, 7);
      const V4 ce0 = __builtin_shufflevector(c, e, 0, 4, 1, 5), ce1 = __builtin_shufflevector(c, e, 2, 6, 3, 7);
      const V4 rows[4] = {__builtin_shufflevector(ab0, ce0, 0, 1, 4, 5), __builtin_shufflevector(ab0, ce0, 2, 3, 6, 7),
                          __builtin_shufflevector(ab1, ce1, 0, 1, 4, 5), __builtin_shufflevector(ab1, ce1, 2, 3, 6, 7)};
      for (int i = 0; i < 4; i++) memcpy(tile + (d + i) * TILE + s, &rows[i], 16);
    }
}

// One block of queries of one row and one key-value head, while keys pass by.
struct Reader {
  Own *own;
  int width, rows, heads;   // rows = queries * heads
  int64_t first, window;    // position of the first query; entries of the window, 0 for all

  void begin() {
    for (int r = 0; r < rows; r++) own->top[r] = NOTHING, own->sum[r] = 0.0f;
    memset(own->out, 0, sizeof(float) * size_t(rows) * width);
  }

  // Keys and values of a block, `count` of them, already in tiles; `weigh` makes weights of the scores of a row.
  template <class Weigh>
  void products(const float *queries, int count, Weigh weigh) {
    const int tiles = (count + TILE - 1) / TILE;
    const int64_t bytes = int64_t(width) * TILE * 4;
    const int block = block_rows(rows);
    float out[ROWS * 2 * TILE];
    for (int r = 0; r < rows; r += block) {
      const int size = rows - r < block ? rows - r : block;
      for (int t = 0; t < tiles; t += 2) {
        const int two = tiles - t > 1 ? 2 : 1;
        product(PK_FLOAT32, reinterpret_cast<const char *>(own->keys) + t * bytes, bytes, width, queries + int64_t(r) * width, size, two, out);
        for (int i = 0; i < size; i++) memcpy(own->scores + int64_t(r + i) * KEYS + t * TILE, out + i * 2 * TILE, sizeof(float) * size_t(two) * TILE);
      }
      for (int i = r; i < r + size; i++) weigh(i);
    }
    for (int r = 0; r < rows; r += block) {
      const int size = rows - r < block ? rows - r : block;
      for (int t = 0; t < width / TILE; t += 2) {
        const int two = width / TILE - t > 1 ? 2 : 1;
        const int64_t tile = int64_t(KEYS) * TILE * 4;
        product(OVER_SCORES, reinterpret_cast<const char *>(own->values) + t * tile, tile, tiles * TILE, own->scores + int64_t(r) * KEYS, size, two, out);
        for (int i = 0; i < size; i++) {
          float *to = own->out + int64_t(r + i) * width + t * TILE;
          for (int d = 0; d < two * TILE; d++) to[d] += out[i * 2 * TILE + d];
        }
      }
    }
  }

  // The same where visibility follows from the window: position of the first key, and whether all are seen.
  void read(const float *queries, int count, int64_t at, bool always) {
    const int padded = (count + TILE - 1) / TILE * TILE;
    products(queries, count, [&](int row) { weigh_row(row, count, padded, at, always); });
  }

  // A row's largest score is at least `most` from here on.
  void raise(int row, float most) {
    if (most <= own->top[row]) return;
    const float shrink = exponential(own->top[row] - most);
    float *out = own->out + int64_t(row) * width;
    for (int d = 0; d < width; d++) out[d] *= shrink;
    own->sum[row] *= shrink;
    own->top[row] = most;
  }

  // Scores of one row become weights; hidden keys get none.
  void weigh_row(int row, int count, int padded, int64_t at, bool always) {
    float *own_scores = own->scores + int64_t(row) * KEYS;
    const int64_t position = first + row / heads;
    int64_t low = always || window == 0 ? 0 : position - window + 1 - at, high = position + 1 - at;
    low = low < 0 ? 0 : low > count ? count : low;
    high = high > count ? count : high < low ? low : high;
    raise(row, largest_of(own_scores + low, high - low, NOTHING));
    exponentials(own_scores + low, high - low, own->top[row]);
    own->sum[row] += sum_of(own_scores + low, high - low);
    for (int64_t s = 0; s < low; s++) own_scores[s] = 0.0f;
    for (int64_t s = high; s < padded; s++) own_scores[s] = 0.0f;
  }

  // Put keys and values, given by pointers, into tiles.
  template <class T>
  void gather(const T *const *keys, const T *const *values, int count) {
    const int tiles = (count + TILE - 1) / TILE;
    for (int t = 0; t < tiles; t++) turn(keys + t * TILE, width, own->keys + int64_t(t) * width * TILE);
    for (int s = 0; s < tiles * TILE; s++)
      for (int d = 0; d < width; d += PK_LANES) {
        const V value = s < count ? load_stored(values[s] + d) : V{};
        store(own->values + int64_t(d / TILE) * KEYS * TILE + int64_t(s) * TILE + d % TILE, value);
      }
  }

  // Entries [from, to) of the stream, found by a function of their index.
  template <class T, class Find>
  void pass(const float *queries, int64_t from, int64_t to, bool always, Find find) {
    const T *keys[KEYS], *values[KEYS];
    for (int64_t at = from; at < to; at += KEYS) {
      const int count = to - at < KEYS ? int(to - at) : KEYS;
      for (int s = 0; s < count; s++) find(at + s, keys + s, values + s);
      for (int s = count; s < KEYS; s++) keys[s] = keys[count - 1], values[s] = values[count - 1];
      gather<T>(keys, values, count);
      read(queries, count, at, always);
    }
  }
};

}  // namespace PK_SET
}  // namespace pk

// Products of a few rows of activations with tiles of weights: out[r][16] = sum over k of x[r][k] * tile[k][16].
//
// Lanes are outputs, so there is nothing to add up across lanes; an activation is broadcast.  A tile is one sequential
// read.  bfloat16 lies in pairs: the low half of a word shifted up and the high half masked are two rows of float32.
// int8 lies in fours, with 128 added: its bits become the upper mantissa of a number 256 + u, and 384 * sum(x) is taken
// off at the end, which costs less than a conversion.
#pragma once
#include "model.h"
#include "vector.h"

#include <utility>

namespace pk {
namespace PK_SET {

// Rows and tiles of a block, and rows of a block of one tile: so many fit that weights pass by once, and are widened once.
#if PK_LANES == 16
constexpr int ROWS = 12, ACROSS = 2, TALL = 24;  // 24 sums, two weights, in 32 registers
#elif PK_LANES == 8
constexpr int ROWS = 6, ACROSS = 1, TALL = ROWS;  // 12 sums in 16 registers
#else
constexpr int ROWS = 2, ACROSS = 1, TALL = ROWS;
#endif

constexpr int AHEAD = 2048;  // bytes of weights that are asked for before they are needed, for a few rows
constexpr int FAR_AHEAD = 8192;  // for many rows of one tile, whose products take longer

// Weights that are asked for while others are multiplied: from where, and bytes per 64 of those.  The blocks of rows that
// share a pair of tiles ask for the next pair, each for its part, so that memory is never idle.
struct Ahead {
  const char *at = nullptr;
  int64_t step = 0;
};

// How the rows of a block lie: packed, x[k][R], so that one pointer serves all; or in rows of KEYS, as scores do.
template <int R, bool SCORES>
struct Lie {
  static constexpr int64_t row = SCORES ? KEYS : 1, k = SCORES ? 1 : R;
};

// C chains of sums per output hide the latency of a product where there are few rows.
template <int T, int R>
struct Sums {
  static constexpr int C = T * VECTORS * R <= 2 ? 4 : T * VECTORS * R <= 4 ? 2 : 1;
  V v[C][T][VECTORS][R];

  // One activation of each row times the weights of all outputs: weights stay in registers, activations pass by.
  PK_MEMBER void add(int chain, const V *weights, const float *x, int64_t row) {
#pragma GCC unroll 16
    for (int r = 0; r < R; r++) {
      const float one = x[r * row];
#pragma GCC unroll 8
      for (int i = 0; i < T * VECTORS; i++) v[chain % C][i / VECTORS][i % VECTORS][r] += weights[i] * one;
    }
  }

  PK_MEMBER void give(float *out) const {
    for (int t = 0; t < T; t++)
      for (int i = 0; i < VECTORS; i++)
        for (int r = 0; r < R; r++) {
          V sum = v[0][t][i][r];
          for (int c = 1; c < C; c++) sum += v[c][t][i][r];
          store(out + r * 2 * TILE + t * TILE + i * PK_LANES, sum);
        }
  }
};

template <int R>
PK_INLINE void ask(const char *now, Ahead &ahead) {
  if (R > 1 && ahead.step)
    __builtin_prefetch(ahead.at, 0, 2), ahead.at += ahead.step;
  else if (R > ROWS)
    __builtin_prefetch(now + FAR_AHEAD);
  else if (R <= FEW)
    __builtin_prefetch(now + AHEAD);
}

// out [R][32]; with T = 1 only the first half is written.
template <int T, int R, bool SCORES>
static void product_float(const char *data, int64_t tile_bytes, int cols, const float *x, float *out, Ahead ahead) {
  using L = Lie<R, SCORES>;
  Sums<T, R> sums = {};
  const float *w = reinterpret_cast<const float *>(data);
  const int64_t next = tile_bytes / 4;
  for (int k = 0; k < cols; k += 4) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
      ask<R>(reinterpret_cast<const char *>(w), ahead);
      V weights[T * VECTORS];
#pragma GCC unroll 8
      for (int i = 0; i < T * VECTORS; i++) weights[i] = load(w + i / VECTORS * next + i % VECTORS * PK_LANES);
      sums.add(j, weights, x + j * L::k, L::row);
      w += TILE;
    }
    x += 4 * L::k;
  }
  sums.give(out);
}

template <int T, int R>
static void product_half(const char *data, int64_t tile_bytes, int cols, const float *x, float *out, Ahead ahead) {
  Sums<T, R> sums = {};
  for (int k = 0; k < cols; k += 4) {
#pragma GCC unroll 2
    for (int j = 0; j < 4; j += 2) {
      ask<R>(data, ahead);
      V even[T * VECTORS], odd[T * VECTORS];
#pragma GCC unroll 8
      for (int i = 0; i < T * VECTORS; i++) {
        const U both = load_bits(data + i / VECTORS * tile_bytes + i % VECTORS * PK_LANES * 4);
        even[i] = as_float(both << 16), odd[i] = as_float(both & 0xffff0000u);
      }
      sums.add(j, even, x + j * R, 1);
      sums.add(j + 1, odd, x + (j + 1) * R, 1);
      data += 4 * TILE;
    }
    x += 4 * R;
  }
  sums.give(out);
}

template <int T, int R>
static void product_byte(const char *data, int64_t tile_bytes, int cols, const float *x, float *out, Ahead ahead) {
  Sums<T, R> sums = {};
  for (int k = 0; k < cols; k += 4) {
    ask<R>(data, ahead);
    U four[T * VECTORS];
#pragma GCC unroll 8
    for (int i = 0; i < T * VECTORS; i++) four[i] = load_bits(data + i / VECTORS * tile_bytes + i % VECTORS * PK_LANES * 4);
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
      V weights[T * VECTORS];
#pragma GCC unroll 8
      for (int i = 0; i < T * VECTORS; i++) {
        const U moved = j == 0 ? four[i] << 15 : j == 1 ? four[i] << 7 : j == 2 ? four[i] >> 1 : four[i] >> 9;
        weights[i] = as_float((moved & 0x007f8000u) | 0x43800000u);
      }
      sums.add(j, weights, x + j * R, 1);
    }
    data += 4 * TILE;
    x += 4 * R;
  }
  sums.give(out);
}

using Product = void (*)(const char *, int64_t, int, const float *, float *, Ahead);

// 0 to 2: the kinds of weights over packed rows (as pk_kind numbers them); 3: float32 over scores.
constexpr int OVER_SCORES = 3;

// By kind and number of rows, over T tiles.
template <int T, int... R>
static Product chosen(int kind, int rows, std::integer_sequence<int, R...>) {
  static constexpr Product all[4][sizeof...(R)] = {
      {product_float<T, R + 1, false>...}, {product_half<T, R + 1>...}, {product_byte<T, R + 1>...}, {product_float<T, R + 1, true>...}};
  return all[kind][rows - 1];
}

template <int T, int MOST>
static Product chosen(int kind, int rows) {
  return chosen<T>(kind, rows, std::make_integer_sequence<int, MOST>());
}

// rows <= TALL rows over one or two adjacent tiles; out [rows][32].
static void product(int kind, const char *data, int64_t tile_bytes, int cols, const float *x, int rows, int tiles, float *out, Ahead ahead = {}) {
  if (ACROSS == 2 && tiles == 2 && rows > 1 && rows <= ROWS) return chosen<ACROSS, ROWS>(kind, rows)(data, tile_bytes, cols, x, out, {ahead.at, 2 * ahead.step});
  for (int t = 0; t < tiles; t++)  // one after the other: for one row a tile is read at the speed of memory
    chosen<1, TALL>(kind, rows)(data + t * tile_bytes, tile_bytes, cols, x, out + t * TILE, {ahead.at + t * (tile_bytes * ahead.step / 64), ahead.step});
}

// Rows in blocks of nearly equal size.
PK_INLINE int block_rows(int64_t rows) {
  const int64_t blocks = (rows + ROWS - 1) / ROWS;
  return int((rows + blocks - 1) / blocks);
}

// Rows [rows, stride] as blocks of x[k][R], one behind the other.
static void pack_rows(const float *x, int64_t stride, int64_t rows, int cols, int block, float *to) {
  for (int64_t r = 0; r < rows; r += block) {
    const int count = rows - r < block ? int(rows - r) : block;
    const float *from = x + r * stride;
    float *at = to + r * cols;
    for (int k = 0; k < cols; k++, at += count)
      for (int i = 0; i < count; i++) at[i] = from[i * stride + k];
  }
}

// One or two tiles of any kind as float32 tiles.
static void widen_tiles(const Matrix &m, int64_t tile, int tiles, float *to) {
  const char *data = m.data + tile * m.tile_bytes();
  const int64_t words = int64_t(tiles) * m.cols / (m.kind == PK_BFLOAT16 ? 2 : 4);
  for (int64_t w = 0; w < words; w++, data += 4 * TILE)
    for (int i = 0; i < VECTORS; i++) {
      const U bits = load_bits(data + i * PK_LANES * 4);
      if (m.kind == PK_BFLOAT16) {
        store(to + 2 * w * TILE + i * PK_LANES, as_float(bits << 16));
        store(to + (2 * w + 1) * TILE + i * PK_LANES, as_float(bits & 0xffff0000u));
      } else {
        for (int j = 0; j < 4; j++) store(to + (4 * w + j) * TILE + i * PK_LANES, __builtin_convertvector((I)((bits >> (8 * j)) & 0xffu), V) - 128.0f);
      }
    }
}

constexpr int64_t MANY = 3 * ROWS;  // rows from which tiles are widened once for all of them

// Sums over k of x[k][rows].
static void sum_columns(const float *x, int cols, int rows, float *sums) {
  if (rows == 1) {
    sums[0] = sum_of(x, cols);
    return;
  }
  for (int r = 0; r < rows; r++) sums[r] = 0.0f;
  for (int k = 0; k < cols; k++)
    for (int r = 0; r < rows; r++) sums[r] += x[int64_t(k) * rows + r];
}

}  // namespace PK_SET
}  // namespace pk

#include "products_half.h"

namespace pk {
namespace PK_SET {

// Call finish(row, column, values, count) with up to 32 outputs of each row, for a range of tiles.
template <class Finish>
static void multiply(const Matrix &m, int64_t begin, int64_t end, const float *x, int64_t stride, int64_t rows, const Own *own, Finish finish) {
#ifdef PK_HALF
  if (m.half && rows >= HALF_ROWS) return multiply_half(m, begin, end, x, stride, rows, own, finish);
#endif
  const int block = rows <= TALL ? int(rows) : block_rows(rows);
  const int64_t blocks = (rows + block - 1) / block;
  const bool widen = rows >= MANY && m.kind != PK_FLOAT32;
  if (rows > 1) {
    pack_rows(x, stride, rows, m.cols, block, own->packed);
    x = own->packed;
  }
  float taken[TALL], out[TALL * 2 * TILE];
  for (int64_t tile = begin; tile < end; tile += 2) {
    const int tiles = end - tile > 1 ? 2 : 1;
    const char *data = m.data + tile * m.tile_bytes();
    int kind = m.kind;
    int64_t bytes = m.tile_bytes();
    if (widen) {
      widen_tiles(m, tile, tiles, own->panel);
      data = reinterpret_cast<const char *>(own->panel), kind = PK_FLOAT32, bytes = int64_t(m.cols) * TILE * 4;
    }
    for (int64_t r = 0; r < rows; r += block) {
      const int count = rows - r < block ? int(rows - r) : block;
      const Ahead ahead = widen || blocks == 1 || tile + 2 >= end ? Ahead{} : Ahead{data + 2 * bytes + 2 * bytes * (r / block) / blocks, 64 / blocks};
      product(kind, data, bytes, m.cols, x + r * m.cols, count, tiles, out, ahead);
      if (kind == PK_INT8 && (tile == begin || rows > block)) sum_columns(x + r * m.cols, m.cols, count, taken);
      for (int i = 0; i < count; i++) {
        float *values = out + i * 2 * TILE;
        if (kind == PK_INT8)
          for (int c = 0; c < tiles * TILE; c++) values[c] -= 384.0f * taken[i];
        if (m.scale)
          for (int c = 0; c < tiles * TILE; c++) values[c] *= m.scale[tile * TILE + c];
        if (m.bias)
          for (int c = 0; c < tiles * TILE; c++) values[c] += m.bias[tile * TILE + c];
        finish(r + i, tile * TILE, values, tiles * TILE);
      }
    }
  }
}

}  // namespace PK_SET
}  // namespace pk

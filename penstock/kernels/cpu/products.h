// Products of a few rows of activations with tiles of weights: out[r][16] = sum over k of x[r][k] * tile[k][16].
//
// Lanes are outputs, so there is nothing to add up across lanes; an activation is broadcast.  A tile is one sequential
// read.  bfloat16 lies in pairs: the low half of a word shifted up and the high half masked are two rows of float32.
// int8 lies in fours, with 128 added: its bits become the upper mantissa of a number 256 + u, and 384 * sum(x) is taken
// off at the end, which costs less than a conversion.
#pragma once
#include "model.h"
#include "vector.h"

namespace pk {
namespace PK_SET {

constexpr int AHEAD = 2048;  // bytes of weights that are asked for before they are needed

// C chains of sums per output hide the latency of a product where there are few rows.
template <int T, int R, int C>
struct Sums {
  V v[C][T][VECTORS][R];
};

template <int T, int R, int C>
PK_INLINE void give(const Sums<T, R, C> &sums, float *out) {
  for (int t = 0; t < T; t++)
    for (int i = 0; i < VECTORS; i++)
      for (int r = 0; r < R; r++) {
        V v = sums.v[0][t][i][r];
        for (int c = 1; c < C; c++) v += sums.v[c][t][i][r];
        store(out + r * 2 * TILE + t * TILE + i * PK_LANES, v);
      }
}

// out [R][32]; with T = 1 only the first half is written.
template <int T, int R>
static void product_float(const char *data, int64_t tile_bytes, int cols, const float *x, int64_t stride, float *out) {
  constexpr int C = T * VECTORS * R <= 2 ? 4 : T * VECTORS * R <= 4 ? 2 : 1;
  Sums<T, R, C> sums = {};
  const float *w = reinterpret_cast<const float *>(data);
  const int64_t next = tile_bytes / 4;
  for (int k = 0; k < cols; k += 4) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
      if (R <= FEW) __builtin_prefetch(reinterpret_cast<const char *>(w) + AHEAD);
#pragma GCC unroll 2
      for (int t = 0; t < T; t++)
#pragma GCC unroll 4
        for (int i = 0; i < VECTORS; i++) {
          const V weight = load(w + t * next + i * PK_LANES);
#pragma GCC unroll 16
          for (int r = 0; r < R; r++) sums.v[j % C][t][i][r] += weight * x[r * stride + k + j];
        }
      w += TILE;
    }
  }
  give<T, R, C>(sums, out);
}

template <int T, int R>
static void product_half(const char *data, int64_t tile_bytes, int cols, const float *x, int64_t stride, float *out) {
  constexpr int C = T * VECTORS * R <= 2 ? 4 : T * VECTORS * R <= 4 ? 2 : 1;
  Sums<T, R, C> sums = {};
  for (int k = 0; k < cols; k += 4) {
#pragma GCC unroll 2
    for (int j = 0; j < 4; j += 2) {
      if (R <= FEW) __builtin_prefetch(data + AHEAD);
#pragma GCC unroll 2
      for (int t = 0; t < T; t++)
#pragma GCC unroll 4
        for (int i = 0; i < VECTORS; i++) {
          const U both = load_bits(data + t * tile_bytes + i * PK_LANES * 4);
          const V even = as_float(both << 16), odd = as_float(both & 0xffff0000u);
#pragma GCC unroll 16
          for (int r = 0; r < R; r++) {
            sums.v[j % C][t][i][r] += even * x[r * stride + k + j];
            sums.v[(j + 1) % C][t][i][r] += odd * x[r * stride + k + j + 1];
          }
        }
      data += 4 * TILE;
    }
  }
  give<T, R, C>(sums, out);
}

template <int T, int R>
static void product_byte(const char *data, int64_t tile_bytes, int cols, const float *x, int64_t stride, float *out) {
  constexpr int C = T * VECTORS * R <= 2 ? 4 : T * VECTORS * R <= 4 ? 2 : 1;
  Sums<T, R, C> sums = {};
  for (int k = 0; k < cols; k += 4) {
    if (R <= FEW) __builtin_prefetch(data + AHEAD);
#pragma GCC unroll 2
    for (int t = 0; t < T; t++)
#pragma GCC unroll 4
      for (int i = 0; i < VECTORS; i++) {
        const U four = load_bits(data + t * tile_bytes + i * PK_LANES * 4);
        const V w0 = as_float(((four << 15) & 0x007f8000u) | 0x43800000u);
        const V w1 = as_float(((four << 7) & 0x007f8000u) | 0x43800000u);
        const V w2 = as_float(((four >> 1) & 0x007f8000u) | 0x43800000u);
        const V w3 = as_float(((four >> 9) & 0x007f8000u) | 0x43800000u);
#pragma GCC unroll 16
        for (int r = 0; r < R; r++) {
          const float *at = x + r * stride + k;
          sums.v[0][t][i][r] += w0 * at[0];
          sums.v[1 % C][t][i][r] += w1 * at[1];
          sums.v[2 % C][t][i][r] += w2 * at[2];
          sums.v[3 % C][t][i][r] += w3 * at[3];
        }
      }
    data += 4 * TILE;
  }
  give<T, R, C>(sums, out);
  for (int r = 0; r < R; r++) {
    float sum = 0.0f;
    for (int k = 0; k < cols; k++) sum += x[r * stride + k];
    for (int i = 0; i < T * TILE; i++) out[r * 2 * TILE + i] -= 384.0f * sum;
  }
}

using Product = void (*)(const char *, int64_t, int, const float *, int64_t, float *);

#if PK_LANES == 16
constexpr int ROWS = 12, ACROSS = 2;  // rows and tiles of a block: 24 sums, two weights, in 32 registers
#elif PK_LANES == 8
constexpr int ROWS = 6, ACROSS = 1;  // 12 sums in 16 registers
#else
constexpr int ROWS = 2, ACROSS = 1;
#endif

template <int T, int R>
static Product chosen(int kind) {
  return kind == PK_FLOAT32 ? product_float<T, R> : kind == PK_BFLOAT16 ? product_half<T, R> : product_byte<T, R>;
}

// rows <= ROWS rows over one or two adjacent tiles; out [rows][32].
template <int T>
static void product_across(int kind, const char *data, int64_t tile_bytes, int cols, const float *x, int64_t stride, int rows, float *out) {
  Product product;
  switch (rows) {
    case 1: product = chosen<T, 1>(kind); break;
    case 2: product = chosen<T, 2>(kind); break;
#if PK_LANES >= 8
    case 3: product = chosen<T, 3>(kind); break;
    case 4: product = chosen<T, 4>(kind); break;
    case 5: product = chosen<T, 5>(kind); break;
    case 6: product = chosen<T, 6>(kind); break;
#endif
#if PK_LANES == 16
    case 7: product = chosen<T, 7>(kind); break;
    case 8: product = chosen<T, 8>(kind); break;
    case 9: product = chosen<T, 9>(kind); break;
    case 10: product = chosen<T, 10>(kind); break;
    case 11: product = chosen<T, 11>(kind); break;
    default: product = chosen<T, 12>(kind); break;
#else
    default: product = chosen<T, ROWS>(kind); break;
#endif
  }
  product(data, tile_bytes, cols, x, stride, out);
}

static void product(int kind, const char *data, int64_t tile_bytes, int cols, const float *x, int64_t stride, int rows, int tiles, float *out) {
  if (ACROSS == 2 && tiles == 2 && rows > 1) {
    product_across<ACROSS>(kind, data, tile_bytes, cols, x, stride, rows, out);
    return;
  }
  for (int t = 0; t < tiles; t++)  // one after the other: for one row a tile is read at the speed of memory
    product_across<1>(kind, data + t * tile_bytes, tile_bytes, cols, x, stride, rows, out + t * TILE);
}

// Rows in blocks of nearly equal size.
PK_INLINE int block_rows(int64_t rows) {
  const int64_t blocks = (rows + ROWS - 1) / ROWS;
  return int((rows + blocks - 1) / blocks);
}

// One or two tiles of any kind as float32 tiles.
static void widen_tiles(const Matrix &m, int64_t tile, int tiles, float *panel) {
  const int64_t size = int64_t(m.cols) * TILE;
  for (int t = 0; t < tiles; t++) {
    const char *data = m.data + (tile + t) * m.tile_bytes();
    float *to = panel + t * size;
    if (m.kind == PK_BFLOAT16) {
      const auto *from = reinterpret_cast<const uint16_t *>(data);
      for (int k = 0; k < m.cols; k += 2)
        for (int i = 0; i < TILE; i++) {
          to[k * TILE + i] = widen(from[k * TILE + 2 * i]);
          to[(k + 1) * TILE + i] = widen(from[k * TILE + 2 * i + 1]);
        }
    } else {
      const auto *from = reinterpret_cast<const uint8_t *>(data);
      for (int k = 0; k < m.cols; k += 4)
        for (int i = 0; i < TILE; i++)
          for (int j = 0; j < 4; j++) to[(k + j) * TILE + i] = float(int(from[k * TILE + 4 * i + j]) - 128);
    }
  }
}

constexpr int64_t MANY = 3 * ROWS;  // rows from which tiles are widened once for all of them

// Call finish(row, column, values, count) with up to 32 outputs of each row, for a range of tiles.
template <class Finish>
static void multiply(const Matrix &m, int64_t begin, int64_t end, const float *x, int64_t stride, int64_t rows, float *panel, Finish finish) {
  const int block = block_rows(rows);
  float out[ROWS * 2 * TILE];
  for (int64_t tile = begin; tile < end; tile += 2) {
    const int tiles = end - tile > 1 ? 2 : 1;
    const char *data = m.data + tile * m.tile_bytes();
    int kind = m.kind;
    int64_t bytes = m.tile_bytes();
    if (rows >= MANY && kind != PK_FLOAT32) {
      widen_tiles(m, tile, tiles, panel);
      data = reinterpret_cast<const char *>(panel), kind = PK_FLOAT32, bytes = int64_t(m.cols) * TILE * 4;
    }
    for (int64_t r = 0; r < rows; r += block) {
      const int count = rows - r < block ? int(rows - r) : block;
      product(kind, data, bytes, m.cols, x + r * stride, stride, count, tiles, out);
      for (int i = 0; i < count; i++) {
        float *values = out + i * 2 * TILE;
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

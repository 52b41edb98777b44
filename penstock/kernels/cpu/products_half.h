// Products of bfloat16 weights in hardware, for many rows.  One row is bound by memory and stays with products.h.
//
// With dot products of pairs activations are rounded to bfloat16, as PyTorch rounds those of such a model: the sum of two
// parts would cost as many instructions as float32 does.  Tiles are so much faster that an activation is the sum of two
// bfloat16 numbers, high + low, which keep 16 of its 24 bits: two products instead of one.
//
// Included by products.h, and empty for sets without such products.
#pragma once
#ifdef PK_HALF
#include "half.h"

namespace pk {
namespace PK_SET {

// Rounded to the nearest bfloat16, in the low half of each lane; a NaN stays one.
PK_INLINE U rounded(U bits) {
  const U even = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16, kept = (bits >> 16) | 0x40u;
  return (bits & 0x7fffffffu) > 0x7f800000u ? kept : even;
}

#if PK_HALF == 1

static_assert(VECTORS == 1, "a word of each output is one vector");

// out [R][32], of x [cols / 2][R] pairs; with T = 1 only the first half is written.
template <int T, int R>
static void product_pairs(const char *data, int64_t tile_bytes, int cols, const uint32_t *x, float *out, Ahead ahead) {
  Sums<T, R> sums = {};
  for (int k = 0; k < cols; k += 2) {
    ask<R>(data, ahead);
    U weights[T];
    for (int t = 0; t < T; t++) weights[t] = load_bits(data + t * tile_bytes);
#pragma GCC unroll 24
    for (int r = 0; r < R; r++)
#pragma GCC unroll 2
      for (int t = 0; t < T; t++) sums.v[0][t][0][r] = dot_pairs(sums.v[0][t][0][r], weights[t], x[r]);
    data += 4 * TILE;
    x += R;
  }
  sums.give(out);
}

template <int T, int... R>
static auto pairs_chosen(int rows, std::integer_sequence<int, R...>) {
  static constexpr void (*all[])(const char *, int64_t, int, const uint32_t *, float *, Ahead) = {product_pairs<T, R + 1>...};
  return all[rows - 1];
}

// Rows in blocks, packed as x[k / 2][rows of the block].
struct Half {
  const Matrix &m;
  const uint32_t *packed;
  int64_t block;
  float out[TALL * 2 * TILE];

  Half(const Matrix &m, const float *x, int64_t stride, int64_t rows, float *to) : m(m), packed(reinterpret_cast<uint32_t *>(to)), block(rows <= TALL ? rows : block_rows(rows)) {
    auto *at = reinterpret_cast<uint32_t *>(to);
    for (int64_t r = 0; r < rows; r += block) {
      const int64_t count = rows - r < block ? rows - r : block;
      for (int64_t i = 0; i < count; i++) {
        const float *from = x + (r + i) * stride;
        for (int64_t k = 0; k < m.cols; k += 2) at[k / 2 * count + i] = narrow(from[k]) | uint32_t(narrow(from[k + 1])) << 16;
      }
      at += count * (m.cols / 2);
    }
  }

  void product(const char *data, int tiles, int64_t row, int count, Ahead ahead) {
    const uint32_t *x = packed + row * (m.cols / 2);
    const int64_t bytes = m.tile_bytes();
    if (tiles == 2 && count <= ROWS) return pairs_chosen<2>(count, std::make_integer_sequence<int, ROWS>())(data, bytes, m.cols, x, out, {ahead.at, 2 * ahead.step});
    for (int t = 0; t < tiles; t++)
      pairs_chosen<1>(count, std::make_integer_sequence<int, TALL>())(data + t * bytes, bytes, m.cols, x, out + t * TILE, {ahead.at + t * (bytes * ahead.step / 64), ahead.step});
  }
};

#else

// Two blocks of at most 16 rows, [block][step][high, low][16][32] inputs; what is missing in a block is 0.
struct Half {
  static constexpr int DEPTH = 32, SIZE = 16 * DEPTH;  // inputs of a product; numbers of a tile register
  static constexpr int64_t BYTES = 2 * SIZE;
  const Matrix &m;
  const uint16_t *packed;
  int64_t each, block;  // rows of a block; of both
  int steps, left;      // products along the inputs, and the inputs of an unfinished last one
  alignas(64) char tails[2 * BYTES];  // that one's weights
  alignas(64) float out[2 * 16 * 2 * TILE];

  Half(const Matrix &m, const float *x, int64_t stride, int64_t rows, float *to) : m(m), packed(reinterpret_cast<uint16_t *>(to)), steps((m.cols + DEPTH - 1) / DEPTH), left(m.cols % DEPTH) {
    const int64_t blocks = (rows + 15) / 16;
    each = (rows + blocks - 1) / blocks, block = 2 * each;
    auto *halves = reinterpret_cast<uint16_t *>(to);
    for (int64_t r = 0; r < blocks * each; r++)
      for (int s = 0; s < steps; s++) split(r < rows ? x + r * stride + s * DEPTH : nullptr, m.cols - s * DEPTH, halves + (r / each * steps + s) * 2 * SIZE + r % each * DEPTH);
    memset(tails, 0, sizeof tails);
    TileShapes shapes;
    for (int i = 0; i < 8; i++) shapes.bytes[i] = 64, shapes.rows[i] = uint8_t(i < 6 ? each : 16);  // sums, rows; weights
    tiles_configure(shapes);
  }
  ~Half() { tiles_release(); }  // what holds nothing is not saved when threads change
  Half(const Half &) = delete;

  // A row's next 32 numbers, or as many as there are, in two parts.
  static void split(const float *from, int there, uint16_t *high) {
    float x[DEPTH] = {};
    if (from) memcpy(x, from, sizeof(float) * size_t(there < DEPTH ? there : DEPTH));
    for (int i = 0; i < DEPTH; i += PK_LANES) {
      const V whole = load(x + i);
      const U most = rounded((U)whole), rest = rounded((U)(whole - as_float(most << 16)));
      const H a = __builtin_convertvector(most, H), b = __builtin_convertvector(rest, H);
      memcpy(high + i, &a, sizeof a), memcpy(high + SIZE + i, &b, sizeof b);
    }
  }

  // Registers: 0 to 3 sums, of tile i % 2; 4 and 5 rows; 6 and 7 weights.  Four sums hide the latency of one.
  template <int T>
  PK_MEMBER void four(const uint16_t *first, const uint16_t *second) {
    tile_load<4>(first, 64), tile_load<5>(second, 64);
    tile_product<0, 4, 6>();
    if (T == 2) tile_product<1, 4, 7>();
    tile_product<2, 5, 6>();
    if (T == 2) tile_product<3, 5, 7>();
  }

  // Two blocks, or one, whose parts then have sums of their own.
  template <int T, bool TWO>
  void run(const char *data, const uint16_t *x, Ahead ahead) {
    tile_zero<0>(), tile_zero<1>(), tile_zero<2>(), tile_zero<3>();
    const int64_t next = int64_t(steps) * 2 * SIZE;
    for (int s = 0; s < steps; s++, x += 2 * SIZE) {
      const bool tail = left && s == steps - 1;
      tile_load<6>(tail ? tails : data + s * BYTES, 64);
      if (T == 2) tile_load<7>(tail ? tails + BYTES : data + m.tile_bytes() + s * BYTES, 64);
      for (int64_t i = 0; i < ahead.step; i++, ahead.at += 64) __builtin_prefetch(ahead.at, 0, 2);
      if (TWO)
        four<T>(x, x + next), four<T>(x + SIZE, x + next + SIZE);
      else
        four<T>(x, x + SIZE);
    }
    constexpr int64_t row = 2 * TILE * 4;
    tile_store<0>(out, row), tile_store<1>(out + TILE, row), tile_store<2>(out + each * 2 * TILE, row), tile_store<3>(out + each * 2 * TILE + TILE, row);
    if (!TWO)
      for (int64_t i = 0; i < each * 2 * TILE; i++) out[i] += out[each * 2 * TILE + i];
  }

  void product(const char *data, int tiles, int64_t row, int count, Ahead ahead) {
    const uint16_t *x = packed + row / each * steps * 2 * SIZE;
    const bool two = count > each;
    if (left && row == 0)
      for (int t = 0; t < tiles; t++) memcpy(tails + t * BYTES, data + t * m.tile_bytes() + (steps - 1) * BYTES, size_t(left) * TILE * 2);
    ahead.step = ahead.step * tiles / 4;  // lines per step, which is 16 lines of each tile
    if (tiles == 2)
      two ? run<2, true>(data, x, ahead) : run<2, false>(data, x, ahead);
    else
      two ? run<1, true>(data, x, ahead) : run<1, false>(data, x, ahead);
  }
};

#endif

// As multiply.
template <class Finish>
static void multiply_half(const Matrix &m, int64_t begin, int64_t end, const float *x, int64_t stride, int64_t rows, const Own *own, Finish finish) {
  Half half(m, x, stride, rows, own->packed);
  const int64_t blocks = (rows + half.block - 1) / half.block, bytes = m.tile_bytes();
  for (int64_t tile = begin; tile < end; tile += 2) {
    const int tiles = end - tile > 1 ? 2 : 1;
    const char *data = m.data + tile * bytes;
    for (int64_t r = 0; r < rows; r += half.block) {
      const int count = int(rows - r < half.block ? rows - r : half.block);
      // each block of rows asks for its part of the next tiles
      half.product(data, tiles, r, count, tile + 2 >= end ? Ahead{} : Ahead{data + 2 * bytes + 2 * bytes * (r / half.block) / blocks, 64 / blocks});
      for (int i = 0; i < count; i++) {
        float *values = half.out + i * 2 * TILE;
        if (m.bias)
          for (int c = 0; c < tiles * TILE; c++) values[c] += m.bias[tile * TILE + c];
        finish(r + i, tile * TILE, values, tiles * TILE);
      }
    }
  }
}

// A whole matrix: out [rows][tiles * 16].  For the look at a set before it is used, and for tests.
void products(const Matrix &m, const float *x, int64_t rows, const Own *own, float *out) {
  multiply_half(m, 0, m.tiles, x, m.cols, rows, own, [&](int64_t r, int64_t column, const float *values, int count) {
    memcpy(out + r * m.tiles * TILE + column, values, sizeof(float) * size_t(count));
  });
}

}  // namespace PK_SET
}  // namespace pk
#endif

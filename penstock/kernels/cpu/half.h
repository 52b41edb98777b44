// The instructions that multiply bfloat16, one function each.  PK_HALF says which a set has: 1 dot products of pairs
// (AVX512-BF16), 2 tiles (AMX).  With PK_EMULATED they are plain C++ that any processor runs, for tests: all but these few
// functions is then what the hardware would run.
//
// Our tiles of bfloat16 weights, [cols / 2][16] words of two, are operands of both as they lie: the low half of a word is
// the even input.
#pragma once
#include "vector.h"

#if PK_HALF == 1 && !defined(PK_EMULATED)
#include <immintrin.h>
#endif
#if PK_HALF == 2 && defined(PK_EMULATED)
#include <cstdio>
#include <cstdlib>
#endif

namespace pk {
namespace PK_SET {

#if PK_HALF == 1

// sum[i] + weights[i].low * pair.low + weights[i].high * pair.high
PK_INLINE V dot_pairs(V sum, U weights, uint32_t pair) {
#ifdef PK_EMULATED
  sum += as_float(weights & 0xffff0000u) * widen(uint16_t(pair >> 16));
  return sum + as_float(weights << 16) * widen(uint16_t(pair));
#else
  return (V)_mm512_dpbf16_ps((__m512)sum, (__m512bh)weights, (__m512bh)_mm512_set1_epi32(int(pair)));
#endif
}

#elif PK_HALF == 2

// What a thread's eight tile registers hold: rows, and bytes of a row, of each.
struct alignas(64) TileShapes {
  uint8_t palette = 1, start = 0, unused[14] = {};
  uint16_t bytes[16] = {};
  uint8_t rows[16] = {};
};
static_assert(sizeof(TileShapes) == 64, "as the processor reads it");

#ifdef PK_EMULATED

struct Tiles {
  TileShapes shapes;
  bool configured = false;
  char data[8][16][64];
};
static thread_local Tiles emulated;

// What the hardware would refuse ends the program.
PK_INLINE void demand(bool fine, const char *what) {
  if (!fine) fprintf(stderr, "emulated tiles: %s\n", what), abort();
}

PK_INLINE void tiles_configure(const TileShapes &shapes) {
  emulated.shapes = shapes, emulated.configured = true;
  memset(emulated.data, 0, sizeof emulated.data);
  demand(shapes.palette == 1, "palette");
  for (int i = 0; i < 16; i++) demand(shapes.rows[i] <= 16 && shapes.bytes[i] <= 64 && !shapes.rows[i] == !shapes.bytes[i] && (i < 8 || !shapes.rows[i]), "shapes");
}
PK_INLINE void tiles_release() { emulated.configured = false; }

template <int N>
PK_INLINE void tile_zero() {
  demand(emulated.configured && emulated.shapes.rows[N], "zero without a shape");
  memset(emulated.data[N], 0, sizeof emulated.data[N]);
}
template <int N>
PK_INLINE void tile_load(const void *from, int64_t stride) {
  demand(emulated.configured && emulated.shapes.rows[N], "load without a shape");
  memset(emulated.data[N], 0, sizeof emulated.data[N]);
  for (int r = 0; r < emulated.shapes.rows[N]; r++) memcpy(emulated.data[N][r], static_cast<const char *>(from) + r * stride, emulated.shapes.bytes[N]);
}
template <int N>
PK_INLINE void tile_store(void *to, int64_t stride) {
  demand(emulated.configured && emulated.shapes.rows[N], "store without a shape");
  for (int r = 0; r < emulated.shapes.rows[N]; r++) memcpy(static_cast<char *>(to) + r * stride, emulated.data[N][r], emulated.shapes.bytes[N]);
}
template <int C, int A, int B>
static void tile_product() {
  const TileShapes &s = emulated.shapes;
  demand(emulated.configured && s.rows[C] == s.rows[A] && s.bytes[C] == s.bytes[B] && s.bytes[A] == 4 * s.rows[B], "shapes of a product");
  for (int m = 0; m < s.rows[C]; m++) {
    float sums[16];
    memcpy(sums, emulated.data[C][m], 64);
    for (int k = 0; k < s.rows[B]; k++) {
      uint16_t a[2], b[32];
      memcpy(a, emulated.data[A][m] + 4 * k, 4), memcpy(b, emulated.data[B][k], 64);
      for (int n = 0; n < s.bytes[C] / 4; n++) sums[n] += widen(a[0]) * widen(b[2 * n]) + widen(a[1]) * widen(b[2 * n + 1]);
    }
    memcpy(emulated.data[C][m], sums, s.bytes[C]);
  }
}

#else  // in assembly, because the compilers' own functions want the register as a literal

PK_INLINE void tiles_configure(const TileShapes &shapes) { asm volatile("ldtilecfg %0" ::"m"(shapes)); }
PK_INLINE void tiles_release() { asm volatile("tilerelease"); }

template <int N>
PK_INLINE void tile_zero() {
  asm volatile("tilezero %%tmm%c0" ::"i"(N));
}
template <int N>
PK_INLINE void tile_load(const void *from, int64_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(N) : "memory");
}
template <int N>
PK_INLINE void tile_store(void *to, int64_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "i"(N) : "memory");
}
// C += A * B: rows of C are rows of A, columns of C columns of B.
template <int C, int A, int B>
PK_INLINE void tile_product() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
}

#endif
#endif

}  // namespace PK_SET
}  // namespace pk

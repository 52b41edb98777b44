// Attention of one token over the ring: a part (largest score, sum, output) per range of slots, merged by who needs it.
// The heads of a group share each key and value that is loaded.
#pragma once
#include "vector.h"

namespace pk {
namespace PK_SET {

constexpr int SLOTS = 64;  // of a block
constexpr int HEADS = 8;   // query heads that are read together, at most
constexpr float NOTHING = -1e30f;

PK_INLINE V4 quarter(V v) {
#if PK_LANES == 16
  typedef float V8 __attribute__((vector_size(32)));
  const V8 half = __builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7) + __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15);
  return __builtin_shufflevector(half, half, 0, 1, 2, 3) + __builtin_shufflevector(half, half, 4, 5, 6, 7);
#elif PK_LANES == 8
  return __builtin_shufflevector(v, v, 0, 1, 2, 3) + __builtin_shufflevector(v, v, 4, 5, 6, 7);
#else
  return v;
#endif
}

// The four sums over lanes of four vectors.
PK_INLINE V4 sum_four(V a, V b, V c, V d) {
  const V4 p = quarter(a), q = quarter(b), r = quarter(c), s = quarter(d);
  const V4 pq = __builtin_shufflevector(p, q, 0, 4, 1, 5) + __builtin_shufflevector(p, q, 2, 6, 3, 7);
  const V4 rs = __builtin_shufflevector(r, s, 0, 4, 1, 5) + __builtin_shufflevector(r, s, 2, 6, 3, 7);
  return __builtin_shufflevector(pq, rs, 0, 1, 4, 5) + __builtin_shufflevector(pq, rs, 2, 3, 6, 7);
}

// Ask for `bytes` from here on.
PK_INLINE void fetch(const void *from, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(static_cast<const char *>(from) + i);
}

// scores[g][s] of `count` slots; queries are scaled.  The values of the same slots are asked for meanwhile.
template <int G, class T>
PK_INLINE void score(const float *q, const T *keys, const T *values, int width, int count, float *scores) {
  for (int s = 0; s < count; s += 4) {
    fetch(values + int64_t(s) * width, 4 * width * int64_t(sizeof(T)));
    const T *row[4];
    for (int i = 0; i < 4; i++) row[i] = keys + int64_t(s + i < count ? s + i : count - 1) * width;
    V sums[G][4] = {};
    for (int d = 0; d < width; d += PK_LANES) {
      V key[4];
#pragma GCC unroll 4
      for (int i = 0; i < 4; i++) key[i] = load_stored(row[i] + d);
#pragma GCC unroll 8
      for (int g = 0; g < G; g++) {
        const V query = load(q + g * width + d);
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) sums[g][i] += query * key[i];
      }
    }
#pragma GCC unroll 8
    for (int g = 0; g < G; g++) {
      const V4 four = sum_four(sums[g][0], sums[g][1], sums[g][2], sums[g][3]);
      memcpy(scores + g * SLOTS + s, &four, sizeof four);
    }
  }
}

// out[g] += sum over slots of weight * value, columns [d, d + C * PK_LANES).  The next keys are asked for meanwhile.
template <int G, int C, class T>
PK_INLINE void weigh(const float *weights, const T *values, const T *next, int width, int count, int d, float *out) {
  V sums[G][C];
#pragma GCC unroll 8
  for (int g = 0; g < G; g++)
#pragma GCC unroll 4
    for (int c = 0; c < C; c++) sums[g][c] = load(out + g * width + d + c * PK_LANES);
  for (int s = 0; s < count; s++) {
    fetch(next + int64_t(s) * width + d, C * PK_LANES * int64_t(sizeof(T)));
    V value[C];
#pragma GCC unroll 4
    for (int c = 0; c < C; c++) value[c] = load_stored(values + int64_t(s) * width + d + c * PK_LANES);
#pragma GCC unroll 8
    for (int g = 0; g < G; g++) {
      const float weight = weights[g * SLOTS + s];
#pragma GCC unroll 4
      for (int c = 0; c < C; c++) sums[g][c] += value[c] * weight;
    }
  }
#pragma GCC unroll 8
  for (int g = 0; g < G; g++)
#pragma GCC unroll 4
    for (int c = 0; c < C; c++) store(out + g * width + d + c * PK_LANES, sums[g][c]);
}

// Added to scores: floats of the first slot, and how many lie between two query heads.
struct Bias {
  const float *at = nullptr;
  int64_t head = 0;
};

// Add slots to a part: top, sum [G], out [G, width].
template <int G, class T>
static void read_slots(const float *q, const T *keys, const T *values, int width, int64_t count, float *top, float *sum, float *out, Bias bias) {
  constexpr int C = PK_LANES == 16 ? (G <= 4 ? 4 : 2) : PK_LANES == 8 ? (G <= 3 ? 4 : G <= 6 ? 2 : 1) : (G <= 2 ? 4 : 1);
  float scores[G * SLOTS];
  for (int64_t begin = 0; begin < count; begin += SLOTS) {
    const int size = count - begin < SLOTS ? int(count - begin) : SLOTS;
    const T *value = values + begin * width, *next = keys + (begin + size) * width;
    score<G>(q, keys + begin * width, value, width, size, scores);
    for (int g = 0; g < G; g++) {
      float *own = scores + g * SLOTS;
      if (bias.at)
        for (int s = 0; s < size; s++) own[s] += bias.at[g * bias.head + begin + s];
      const float most = largest_of(own, size, NOTHING);
      if (most > top[g]) {
        const float shrink = exponential(top[g] - most);
        for (int d = 0; d < width; d++) out[g * width + d] *= shrink;
        sum[g] *= shrink;
        top[g] = most;
      }
      exponentials(own, size, top[g]);
      sum[g] += sum_of(own, size);
    }
    int d = 0;
    for (; d + C * PK_LANES <= width; d += C * PK_LANES) weigh<G, C>(scores, value, next, width, size, d, out);
    for (; d < width; d += PK_LANES) weigh<G, 1>(scores, value, next, width, size, d, out);
  }
}

// The same for any number of heads, in groups.
template <class T>
static void read_part(int heads, const float *q, const T *keys, const T *values, int width, int64_t count, float *top, float *sum, float *out, Bias bias = {}) {
  for (int g = 0; g < heads; g += HEADS, bias.at = bias.at ? bias.at + HEADS * bias.head : nullptr) {
    const float *query = q + g * width;
    float *o = out + g * width, *t = top + g, *s = sum + g;
    switch (heads - g < HEADS ? heads - g : HEADS) {
      case 1: read_slots<1>(query, keys, values, width, count, t, s, o, bias); break;
      case 2: read_slots<2>(query, keys, values, width, count, t, s, o, bias); break;
      case 3: read_slots<3>(query, keys, values, width, count, t, s, o, bias); break;
      case 4: read_slots<4>(query, keys, values, width, count, t, s, o, bias); break;
      case 5: read_slots<5>(query, keys, values, width, count, t, s, o, bias); break;
      case 6: read_slots<6>(query, keys, values, width, count, t, s, o, bias); break;
      case 7: read_slots<7>(query, keys, values, width, count, t, s, o, bias); break;
      default: read_slots<8>(query, keys, values, width, count, t, s, o, bias); break;
    }
  }
}

}  // namespace PK_SET
}  // namespace pk

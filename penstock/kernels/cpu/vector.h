// Vectors of PK_LANES floats in the compiler's own notation, so that one source serves every instruction set.
// Included inside the namespace of one; nothing here may be shared between them (no templates of the library).
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#define PK_MEMBER inline __attribute__((always_inline))
#define PK_INLINE static inline __attribute__((always_inline))

namespace pk {
namespace PK_SET {

typedef float V __attribute__((vector_size(PK_LANES * 4)));
typedef int32_t I __attribute__((vector_size(PK_LANES * 4)));
typedef uint32_t U __attribute__((vector_size(PK_LANES * 4)));
typedef uint16_t H __attribute__((vector_size(PK_LANES * 2)));
typedef float V4 __attribute__((vector_size(16)));

constexpr int VECTORS = 16 / PK_LANES;  // of a tile

PK_INLINE V load(const float *p) {
  V v;
  memcpy(&v, p, sizeof v);
  return v;
}
PK_INLINE void store(float *p, V v) { memcpy(p, &v, sizeof v); }
PK_INLINE U load_bits(const void *p) {
  U v;
  memcpy(&v, p, sizeof v);
  return v;
}
PK_INLINE V as_float(U bits) { return (V)bits; }

PK_INLINE float widen(uint16_t bits) {
  const uint32_t wide = uint32_t(bits) << 16;
  float out;
  memcpy(&out, &wide, 4);
  return out;
}
// Round to nearest, ties to even; a NaN stays one.
PK_INLINE uint16_t narrow(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return uint16_t((bits & 0x7fffffffu) > 0x7f800000u ? (bits >> 16) | 0x40u : rounded);
}

// Keys and values as they are stored.
PK_INLINE V load_stored(const float *p) { return load(p); }
PK_INLINE V load_stored(const uint16_t *p) {
#if PK_LANES == 16 && defined(__AVX512F__)  // compilers make two halves of the conversion
  return (V)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i_u *)p)), 16);
#elif PK_LANES == 8 && defined(__AVX2__)
  return (V)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i_u *)p)), 16);
#else
  H half;
  memcpy(&half, p, sizeof half);
  return as_float(__builtin_convertvector(half, U) << 16);
#endif
}
// Codes of one byte as whole numbers.
PK_INLINE I load_codes(const uint8_t *p) {
#if PK_LANES == 16 && defined(__AVX512F__)
  return (I)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i_u *)p));
#elif PK_LANES == 8 && defined(__AVX2__)
  return (I)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i_u *)p));
#else
  typedef uint8_t B __attribute__((vector_size(PK_LANES)));
  B bytes;
  memcpy(&bytes, p, sizeof bytes);
  return __builtin_convertvector(bytes, I);
#endif
}
// A finite float16.
PK_INLINE float from_half(uint16_t half) {
  const uint32_t bits = uint32_t(half & 0x7fffu) << 13;
  float size;
  memcpy(&size, &bits, 4);
  size *= 5.192296858534828e33f;  // 2 ** 112
  return half & 0x8000u ? -size : size;
}
PK_INLINE float get(const float *p) { return *p; }
PK_INLINE float get(const uint16_t *p) { return widen(*p); }
PK_INLINE void put(float *p, float x) { *p = x; }
PK_INLINE void put(uint16_t *p, float x) { *p = narrow(x); }

// exp with an error of about one unit in the last place; without branches, so that loops over it become vectors.
PK_INLINE float exponential(float x) {
  x = x < -87.0f ? -87.0f : x;
  x = x > 88.0f ? 88.0f : x;
  const float shifted = x * 1.44269504f + 12582912.0f;  // rounds to a whole number in the low bits
  const float n = shifted - 12582912.0f;
  const float r = (x - n * 0.693145752f) - n * 1.42860677e-6f;
  float p = 1.0f / 5040.0f;
  p = p * r + 1.0f / 720.0f;
  p = p * r + 1.0f / 120.0f;
  p = p * r + 1.0f / 24.0f;
  p = p * r + 1.0f / 6.0f;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  uint32_t bits;
  memcpy(&bits, &shifted, 4);
  bits = (bits + 127u) << 23;
  float power;
  memcpy(&power, &bits, 4);
  return p * power;
}

PK_INLINE V exponential(V x) {
  const V low = V{} - 87.0f, high = V{} + 88.0f;
  x = x < low ? low : x;
  x = x > high ? high : x;
  const V shifted = x * 1.44269504f + 12582912.0f, n = shifted - 12582912.0f;
  const V r = (x - n * 0.693145752f) - n * 1.42860677e-6f;
  V p = V{} + 1.0f / 5040.0f;
  p = p * r + 1.0f / 720.0f;
  p = p * r + 1.0f / 120.0f;
  p = p * r + 1.0f / 24.0f;
  p = p * r + 1.0f / 6.0f;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  return p * as_float(((U)shifted + 127u) << 23);
}
// x = exp(x - base)
PK_INLINE void exponentials(float *x, int64_t count, float base) {
  int64_t i = 0;
  for (; i + PK_LANES <= count; i += PK_LANES) store(x + i, exponential(load(x + i) - base));
  for (; i < count; i++) x[i] = exponential(x[i] - base);
}

// Sum, sum of squares and largest of `count` floats, in lanes.
PK_INLINE float across(V v, bool largest) {
  float lanes[PK_LANES];
  store(lanes, v);
  for (int size = PK_LANES / 2; size; size /= 2)
    for (int i = 0; i < size; i++) lanes[i] = largest ? (lanes[i] > lanes[i + size] ? lanes[i] : lanes[i + size]) : lanes[i] + lanes[i + size];
  return lanes[0];
}
PK_INLINE float sum_of(const float *x, int64_t count) {
  V a{}, b{};
  int64_t i = 0;
  for (; i + 2 * PK_LANES <= count; i += 2 * PK_LANES) a += load(x + i), b += load(x + i + PK_LANES);
  float sum = across(a + b, false);
  for (; i < count; i++) sum += x[i];
  return sum;
}
PK_INLINE float squares_of(const float *x, int64_t count) {
  V a{}, b{};
  int64_t i = 0;
  for (; i + 2 * PK_LANES <= count; i += 2 * PK_LANES) {
    const V c = load(x + i), d = load(x + i + PK_LANES);
    a += c * c, b += d * d;
  }
  float sum = across(a + b, false);
  for (; i < count; i++) sum += x[i] * x[i];
  return sum;
}
PK_INLINE float largest_of(const float *x, int64_t count, float least) {
  int64_t i = 0;
  if (count >= PK_LANES) {
    V most = load(x);
    for (i = PK_LANES; i + PK_LANES <= count; i += PK_LANES) {
      const V next = load(x + i);
      most = next > most ? next : most;
    }
    const float found = across(most, true);
    least = found > least ? found : least;
  }
  for (; i < count; i++) least = x[i] > least ? x[i] : least;
  return least;
}

// What a thread does of `count` things.
struct Share {
  int64_t begin, end;
};
PK_INLINE Share share(int64_t count, int thread, int threads) { return {count * thread / threads, count * (thread + 1) / threads}; }

PK_INLINE void rotate(const float *x, const float *cos, const float *sin, int half, bool interleaved, int width, float *out) {
  if (interleaved)
    for (int i = 0; i < half; i++) {
      const float a = x[2 * i], b = x[2 * i + 1];
      out[2 * i] = a * cos[i] - b * sin[i];
      out[2 * i + 1] = b * cos[i] + a * sin[i];
    }
  else
    for (int i = 0; i < half; i++) {
      const float a = x[i], b = x[i + half];
      out[i] = a * cos[i] - b * sin[i];
      out[i + half] = b * cos[i] + a * sin[i];
    }
  for (int i = 2 * half; i < width; i++) out[i] = x[i];
}

}  // namespace PK_SET
}  // namespace pk

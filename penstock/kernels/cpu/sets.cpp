#include "sets.h"

#include <atomic>
#include <cmath>
#include <cstdlib>
#include <cstring>

#include "model.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace pk {
namespace {

#if defined(__x86_64__) && defined(PK_HAS_AVX512)
bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma");
}
#endif

#if defined(PK_EMULATED)

bool shown(int) { return true; }

#elif defined(__x86_64__) && (defined(PK_HAS_AVX512_BF16) || defined(PK_HAS_AMX))

// The processor's word, asked for itself because compilers of some age do not know the names; and the system's leave.
bool shown(int which) {
  if (!has_avx512()) return false;
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (which == AVX512_BF16) return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 5 & 1);
  constexpr unsigned tiles = 1u << 24 | 1u << 22, kept = 3u << 17;  // AMX-TILE, AMX-BF16; what of it threads keep
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & tiles) != tiles) return false;
  unsigned low, high;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  if ((low & kept) != kept) return false;
#if defined(__linux__)
  return syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18) == 0;  // for all threads of the process
#else
  return false;
#endif
}

#endif

#if defined(PK_HAS_AVX512_BF16) || defined(PK_HAS_AMX)

using Products = void (*)(const Matrix &, const float *, int64_t, const Own *, float *);

// Small products with nothing in them that bfloat16 cannot hold: sums are exact in any order.
bool multiplies(Products products) {
  constexpr int cols = 68, tiles = 3, rows = 19;  // unfinished in each direction
  static const int8_t numbers[] = {3, -1, 4, 1, -5, 9, 2, -6, 5, 3, -5, 8, 9};
  struct alignas(64) Buffers {
    float packed[32 * 96];
    uint16_t weights[tiles * cols * TILE];
    float x[rows * cols], out[rows * tiles * TILE];
  };
  auto *own = static_cast<Buffers *>(aligned_alloc(64, sizeof(Buffers)));
  if (!own) return false;
  const auto weight = [](int64_t output, int64_t k) { return float(numbers[(output * 5 + k) % 13]); };
  for (int output = 0; output < tiles * TILE; output++)
    for (int k = 0; k < cols; k++) {
      const float w = weight(output, k);
      uint32_t bits;
      memcpy(&bits, &w, 4);
      own->weights[(output / TILE * cols + k / 2 * 2) * TILE + output % TILE * 2 + k % 2] = uint16_t(bits >> 16);
    }
  for (int i = 0; i < rows * cols; i++) own->x[i] = float(numbers[i % 11]);
  Matrix m;
  m.rows = tiles * TILE, m.cols = cols, m.tiles = tiles, m.kind = PK_BFLOAT16, m.half = true;
  m.data = reinterpret_cast<const char *>(own->weights);
  Own room = {};
  room.packed = own->packed;
  products(m, own->x, rows, &room, own->out);
  bool fine = true;
  for (int r = 0; r < rows; r++)
    for (int output = 0; output < tiles * TILE; output++) {
      float sum = 0.0f;
      for (int k = 0; k < cols; k++) sum += own->x[r * cols + k] * weight(output, k);
      fine = fine && own->out[r * tiles * TILE + output] == sum;
    }
  free(own);
  return fine;
}

// Looked at once: 0 not yet, 1 no, 2 yes.
bool works(int which, Products products) {
  static std::atomic<int> found[SETS];
  if (found[which] == 0) found[which] = shown(which) && multiplies(products) ? 2 : 1;
  return found[which] == 2;
}

#endif

std::atomic<int> chosen{-1};

}  // namespace

bool supported(int which) {
#if defined(__x86_64__) || defined(PK_EMULATED)
#ifdef PK_HAS_AMX
  if (which == AMX) return works(which, amx::products);
#endif
#ifdef PK_HAS_AVX512_BF16
  if (which == AVX512_BF16) return works(which, avx512_bf16::products);
#endif
#endif
#if defined(__x86_64__)
#ifdef PK_HAS_AVX512
  if (which == AVX512) return has_avx512();
#endif
#ifdef PK_HAS_AVX2
  if (which == AVX2) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
#endif
  return which == PORTABLE;
}

}  // namespace pk

using namespace pk;

int32_t pk_built(void) {
  int32_t found = 1;
#ifdef PK_HAS_AVX2
  found |= 2;
#endif
#ifdef PK_HAS_AVX512
  found |= 4;
#endif
#ifdef PK_HAS_AVX512_BF16
  found |= 8;
#endif
#ifdef PK_HAS_AMX
  found |= 16;
#endif
  return found;
}

int32_t pk_chosen(void) {
  if (chosen < 0) {
    int best = SETS - 1;
    while (!supported(best)) best--;
    chosen = best;
  }
  return chosen;
}

int32_t pk_choose(int32_t which) {
  if (which < 0 || which >= SETS || !supported(which)) return 0;
  chosen = which;
  return 1;
}

// Products of bfloat16 weights in hardware, or emulated (PK_EMULATED), against sums in float64: odd shapes, buffers of
// exactly their size, several threads at once.  Says how far they are off, relative to the sum of what is added up; fails
// where that is more than rounding.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <thread>
#include <vector>

#include "model.h"
#include "sets.h"

namespace {

using pk::TILE;

std::mt19937 source(5);

uint32_t bits_of(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  return bits;
}
uint16_t narrow(float x) { return uint16_t((bits_of(x) + 0x7fffu + ((bits_of(x) >> 16) & 1u)) >> 16); }
float widen(uint16_t half) {
  const uint32_t bits = uint32_t(half) << 16;
  float out;
  memcpy(&out, &bits, 4);
  return out;
}

struct Aligned {
  char *data;
  explicit Aligned(size_t bytes) : data(static_cast<char *>(std::aligned_alloc(64, bytes))) {}
  ~Aligned() { std::free(data); }
  float *floats() const { return reinterpret_cast<float *>(data); }
};

struct Case {
  int cols, tiles, rows;
  std::vector<float> x, weights;  // [rows, cols], [tiles * 16, cols], the weights as bfloat16 holds them
  std::vector<char> data;
  pk::Matrix m;

  Case(int cols, int tiles, int rows) : cols(cols), tiles(tiles), rows(rows), data(size_t(cols * tiles * TILE * 2)) {
    std::normal_distribution<float> normal;
    for (int i = 0; i < rows * cols; i++) x.push_back(normal(source));
    for (int output = 0; output < tiles * TILE; output++)
      for (int k = 0; k < cols; k++) {
        const uint16_t half = narrow(normal(source));
        weights.push_back(widen(half));
        memcpy(data.data() + 2 * ((output / TILE * cols + k / 2 * 2) * TILE + output % TILE * 2 + k % 2), &half, 2);
      }
    m.rows = tiles * TILE, m.cols = cols, m.tiles = tiles, m.kind = PK_BFLOAT16, m.half = true, m.data = data.data();
  }

  std::vector<float> run(int which) const {
    const size_t packed = size_t((rows + 15) / 16 * 16 * ((cols + 31) / 32 * 32));
    Aligned room(4 * packed);
    for (size_t i = 0; i < packed; i++) room.floats()[i] = std::numeric_limits<float>::quiet_NaN();
    std::vector<float> out(size_t(rows * tiles * TILE), std::numeric_limits<float>::quiet_NaN());
    pk::Own own = {};
    own.packed = room.floats();
    (which == pk::AMX ? pk::amx::products : pk::avx512_bf16::products)(m, x.data(), rows, &own, out.data());
    return out;
  }

  // The largest difference to sums of x, and to sums of x rounded to bfloat16.
  void off(int which, double *plain, double *rounded) const {
    const std::vector<float> out = run(which);
    for (int r = 0; r < rows; r++)
      for (int output = 0; output < tiles * TILE; output++) {
        double all = 0, halves = 0, size = 0;
        for (int k = 0; k < cols; k++) {
          const double w = weights[size_t(output * cols + k)], one = x[size_t(r * cols + k)];
          all += w * one, halves += w * widen(narrow(float(one))), size += std::fabs(w * one);
        }
        const double got = out[size_t(r * tiles * TILE + output)];
        *plain = std::fmax(*plain, std::isnan(got) ? HUGE_VAL : std::fabs(got - all) / size);
        *rounded = std::fmax(*rounded, std::isnan(got) ? HUGE_VAL : std::fabs(got - halves) / size);
      }
  }
};

}  // namespace

int main() {
  const char *names[] = {"avx512_bf16", "amx"};
  for (int which : {pk::AVX512_BF16, pk::AMX}) {
    const char *name = names[which - pk::AVX512_BF16];
    if (!pk::supported(which)) {
      std::printf("%s: not here\n", name);
      continue;
    }
    double plain = 0, rounded = 0;
    int cases = 0;
    for (int cols : {4, 28, 32, 36, 64, 100, 516})
      for (int tiles : {1, 2, 3})
        for (int rows : {1, 7, 8, 9, 15, 16, 17, 24, 25, 32, 33, 49, 64, 65, 133}) Case(cols, tiles, rows).off(which, &plain, &rounded), cases++;
    std::printf("%s: %d cases, off by %.2g (from activations in bfloat16: %.2g)\n", name, cases, plain, rounded);
    if (which == pk::AMX ? !(plain <= 1.0 / (1 << 16)) : !(rounded <= 1e-6 && plain <= 1.0 / (1 << 8))) return std::printf("too far\n"), 1;
    const Case shared(100, 5, 39);
    const std::vector<float> expected = shared.run(which);
    std::vector<std::vector<float>> found(4);
    std::vector<std::thread> threads;
    for (auto &one : found)
      threads.emplace_back([&] {
        for (int i = 0; i < 20; i++) one = shared.run(which);
      });
    for (auto &thread : threads) thread.join();
    for (const auto &one : found)
      if (one != expected) return std::printf("threads differ\n"), 1;
  }
  return 0;
}

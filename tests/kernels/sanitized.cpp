// The native step without Python, for sanitizers: random weights, rings of exactly the size they need, steps of all kinds
// on several threads.  Fails when chunks and single tokens disagree; the sanitizers watch the rest.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "penstock.h"

namespace {

constexpr int HIDDEN = 32, LAYERS = 2, HEADS = 6, KV = 2, WIDTH = 16, INNER = 52, VOCABULARY = 37, SINKS = 2, ROWS = 2;

std::mt19937 source(7);

std::vector<float> random(size_t count, float size) {
  std::normal_distribution<float> normal(0.0f, size);
  std::vector<float> out(count);
  for (float &x : out) x = normal(source);
  return out;
}

uint16_t narrow(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  return uint16_t((bits + 0x8000u) >> 16);
}
float widen(uint16_t half) {
  const uint32_t bits = uint32_t(half) << 16;
  float out;
  memcpy(&out, &bits, 4);
  return out;
}

struct Stream {
  int stored;
  int64_t window, slots;
  std::vector<std::vector<char>> rings, sinks;
  std::vector<double> freq;
  std::vector<float> cosine, sine;
  pk_group group;
  std::vector<pk_layer_memory> memory;
  int64_t length[ROWS] = {};

  Stream(int stored, int64_t window) : stored(stored), window(window), slots(window ? SINKS + window : 128) {
    const size_t size = stored == PK_FLOAT32 ? 4 : 2;
    for (int i = 0; i < WIDTH / 2; i++) freq.push_back(std::pow(10000.0, -2.0 * i / WIDTH));
    for (int j = 0; j < SINKS; j++)
      for (double f : freq) cosine.push_back(float(std::cos(j * f))), sine.push_back(float(std::sin(j * f)));
    group = {freq.data(), cosine.data(), sine.data(), window, window ? SINKS + window - 1 : -1, WIDTH / 2, 0, SINKS, 0};
    for (int l = 0; l < LAYERS; l++) {
      rings.emplace_back(size * size_t(2 * ROWS * KV * slots * WIDTH));
      sinks.emplace_back(size * ROWS * KV * SINKS * WIDTH);
      memory.push_back({rings.back().data(), sinks.back().data(), slots, 0, ROWS});
    }
  }

  // One step; logits of all tokens.
  std::vector<float> step(pk_model *model, const std::vector<std::vector<int64_t>> &rows, int threads) {
    std::vector<int64_t> tokens, places;
    std::vector<pk_span> spans;
    for (int r = 0; r < ROWS; r++) {
      if (rows[size_t(r)].empty()) continue;
      spans.push_back({length[r], r, int(rows[size_t(r)].size())});
      for (int64_t token : rows[size_t(r)]) places.push_back(int64_t(tokens.size())), tokens.push_back(token);
      length[r] += int64_t(rows[size_t(r)].size());
    }
    std::vector<char> out((stored == PK_FLOAT32 ? 4 : 2) * tokens.size() * VOCABULARY);
    const pk_step asked{tokens.data(), spans.data(), places.data(), out.data(), &group, memory.data(), int64_t(tokens.size()), int64_t(places.size()), int(spans.size()), 1, threads, 0};
    if (pk_run(model, &asked)) std::printf("a step was refused\n"), std::exit(1);
    std::vector<float> logits;
    for (size_t i = 0; i < tokens.size() * VOCABULARY; i++)
      logits.push_back(stored == PK_FLOAT32 ? reinterpret_cast<float *>(out.data())[i] : widen(reinterpret_cast<uint16_t *>(out.data())[i]));
    return logits;
  }
};

pk_model *build(int weights, int stored, std::vector<char> &embedding) {
  const pk_shape shape{HIDDEN, LAYERS, HEADS, KV, WIDTH, INNER, VOCABULARY, weights, stored, 1e-5f, 1e-5f, 0.25f, 1.0f};
  pk_model *model = pk_model_new(&shape);
  auto matrix = [&](int layer, int which, int cols, std::vector<int> rows) {
    std::vector<std::vector<float>> data, biases;
    std::vector<pk_source> sources;
    for (int r : rows) {
      data.push_back(random(size_t(r) * size_t(cols), 1.0f / std::sqrt(float(cols))));
      biases.push_back(random(size_t(r), 0.1f));
      sources.push_back({data.back().data(), biases.back().data(), r, PK_FLOAT32});
    }
    pk_model_matrix(model, layer, which, cols, sources.data(), int(sources.size()));
  };
  const std::vector<float> ones(HIDDEN, 1.0f), heads(WIDTH, 1.0f);
  for (int l = 0; l < LAYERS; l++) {
    matrix(l, PK_QKV, HIDDEN, {HEADS * WIDTH, KV * WIDTH, KV * WIDTH});
    matrix(l, PK_OUT, HEADS * WIDTH, {HIDDEN});
    matrix(l, PK_GATE_UP, HIDDEN, {INNER, INNER});
    matrix(l, PK_DOWN, INNER, {HIDDEN});
    for (int which : {PK_NORM_IN, PK_NORM_MLP}) pk_model_norm(model, l, which, ones.data(), HIDDEN);
    for (int which : {PK_NORM_QUERY, PK_NORM_KEY}) pk_model_norm(model, l, which, heads.data(), WIDTH);
  }
  matrix(0, PK_HEAD, HIDDEN, {VOCABULARY});
  pk_model_norm(model, 0, PK_NORM_LAST, ones.data(), HIDDEN);
  const std::vector<float> rows = random(VOCABULARY * HIDDEN, 1.0f);
  embedding.resize(rows.size() * (stored == PK_FLOAT32 ? 4 : 2));
  for (size_t i = 0; i < rows.size(); i++) {
    const uint16_t half = narrow(rows[i]);
    stored == PK_FLOAT32 ? memcpy(embedding.data() + 4 * i, &rows[i], 4) : memcpy(embedding.data() + 2 * i, &half, 2);
  }
  pk_model_embedding(model, embedding.data());
  return model;
}

std::vector<int64_t> tokens(int count) {
  std::vector<int64_t> out;
  for (int i = 0; i < count; i++) out.push_back(int64_t(source() % VOCABULARY));
  return out;
}

}  // namespace

int main() {
  int steps = 0;
  for (int weights : {PK_FLOAT32, PK_BFLOAT16, PK_INT8})
    for (int stored : {PK_FLOAT32, PK_BFLOAT16}) {
      std::vector<char> embedding;
      pk_model *model = build(weights, stored, embedding);
      for (int64_t window : {0, 5, 13}) {
        Stream whole(stored, window), single(stored, window);
        for (int count : {1, 1, 1, 9, 40, 1, 1, 3}) {
          const std::vector<int64_t> first = tokens(count), second = tokens(count % 4);
          const std::vector<float> all = whole.step(model, {first, second}, 3);
          std::vector<float> apart;
          for (int64_t token : first)
            for (float x : single.step(model, {{token}, {}}, 2)) apart.push_back(x), steps++;
          for (int64_t token : second)
            for (float x : single.step(model, {{}, {token}}, 1)) apart.push_back(x);
          for (size_t i = 0; i < all.size(); i++)
            if (!(std::fabs(all[i] - apart[i]) <= (stored == PK_FLOAT32 ? 1e-4f : 0.25f))) {
              std::printf("chunks and single tokens differ: %g and %g (weights %d, stored %d, window %d)\n", double(all[i]), double(apart[i]), weights, stored, int(window));
              return 1;
            }
        }
      }
      pk_model_free(model);
    }
  std::printf("clean: %d steps\n", steps / VOCABULARY);
  return 0;
}

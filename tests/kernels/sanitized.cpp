// The native step without Python, for sanitizers: random weights, rings of exactly the size they need, steps of all kinds
// on several threads, stretches, and readings of numbers and codes in buffers of exactly their size.  Fails when chunks and
// single tokens, or one thread and three, disagree; the sanitizers watch the rest.
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

// All stretches of a step whose attention gives the queries back.
std::vector<float> stretches(pk_model *model, int stored, const std::vector<int64_t> &ids, int threads) {
  const size_t size = stored == PK_FLOAT32 ? 4 : 2, count = ids.size();
  std::vector<float> hidden(count * HIDDEN);
  std::vector<char> query(size * count * HEADS * WIDTH), attended(query), key(size * count * KV * WIDTH), value(key), logits(size * VOCABULARY);
  const int64_t last = int64_t(count) - 1;
  for (int layer = 0; layer <= LAYERS; layer++) {
    const bool end = layer == LAYERS;
    const pk_stretch stretch{ids.data(), hidden.data(), attended.data(), query.data(), key.data(), value.data(), &last, logits.data(), int64_t(count), end, layer, threads};
    if (pk_run_stretch(model, &stretch)) std::printf("a stretch was refused\n"), std::exit(1);
    attended = query;
  }
  std::vector<float> found;
  for (int i = 0; i < VOCABULARY; i++)
    found.push_back(stored == PK_FLOAT32 ? reinterpret_cast<float *>(logits.data())[i] : widen(reinterpret_cast<uint16_t *>(logits.data())[i]));
  return found;
}

// What some tokens read: their own entries causally, numbers with a bias, raw keys that are turned, codes of `bits` bits,
// blocks that lie apart, and numbers for all queries but the first.  Outputs, then logsumexps.
std::vector<float> reading(int stored, int bits, int count, int threads) {
  constexpr int wide = 32, half = wide / 2, plain = 137, coded = 24, block = 5, blocks = 3;
  source.seed(11);
  const size_t size = stored == PK_FLOAT32 ? 4 : 2;
  auto numbers = [&](size_t amount) {
    std::vector<char> out(size * amount);
    const std::vector<float> x = random(amount, 1.0f);
    for (size_t i = 0; i < amount; i++) {
      const uint16_t narrowed = narrow(x[i]);
      stored == PK_FLOAT32 ? memcpy(out.data() + 4 * i, &x[i], 4) : memcpy(out.data() + 2 * i, &narrowed, 2);
    }
    return out;
  };
  const size_t tokens = size_t(count);
  const int64_t tail = count + 3, row = int64_t(size) * wide;
  const std::vector<char> query = numbers(HEADS * tokens * wide), keys = numbers(KV * plain * wide), values = numbers(KV * plain * wide);
  const std::vector<char> own_keys = numbers(size_t(KV * tail * wide)), own_values = numbers(size_t(KV * tail * wide));
  const std::vector<float> cosine(plain * half, 0.6f), sine(plain * half, 0.8f), one_cosine(half, 0.8f), one_sine(half, 0.6f);
  std::vector<float> bias = random(HEADS * tokens * plain, 1.0f);
  for (size_t i = 0; i < bias.size(); i += 3) bias[i] = -1e30f;
  std::vector<uint8_t> codes(size_t(KV * coded * wide * bits / 8));
  for (uint8_t &code : codes) code = uint8_t(source());
  const std::vector<uint16_t> of_keys(KV * wide, 0x1800), of_values(KV * coded * 2, 0x9800);  // small, of either sign
  std::vector<std::vector<char>> apart;
  std::vector<const void *> lie;
  for (int i = 0; i < KV * blocks; i++) apart.push_back(numbers(2 * block * wide)), lie.push_back(apart.back().data());

  std::vector<pk_offer> offers;
  auto offer = [&](const void *key, const void *value, int64_t entries) -> pk_offer & {
    pk_offer o = {};
    o.key = key, o.value = value, o.query_cos = cosine.data(), o.query_sin = sine.data(), o.query_step = half;
    o.key_head = o.value_head = entries * row, o.count = entries, o.kind = stored, o.last = count;
    offers.push_back(o);
    return offers.back();
  };
  offer(own_keys.data(), own_values.data(), tail).causal = count > 1;
  pk_offer &biased = offer(keys.data(), values.data(), plain);
  biased.bias = bias.data(), biased.bias_head = HEADS / KV * count * plain, biased.bias_member = count * plain, biased.bias_token = plain;
  pk_offer &turned = offer(values.data(), keys.data(), plain);
  turned.key_cos = cosine.data(), turned.key_sin = sine.data();
  for (int i = 0; i < 2; i++) {
    pk_offer &packed = offer(codes.data(), codes.data(), coded);
    packed.key_scale = packed.key_zero = of_keys.data(), packed.value_scale = packed.value_zero = of_values.data();
    packed.key_cos = cosine.data(), packed.key_sin = sine.data(), packed.kind = bits, packed.shared = 4;
    packed.key_head = packed.value_head = coded * wide * bits / 8;
  }
  pk_offer &stored_apart = offer(nullptr, nullptr, block * blocks);
  stored_apart.blocks = lie.data(), stored_apart.blocks_head = blocks, stored_apart.block = block, stored_apart.key_head = stored_apart.value_head = 0;
  stored_apart.value_at = block * row, stored_apart.query_cos = one_cosine.data(), stored_apart.query_sin = one_sine.data(), stored_apart.query_step = 0;
  if (count > 1) offer(keys.data(), values.data(), plain).first = 1;

  std::vector<char> out(size * HEADS * tokens * wide);
  std::vector<float> lse(HEADS * tokens), found;
  pk_reading reading = {};
  reading.query = query.data(), reading.offers = offers.data(), reading.offer_count = int(offers.size());
  reading.out = out.data(), reading.lse = lse.data(), reading.query_head = int64_t(tokens) * row, reading.query_token = row;
  reading.scale = 0.2f, reading.heads = HEADS, reading.kv_heads = KV, reading.width = wide, reading.half = half;
  reading.stored = stored, reading.threads = threads, reading.tokens = count;
  std::vector<float> work(size_t(threads * pk_read_room(&reading)));
  reading.work = work.data();
  pk_read(&reading);
  for (size_t i = 0; i < HEADS * tokens * wide; i++)
    found.push_back(stored == PK_FLOAT32 ? reinterpret_cast<float *>(out.data())[i] : widen(reinterpret_cast<uint16_t *>(out.data())[i]));
  found.insert(found.end(), lse.begin(), lse.end());
  return found;
}

// A choice among summaries at hand and blocks where they lie, every kind of summary; then a reading of such blocks.
std::vector<float> choosing(int stored, int summary, int wide, int apart, int threads) {
  constexpr int entries = 5, blocks = 23, plain = 41, group = HEADS / KV, asking = 3;
  const int channels = summary == PK_CHANNELS ? 8 : wide;
  const int rows = summary == PK_MEAN ? 1 : summary == PK_SOME ? 2 : summary == PK_BOUNDS ? 4 : entries;
  source.seed(13);
  const size_t size = stored == PK_FLOAT32 ? 4 : 2, bytes = size * KV * entries * wide;
  std::vector<std::vector<char>> stores;
  std::vector<const void *> at;
  for (int b = 0; b < blocks; b++) {
    std::vector<char> block(2 * bytes + KV * entries);
    const std::vector<float> x = random(2 * KV * entries * wide, 1.0f);
    for (size_t i = 0; i < x.size(); i++) {
      const uint16_t narrowed = narrow(x[i]);
      stored == PK_FLOAT32 ? memcpy(block.data() + 4 * i, &x[i], 4) : memcpy(block.data() + 2 * i, &narrowed, 2);
    }
    for (int h = 0; h < KV; h++) block[2 * bytes + size_t(h * entries + 1)] = block[2 * bytes + size_t(h * entries + 4)] = 1;
    stores.push_back(block);
  }
  for (const std::vector<char> &block : stores) at.push_back(block.data());
  const std::vector<float> query = random(size_t(KV * group * asking * channels), 1.0f), summaries = random(size_t(KV * plain * rows * channels), 1.0f);
  const std::vector<int64_t> some = {0, 2, 5, 9, 11, 17, 20, 23, 1, 2, 3, 4, 5, 6, 7, 8};
  const int64_t head = int64_t(size) * entries * wide;
  const pk_candidates parts[] = {
      {nullptr, at.data(), 0, 0, head, 0, entries, int64_t(2 * bytes), blocks},
      {summaries.data(), nullptr, int64_t(plain) * rows * channels, 0, 0, 0, 0, -1, plain},
  };
  std::vector<float> scores(size_t(KV * group * asking * (blocks + plain))), room(size_t(threads * pk_choice_room(channels)));
  std::vector<float> shares(size_t(asking * (apart ? KV : 1) * (blocks + plain)));
  const pk_choice choice{query.data(), parts, some.data(), scores.data(), room.data(), shares.data(), entries, 2, KV, group, asking, channels, wide, rows, summary, stored, apart, threads, 0};
  pk_choice_run(&choice);
  const std::vector<float> cosine(wide / 2, 0.6f), sine(wide / 2, 0.8f);
  const std::vector<char> raw(size * HEADS * 32, 1);
  if (wide % 16 == 0) {
    pk_offer offer = {};
    offer.query_cos = cosine.data(), offer.query_sin = sine.data();
    offer.kind = stored, offer.count = blocks * entries;
    offer.blocks = at.data(), offer.block = entries, offer.key_head = offer.value_head = head, offer.value_at = int64_t(bytes);
    std::vector<char> out(size * HEADS * wide);
    offer.last = 1;
    std::vector<float> lse(HEADS);
    pk_reading reading{raw.data(), &offer, out.data(), lse.data(), nullptr, int64_t(size) * wide, 0, 0.2f, 1, HEADS, KV, wide, wide / 2, 0, stored, threads, 1};
    std::vector<float> work(size_t(threads * pk_read_room(&reading)));
    reading.work = work.data();
    pk_read(&reading);
    shares.insert(shares.end(), lse.begin(), lse.end());
  }
  return shares;
}

// A search of an index of two runs, one of them partly too old.
std::vector<int64_t> searching(int wide, int queries, int threads) {
  constexpr int lists = 70, blocks = 300, most = 40;
  source.seed(17);
  const std::vector<float> query = random(size_t(KV * queries * wide), 0.5f), book = random(size_t(KV * lists * wide), 1.0f);
  std::vector<float> sizes(KV * lists), logs(KV * lists);
  std::vector<std::vector<uint16_t>> listed(2);
  std::vector<std::vector<int32_t>> starts(2);
  for (int run = 0; run < 2; run++)
    for (int k = 0; k < KV * lists; k++) {
      starts[size_t(run)].push_back(int32_t(listed[size_t(run)].size()));
      for (int b = 0; b < blocks; b++)
        if (k % 9 && (b + 7 * k) % 23 == 0) listed[size_t(run)].push_back(uint16_t(b)), sizes[size_t(k)] += 1.0f;
    }
  for (int k = 0; k < KV * lists; k++) logs[size_t(k)] = std::log(sizes[size_t(k)]);
  for (int run = 0; run < 2; run++) starts[size_t(run)].push_back(int32_t(listed[size_t(run)].size()));
  const pk_block_run runs[] = {{listed[0].data(), starts[0].data(), 100, 100 + blocks}, {listed[1].data(), starts[1].data(), 100 + blocks, 100 + 2 * blocks}};
  std::vector<float> scores(size_t(KV * queries * lists)), worth(KV * lists);
  std::vector<int64_t> found(most);
  const pk_search search{query.data(), book.data(), sizes.data(), logs.data(), runs, scores.data(), worth.data(), found.data(), 250, most, 60, 2, KV, queries, lists, wide, 4, 5, threads};
  found.resize(size_t(pk_search_run(&search)));
  return found;
}

bool agree(const std::vector<float> &a, const std::vector<float> &b, float limit) {
  for (size_t i = 0; i < a.size(); i++)
    if (!(std::fabs(a[i] - b[i]) <= limit)) return std::printf("threads differ: %g and %g\n", double(a[i]), double(b[i])), false;
  return true;
}

// All that a set runs; how many single tokens, or -1.
int steps_of_all_kinds() {
  int steps = 0;
  for (int stored : {PK_FLOAT32, PK_BFLOAT16})
    for (int bits : {PK_CODES8, PK_CODES4})
      for (int count : {1, 2, 7, 33, 64})
        if (!agree(reading(stored, bits, count, 1), reading(stored, bits, count, 3), stored == PK_FLOAT32 ? 1e-5f : 0.02f)) return -1;
  for (int stored : {PK_FLOAT32, PK_BFLOAT16})
    for (int summary : {PK_MEAN, PK_SOME, PK_BOUNDS, PK_CHANNELS})
      for (int wide : {24, 32})
        for (int apart : {0, 1})
          if (!agree(choosing(stored, summary, wide, apart, 1), choosing(stored, summary, wide, apart, 3), 1e-5f)) return -1;
  for (int wide : {8, 16})
    for (int queries : {1, 6})
      if (searching(wide, queries, 1) != searching(wide, queries, 3)) return std::printf("searches differ\n"), -1;
  for (int weights : {PK_FLOAT32, PK_BFLOAT16, PK_INT8})
    for (int stored : {PK_FLOAT32, PK_BFLOAT16}) {
      std::vector<char> embedding;
      pk_model *model = build(weights, stored, embedding);
      for (int count : {1, 3, 9, 40}) {
        const std::vector<int64_t> ids = tokens(count);
        const float exact = pk_chosen() == 0 ? 0.0f : stored == PK_FLOAT32 ? 1e-5f : 0.02f;  // others add up pairs of tiles in another order
        if (!agree(stretches(model, stored, ids, 1), stretches(model, stored, ids, 3), exact)) return std::printf("stretches differ\n"), -1;
      }
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
              return -1;
            }
        }
      }
      pk_model_free(model);
    }
  return steps / VOCABULARY;
}

}  // namespace

int main() {
  for (int set = 0; pk_built() >> set; set++) {
    if (!pk_choose(set)) continue;
    const int steps = steps_of_all_kinds();
    if (steps < 0) return std::printf("on set %d\n", set), 1;
    std::printf("clean: %d steps on set %d\n", steps, set);
  }
  return 0;
}

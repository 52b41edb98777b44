// One step, as each thread runs it.  A vertical line is a barrier:
//
//   embed | norm, QKV | rotate, write, read by slots | merge, out | norm, gate x up | down |  ... layers ...  norm, logits
//
// A stretch (pk_stretch) is the same list, entered behind one attention and left before the next.
//
// Matrices are split by tiles of outputs, attention of single tokens by slots, of chunks by head and block of queries.
#pragma once
#include "chunk.h"

namespace pk {
namespace PK_SET {

PK_INLINE void normalise(const float *x, const float *weight, int size, float eps, float *out) {
  const float factor = 1.0f / sqrtf(squares_of(x, size) / float(size) + eps);
  for (int i = 0; i < size; i++) out[i] = weight[i] * (x[i] * factor);
}

// T: how keys and values are stored.
template <class T>
struct Run {
  Step *step;
  int thread;
  pk_model *model;
  const pk_step *asked;
  Room *room;
  Own *own;
  const pk_shape *shape;
  float *hidden;  // [n, hidden], from layer to layer
  int threads, group, heads, kv, width;
  int64_t n;

  Run(Step *given, int thread)
      : step(given), thread(thread), model(given->model), asked(given->asked), room(&given->model->room), own(given->model->room.own + thread),
        shape(&given->model->shape), hidden(given->stretch ? given->stretch->hidden : room->h), threads(given->threads),
        group(shape->heads / shape->kv_heads), heads(shape->heads), kv(shape->kv_heads), width(shape->width), n(given->asked->count) {}

  void meet() { step->barrier->wait(); }

  // -- prepared tokens: rotated queries for the window and for the sinks, keys, values, raw keys ----------------------

  float *q(int64_t i) { return (step->shared ? room->q : own->q) + i * heads * width; }
  float *qs(int64_t i) { return (step->shared ? room->qs : own->qs) + i * heads * width; }
  float *k(int64_t i) { return (step->shared ? room->k : own->k) + i * kv * width; }
  float *v(int64_t i) { return (step->shared ? room->v : own->v) + i * kv * width; }
  float *raw(int64_t i) { return (step->shared ? room->raw : own->raw) + i * kv * width; }

  // cos, sin at the position; cos, sin at the position from which sinks are seen
  const float *angles(int g, int64_t i) { return room->angles + (int64_t(g) * n + i) * 4 * (width / 2); }

  static float rounded(float x) {
    T stored;
    put(&stored, x);
    return get(&stored);
  }

  void prepare(const LayerWeights &layer, const pk_layer_memory &memory, int64_t i) {
    const pk_group &g = asked->groups[memory.group];
    const float *angle = angles(memory.group, i), *qkv = room->qkv + i * (heads + 2 * kv) * width;
    const int half = width / 2;
    float head[1024];
    for (int h = 0; h < heads; h++) {
      const float *x = qkv + h * width;
      if (layer.norm_query) normalise(x, layer.norm_query, width, shape->eps_heads, head), x = head;
      const float factor = shape->factor * shape->scale;
      for (int d = 0; d < width; d++) head[d] = x[d] * factor;
      rotate(head, angle, angle + half, g.half, g.interleaved, width, q(i) + h * width);
      if (g.sinks) rotate(head, angle + 2 * half, angle + 3 * half, g.half, g.interleaved, width, qs(i) + h * width);
    }
    for (int h = 0; h < kv; h++) {
      const float *x = qkv + (heads + h) * width, *value = qkv + (heads + kv + h) * width;
      if (layer.norm_key) normalise(x, layer.norm_key, width, shape->eps_heads, head), x = head;
      float *key = raw(i) + h * width;
      for (int d = 0; d < width; d++) key[d] = rounded(x[d] * shape->factor);
      rotate(key, angle, angle + half, g.half, g.interleaved, width, k(i) + h * width);
      for (int d = 0; d < width; d++) k(i)[h * width + d] = rounded(k(i)[h * width + d]);
      for (int d = 0; d < width; d++) v(i)[h * width + d] = rounded(value[d]);
    }
  }

  T *keys(const pk_layer_memory &m, int row, int h, int64_t slot) { return static_cast<T *>(m.ring) + ((int64_t(row) * kv + h) * m.slots + slot) * width; }
  T *values(const pk_layer_memory &m, int row, int h, int64_t slot) { return keys(m, m.rows + row, h, slot); }
  T *sink(const pk_layer_memory &m, int row, int h, int64_t j) {
    return static_cast<T *>(m.raw_sinks) + ((int64_t(row) * kv + h) * asked->groups[m.group].sinks + j) * width;
  }

  static int64_t slot_of(const pk_group &g, int64_t j) { return g.window ? g.sinks + (j - g.sinks) % g.window : j; }

  void write(const pk_layer_memory &m, int row, int64_t slot, const float *key, const float *value) {
    for (int h = 0; h < kv; h++)
      for (int d = 0; d < width; d++) {
        put(keys(m, row, h, slot) + d, key[h * width + d]);
        put(values(m, row, h, slot) + d, value[h * width + d]);
      }
  }

  // A token that is a sink: kept raw.
  void write_sink(const pk_layer_memory &m, int row, int64_t j, int64_t i) {
    write(m, row, j, raw(i), v(i));
    for (int h = 0; h < kv; h++)
      for (int d = 0; d < width; d++) put(sink(m, row, h, j) + d, raw(i)[h * width + d]);
  }

  // The first `count` sinks of one head, rotated to their own indices.
  void turn_sinks(const pk_layer_memory &m, int row, int h, int64_t count) {
    const pk_group &g = asked->groups[m.group];
    float plain[1024];
    for (int64_t j = 0; j < count; j++) {
      for (int d = 0; d < width; d++) plain[d] = get(sink(m, row, h, j) + d);
      rotate(plain, g.sink_cos + j * g.half, g.sink_sin + j * g.half, g.half, g.interleaved, width, own->sinks + j * width);
    }
  }

  // -- reading --------------------------------------------------------------------------------------------------------

  // One token, this thread's share of the slots.
  void read_one(const pk_layer_memory &m, const pk_span &span, int64_t i) {
    const pk_group &g = asked->groups[m.group];
    const int64_t t = span.start, entries = t + 1 - g.sinks;
    const int64_t filled = entries < 0 ? 0 : g.window && entries > g.window ? g.window : entries;
    Share part = share((filled + 15) / 16, thread, threads);
    part = {part.begin * 16, part.end * 16 > filled ? filled : part.end * 16};
    const int64_t slot = slot_of(g, t) - g.sinks;
    if (t >= g.sinks && part.begin <= slot && slot < part.end) write(m, span.row, g.sinks + slot, k(i), v(i));
    const int64_t at = int64_t(thread) * n + i;
    float *top = room->part_top + at * heads, *sum = room->part_sum + at * heads, *out = room->part_out + at * heads * width;
    for (int h = 0; h < heads; h++) top[h] = NOTHING, sum[h] = 0.0f;
    memset(out, 0, sizeof(float) * size_t(heads) * width);
    const int64_t sinks = thread ? 0 : g.sinks < t + 1 ? g.sinks : t + 1;
    for (int h = 0; h < kv; h++) {
      const int64_t first = int64_t(h) * group;
      float *o = out + first * width;
      if (sinks) {
        turn_sinks(m, span.row, h, sinks);
        for (int64_t j = 0; j < sinks; j++) {
          float value[1024];
          for (int d = 0; d < width; d++) value[d] = get(values(m, span.row, h, j) + d);
          read_part<float>(group, qs(i) + first * width, own->sinks + j * width, value, width, 1, top + first, sum + first, o);
        }
      }
      if (part.end > part.begin)
        read_part<T>(group, q(i) + first * width, keys(m, span.row, h, g.sinks + part.begin), values(m, span.row, h, g.sinks + part.begin), width,
                     part.end - part.begin, top + first, sum + first, o);
    }
  }

  void merge(int64_t i, float *to) {
    for (int h = 0; h < heads; h++) {
      float top = NOTHING, sum = 0.0f;
      for (int t = 0; t < threads; t++) {
        const float own_top = room->part_top[(t * n + i) * heads + h];
        top = own_top > top ? own_top : top;
      }
      float *out = to + h * width;
      for (int d = 0; d < width; d++) out[d] = 0.0f;
      for (int t = 0; t < threads; t++) {
        const int64_t at = (t * n + i) * heads + h;
        if (room->part_sum[at] == 0.0f) continue;
        const float weight = exponential(room->part_top[at] - top);
        sum += weight * room->part_sum[at];
        for (int d = 0; d < width; d++) out[d] += weight * room->part_out[at * width + d];
      }
      for (int d = 0; d < width; d++) out[d] /= sum;
    }
  }

  // The queries of one key-value head, packed for products; the output's room is free then.
  void gather_queries(const float *queries, int h, int64_t from, int64_t to, float *packed) {
    const int64_t size = int64_t(group) * width;
    for (int64_t i = from; i < to; i++) memcpy(own->out + (i - from) * size, queries + i * heads * width + h * size, sizeof(float) * size_t(size));
    pack_rows(own->out, width, (to - from) * group, width, block_rows((to - from) * group), packed);
  }

  // Queries [from, to) of a chunk, one key-value head.
  void read_block(const pk_layer_memory &m, const pk_span &span, int64_t offset, int h, int64_t from, int64_t to) {
    const pk_group &g = asked->groups[m.group];
    const int64_t start = span.start, last = start + to;  // one behind the last query
    Reader reader{own, width, int((to - from) * group), group, start + from, g.window};
    gather_queries(q(offset), h, from, to, own->block_q);
    if (g.sinks) gather_queries(qs(offset), h, from, to, own->block_qs);
    reader.begin();
    const int64_t sinks = g.sinks < last ? g.sinks : last;
    if (sinks) {
      turn_sinks(m, span.row, h, sinks);
      for (int64_t j = 0; j < sinks; j++)
        for (int d = 0; d < width; d++) own->sinks[(g.sinks + j) * width + d] = get(values(m, span.row, h, j) + d);
      reader.pass<float>(own->block_qs, 0, sinks, true, [&](int64_t j, const float **key, const float **value) {
        *key = own->sinks + j * width;
        *value = own->sinks + (g.sinks + j) * width;
      });
    }
    int64_t oldest = g.window ? start + from - g.window + 1 : g.sinks;
    oldest = oldest < g.sinks ? g.sinks : oldest;
    reader.pass<T>(own->block_q, oldest, start, false, [&](int64_t j, const T **key, const T **value) {
      *key = keys(m, span.row, h, slot_of(g, j));
      *value = values(m, span.row, h, slot_of(g, j));
    });
    const int64_t fresh = oldest > start ? oldest : start;
    reader.pass<float>(own->block_q, fresh, last, false, [&](int64_t j, const float **key, const float **value) {
      *key = k(offset + j - start) + h * width;
      *value = v(offset + j - start) + h * width;
    });
    for (int r = 0; r < reader.rows; r++) {
      float *to_row = room->attended + (offset + from + r / group) * heads * width + (h * group + r % group) * width;
      for (int d = 0; d < width; d++) to_row[d] = own->out[r * width + d] / own->sum[r];
    }
  }

  void attend(const LayerWeights &layer, const pk_layer_memory &m) {
    const Share mine = step->shared ? share(n, thread, threads) : Share{0, n};
    int64_t offset = 0;
    for (int s = 0; s < asked->span_count; s++) {
      const pk_span &span = asked->spans[s];
      for (int64_t i = offset > mine.begin ? offset : mine.begin; i < offset + span.count && i < mine.end; i++) {
        prepare(layer, m, i);
        const int64_t t = span.start + i - offset;
        if (t < asked->groups[m.group].sinks) write_sink(m, span.row, t, i);  // only in shared steps
      }
      offset += span.count;
    }
    if (step->shared) meet();
    offset = 0;
    int64_t item = 0;
    int most = QUERY_ROWS / group;
    while (most > 16 && kv * ((n + most - 1) / most) < 4 * threads) most /= 2;
    for (int s = 0; s < asked->span_count; s++) {
      const pk_span &span = asked->spans[s];
      if (span.count == 1) {
        read_one(m, span, offset);
      } else {
        for (int64_t from = 0; from < span.count; from += most)
          for (int h = 0; h < kv; h++)
            if (item++ % threads == thread) read_block(m, span, offset, h, from, from + most < span.count ? from + most : span.count);
      }
      offset += span.count;
    }
  }

  // What a chunk leaves in the ring: nobody reads this layer any more.
  void write_chunks(const pk_layer_memory &m) {
    const pk_group &g = asked->groups[m.group];
    int64_t offset = 0;
    for (int s = 0; s < asked->span_count; s++) {
      const pk_span &span = asked->spans[s];
      const int64_t end = span.start + span.count;
      int64_t from = g.window && end - g.window > span.start ? end - g.window : span.start;
      from = from < g.sinks ? g.sinks : from;
      if (span.count > 1)
        for (int64_t t = from; t < end; t++)
          if (t % threads == thread) write(m, span.row, slot_of(g, t), k(offset + t - span.start), v(offset + t - span.start));
      offset += span.count;
    }
  }

  // -- the model ------------------------------------------------------------------------------------------------------

  void embed() {
    const Share mine = share(n, thread, threads);
    const int64_t size = shape->hidden;
    for (int64_t i = mine.begin; i < mine.end; i++) {
      const T *row = static_cast<const T *>(model->embedding) + asked->tokens[i] * size;
      for (int64_t d = 0; d < size; d++) hidden[i * size + d] = get(row + d);
    }
  }

  // Rows through a norm: every thread by itself if there are few, else by shares.
  const float *normed(const float *x, int64_t rows, const float *weight) {
    const int64_t size = shape->hidden;
    const bool alone = rows <= FEW;
    float *out = alone ? own->normed : room->normed;
    const Share mine = alone ? Share{0, rows} : share(rows, thread, threads);
    for (int64_t i = mine.begin; i < mine.end; i++) normalise(x + i * size, weight, int(size), shape->eps, out + i * size);
    if (!alone) meet();
    return out;
  }

  // Queries, keys and values of all tokens, a row behind the other.
  void before(const LayerWeights &weights) {
    const int64_t wide = int64_t(heads + 2 * kv) * width;
    const float *x = normed(hidden, n, weights.norm_in);
    const Share mine = share(weights.qkv.tiles, thread, threads);
    multiply(weights.qkv, mine.begin, mine.end, x, shape->hidden, n, own, [&](int64_t r, int64_t column, const float *values, int count) {
      memcpy(room->qkv + r * wide + column, values, sizeof(float) * size_t(wide - column < count ? wide - column : count));
    });
    meet();
  }

  // What follows attention, whose output is [n, heads * width].
  void after(const LayerWeights &weights, const float *attended) {
    const int64_t size = shape->hidden, inner = shape->intermediate;
    auto add = [&](int64_t r, int64_t column, const float *values, int count) {
      float *to = hidden + r * size + column;
      const int64_t real = size - column < count ? size - column : count;
      for (int64_t c = 0; c < real; c++) to[c] += values[c];
    };
    Share mine = share(weights.out.tiles, thread, threads);
    multiply(weights.out, mine.begin, mine.end, attended, int64_t(heads) * width, n, own, add);
    meet();
    const float *x = normed(hidden, n, weights.norm_mlp);
    mine = share(weights.gate_up.tiles / 2, thread, threads);
    multiply(weights.gate_up, 2 * mine.begin, 2 * mine.end, x, size, n, own, [&](int64_t r, int64_t column, const float *values, int) {
      float *to = room->act + r * inner + column / 2;
      float product[TILE];
      for (int c = 0; c < TILE; c += PK_LANES) {
        const V gate = load(values + c);
        store(product + c, gate / (1.0f + exponential(-gate)) * load(values + TILE + c));
      }
      const int64_t left = inner - column / 2;
      memcpy(to, product, sizeof(float) * size_t(left < TILE ? left : TILE));
    });
    meet();
    mine = share(weights.down.tiles, thread, threads);
    multiply(weights.down, mine.begin, mine.end, room->act, inner, n, own, add);
    meet();
  }

  void layer(const LayerWeights &weights, const pk_layer_memory &memory) {
    before(weights);
    attend(weights, memory);
    meet();
    if (step->chunks) write_chunks(memory);
    after(weights, merged());
  }

  // Attention's output [n, heads * width]: single tokens are merged from the threads' parts.
  const float *merged() {
    const int64_t all = int64_t(heads) * width;
    if (!step->shared) {
      for (int64_t i = 0; i < n; i++) merge(i, own->merged + i * all);
      return own->merged;
    }
    const Share mine = share(n, thread, threads);
    int64_t offset = 0;
    for (int s = 0; s < asked->span_count; s++) {
      if (asked->spans[s].count == 1 && mine.begin <= offset && offset < mine.end) merge(offset, room->attended + offset * all);
      offset += asked->spans[s].count;
    }
    meet();
    return room->attended;
  }

  void logits() {
    const int64_t size = shape->hidden, wanted = asked->wanted, vocabulary = shape->vocabulary;
    if (!wanted) return;
    const Share rows = share(wanted, thread, threads);
    for (int64_t i = rows.begin; i < rows.end; i++) memcpy(room->places + i * size, hidden + asked->places[i] * size, sizeof(float) * size_t(size));
    meet();
    const float *x = normed(room->places, wanted, model->norm_last);
    const Share mine = share(model->head.tiles, thread, threads);
    multiply(model->head, mine.begin, mine.end, x, size, wanted, own, [&](int64_t r, int64_t column, const float *values, int count) {
      T *to = static_cast<T *>(asked->logits) + r * vocabulary + column;
      const int64_t real = vocabulary - column < count ? vocabulary - column : count;
      for (int64_t c = 0; c < real; c++) put(to + c, values[c]);
    });
  }

  // -- a stretch ------------------------------------------------------------------------------------------------------

  // Raw queries, keys and values as the caller wants them: through their norms, in the stored kind.
  void give(const LayerWeights &layer, const pk_stretch &to) {
    const int all = heads + 2 * kv;
    const Share mine = share(n * all, thread, threads);
    float plain[1024];
    for (int64_t item = mine.begin; item < mine.end; item++) {
      const int64_t i = item / all;
      const int h = int(item % all);
      const float *x = room->qkv + item * width, *norm = h < heads ? layer.norm_query : h < heads + kv ? layer.norm_key : nullptr;
      const float factor = h < heads + kv ? shape->factor : 1.0f;
      if (norm) normalise(x, norm, width, shape->eps_heads, plain), x = plain;
      T *out = h < heads        ? static_cast<T *>(to.query) + (i * heads + h) * width
               : h < heads + kv ? static_cast<T *>(to.key) + (i * kv + h - heads) * width
                                : static_cast<T *>(to.value) + (i * kv + h - heads - kv) * width;
      for (int d = 0; d < width; d++) put(out + d, x[d] * factor);
    }
  }

  // Attention's output in float32: every thread by itself if there are few tokens, else by shares.
  const float *taken(const void *attended) {
    const int64_t size = int64_t(heads) * width;
    const T *from = static_cast<const T *>(attended);
    const bool alone = n <= FEW;
    float *out = alone ? own->merged : room->attended;
    const Share mine = alone ? Share{0, n} : share(n, thread, threads);
    for (int64_t i = mine.begin * size; i < mine.end * size; i++) out[i] = get(from + i);
    if (!alone) meet();
    return out;
  }

  void stretch(const pk_stretch &given) {
    if (given.layer > 0) {
      after(model->layers[given.layer - 1], taken(given.attended));
    } else {
      embed();
      meet();
    }
    if (given.layer == shape->layers) return logits();
    before(model->layers[given.layer]);
    give(model->layers[given.layer], given);
  }

  void operator()() {
    if (step->stretch) return stretch(*step->stretch);
    embed();
    meet();
    for (int l = 0; l < shape->layers; l++) layer(model->layers[l], asked->memory[l]);
    logits();
  }
};

void run(void *given, int thread) {
  auto *step = static_cast<Step *>(given);
  if (step->model->shape.stored == PK_FLOAT32)
    Run<float>(step, thread)();
  else
    Run<uint16_t>(step, thread)();
}

}  // namespace PK_SET
}  // namespace pk

// Attention of several tokens over parts that somebody else keeps.  Slots of all parts pass by in blocks of KEYS, each made
// ready once for all queries of a key-value head and turned into tiles, so that both products are those of products.h.
// Threads share (head, slot); what they leave of a head is merged exactly.
#pragma once
#include "chunk.h"
#include "read.h"

namespace pk {
namespace PK_SET {

constexpr float HIDDEN = -1e29f;  // no score is that low

// x = exp(x - base), 0 for what is hidden; a NaN stays one.
PK_INLINE void exponentials_seen(float *x, int64_t count, float base) {
  const V low = V{} + HIDDEN;
  int64_t i = 0;
  for (; i + PK_LANES <= count; i += PK_LANES) {
    const V one = load(x + i);
    store(x + i, one <= low ? V{} : exponential(one - base));
  }
  for (; i < count; i++) x[i] = x[i] <= HIDDEN ? 0.0f : exponential(x[i] - base);
}

// T: how queries, and keys and values that are no codes, are stored.
template <class T>
struct ChunkReading {
  const pk_reading *asked;
  int heads, kv, group, width, tokens, rows;  // rows: queries x group, of one key-value head
  Gather<T> gather;
  Own own = {};                                // of the rows that are multiplied
  float *top, *sum, *out, *queries, *turned;   // [kv, rows] (and width); of one head: packed, and some as they were
  float *keys, *values;                        // [KEYS, width] as rows, [TILE, width]
  const pk_offer *now = nullptr;               // whose queries are ready
  // Slots of an offer in the block.
  struct Piece {
    const pk_offer *offer;
    int64_t from;
    int at, count;
  } pieces[KEYS];
  int piece_count = 0, filled = 0;

  ChunkReading(const pk_reading *asked, int thread)
      : asked(asked), heads(asked->heads), kv(asked->kv_heads), group(heads / kv), width(asked->width), tokens(asked->tokens), rows(tokens * group) {
    top = part(thread), sum = top + kv * rows, out = sum + kv * rows;
    queries = out + int64_t(kv) * rows * width, turned = queries + rows * width;
    own.scores = turned + QUERY_ROWS * width, own.keys = own.scores + QUERY_ROWS * KEYS;
    own.values = own.keys + KEYS * width, keys = own.values + KEYS * width, values = keys + KEYS * width;
    float *room = values + TILE * width;
    gather = {asked, width, room, room + width};
  }

  float *part(int thread) const { return asked->work + thread * pk_read_room(asked); }

  // The rows of an offer's queries, as many at a time as there is room for scores: do(first row, rows).
  template <class Do>
  void over_rows(const pk_offer &o, Do act) const {
    for (int r = o.first * group; r < o.last * group; r += QUERY_ROWS) act(r, o.last * group - r < QUERY_ROWS ? o.last * group - r : QUERY_ROWS);
  }

  // The queries of a head where an offer wants them, packed.
  void turn_queries(const pk_offer &o, int h) {
    float *plain = values;
    over_rows(o, [&](int first, int size) {
      for (int r = 0; r < size; r++) {
        const int64_t query = (first + r) / group, head = h * group + (first + r) % group;
        const T *from = reinterpret_cast<const T *>(static_cast<const char *>(asked->query) + head * asked->query_head + query * asked->query_token);
        for (int d = 0; d < width; d++) plain[d] = get(from + d) * asked->scale;
        rotate(plain, o.query_cos + query * o.query_step, o.query_sin + query * o.query_step, asked->half, asked->interleaved, width, turned + r * width);
      }
      pack_rows(turned, width, size, width, block_rows(size), queries + int64_t(first) * width);
    });
  }

  static bool alike(const pk_offer &a, const pk_offer &b) {
    return a.query_cos == b.query_cos && a.query_step == b.query_step && a.first == b.first && a.last == b.last;
  }

  // Slots [from, to) of all offers, for the queries of one head.
  void read(int h, int64_t from, int64_t to) {
    int64_t begin = 0;
    now = nullptr;
    for (int i = 0; i < asked->offer_count; begin += asked->offers[i++].count) {
      const pk_offer &o = asked->offers[i];
      const int64_t stop = to - begin < o.count ? to - begin : o.count;
      int64_t at = from > begin ? from - begin : 0;
      if (at >= stop) continue;
      if (!now || !alike(*now, o)) {
        flush(h);
        turn_queries(o, h);
      }
      now = &o;
      while (at < stop) {
        const int room = KEYS - filled, count = stop - at < room ? int(stop - at) : room;
        add(o, h, at, count);
        at += count;
        if (filled == KEYS) flush(h);
      }
    }
    flush(h);
  }

  // Some slots more in the block.
  void add(const pk_offer &o, int h, int64_t from, int count) {
    pieces[piece_count++] = {&o, from, filled, count};
    gather.keys(o, h, from, count, keys + filled * width);
    for (int s = 0; s < count; s += TILE) {
      const int some = count - s < TILE ? count - s : TILE;
      gather.values(o, h, from + s, some, values);
      for (int i = 0; i < some; i++) put_value(filled + s + i, values + i * width);
    }
    filled += count;
  }

  // A row among the tiles of values; null: zeros.
  void put_value(int slot, const float *from) {
    for (int d = 0; d < width; d += PK_LANES) store(own.values + int64_t(d / TILE) * KEYS * TILE + slot * TILE + d % TILE, from ? load(from + d) : V{});
  }

  // What the block holds is read.
  void flush(int h) {
    if (!filled) return;
    const int padded = (filled + TILE - 1) / TILE * TILE;
    const float *at[TILE];
    for (int t = 0; t < padded; t += TILE) {
      for (int s = 0; s < TILE; s++) at[s] = keys + (t + s < filled ? t + s : filled - 1) * width;
      turn(at, width, own.keys + t * width);
    }
    for (int s = filled; s < padded; s++) put_value(s, nullptr);
    bool plain = true;
    for (int i = 0; i < piece_count; i++) plain = plain && !pieces[i].offer->bias && !pieces[i].offer->causal;
    over_rows(*now, [&](int first, int size) {
      const int64_t row = int64_t(h) * rows + first;
      own.top = top + row, own.sum = sum + row, own.out = out + row * width;
      Reader reader{&own, width, size, group, 0, 0};
      reader.products(queries + int64_t(first) * width, filled, [&](int r) {
        float *scores = own.scores + int64_t(r) * KEYS;
        for (int i = 0; !plain && i < piece_count; i++) hide(pieces[i], h, first + r, scores + pieces[i].at);
        reader.raise(r, largest_of(scores, filled, NOTHING));
        plain ? exponentials(scores, filled, own.top[r]) : exponentials_seen(scores, filled, own.top[r]);
        own.sum[r] += sum_of(scores, filled);
        for (int s = filled; s < padded; s++) scores[s] = 0.0f;
      });
    });
    piece_count = filled = 0;
  }

  // Bias and visibility.
  void hide(const Piece &piece, int h, int row, float *scores) const {
    const pk_offer &o = *piece.offer;
    const int64_t query = row / group, member = row % group;
    if (o.bias) {
      const float *bias = o.bias + h * o.bias_head + member * o.bias_member + (query - o.first) * o.bias_token + piece.from;
      for (int s = 0; s < piece.count; s++) scores[s] += bias[s];
    }
    if (o.causal) {
      const int64_t seen = o.count - tokens + query + 1 - piece.from;
      for (int64_t s = seen < 0 ? 0 : seen; s < piece.count; s++) scores[s] = NOTHING;
    }
  }

  // This thread's share of (head, sixteen slots).
  void share_of(int thread, int threads) {
    for (int r = 0; r < kv * rows; r++) top[r] = NOTHING, sum[r] = 0.0f;
    int64_t total = 0;
    for (int i = 0; i < asked->offer_count; i++) total += asked->offers[i].count;
    const int64_t each = (total + 15) / 16;
    const Share mine = share(kv * each, thread, threads);
    for (int h = 0; h < kv; h++) {
      const int64_t from = mine.begin > h * each ? mine.begin - h * each : 0, to = mine.end - h * each < each ? mine.end - h * each : each;
      if (from >= to) continue;
      memset(out + int64_t(h) * rows * width, 0, sizeof(float) * size_t(rows) * width);
      read(h, from * 16, to * 16 < total ? to * 16 : total);
    }
  }

  // Rows [begin, end) of the result, out of the parts of those threads that saw something.
  void merge(Share mine, int threads) {
    const int64_t all = int64_t(kv) * rows;
    for (int64_t r = mine.begin; r < mine.end; r++) {
      const int64_t query = r % rows / group, to = (r / rows * group + r % group) * tokens + query;
      float most = NOTHING, whole = 0.0f, *result = turned;
      for (int t = 0; t < threads; t++) most = part(t)[r] > most ? part(t)[r] : most;
      for (int d = 0; d < width; d++) result[d] = 0.0f;
      for (int t = 0; t < threads; t++) {
        const float *own = part(t), *from = own + 2 * all + r * width;
        if (own[all + r] == 0.0f) continue;
        const float weight = exponential(own[r] - most);
        whole += weight * own[all + r];
        for (int d = 0; d < width; d++) result[d] += weight * from[d];
      }
      T *stored = static_cast<T *>(asked->out) + to * width;
      const float factor = whole == 0.0f ? 0.0f : 1.0f / whole;
      for (int d = 0; d < width; d++) put(stored + d, result[d] * factor);
      asked->lse[to] = whole == 0.0f ? NOTHING : most + logf(whole);
    }
  }
};

template <class T>
static void read_chunk_as(const ReadStep &step, int thread) {
  ChunkReading<T> own(step.asked, thread);
  own.share_of(thread, step.threads);
  step.barrier->wait();
  own.merge(share(int64_t(own.kv) * own.rows, thread, step.threads), step.threads);
}

void read(void *given, int thread) {
  const auto *step = static_cast<const ReadStep *>(given);
  const bool wide = step->asked->stored == PK_FLOAT32;
  if (step->asked->tokens == 1)
    wide ? read_as<float>(*step, thread) : read_as<uint16_t>(*step, thread);
  else
    wide ? read_chunk_as<float>(*step, thread) : read_chunk_as<uint16_t>(*step, thread);
}

}  // namespace PK_SET
}  // namespace pk

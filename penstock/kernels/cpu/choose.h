// Which of many blocks are worth reading: the share of attention that queries would give each by its summary.
//
//   scores of blocks, by ranges of blocks | softmax of each query's scores | sums over the heads that choose together
//
// Blocks without a summary at hand are summed up where they lie, a few at a time, in the thread's own cache.
#pragma once
#include "attention.h"
#include "model.h"

namespace pk {
namespace PK_SET {

constexpr int ASKING = 4;  // queries that are compared with a vector at once
constexpr int SOON = 6;    // blocks that are asked for before they are summed up

#if PK_LANES != 4
PK_INLINE V4 sum_four(V4 a, V4 b, V4 c, V4 d) {
  const V4 ab = __builtin_shufflevector(a, b, 0, 4, 1, 5) + __builtin_shufflevector(a, b, 2, 6, 3, 7);
  const V4 cd = __builtin_shufflevector(c, d, 0, 4, 1, 5) + __builtin_shufflevector(c, d, 2, 6, 3, 7);
  return __builtin_shufflevector(ab, cd, 0, 1, 4, 5) + __builtin_shufflevector(ab, cd, 2, 3, 6, 7);
}
#endif

// out[g][s]: products of G queries with `count` vectors; or, with boxes of two vectors, the bounds of what is inside.
template <int G, bool BOXES, class W>
static void compared(const float *q, const float *rows, int width, int count, float *out) {
  const int64_t step = BOXES ? 2 * width : width;
  auto lanes = [](const float *p) {
    W v;
    memcpy(&v, p, sizeof v);
    return v;
  };
  for (int s = 0; s < count; s += 4) {
    const float *row[4];
    for (int i = 0; i < 4; i++) row[i] = rows + (s + i < count ? s + i : count - 1) * step;
    fetch(row[0] + 8 * step, 4 * step * int64_t(sizeof(float)));
    W sums[G][4] = {};
    for (int d = 0; d < width; d += int(sizeof(W) / 4)) {
      W low[4], high[4];
#pragma GCC unroll 4
      for (int i = 0; i < 4; i++) low[i] = lanes(row[i] + d), high[i] = BOXES ? lanes(row[i] + width + d) : low[i];
#pragma GCC unroll 4
      for (int g = 0; g < G; g++) {
        const W query = lanes(q + g * width + d);
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) {
          const W a = query * low[i], b = query * high[i];
          sums[g][i] += BOXES ? (a > b ? a : b) : a;
        }
      }
    }
#pragma GCC unroll 4
    for (int g = 0; g < G; g++) {
      const V4 four = sum_four(sums[g][0], sums[g][1], sums[g][2], sums[g][3]);
      memcpy(out + g * SLOTS + s, &four, sizeof four);
    }
  }
}

// T: how the keys of blocks are stored.
template <class T>
struct Choice {
  const pk_choice *asked;
  int64_t count;
  int queries, width, rows, vectors;  // of a head; of a vector; vectors and those that have a score, of a block
  bool boxes;
  float *sums, *products_of;  // of this thread

  Choice(const ChoiceStep &step, int thread)
      : asked(step.asked), count(step.count), queries(asked->group * asked->tokens), width(asked->width), rows(asked->rows),
        vectors(asked->summary == PK_BOUNDS ? rows / 2 : rows), boxes(asked->summary == PK_BOUNDS),
        sums(asked->room + thread * pk_choice_room(width)), products_of(sums + 2 * SLOTS * width) {}

  float *scores(int64_t h, int64_t query) const { return asked->scores + (h * queries + query) * count; }

  const T *keys_of(const pk_candidates &part, int h, int64_t index) const {
    return reinterpret_cast<const T *>(static_cast<const char *>(part.blocks[h * part.blocks_head + index]) + part.key_at + h * part.key_head);
  }

  void sum_up(const pk_candidates &part, int h, int64_t index, float *to) const {
    const char *block = static_cast<const char *>(part.blocks[h * part.blocks_head + index]);
    const T *keys = keys_of(part, h, index);
    const int64_t entries = asked->block, wide = asked->key_width;
    if (asked->summary == PK_MEAN) {
      for (int d = 0; d < width; d++) to[d] = 0.0f;
      for (int64_t e = 0; e < entries; e++)
        for (int d = 0; d < width; d++) to[d] += get(keys + e * wide + d);
      for (int d = 0; d < width; d++) to[d] /= float(entries);
    } else if (asked->summary == PK_SOME) {
      const char *marks = part.marked_at < 0 ? nullptr : block + part.marked_at + h * part.marked_head;
      int64_t found = 0;
      for (int64_t e = 0; e < entries && found < rows; e++)
        if (!marks || marks[e]) {
          for (int d = 0; d < width; d++) to[found * width + d] = get(keys + e * wide + d);
          found++;
        }
      for (; found < rows; found++) memcpy(to + found * width, to, sizeof(float) * size_t(width));
    } else if (asked->summary == PK_BOUNDS) {
      int64_t e = 0;
      for (int p = 0; p < vectors; p++) {
        float *low = to + 2 * p * width, *high = low + width;
        const int64_t stop = e + entries / vectors + (p < entries % vectors);
        for (int d = 0; d < width; d++) low[d] = high[d] = get(keys + e * wide + d);
        for (e++; e < stop; e++)
          for (int d = 0; d < width; d++) {
            const float x = get(keys + e * wide + d);
            low[d] = x < low[d] ? x : low[d];
            high[d] = x > high[d] ? x : high[d];
          }
      }
    } else {
      for (int64_t e = 0; e < entries; e++)
        for (int d = 0; d < width; d++) to[e * width + d] = get(keys + e * wide + asked->channels[h * width + d]);
    }
  }

  template <int G>
  void compare(const float *q, const float *from, int n) const {
    if (width % PK_LANES == 0)
      boxes ? compared<G, true, V>(q, from, width, n, products_of) : compared<G, false, V>(q, from, width, n, products_of);
    else
      boxes ? compared<G, true, V4>(q, from, width, n, products_of) : compared<G, false, V4>(q, from, width, n, products_of);
  }

  // Blocks [from, from + n) of a part, of which the first is `first` among all.
  void score(const pk_candidates &part, int h, int64_t from, int n, int64_t first) const {
    const float *summaries = part.rows ? part.rows + h * part.rows_head + from * rows * width : sums;
    for (int b = 0; !part.rows && b < n; b++) {
      if (from + b + SOON < part.count) fetch(keys_of(part, h, from + b + SOON), asked->block * asked->key_width * int64_t(sizeof(T)));
      sum_up(part, h, from + b, sums + int64_t(b) * rows * width);
    }
    for (int j = 0; j < queries; j += ASKING) {
      const int size = queries - j < ASKING ? queries - j : ASKING;
      const float *q = asked->query + (int64_t(h) * queries + j) * width;
      switch (size) {
        case 1: compare<1>(q, summaries, n * vectors); break;
        case 2: compare<2>(q, summaries, n * vectors); break;
        case 3: compare<3>(q, summaries, n * vectors); break;
        default: compare<4>(q, summaries, n * vectors); break;
      }
      for (int g = 0; g < size; g++) {
        float *to = scores(h, j + g) + first;
        for (int b = 0; b < n; b++) to[b] = largest_of(products_of + g * SLOTS + b * vectors, vectors, -INFINITY);
      }
    }
  }

  void score_all(Share mine) const {
    const int each = SLOTS / vectors;
    int64_t begin = 0;
    for (int i = 0; i < asked->part_count; begin += asked->parts[i++].count) {
      const pk_candidates &part = asked->parts[i];
      const int64_t from = mine.begin > begin ? mine.begin - begin : 0, to = mine.end - begin < part.count ? mine.end - begin : part.count;
      for (int h = 0; h < asked->kv_heads; h++)
        for (int64_t b = from; b < to; b += each) score(part, h, b, int(to - b < each ? to - b : each), begin + b);
    }
  }

  void normalise_rows(Share mine) const {
    for (int64_t row = mine.begin; row < mine.end; row++) {
      float *x = asked->scores + row * count;
      exponentials(x, count, largest_of(x, count, -INFINITY));
      const float factor = 1.0f / sum_of(x, count);
      for (int64_t i = 0; i < count; i++) x[i] *= factor;
    }
  }

  void add_up(Share mine) const {
    for (int token = 0; token < asked->tokens; token++)
      for (int h = 0; h < asked->kv_heads; h++) {
        float *to = asked->shares + (asked->apart ? int64_t(token) * asked->kv_heads + h : token) * count;
        for (int g = 0; g < asked->group; g++) {
          const float *x = scores(h, int64_t(g) * asked->tokens + token);
          if (g == 0 && (h == 0 || asked->apart))
            for (int64_t i = mine.begin; i < mine.end; i++) to[i] = x[i];
          else
            for (int64_t i = mine.begin; i < mine.end; i++) to[i] += x[i];
        }
      }
  }
};

template <class T>
static void choose_as(const ChoiceStep &step, int thread) {
  const Choice<T> own(step, thread);
  own.score_all(share(step.count, thread, step.threads));
  step.barrier->wait();
  own.normalise_rows(share(int64_t(own.asked->kv_heads) * own.queries, thread, step.threads));
  step.barrier->wait();
  own.add_up(share(step.count, thread, step.threads));
}

void choose(void *given, int thread) {
  const auto *step = static_cast<const ChoiceStep *>(given);
  step->asked->stored == PK_FLOAT32 ? choose_as<float>(*step, thread) : choose_as<uint16_t>(*step, thread);
}

}  // namespace PK_SET
}  // namespace pk

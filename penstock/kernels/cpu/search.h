// Which lists of an index (penstock/memory/block_index.py) queries look into: those whose centres would take the most of
// their attention.
//
//   products of queries and centres, by ranges of centres | the best lists of each query, by heads
#pragma once
#include "choose.h"

namespace pk {
namespace PK_SET {

struct Lists {
  const pk_search *asked;
  int64_t wide;  // lists of a head

  float *scores(int64_t h, int64_t query) const { return asked->scores + (h * asked->queries + query) * wide; }

  template <int G>
  static void compare(const float *q, const float *rows, int width, int n, float *out) {
    width % PK_LANES == 0 ? compared<G, false, V>(q, rows, width, n, out) : compared<G, false, V4>(q, rows, width, n, out);
  }

  void score(Share mine) const {
    const int width = asked->width;
    float out[ASKING * SLOTS];
    for (int64_t at = mine.begin; at < mine.end;) {
      const int64_t h = at / wide, k = at % wide, left = wide - k < mine.end - at ? wide - k : mine.end - at;
      const int n = left < SLOTS ? int(left) : SLOTS;
      for (int j = 0; j < asked->queries; j += ASKING) {
        const int size = asked->queries - j < ASKING ? asked->queries - j : ASKING;
        const float *q = asked->query + (h * asked->queries + j) * width, *rows = asked->book + at * width;
        switch (size) {
          case 1: compare<1>(q, rows, width, n, out); break;
          case 2: compare<2>(q, rows, width, n, out); break;
          case 3: compare<3>(q, rows, width, n, out); break;
          default: compare<4>(q, rows, width, n, out); break;
        }
        for (int g = 0; g < size; g++) memcpy(scores(h, j + g) + k, out + g * SLOTS, sizeof(float) * size_t(n));
      }
      at += n;
    }
  }

  // The best `near` lists of one query, and what a block in each is worth: its share of the query's attention.
  void look(int64_t h, float *x) const {
    const float *sizes = asked->sizes + h * wide, *logs = asked->logs + h * wide;
    float value[MOST_NEAR], *worth = asked->worth + h * wide;
    int64_t where[MOST_NEAR];
    int found = 0;
    for (int64_t k = 0; k < wide; k++) {
      if (sizes[k] <= 0.0f || (found == asked->near && x[k] <= value[found - 1])) continue;
      int at = found < asked->near ? found++ : found - 1;
      for (; at > 0 && value[at - 1] < x[k]; at--) value[at] = value[at - 1], where[at] = where[at - 1];
      value[at] = x[k], where[at] = k;
    }
    if (!found) return;
    for (int64_t k = 0; k < wide; k++) x[k] += logs[k];
    const float top = largest_of(x, wide, NOTHING);
    exponentials(x, wide, top);
    const float total = top + logf(sum_of(x, wide));
    for (int i = 0; i < found; i++) {
      const float share = exponential(value[i] - total);
      if (share > worth[where[i]]) worth[where[i]] = share;
    }
  }
};

void lists(void *given, int thread) {
  const auto *step = static_cast<const SearchStep *>(given);
  const Lists own{step->asked, step->asked->lists};
  own.score(share(int64_t(step->asked->kv_heads) * own.wide, thread, step->threads));
  step->barrier->wait();
  const Share heads = share(step->asked->kv_heads, thread, step->threads);
  for (int64_t h = heads.begin; h < heads.end; h++) {
    memset(step->asked->worth + h * own.wide, 0, sizeof(float) * size_t(own.wide));
    for (int64_t query = 0; query < step->asked->queries; query++) own.look(h, own.scores(h, query));
  }
}

}  // namespace PK_SET
}  // namespace pk

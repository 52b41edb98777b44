// Attention of one token over parts that somebody else keeps: each thread reads its share of all slots, whatever part
// they are in, and the results are merged exactly.  Codes are decoded, and raw keys turned, a block at a time.
#pragma once
#include "gather.h"

namespace pk {
namespace PK_SET {

// T: how queries, and keys and values that are no codes, are stored.
template <class T>
struct Reading {
  const pk_reading *asked;
  int heads, kv, group, width;
  float *top, *sum, *out, *query, *keys, *values;  // of this thread
  Gather<T> gather;

  Reading(const pk_reading *asked, int thread) : asked(asked), heads(asked->heads), kv(asked->kv_heads), group(heads / kv), width(asked->width) {
    top = part(thread), sum = top + heads, out = sum + heads;
    query = out + heads * width, keys = query + heads * width, values = keys + SLOTS * width;
    float *room = values + SLOTS * width;
    gather = {asked, width, room, room + width};
  }

  float *part(int thread) const { return asked->work + thread * pk_read_room(asked); }

  // The query where an offer wants it; `plain` is room for one head.
  void turn_query(const pk_offer &o) {
    float *plain = gather.scale;
    for (int h = 0; h < heads; h++) {
      const T *from = reinterpret_cast<const T *>(static_cast<const char *>(asked->query) + h * asked->query_head);
      for (int d = 0; d < width; d++) plain[d] = get(from + d) * asked->scale;
      rotate(plain, o.query_cos, o.query_sin, asked->half, asked->interleaved, width, query + h * width);
    }
  }

  void read(const pk_offer &o, int64_t from, int64_t to) {
    const bool direct = o.kind == asked->stored && !o.key_cos && !o.blocks;
    for (int h = 0; h < kv; h++) {
      const int first = h * group;
      const float *q = query + first * width;
      const Bias bias{o.bias ? o.bias + h * o.bias_head + from : nullptr, o.bias_member};
      if (direct) {
        const T *key = reinterpret_cast<const T *>(static_cast<const char *>(o.key) + h * o.key_head) + from * width;
        const T *value = reinterpret_cast<const T *>(static_cast<const char *>(o.value) + h * o.value_head) + from * width;
        read_part<T>(group, q, key, value, width, to - from, top + first, sum + first, out + first * width, bias);
        continue;
      }
      for (int64_t at = from; at < to; at += SLOTS) {
        const int count = to - at < SLOTS ? int(to - at) : SLOTS;
        gather.keys(o, h, at, count, keys);
        gather.values(o, h, at, count, values);
        const Bias here{bias.at ? bias.at + (at - from) : nullptr, bias.head};
        read_part<float>(group, q, keys, values, width, count, top + first, sum + first, out + first * width, here);
      }
    }
  }

  // This thread's share of the slots of all offers.
  void share_of(int thread, int threads) {
    for (int h = 0; h < heads; h++) top[h] = NOTHING, sum[h] = 0.0f;
    memset(out, 0, sizeof(float) * size_t(heads) * width);
    int64_t total = 0, begin = 0;
    for (int i = 0; i < asked->offer_count; i++) total += asked->offers[i].count;
    Share mine = share((total + 15) / 16, thread, threads);
    mine = {mine.begin * 16, mine.end * 16 > total ? total : mine.end * 16};
    const float *turned = nullptr;
    for (int i = 0; i < asked->offer_count; begin += asked->offers[i++].count) {
      const pk_offer &o = asked->offers[i];
      const int64_t from = mine.begin > begin ? mine.begin - begin : 0, to = mine.end - begin < o.count ? mine.end - begin : o.count;
      if (from >= to) continue;
      if (o.query_cos != turned) turn_query(o);
      turned = o.query_cos;
      read(o, from, to);
    }
  }

  // Heads [from, to) of the result, out of all threads' parts.
  void merge(Share mine, int threads) const {
    for (int64_t h = mine.begin; h < mine.end; h++) {
      float most = NOTHING, whole = 0.0f;
      for (int t = 0; t < threads; t++) most = part(t)[h] > most ? part(t)[h] : most;
      float *to = part(0) + 2 * heads + h * width;
      for (int t = 0; t < threads; t++) {
        const float *own = part(t), *from = own + 2 * heads + h * width;
        const float weight = own[heads + h] > 0.0f ? exponential(own[h] - most) : 0.0f;
        whole += weight * own[heads + h];
        for (int d = 0; d < width; d++) to[d] = t ? to[d] + weight * from[d] : weight * from[d];
      }
      T *result = static_cast<T *>(asked->out) + h * width;
      for (int d = 0; d < width; d++) put(result + d, to[d] / whole);
      asked->lse[h] = most + logf(whole);
    }
  }
};

template <class T>
static void read_as(const ReadStep &step, int thread) {
  Reading<T> own(step.asked, thread);
  own.share_of(thread, step.threads);
  step.barrier->wait();
  own.merge(share(own.heads, thread, step.threads), step.threads);
}

}  // namespace PK_SET
}  // namespace pk

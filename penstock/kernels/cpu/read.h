// Attention of one token over parts that somebody else keeps: each thread reads its share of all slots, whatever part
// they are in, and the results are merged exactly.  Codes are decoded, and raw keys turned, a block at a time.
#pragma once
#include "attention.h"
#include "model.h"

namespace pk {
namespace PK_SET {

constexpr int FAR = 16;  // slots

// T: how queries, and keys and values that are no codes, are stored.
template <class T>
struct Reading {
  const pk_reading *asked;
  int heads, kv, group, width;
  float *top, *sum, *out, *query, *keys, *values, *scale, *zero;  // of this thread

  Reading(const pk_reading *asked, int thread) : asked(asked), heads(asked->heads), kv(asked->kv_heads), group(heads / kv), width(asked->width) {
    top = part(thread), sum = top + heads, out = sum + heads;
    query = out + heads * width, keys = query + heads * width, values = keys + SLOTS * width;
    scale = values + SLOTS * width, zero = scale + width;
  }

  float *part(int thread) const { return asked->work + thread * pk_read_room(heads, width); }

  // The query where an offer wants it; `plain` is room for one head.
  void turn_query(const pk_offer &o) {
    float *plain = scale;
    for (int h = 0; h < heads; h++) {
      const T *from = reinterpret_cast<const T *>(static_cast<const char *>(asked->query) + h * asked->query_head);
      for (int d = 0; d < width; d++) plain[d] = get(from + d) * asked->scale;
      rotate(plain, o.query_cos, o.query_sin, asked->half, asked->interleaved, width, query + h * width);
    }
  }

  // Codes of one row: zero + code * scale, given by functions of the first channel of a vector.
  template <class Scale, class Zero>
  void decode(int kind, const uint8_t *codes, Scale scale_at, Zero zero_at, float *to) const {
    const int half = width / 2;
    if (kind == PK_CODES8)
      for (int d = 0; d < width; d += PK_LANES) store(to + d, zero_at(d) + __builtin_convertvector(load_codes(codes + d), V) * scale_at(d));
    else
      for (int d = 0; d < half; d += PK_LANES) {
        const I both = load_codes(codes + d);
        store(to + d, zero_at(d) + __builtin_convertvector(both & 15, V) * scale_at(d));
        store(to + half + d, zero_at(half + d) + __builtin_convertvector(both >> 4, V) * scale_at(half + d));
      }
  }

  // The key or value of one slot, as stored.
  const T *stored_at(const pk_offer &o, const char *head, int64_t at, int h, int64_t slot) const {
    if (o.blocks) head = static_cast<const char *>(o.blocks[h * o.blocks_head + slot / o.block]) + at, slot %= o.block;
    return reinterpret_cast<const T *>(head) + slot * width;
  }

  // Asks for a slot's numbers some slots before they are needed, where blocks lie anywhere.
  void ask_for(const pk_offer &o, int64_t at, int h, int64_t slot) const {
    if (o.blocks && slot < o.count) fetch(stored_at(o, nullptr, at, h, slot), width * int64_t(sizeof(T)));
  }

  // Slots [from, from + count) of one head, ready to be read.
  void gather_keys(const pk_offer &o, int h, int64_t from, int count) {
    const char *head = o.blocks ? nullptr : static_cast<const char *>(o.key) + h * o.key_head;
    const bool coded = o.kind == PK_CODES8 || o.kind == PK_CODES4;
    for (int d = 0; coded && d < width; d++) scale[d] = from_half(o.key_scale[h * width + d]), zero[d] = from_half(o.key_zero[h * width + d]);
    float *plain = zero + width;
    for (int s = 0; s < count; s++) {
      float *to = keys + s * width, *row = o.key_cos ? plain : to;
      if (coded) {
        decode(o.kind, reinterpret_cast<const uint8_t *>(head) + (from + s) * width * o.kind / 8, [&](int d) { return load(scale + d); }, [&](int d) { return load(zero + d); }, row);
      } else {
        const T *stored = stored_at(o, head, o.key_at + h * o.key_head, h, from + s);
        ask_for(o, o.key_at + h * o.key_head, h, from + s + FAR);
        for (int d = 0; d < width; d++) row[d] = get(stored + d);
      }
      if (o.key_cos) rotate(row, o.key_cos + (from + s) * asked->half, o.key_sin + (from + s) * asked->half, asked->half, asked->interleaved, width, to);
    }
  }

  void gather_values(const pk_offer &o, int h, int64_t from, int count) {
    const char *head = o.blocks ? nullptr : static_cast<const char *>(o.value) + h * o.value_head;
    const bool coded = o.kind == PK_CODES8 || o.kind == PK_CODES4;
    const int groups = coded ? width >> o.shared : 0;
    for (int s = 0; s < count; s++) {
      if (coded) {
        const int64_t at = (h * o.count + from + s) * groups;
        for (int g = 0; g < groups; g++) scale[g] = from_half(o.value_scale[at + g]), zero[g] = from_half(o.value_zero[at + g]);
        decode(o.kind, reinterpret_cast<const uint8_t *>(head) + (from + s) * width * o.kind / 8, [&](int d) { return V{} + scale[d >> o.shared]; },
               [&](int d) { return V{} + zero[d >> o.shared]; }, values + s * width);
      } else {
        const T *stored = stored_at(o, head, o.value_at + h * o.value_head, h, from + s);
        ask_for(o, o.value_at + h * o.value_head, h, from + s + FAR);
        for (int d = 0; d < width; d++) values[s * width + d] = get(stored + d);
      }
    }
  }

  void read(const pk_offer &o, int64_t from, int64_t to) {
    const bool direct = o.kind == asked->stored && !o.key_cos && !o.blocks;
    for (int h = 0; h < kv; h++) {
      const int first = h * group;
      const float *q = query + first * width;
      const Bias bias{o.bias ? o.bias + first * o.bias_head + from : nullptr, o.bias_head};
      if (direct) {
        const T *key = reinterpret_cast<const T *>(static_cast<const char *>(o.key) + h * o.key_head) + from * width;
        const T *value = reinterpret_cast<const T *>(static_cast<const char *>(o.value) + h * o.value_head) + from * width;
        read_part<T>(group, q, key, value, width, to - from, top + first, sum + first, out + first * width, bias);
        continue;
      }
      for (int64_t at = from; at < to; at += SLOTS) {
        const int count = to - at < SLOTS ? int(to - at) : SLOTS;
        gather_keys(o, h, at, count);
        gather_values(o, h, at, count);
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

void read(void *given, int thread) {
  const auto *step = static_cast<const ReadStep *>(given);
  step->asked->stored == PK_FLOAT32 ? read_as<float>(*step, thread) : read_as<uint16_t>(*step, thread);
}

}  // namespace PK_SET
}  // namespace pk

// Keys and values of an offer made ready to be read: found where they lie, codes decoded, raw keys turned.
#pragma once
#include "attention.h"
#include "model.h"

namespace pk {
namespace PK_SET {

constexpr int FAR = 16;  // slots

// T: how keys and values that are no codes are stored.
template <class T>
struct Gather {
  const pk_reading *asked;
  int width;
  float *scale, *zero;  // [width], [2 * width]: room

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

  // Slots [from, from + count) of one head, ready to be read: rows of `width` floats.
  void keys(const pk_offer &o, int h, int64_t from, int count, float *rows) {
    const char *head = o.blocks ? nullptr : static_cast<const char *>(o.key) + h * o.key_head;
    const bool coded = o.kind == PK_CODES8 || o.kind == PK_CODES4;
    for (int d = 0; coded && d < width; d++) scale[d] = from_half(o.key_scale[h * width + d]), zero[d] = from_half(o.key_zero[h * width + d]);
    float *plain = zero + width;
    for (int s = 0; s < count; s++) {
      float *to = rows + s * width, *row = o.key_cos ? plain : to;
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

  void values(const pk_offer &o, int h, int64_t from, int count, float *rows) {
    const char *head = o.blocks ? nullptr : static_cast<const char *>(o.value) + h * o.value_head;
    const bool coded = o.kind == PK_CODES8 || o.kind == PK_CODES4;
    const int groups = coded ? width >> o.shared : 0;
    for (int s = 0; s < count; s++) {
      if (coded) {
        const int64_t at = (h * o.count + from + s) * groups;
        for (int g = 0; g < groups; g++) scale[g] = from_half(o.value_scale[at + g]), zero[g] = from_half(o.value_zero[at + g]);
        decode(o.kind, reinterpret_cast<const uint8_t *>(head) + (from + s) * width * o.kind / 8, [&](int d) { return V{} + scale[d >> o.shared]; },
               [&](int d) { return V{} + zero[d >> o.shared]; }, rows + s * width);
      } else {
        const T *stored = stored_at(o, head, o.value_at + h * o.value_head, h, from + s);
        ask_for(o, o.value_at + h * o.value_head, h, from + s + FAR);
        for (int d = 0; d < width; d++) rows[s * width + d] = get(stored + d);
      }
    }
  }
};

}  // namespace PK_SET
}  // namespace pk

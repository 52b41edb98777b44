// Blocks that stand in the lists worth looking into, by what those are worth together.  How long it takes depends on
// what the lists hold, not on how many blocks there are.
#include "model.h"

#include <algorithm>
#include <cmath>
#include <new>
#include <vector>

namespace pk {
namespace {

// What blocks are worth together, by number: open addressing, twice as large as it will be filled.
class Worth {
 public:
  explicit Worth(int64_t entries) {
    size_t size = 64;
    while (size < size_t(2 * entries)) size *= 2;
    blocks_.assign(size, -1), worth_.assign(size, 0.0);
  }

  double &of(int64_t block) {
    const size_t at = place(block);
    blocks_[at] = block;
    return worth_[at];
  }

  bool has(int64_t block) const { return blocks_[place(block)] == block; }

  template <class Each>
  void all(Each each) const {
    for (size_t i = 0; i < blocks_.size(); i++)
      if (blocks_[i] >= 0) each(blocks_[i], worth_[i]);
  }

 private:
  size_t place(int64_t block) const {
    size_t at = size_t(uint64_t(block) * 0x9e3779b97f4a7c15u >> 20) & (blocks_.size() - 1);
    while (blocks_[at] >= 0 && blocks_[at] != block) at = (at + 1) & (blocks_.size() - 1);
    return at;
  }

  std::vector<int64_t> blocks_;
  std::vector<double> worth_;
};

// The lists to look into, the best first: up to `best`, and those that begin within `limit` blocks.
std::vector<int64_t> looked_into(const pk_search *asked) {
  const int64_t every = int64_t(asked->kv_heads) * asked->lists;
  std::vector<int64_t> some;
  for (int64_t k = 0; k < every; k++)
    if (asked->worth[k] > 0.0f) some.push_back(k);
  const auto better = [&](int64_t a, int64_t b) { return asked->worth[a] != asked->worth[b] ? asked->worth[a] > asked->worth[b] : a < b; };
  const size_t count = std::min(some.size(), size_t(asked->best));
  std::partial_sort(some.begin(), some.begin() + int64_t(count), some.end(), better);
  some.resize(count);
  float held = 0.0f;
  for (size_t i = 0; i < count; held += asked->sizes[some[i++]])
    if (held >= float(asked->limit)) return some.resize(i), some;
  return some;
}

}  // namespace

int64_t found_by(const pk_search *asked) try {
  const std::vector<int64_t> some = looked_into(asked);
  int64_t entries = 0;
  for (int64_t k : some) entries += int64_t(asked->sizes[k]);
  Worth worth(entries);
  for (int64_t k : some)
    for (int i = 0; i < asked->run_count; i++) {
      const pk_block_run &run = asked->runs[i];
      for (int32_t at = run.starts[k]; run.last > asked->oldest && at < run.starts[k + 1]; at++) {
        const int64_t block = run.first + run.blocks[at];
        if (block >= asked->oldest) worth.of(block) += double(asked->worth[k]);
      }
    }
  struct Candidate {
    int64_t steps, block;
  };
  std::vector<Candidate> all;
  worth.all([&](int64_t block, double w) { all.push_back({std::llrint(std::log2(std::max(w, 1e-30)) * 4096.0), block}); });
  const size_t most = size_t(asked->most);
  if (all.size() > most) {  // of equals the newer
    std::nth_element(all.begin(), all.begin() + asked->most, all.end(),
                     [](const Candidate &a, const Candidate &b) { return a.steps != b.steps ? a.steps > b.steps : a.block > b.block; });
    all.resize(most);
  }
  int64_t count = 0;
  for (const Candidate &each : all) asked->found[count++] = each.block;
  const int64_t end = asked->runs[asked->run_count - 1].last;
  for (int64_t block = end - 1; count < asked->most && block >= std::max(asked->oldest, end - asked->most); block--)
    if (!worth.has(block)) asked->found[count++] = block;
  std::sort(asked->found, asked->found + count);
  return count;
} catch (const std::bad_alloc &) {
  return -1;
}

}  // namespace pk

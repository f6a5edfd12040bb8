// The highest logit of every block of the vocabulary, and the best token of every row, in one read; and
// the mass of every block, in another.
//
// Does what exec/blocks.py does in torch; called by it. A row's result depends on no other row.

#include <algorithm>
#include <cmath>
#include <limits>

#include "vectors.h"

namespace {

using namespace batchgen;

constexpr int64_t WORTH_THREADS = 1 << 16; // logits below which other threads stay asleep

// NaN if there is one among them.
float top_of(const float *logits, int64_t count) {
  Vec top = all(-std::numeric_limits<float>::infinity());
  Ints strange{};
  for (int64_t i = 0; i < count; i += LANES) {
    const Vec one = load(logits + i);
    strange |= one != one;
    top = one > top ? one : top;
  }
  int32_t any = 0;
  for (int lane = 0; lane < LANES; lane++) any |= strange[lane];
  return any ? std::numeric_limits<float>::quiet_NaN() : largest(top);
}

} // namespace

// logits [rows, blocks, block], `block` a multiple of 16; tops [rows, blocks]; best [rows]: the first of
// the highest logits, `none` where that is not finite.
extern "C" void batchgen_block_tops(int threads, const float *logits, int64_t rows, int64_t blocks,
                                    int64_t block, int64_t none, float *tops, int64_t *best) {
#pragma omp parallel for num_threads(threads) if (threads > 1 && rows * blocks * block > WORTH_THREADS)
  for (int64_t row = 0; row < rows; row++) {
    const float *ours = logits + row * blocks * block;
    float *top = tops + row * blocks;
    int64_t found = 0;
    bool strange = false;
    for (int64_t b = 0; b < blocks; b++) {
      top[b] = top_of(ours + b * block, block);
      strange = strange || std::isnan(top[b]);
      if (top[b] > top[found]) found = b;
    }
    if (strange || !std::isfinite(top[found])) {
      best[row] = none;
      continue;
    }
    const float *inside = ours + found * block;
    best[row] = found * block + (std::find(inside, inside + block, top[found]) - inside);
  }
}

// Sums of e^((logit - best) * scale) over every block of `count` rows that are named by `rows`; best and
// scales [count], and no logit above its row's best.
extern "C" void batchgen_block_masses(int threads, const float *logits, const int64_t *rows,
                                      int64_t count, int64_t blocks, int64_t block,
                                      const float *best, const float *scales, float *sums) {
#pragma omp parallel for num_threads(threads) if (threads > 1 && count * blocks * block > WORTH_THREADS)
  for (int64_t i = 0; i < count; i++)
    for (int64_t b = 0; b < blocks; b++) {
      const float *ours = logits + (rows[i] * blocks + b) * block;
      Vec sum{};
      for (int64_t at = 0; at < block; at += LANES)
        sum += exponential((load(ours + at) - best[i]) * scales[i]);
      sums[i * blocks + b] = total(sum);
    }
}

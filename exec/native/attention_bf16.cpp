// Paged attention in bfloat16 with the processor's dot products of that type.
//
// Takes the place of attention.cpp where it can: keys are multiplied as they are kept, values after
// pairs of tokens were interleaved, in blocks of BLOCK positions that begin at multiples of BLOCK.
// All query rows of a tile (heads of a kv head times tokens) share a block; a tile of few rows takes
// vector instructions, one of many matrix tiles (attention_tiles.h). Scores, maxima, sums and outputs
// are float32; weights are rounded to bfloat16 and what they are divided by is the sum of the rounded.
//
// What a query gives depends on its segment of the pass, not on the other segments or the threads.

#include <atomic>
#include <new>

#include "attention.h"

#ifndef __AVX512BF16__

bool batchgen::attend_bfloat16(const AttentionJob &, int, int) { return false; }

#else

#include "attention_bf16.h"
#include "attention_tiles.h"

namespace {

using namespace batchgen;

constexpr int FEW_ROWS = 2; // up to so many, vector instructions take no longer than matrix tiles

// Rows of the keys and values at positions [first, first + BLOCK), and those that are zeros.
struct Located {
  const Bfloat16 *keys[BLOCK], *values[BLOCK];
  int64_t first, end; // positions; [first, end) have keys
};

alignas(64) const Bfloat16 ZEROS[16 * MOST_DIM] = {};

// Values outside of [from, end) are taken for zeros: a weight of zero does not hide a stray NaN.
void locate(const AttentionJob &job, const int64_t *pages, int64_t head, int64_t first,
            int64_t from, int64_t end, Located &located) {
  const int64_t to_values = job.kv_heads * job.page_tokens * job.head_dim;
  located.first = first;
  located.end = end = first + BLOCK < end ? first + BLOCK : end;
  int64_t position = first;
  while (position < end) {
    int64_t stop = position - position % job.page_tokens + job.page_tokens;
    stop = stop < end ? stop : end;
    const Bfloat16 *key = place<Bfloat16>(job, pages, 0, head, position);
    for (; position < stop; position++, key += job.head_dim) {
      located.keys[position - first] = key;
      located.values[position - first] = position < from ? ZEROS : key + to_values;
    }
  }
  for (; position < first + BLOCK; position++)
    located.keys[position - first] = located.values[position - first] = ZEROS;
}

// Sixteen keys each, `width` apart: where they are kept, if they lie so, or copied and padded.
void gather_keys(const AttentionJob &job, const Located &located, int64_t width, Buffers &buffers) {
  const bool kept = width == job.head_dim && job.page_tokens % LANES == 0;
  for (int part = 0; part < BLOCK / LANES; part++) {
    const int64_t first = part * LANES, count = located.end - located.first - first;
    if (count <= 0) {
      buffers.key_parts[part] = ZEROS;
    } else if (kept && count >= LANES) {
      buffers.key_parts[part] = located.keys[first];
    } else {
      Bfloat16 *to = buffers.keys.data() + first * width;
      buffers.key_parts[part] = to;
      for (int k = 0; k < LANES; k++, to += width) {
        std::memcpy(to, located.keys[first + k], job.head_dim * sizeof(Bfloat16));
        std::memset(to + job.head_dim, 0, (width - job.head_dim) * sizeof(Bfloat16));
      }
    }
  }
}

// Pairs of tokens of the values, [BLOCK / 2, width, 2].
void interleave_values(const AttentionJob &job, const Located &located, int64_t width, Ahead &ahead,
                       Bfloat16 *out) {
  alignas(64) uint16_t low[32], high[32];
  for (int i = 0; i < 16; i++) {
    low[2 * i] = i, low[2 * i + 1] = i + 32;
    high[2 * i] = i + 16, high[2 * i + 1] = i + 48;
  }
  const __m512i low_order = _mm512_load_si512(low), high_order = _mm512_load_si512(high);
  const int64_t pairs = (located.end - located.first + 31) / 32 * 16;
  const int64_t rest = job.head_dim % 32;
  const __mmask32 tail = rest ? (1u << rest) - 1 : ~0u;
  for (int64_t pair = 0; pair < pairs; pair++) {
    ahead.step();
    const Bfloat16 *one = located.values[2 * pair], *other = located.values[2 * pair + 1];
    for (int64_t d = 0; d < width; d += 32, out += 64) {
      const __mmask32 mask = d + 32 < width ? ~0u : tail;
      const __m512i a = _mm512_maskz_loadu_epi16(mask, one + d);
      const __m512i b = _mm512_maskz_loadu_epi16(mask, other + d);
      _mm512_store_si512(out, _mm512_permutex2var_epi16(a, low_order, b));
      _mm512_store_si512(out + 32, _mm512_permutex2var_epi16(a, high_order, b));
    }
  }
}

void load_queries(const AttentionJob &job, const AttentionTile &tile, int64_t width, bool matrix,
                  Buffers &buffers) {
  const int64_t rows = tile.size * tile.groups;
  const int64_t token = job.firsts[tile.segment] + tile.begin;
  // Matrix tiles take sixteen rows at a time: those behind the last are zeros.
  const int64_t padded = (rows + LANES - 1) / LANES * LANES;
  std::memset(buffers.outputs.data(), 0, padded * width * sizeof(float));
  std::memset(buffers.norms.data(), 0, padded * LANES * sizeof(float));
  for (int64_t row = 0; row < padded; row++) {
    Bfloat16 *query = buffers.queries.data() + row * width;
    std::memset(query, 0, width * sizeof(Bfloat16));
    buffers.top[row] = LOWEST;
    buffers.norm[row] = 0;
    if (row >= rows) continue;
    const int64_t head = tile.first_head + row % tile.groups;
    const int64_t at = ((token + row / tile.groups) * job.heads + head) * job.head_dim;
    std::memcpy(query, static_cast<const Bfloat16 *>(job.queries) + at,
                job.head_dim * sizeof(Bfloat16));
    if (job.sinks) { // a key that was seen first, with a value of zeros
      buffers.top[row] = job.sinks[head] * LOG2_E;
      (matrix ? buffers.norm[row] : buffers.norms[row * LANES]) = 1;
    }
  }
}

void store_outputs(const AttentionJob &job, const AttentionTile &tile, int64_t width,
                   const Buffers &buffers) {
  const int64_t token = job.firsts[tile.segment] + tile.begin;
  for (int64_t row = 0; row < tile.size * tile.groups; row++) {
    const int64_t head = tile.first_head + row % tile.groups;
    const int64_t at = ((token + row / tile.groups) * job.heads + head) * job.head_dim;
    const float *from = buffers.outputs.data() + row * width;
    Bfloat16 *to = static_cast<Bfloat16 *>(job.out) + at;
    const Vec norm = all(buffers.norm[row] + total(load(buffers.norms.data() + row * LANES)));
    for (int64_t d = 0; d < job.head_dim; d += LANES) {
      const int64_t left = job.head_dim - d;
      const __mmask16 mask = left < LANES ? (1u << left) - 1 : 0xffff;
      const Vec mean = load(from + d) / norm;
      const __m256bh narrow = _mm512_cvtneps_pbh(reinterpret_cast<__m512>(mean));
      _mm256_mask_storeu_epi16(to + d, mask, reinterpret_cast<__m256i>(narrow));
    }
  }
}

template <int N> // vectors of 32 elements of a head
void attend_tile(const AttentionJob &job, const AttentionTile &tile, const AttentionTile *following,
                 bool may_tile, Buffers &buffers) {
  constexpr int64_t width = N * 2 * LANES;
  const int64_t *pages = job.tables + tile.segment * job.table_width;
  const int64_t rows = tile.size * tile.groups, row_bytes = job.head_dim * sizeof(Bfloat16);
  const int64_t position = job.starts[tile.segment] + tile.begin, end = position + tile.size;
  const auto hidden = [&](int64_t at) {
    return job.window && at + 1 > job.window ? at + 1 - job.window : 0;
  };
  const bool matrix = may_tile && rows > FEW_ROWS;
  load_queries(job, tile, width, matrix, buffers);
  if (matrix) turn_queries<N>(rows, buffers);
  Located located[2];
  const int64_t from = hidden(position);
  int turn = 0;
  locate(job, pages, tile.kv_head, from - from % BLOCK, from, end, located[0]);
  for (int64_t first = located[0].first; first < end; first += BLOCK, turn ^= 1) {
    Located *next = &located[turn ^ 1];
    if (first + BLOCK < end) {
      locate(job, pages, tile.kv_head, first + BLOCK, from, end, *next);
    } else if (following) {
      const int64_t at = job.starts[following->segment] + following->begin, begin = hidden(at);
      locate(job, job.tables + following->segment * job.table_width, following->kv_head,
             begin - begin % BLOCK, begin, at + following->size, *next);
    } else {
      next = nullptr;
    }
    Ahead ahead;
    if (next) ahead = {next->keys, next->values, next->end - next->first, row_bytes};
    gather_keys(job, located[turn], width, buffers);
    interleave_values(job, located[turn], width, ahead, buffers.values.data());
    const int64_t keys = located[turn].end - first;
    for (int64_t row = 0; row < rows; row++) {
      const int64_t at = position + row / tile.groups;
      buffers.seen[row] = static_cast<int32_t>(at + 1 - first < BLOCK ? at + 1 - first : BLOCK);
      buffers.from[row] = static_cast<int32_t>(hidden(at) > first ? hidden(at) - first : 0);
    }
    if (matrix) {
      ahead.rest(); // before the products, which bring in nothing themselves
      attend_block_in_tiles<N>(rows, keys, job.scale * LOG2_E, buffers);
    } else {
      attend_block<N>(rows, keys, job.scale * LOG2_E, ahead, buffers);
      ahead.rest();
    }
  }
  store_outputs(job, tile, width, buffers);
}

template <int N> void attend_all(const AttentionJob &job, int threads, bool matrix) {
  const std::vector<AttentionTile> tiles = attention_tiles(job, MOST_ROWS);
  const int64_t items = static_cast<int64_t>(tiles.size());
  std::atomic<bool> failed{false};
#pragma omp parallel num_threads(threads) if (threads > 1 && items > 1)
  {
    thread_local Buffers buffers; // kept: fresh memory costs page faults
    try {
      buffers.fit(N * 2 * LANES);
    } catch (const std::bad_alloc &) { // must not leave the region
      failed = true;
    }
#pragma omp barrier
    const TileState state(matrix);
#pragma omp for schedule(dynamic, 4)
    for (int64_t item = 0; item < items; item++)
      if (!failed)
        attend_tile<N>(job, tiles[item], item + 1 < items ? &tiles[item + 1] : nullptr, matrix,
                       buffers);
  }
  if (failed) throw std::bad_alloc();
}

} // namespace

bool batchgen::attend_bfloat16(const AttentionJob &job, int threads, int instructions) {
  if (instructions < DOT_PRODUCTS || job.parts != 2 || job.value_dim != job.head_dim ||
      !(job.scale > 0))
    return false;
  const bool matrix = instructions >= TILES && may_use_tiles();
  switch ((job.head_dim + 31) / 32) {
  case 1: attend_all<1>(job, threads, matrix); return true;
  case 2: attend_all<2>(job, threads, matrix); return true;
  case 3: attend_all<3>(job, threads, matrix); return true;
  case 4: attend_all<4>(job, threads, matrix); return true;
  case 5: attend_all<5>(job, threads, matrix); return true;
  case 6: attend_all<6>(job, threads, matrix); return true;
  case 8: attend_all<8>(job, threads, matrix); return true;
  default: return false;
  }
}

#endif

// What the paths of paged attention share: the job of one layer, and where its keys and values lie.

#pragma once

#include "vectors.h"

namespace batchgen {

struct AttentionJob {
  const void *queries;   // [tokens, heads, head_dim]
  const void *storage;   // [pages, layers, parts, kv_heads, page_tokens, head_dim]
  void *out;             // [tokens, heads, value_dim]
  const int64_t *tables; // [segments, table_width]: pages of each segment
  const int64_t *firsts, *starts, *lengths; // [segments]: flat token, position, tokens
  const float *sinks;    // [heads], or null
  float scale;           // of the products of queries and keys
  // parts: keys and values, or one in which values are the first value_dim elements of the keys.
  // window: a token sees so many, itself the last; 0: all.
  int64_t segments, table_width, layer, layers, parts, heads, kv_heads, page_tokens, head_dim,
      value_dim, window;
};

// Tokens [begin, begin + size) of a segment with `groups` query heads of a kv head from `first_head` on.
struct AttentionTile {
  int64_t segment, kv_head, first_head, groups, begin, size;
};

// All tiles of a job in the order in which threads take them, none of more than `most_rows` tokens
// times query heads. Tiles that share keys and values follow one another, so that these stay in the
// caches; of them the long ones come first, so that no thread is left alone with one at the end.
inline std::vector<AttentionTile> attention_tiles(const AttentionJob &job, int64_t most_rows) {
  const int64_t groups = job.heads / job.kv_heads;
  // Many query heads of a kv head are taken in slices, each as if it were all of them.
  const int64_t slice = groups < most_rows ? groups : most_rows, tokens = most_rows / slice;
  std::vector<AttentionTile> tiles;
  for (int64_t segment = job.segments - 1; segment >= 0; segment--) {
    const int64_t length = job.lengths[segment];
    for (int64_t head = 0; head < job.heads; head += slice) {
      const int64_t kv_head = head / groups, left = (kv_head + 1) * groups - head;
      const int64_t size = left < slice ? left : slice;
      for (int64_t begin = (length - 1) / tokens * tokens; begin >= 0; begin -= tokens) {
        const int64_t rest = length - begin;
        tiles.push_back({segment, kv_head, head, size, begin, rest < tokens ? rest : tokens});
      }
      head -= slice - size; // the next slice begins with the next kv head
    }
  }
  return tiles;
}

// Where the key (half 0) or value (1) of a position of one kv head lies; those behind it in its page
// follow.
template <class T>
const T *place(const AttentionJob &job, const int64_t *pages, int64_t half, int64_t head,
               int64_t position) {
  int64_t page = pages[position / job.page_tokens], offset = position % job.page_tokens;
  int64_t plane = ((page * job.layers + job.layer) * job.parts + half) * job.kv_heads + head;
  return static_cast<const T *>(job.storage) + (plane * job.page_tokens + offset) * job.head_dim;
}

// Instructions that a path may use, each with those before it.
enum Instructions { PORTABLE = 0, DOT_PRODUCTS = 1, TILES = 2 };

// Attention in bfloat16 with its dot products; false, and nothing done, where this build or this
// machine has none or the job has another shape (latents).
bool attend_bfloat16(const AttentionJob &job, int threads, int instructions);

} // namespace batchgen

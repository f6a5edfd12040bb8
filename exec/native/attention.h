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
// times query heads. Long tiles of a chunk come first: no thread is left alone with one at the end.
class AttentionTiles {
public:
  AttentionTiles(const AttentionJob &job, int64_t most_rows) : groups(job.heads / job.kv_heads) {
    // Many query heads of a kv head are taken in slices, each as if it were all of them.
    slice = groups < most_rows ? groups : most_rows;
    slices = (groups + slice - 1) / slice;
    tokens = most_rows / slice;
    each = job.kv_heads * slices;
    for (int64_t segment = 0; segment < job.segments; segment++)
      for (int64_t begin = 0; begin < job.lengths[segment]; begin += tokens) {
        const int64_t left = job.lengths[segment] - begin;
        parts.push_back({segment, begin, left < tokens ? left : tokens});
      }
  }
  int64_t size() const { return static_cast<int64_t>(parts.size()) * each; }
  int64_t rows() const { return tokens * slice; } // at most, of a tile
  AttentionTile operator[](int64_t item) const {
    const Part &part = parts[parts.size() - 1 - item / each];
    const int64_t kv_head = item % each / slices, skipped = item % slices * slice;
    const int64_t left = groups - skipped;
    return {part.segment,  kv_head, kv_head * groups + skipped, left < slice ? left : slice,
            part.begin, part.size};
  }

private:
  struct Part {
    int64_t segment, begin, size;
  };
  int64_t groups, slice, slices, tokens, each;
  std::vector<Part> parts;
};

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

// Paged attention of one layer on the CPU, decoding rows and prompt chunks alike.
//
// Does what exec/attention.py does in torch, without gathering pages or widening them in memory.
// Built and called by exec/compiled.py; knows no torch.
//
// The arithmetic of a query depends on nothing but the query, its row's keys and values in order of
// position, and BLOCK: not on the other tokens of the pass, the page size or the threads. Keys are
// taken in blocks of BLOCK that begin at multiples of BLOCK, with a running maximum and sum.

#include "vectors.h"

namespace {

using namespace batchgen;

constexpr int BLOCK = 32;        // keys that share one rescaling of the running sums
constexpr int TILE_QUERIES = 32; // query heads times tokens that share a block in the cache
constexpr float LOWEST = -1e30f; // finite: the difference of two of them must not be NaN

struct Job {
  const void *queries;   // [tokens, heads, head_dim]
  const void *storage;   // [pages, layers, 2, kv_heads, page_tokens, head_dim]
  void *out;             // as queries
  const int64_t *tables; // [segments, table_width]: pages of each segment
  const int64_t *firsts, *starts, *lengths; // [segments]: flat token, position, tokens
  int64_t segments, table_width, layer, layers, heads, kv_heads, page_tokens, head_dim;
};

struct Buffers {
  Lines<float> queries, keys, values, outputs;
  explicit Buffers(int64_t rows, int64_t width)
      : queries(rows * width), keys(BLOCK * width), values(BLOCK * width), outputs(rows * width) {}
};

// Where the key or value of a position of one kv head lies; those behind it in its page follow.
template <class T>
const T *place(const Job &job, const int64_t *pages, int64_t half, int64_t head, int64_t position) {
  int64_t page = pages[position / job.page_tokens], offset = position % job.page_tokens;
  int64_t plane = ((page * job.layers + job.layer) * 2 + half) * job.kv_heads + head;
  return static_cast<const T *>(job.storage) + (plane * job.page_tokens + offset) * job.head_dim;
}

// Keys or values of positions [begin, end) of one kv head as floats, `width` apart; zeros beyond.
template <class T>
void widen_block(const Job &job, const int64_t *pages, int64_t half, int64_t head, int64_t begin,
                 int64_t end, int64_t width, float *out) {
  for (int64_t position = begin; position < end;) {
    int64_t stop = position - position % job.page_tokens + job.page_tokens;
    stop = stop < end ? stop : end;
    const T *from = place<T>(job, pages, half, head, position);
    float *to = out + (position - begin) * width;
    if (width == job.head_dim) {
      for (int64_t i = 0; i < (stop - position) * width; i++) to[i] = widen(from[i]);
    } else {
      for (; position < stop; position++, from += job.head_dim, to += width)
        for (int64_t d = 0; d < job.head_dim; d++) to[d] = widen(from[d]);
    }
    position = stop;
  }
  std::memset(out + (end - begin) * width, 0, (begin + BLOCK - end) * width * sizeof(float));
}

// One query against one block of keys; `seen` of them count, at least one. N vectors per head.
template <int N>
inline void attend_block(const float *query, const Buffers &block, int64_t seen, int count,
                         float *output, float &top, float &norm) {
  const int n = N ? N : count;
  const int width = n * LANES;
  Vec scores[BLOCK / LANES];
  float highest = top;
  for (int part = 0; part < BLOCK / LANES; part++) {
    if (seen <= part * LANES) {
      scores[part] = all(LOWEST);
      continue;
    }
    Vec products[LANES];
    const float *keys = block.keys.data() + part * LANES * width;
    for (int k = 0; k < LANES; k += 4) { // four sums side by side: one waits for its own last step
      Vec sum[4];
      for (int i = 0; i < 4; i++) sum[i] = load(query) * load(keys + (k + i) * width);
      for (int j = 1; j < n; j++) {
        Vec part = load(query + j * LANES);
        for (int i = 0; i < 4; i++) sum[i] += part * load(keys + (k + i) * width + j * LANES);
      }
      for (int i = 0; i < 4; i++) products[k + i] = sum[i];
    }
    Ints number;
    for (int i = 0; i < LANES; i++) number[i] = part * LANES + i;
    scores[part] = number < static_cast<int32_t>(seen) ? sums(products) : all(LOWEST);
    float part_top = largest(scores[part]);
    highest = part_top > highest ? part_top : highest;
  }
  float weights[BLOCK];
  float factor = exponential(all(top - highest))[0];
  Vec added{};
  for (int part = 0; part < BLOCK / LANES; part++) {
    Vec weight = exponential(scores[part] - highest);
    added += weight;
    store(weights + part * LANES, weight);
  }
  norm = norm * factor + total(added);
  top = highest;
  const float *values = block.values.data();
  if (N) {
    Vec sum[N ? N : 1];
    for (int j = 0; j < n; j++) sum[j] = load(output + j * LANES) * factor;
    for (int64_t k = 0; k < seen; k++)
      for (int j = 0; j < n; j++) sum[j] += load(values + k * width + j * LANES) * weights[k];
    for (int j = 0; j < n; j++) store(output + j * LANES, sum[j]);
  } else {
    for (int j = 0; j < n; j++) {
      Vec sum = load(output + j * LANES) * factor;
      for (int64_t k = 0; k < seen; k++) sum += load(values + k * width + j * LANES) * weights[k];
      store(output + j * LANES, sum);
    }
  }
}

// Tokens [begin, begin + size) of a segment, all query heads of one kv head.
template <class T, int N>
void attend_tile(const Job &job, int64_t segment, int64_t head, int64_t begin, int64_t size,
                 Buffers &buffers) {
  const int count = static_cast<int>((job.head_dim + LANES - 1) / LANES);
  const int64_t width = count * LANES, groups = job.heads / job.kv_heads, rows = size * groups;
  const int64_t *pages = job.tables + segment * job.table_width;
  const int64_t token = job.firsts[segment] + begin, position = job.starts[segment] + begin;
  const float scale = 1.0f / __builtin_sqrtf(static_cast<float>(job.head_dim));
  const T *queries = static_cast<const T *>(job.queries);
  T *out = static_cast<T *>(job.out);
  float top[TILE_QUERIES], norm[TILE_QUERIES];
  for (int64_t row = 0; row < rows; row++) {
    int64_t at = ((token + row / groups) * job.heads + head * groups + row % groups) * job.head_dim;
    float *query = buffers.queries.data() + row * width;
    for (int64_t d = 0; d < width; d++) query[d] = d < job.head_dim ? widen(queries[at + d]) * scale : 0;
    std::memset(buffers.outputs.data() + row * width, 0, width * sizeof(float));
    top[row] = LOWEST;
    norm[row] = 0;
  }
  const int64_t end = position + size;
  for (int64_t first = 0; first < end; first += BLOCK) {
    int64_t stop = first + BLOCK < end ? first + BLOCK : end;
    widen_block<T>(job, pages, 0, head, first, stop, width, buffers.keys.data());
    widen_block<T>(job, pages, 1, head, first, stop, width, buffers.values.data());
    for (int64_t row = 0; row < rows; row++) {
      int64_t seen = position + row / groups + 1 - first;
      if (seen > 0)
        attend_block<N>(buffers.queries.data() + row * width, buffers, seen < BLOCK ? seen : BLOCK,
                        count, buffers.outputs.data() + row * width, top[row], norm[row]);
    }
  }
  for (int64_t row = 0; row < rows; row++) {
    int64_t at = ((token + row / groups) * job.heads + head * groups + row % groups) * job.head_dim;
    const float *output = buffers.outputs.data() + row * width;
    for (int64_t d = 0; d < job.head_dim; d++) narrow(output[d] / norm[row], out[at + d]);
  }
}

template <class T, int N> void attend_all(const Job &job, int threads) {
  const int64_t groups = job.heads / job.kv_heads;
  const int64_t tokens = groups < TILE_QUERIES ? TILE_QUERIES / groups : 1;
  const int64_t width = (job.head_dim + LANES - 1) / LANES * LANES;
  std::vector<int64_t> owners, begins;
  for (int64_t segment = 0; segment < job.segments; segment++)
    for (int64_t begin = 0; begin < job.lengths[segment]; begin += tokens) {
      owners.push_back(segment);
      begins.push_back(begin);
    }
  const int64_t items = static_cast<int64_t>(owners.size()) * job.kv_heads;
#pragma omp parallel num_threads(threads) if (threads > 1 && items > 1)
  {
    Buffers buffers(tokens * groups, width);
    // Long tiles of a chunk come last: taken first, no thread is left alone with one at the end.
#pragma omp for schedule(dynamic, 4)
    for (int64_t item = 0; item < items; item++) {
      int64_t tile = static_cast<int64_t>(owners.size()) - 1 - item / job.kv_heads;
      int64_t segment = owners[tile];
      int64_t left = job.lengths[segment] - begins[tile];
      attend_tile<T, N>(job, segment, item % job.kv_heads, begins[tile], left < tokens ? left : tokens,
                        buffers);
    }
  }
}

template <class T> void attend(const Job &job, int threads) {
  switch ((job.head_dim + LANES - 1) / LANES) {
  case 1: return attend_all<T, 1>(job, threads);
  case 2: return attend_all<T, 2>(job, threads);
  case 4: return attend_all<T, 4>(job, threads);
  case 8: return attend_all<T, 8>(job, threads);
  default: return attend_all<T, 0>(job, threads);
  }
}

} // namespace

// Returns 0, or 1 for a kind or a number of query heads that it does not know.
extern "C" int batchgen_paged_attention(int kind, int threads, const void *queries,
                                        const void *storage, void *out, const int64_t *tables,
                                        const int64_t *firsts, const int64_t *starts,
                                        const int64_t *lengths, const int64_t *sizes) {
  Job job{queries,  storage,  out,      tables,   firsts,   starts,   lengths, sizes[0],
          sizes[1], sizes[2], sizes[3], sizes[4], sizes[5], sizes[6], sizes[7]};
  if (job.heads > TILE_QUERIES * job.kv_heads) return 1;
  switch (kind) {
  case FLOAT32: attend<float>(job, threads); return 0;
  case BFLOAT16: attend<Bfloat16>(job, threads); return 0;
  case FLOAT16: attend<_Float16>(job, threads); return 0;
  default: return 1;
  }
}

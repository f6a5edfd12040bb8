// Paged attention of one layer on the CPU, decoding rows and prompt chunks alike.
//
// Does what exec/attention/reference.py does in torch, without gathering pages or widening them in
// memory. Built by exec/compiled.py, called by exec/attention/compiled.py; knows no torch.
//
// The arithmetic of a query depends on nothing but the query, its row's keys and values in order of
// position, the window, and BLOCK: not on the other tokens of the pass, the page size or the threads. Keys are
// taken in blocks of BLOCK that begin at multiples of BLOCK, with a running maximum and sum.

#include "attention.h"
#include "layers.h"

namespace {

using namespace batchgen;

constexpr int BLOCK = 32;        // keys that share one rescaling of the running sums
constexpr int TILE_QUERIES = 32; // query heads times tokens that share a block in the cache
constexpr float LOWEST = -1e30f; // finite: the difference of two of them must not be NaN

using Job = AttentionJob;

inline int64_t vectors(int64_t elements) { return (elements + LANES - 1) / LANES; }

struct Buffers {
  Lines<float> queries, keys, values, outputs;
  Buffers(int64_t rows, int64_t width, int64_t value_width, bool own_values)
      : queries(rows * width), keys(BLOCK * width), values(own_values ? BLOCK * width : 0),
        outputs(rows * value_width) {}
};

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

// One query against one block of keys, of which [from, seen) count, at least one. N vectors per head,
// or `count` of a key and `value_count` of a value; both are a key's width apart.
template <int N>
inline void attend_block(const float *query, const float *block_keys, const float *values,
                         int64_t from, int64_t seen, int count, int value_count, float *output,
                         float &top, float &norm) {
  const int n = N ? N : count;
  const int width = n * LANES;
  Vec scores[BLOCK / LANES];
  float highest = top;
  for (int part = 0; part < BLOCK / LANES; part++) {
    if (seen <= part * LANES || from >= (part + 1) * LANES) {
      scores[part] = all(LOWEST);
      continue;
    }
    Vec products[LANES];
    const float *keys = block_keys + part * LANES * width;
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
    if (from > part * LANES)
      scores[part] = number < static_cast<int32_t>(from) ? all(LOWEST) : scores[part];
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
  if (N) {
    Vec sum[N ? N : 1];
    for (int j = 0; j < n; j++) sum[j] = load(output + j * LANES) * factor;
    for (int64_t k = from; k < seen; k++)
      for (int j = 0; j < n; j++) sum[j] += load(values + k * width + j * LANES) * weights[k];
    for (int j = 0; j < n; j++) store(output + j * LANES, sum[j]);
    return;
  }
  for (int first = 0; first < value_count; first += 4) { // four sums stay in registers
    const int some = value_count - first < 4 ? value_count - first : 4;
    Vec sum[4];
    for (int j = 0; j < some; j++) sum[j] = load(output + (first + j) * LANES) * factor;
    for (int64_t k = from; k < seen; k++)
      for (int j = 0; j < some; j++)
        sum[j] += load(values + k * width + (first + j) * LANES) * weights[k];
    for (int j = 0; j < some; j++) store(output + (first + j) * LANES, sum[j]);
  }
}

template <class T, int N>
void attend_tile(const Job &job, const AttentionTile &tile, Buffers &buffers) {
  const auto [segment, kv_head, first_head, groups, begin, size] = tile;
  const int count = static_cast<int>(vectors(job.head_dim));
  const int value_count = static_cast<int>(vectors(job.value_dim));
  const int64_t width = count * LANES, value_width = value_count * LANES, rows = size * groups;
  const int64_t *pages = job.tables + segment * job.table_width;
  const int64_t token = job.firsts[segment] + begin, position = job.starts[segment] + begin;
  const T *queries = static_cast<const T *>(job.queries);
  T *out = static_cast<T *>(job.out);
  float top[TILE_QUERIES], norm[TILE_QUERIES];
  for (int64_t row = 0; row < rows; row++) {
    int64_t head = first_head + row % groups;
    int64_t at = ((token + row / groups) * job.heads + head) * job.head_dim;
    float *query = buffers.queries.data() + row * width;
    for (int64_t d = 0; d < width; d++)
      query[d] = d < job.head_dim ? widen(queries[at + d]) * job.scale : 0;
    std::memset(buffers.outputs.data() + row * value_width, 0, value_width * sizeof(float));
    // A sink is a key that was seen first, with a value of zeros.
    top[row] = job.sinks ? job.sinks[head] : LOWEST;
    norm[row] = job.sinks ? 1 : 0;
  }
  const int64_t end = position + size;
  int64_t hidden = job.window && position + 1 > job.window ? position + 1 - job.window : 0;
  for (int64_t first = hidden - hidden % BLOCK; first < end; first += BLOCK) {
    int64_t stop = first + BLOCK < end ? first + BLOCK : end;
    widen_block<T>(job, pages, 0, kv_head, first, stop, width, buffers.keys.data());
    const float *values = buffers.keys.data();
    if (job.parts > 1) {
      widen_block<T>(job, pages, 1, kv_head, first, stop, width, buffers.values.data());
      values = buffers.values.data();
    }
    for (int64_t row = 0; row < rows; row++) {
      int64_t seen = position + row / groups + 1 - first;
      int64_t from = job.window && seen > job.window ? seen - job.window : 0;
      if (seen > 0 && from < BLOCK)
        attend_block<N>(buffers.queries.data() + row * width, buffers.keys.data(), values, from,
                        seen < BLOCK ? seen : BLOCK, count, value_count,
                        buffers.outputs.data() + row * value_width, top[row], norm[row]);
    }
  }
  for (int64_t row = 0; row < rows; row++) {
    int64_t at = ((token + row / groups) * job.heads + first_head + row % groups) * job.value_dim;
    const float *output = buffers.outputs.data() + row * value_width;
    for (int64_t d = 0; d < job.value_dim; d++) narrow(output[d] / norm[row], out[at + d]);
  }
}

template <class T, int N> void attend_all(const Job &job, int threads) {
  const std::vector<AttentionTile> tiles = attention_tiles(job, TILE_QUERIES);
  const int64_t items = static_cast<int64_t>(tiles.size());
#pragma omp parallel num_threads(threads) if (threads > 1 && items > 1)
  {
    Buffers buffers(TILE_QUERIES, vectors(job.head_dim) * LANES, vectors(job.value_dim) * LANES,
                    job.parts > 1);
#pragma omp for schedule(dynamic, 4)
    for (int64_t item = 0; item < items; item++) attend_tile<T, N>(job, tiles[item], buffers);
  }
}

template <class T> void attend(const Job &job, int threads) {
  switch (job.value_dim == job.head_dim ? vectors(job.head_dim) : 0) {
  case 1: return attend_all<T, 1>(job, threads);
  case 2: return attend_all<T, 2>(job, threads);
  case 4: return attend_all<T, 4>(job, threads);
  case 5: return attend_all<T, 5>(job, threads);
  case 6: return attend_all<T, 6>(job, threads);
  case 7: return attend_all<T, 7>(job, threads);
  case 8: return attend_all<T, 8>(job, threads);
  default: return attend_all<T, 0>(job, threads);
  }
}

} // namespace

// Returns 0, or 1 for a kind or a shape that it does not know. The last of the sizes: the most
// Instructions that it may use.
extern "C" int batchgen_paged_attention(int kind, int threads, const void *queries,
                                        const void *storage, void *out, const int64_t *tables,
                                        const int64_t *firsts, const int64_t *starts,
                                        const int64_t *lengths, const float *sinks,
                                        const int64_t *sizes, float scale) {
  Job job{queries,  storage,  out,      tables,   firsts,   starts,   lengths,
          sinks,    scale,    sizes[0], sizes[1], sizes[2], sizes[3], sizes[4],
          sizes[5], sizes[6], sizes[7], sizes[8], sizes[9], sizes[10]};
  if (job.heads % job.kv_heads || job.value_dim > job.head_dim) return 1;
  return guarded([&]() -> int {
    switch (kind) {
    case FLOAT32: attend<float>(job, threads); return 0;
    case BFLOAT16:
      if (!attend_bfloat16(job, threads, static_cast<int>(sizes[11])))
        attend<Bfloat16>(job, threads);
      return 0;
    case FLOAT16: attend<_Float16>(job, threads); return 0;
    default: return UNKNOWN;
    }
  });
}

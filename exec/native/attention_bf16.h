// One block of keys and values of attention in bfloat16, in vector instructions: dot products of pairs.

#pragma once

#include <immintrin.h>

#include "attention.h"

namespace {

using namespace batchgen;

constexpr int BLOCK = 64;        // keys that share one rescaling of the running sums
constexpr int MOST_ROWS = 32;    // query heads times tokens of a tile
constexpr int MOST_DIM = 256;    // elements of a head
constexpr float LOWEST = -1e30f; // finite: the difference of two of them must not be NaN
constexpr float LOG2_E = 1.44269504f;

// What a tile of queries works on. Widths are those of a head, padded to 32 elements.
struct Buffers {
  Lines<Bfloat16> queries;         // [MOST_ROWS, width]
  Lines<Bfloat16> turned;          // [MOST_ROWS / 16, width / 2, 16, 2]: pairs of elements of 16 rows
  Lines<Bfloat16> keys, values;    // [BLOCK, width] and [BLOCK / 2, width, 2]
  const Bfloat16 *key_parts[BLOCK / LANES]; // sixteen keys each, in `keys` or as they are kept
  Lines<float> outputs;            // [MOST_ROWS, width]
  Lines<float> scores;             // [MOST_ROWS / 16, BLOCK, 16]
  Lines<Bfloat16> weights;         // [MOST_ROWS, BLOCK]; in 32 keys after another for matrix tiles
  alignas(64) float top[MOST_ROWS], norm[MOST_ROWS]; // of scores times log2(e), running
  alignas(64) int32_t seen[MOST_ROWS], from[MOST_ROWS]; // keys [from, seen) of the block count

  void fit(int64_t width) {
    queries.resize(MOST_ROWS * width), turned.resize(MOST_ROWS * width);
    keys.resize(BLOCK * width), values.resize(BLOCK * width);
    outputs.resize(MOST_ROWS * width), scores.resize(MOST_ROWS * BLOCK);
    weights.resize(MOST_ROWS * BLOCK);
  }
};

// 2^x for x <= 0, within 3e-6 of it.
inline __m512 power_of_two(__m512 x) {
  const __m512 rest = _mm512_reduce_ps(x, 0); // x less the nearest integer
  __m512 sum = _mm512_set1_ps(1.33336e-3f);
  sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(9.61812e-3f));
  sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(5.550411e-2f));
  sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(0.24022651f));
  sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(0.69314718f));
  sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(1.0f));
  return _mm512_scalef_ps(sum, _mm512_sub_ps(x, rest));
}

inline __m512bh load_pairs(const Bfloat16 *from) {
  return reinterpret_cast<__m512bh>(_mm512_loadu_si512(from));
}

// Bits of weights rounded to bfloat16 (not negative, no NaN among those that count), low half zero.
inline __m512i rounded(__m512 weight) {
  const __m512i bits = _mm512_add_epi32(_mm512_castps_si512(weight), _mm512_set1_epi32(0x8000));
  return _mm512_and_si512(bits, _mm512_set1_epi32(static_cast<int>(0xffff0000u)));
}

inline void rescale(float *output, int64_t width, float factor) {
  if (factor == 1) return;
  for (int64_t d = 0; d < width; d += LANES) store(output + d, load(output + d) * factor);
}

// One query row: its weights of the block's keys into `weights`, its running sums brought up to date.
template <int N>
inline void weigh(int64_t row, int64_t keys, float scale, Buffers &buffers) {
  constexpr int64_t width = N * 2 * LANES;
  const Bfloat16 *query = buffers.queries.data() + row * width;
  const int64_t parts = (keys + LANES - 1) / LANES;
  __m512 scores[BLOCK / LANES];
  __mmask16 counts[BLOCK / LANES];
  float top = buffers.top[row];
  __m512i number = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  for (int64_t part = 0; part < parts; part++) {
    Vec products[LANES];
    for (int k = 0; k < LANES; k++) {
      const Bfloat16 *key = buffers.key_parts[part] + k * width;
      __m512 sum = _mm512_setzero_ps();
      for (int n = 0; n < N; n++)
        sum = _mm512_dpbf16_ps(sum, load_pairs(query + n * 32), load_pairs(key + n * 32));
      products[k] = reinterpret_cast<Vec>(sum);
    }
    scores[part] = _mm512_mul_ps(reinterpret_cast<__m512>(sums(products)), _mm512_set1_ps(scale));
    counts[part] = _mm512_cmplt_epi32_mask(number, _mm512_set1_epi32(buffers.seen[row])) &
                   _mm512_cmpge_epi32_mask(number, _mm512_set1_epi32(buffers.from[row]));
    number = _mm512_add_epi32(number, _mm512_set1_epi32(LANES));
    const __m512 counted = _mm512_mask_mov_ps(_mm512_set1_ps(LOWEST), counts[part], scores[part]);
    const float highest = largest(reinterpret_cast<Vec>(counted));
    top = highest > top ? highest : top;
  }
  const __m512 tops = _mm512_set1_ps(top);
  const __m512 change = power_of_two(_mm512_sub_ps(_mm512_set1_ps(buffers.top[row]), tops));
  Vec added{};
  for (int64_t part = 0; part < BLOCK / LANES; part++) {
    __m512i weight = _mm512_setzero_si512();
    if (part < parts) {
      const __m512 power = power_of_two(_mm512_sub_ps(scores[part], tops));
      weight = _mm512_maskz_mov_epi32(counts[part], rounded(power));
      added += reinterpret_cast<Vec>(weight);
    }
    _mm256_storeu_si256(
        reinterpret_cast<__m256i *>(buffers.weights.data() + row * BLOCK + part * LANES),
        _mm512_cvtepi32_epi16(_mm512_srli_epi32(weight, 16)));
  }
  const float factor = _mm512_cvtss_f32(change);
  buffers.norm[row] = buffers.norm[row] * factor + total(added);
  buffers.top[row] = top;
  rescale(buffers.outputs.data() + row * width, width, factor);
}

// Outputs of R rows, V vectors of each, plus their weights times the values.
template <int R, int V>
inline void add_values(const Bfloat16 *weights, const Bfloat16 *values, int64_t pairs,
                       int64_t width, float *outputs) {
  __m512 sum[R][V];
  for (int r = 0; r < R; r++)
    for (int v = 0; v < V; v++) sum[r][v] = _mm512_loadu_ps(outputs + r * width + v * LANES);
  for (int64_t pair = 0; pair < pairs; pair++, values += 2 * width) {
    __m512bh value[V];
    for (int v = 0; v < V; v++) value[v] = load_pairs(values + v * 32);
    for (int r = 0; r < R; r++) {
      int32_t both;
      std::memcpy(&both, weights + r * BLOCK + 2 * pair, sizeof both);
      const __m512bh weight = reinterpret_cast<__m512bh>(_mm512_set1_epi32(both));
      for (int v = 0; v < V; v++) sum[r][v] = _mm512_dpbf16_ps(sum[r][v], weight, value[v]);
    }
  }
  for (int r = 0; r < R; r++)
    for (int v = 0; v < V; v++) _mm512_storeu_ps(outputs + r * width + v * LANES, sum[r][v]);
}

template <int R, int N>
inline void add_values_of_rows(int64_t row, int64_t pairs, Buffers &buffers) {
  constexpr int64_t width = N * 2 * LANES;
  const Bfloat16 *weights = buffers.weights.data() + row * BLOCK, *values = buffers.values.data();
  float *outputs = buffers.outputs.data() + row * width;
  int n = 0;
  for (; n + 2 <= N; n += 2) // four vectors
    add_values<R, 4>(weights, values + n * 64, pairs, width, outputs + n * 32);
  if (n < N) add_values<R, 2>(weights, values + n * 64, pairs, width, outputs + n * 32);
}

// All rows of a tile against one block of `keys` keys. Scores are `scale` times the products, and
// powers of two.
template <int N> void attend_block(int64_t rows, int64_t keys, float scale, Buffers &buffers) {
  for (int64_t row = 0; row < rows; row++) weigh<N>(row, keys, scale, buffers);
  const int64_t pairs = (keys + 1) / 2;
  int64_t row = 0;
  for (; row + 4 <= rows; row += 4) add_values_of_rows<4, N>(row, pairs, buffers);
  for (; row + 2 <= rows; row += 2) add_values_of_rows<2, N>(row, pairs, buffers);
  if (row < rows) add_values_of_rows<1, N>(row, pairs, buffers);
}

} // namespace

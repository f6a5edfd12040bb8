// One block of keys and values of attention in bfloat16, in vector instructions: dot products of pairs.

#pragma once

#include <algorithm>
#include <immintrin.h>
#include <type_traits>

#include "attention.h"

namespace {

using namespace batchgen;

constexpr int BLOCK = 64;        // keys that share one rescaling of the running sums
constexpr int PARTS = BLOCK / LANES;
constexpr int MOST_ROWS = 32;    // query heads times tokens of a tile
constexpr int MOST_DIM = 256;    // elements of a head
constexpr float LOWEST = -1e30f; // finite: the difference of two of them must not be NaN
constexpr float LOG2_E = 1.44269504f;

// What a tile of queries works on. Widths are those of a head, padded to 32 elements.
struct Buffers {
  Lines<Bfloat16> queries;         // [MOST_ROWS, width]
  Lines<Bfloat16> turned;          // [MOST_ROWS / 16, width / 2, 16, 2]: pairs of elements of 16 rows
  Lines<Bfloat16> keys, values;    // [BLOCK, width] and [BLOCK / 2, width, 2]
  Lines<Bfloat16> turned_keys;     // [width / 2, PARTS, 16, 2]: pairs of elements of 16 keys
  const Bfloat16 *key_parts[PARTS]; // sixteen keys each, in `keys` or as they are kept
  Lines<float> outputs;            // [MOST_ROWS, width]
  Lines<float> norms;              // [MOST_ROWS, 16]: parts of `norm`, where no matrix tiles are used
  Lines<float> scores;             // [MOST_ROWS / 16, BLOCK, 16]
  Lines<Bfloat16> weights;         // [MOST_ROWS, BLOCK]; in 32 keys after another for matrix tiles
  alignas(64) float top[MOST_ROWS], norm[MOST_ROWS]; // of scores times log2(e), running
  alignas(64) float factor[MOST_ROWS];               // of the sums until this block
  alignas(64) int32_t seen[MOST_ROWS], from[MOST_ROWS]; // keys [from, seen) of the block count

  void fit(int64_t width) {
    queries.resize(MOST_ROWS * width), turned.resize(MOST_ROWS * width);
    keys.resize(BLOCK * width), values.resize(BLOCK * width);
    turned_keys.resize(BLOCK * width);
    norms.resize(MOST_ROWS * LANES);
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

// 2^x for x <= 0, within 1e-4 of it: for what is rounded to bfloat16, whose steps are far coarser.
inline __m512 coarse_power_of_two(__m512 x) {
  const __m512 rest = _mm512_reduce_ps(x, 0);
  __m512 sum = _mm512_set1_ps(5.5171669e-2f);
  sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(0.24261113f));
  sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(0.69326099f));
  sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(0.99992807f));
  return _mm512_scalef_ps(sum, _mm512_sub_ps(x, rest));
}

// Two elements of bfloat16 in every lane.
inline __m512bh both_everywhere(const Bfloat16 *from) {
  int32_t both;
  std::memcpy(&both, from, sizeof both);
  return reinterpret_cast<__m512bh>(_mm512_set1_epi32(both));
}

// Which keys of a part lie in [from, seen) of the block.
inline __mmask16 counted(int part, int32_t seen, int32_t from) {
  const __m512i number =
      _mm512_add_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
                       _mm512_set1_epi32(part * LANES));
  return _mm512_cmplt_epi32_mask(number, _mm512_set1_epi32(seen)) &
         _mm512_cmpge_epi32_mask(number, _mm512_set1_epi32(from));
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

// Rows and columns of sixteen vectors of 32 bits, exchanged: first within the quarters of the vectors,
// where that costs least, then the quarters.
inline void turn(__m512i *v) {
#pragma GCC unroll 8
  for (int i = 0; i < LANES; i += 2) {
    const __m512i a = v[i], b = v[i + 1];
    v[i] = _mm512_unpacklo_epi32(a, b);
    v[i + 1] = _mm512_unpackhi_epi32(a, b);
  }
#pragma GCC unroll 4
  for (int i = 0; i < LANES; i += 4) {
    const __m512i a = v[i], b = v[i + 1], c = v[i + 2], d = v[i + 3];
    v[i] = _mm512_unpacklo_epi64(a, c);
    v[i + 1] = _mm512_unpackhi_epi64(a, c);
    v[i + 2] = _mm512_unpacklo_epi64(b, d);
    v[i + 3] = _mm512_unpackhi_epi64(b, d);
  }
  constexpr int EVEN = 0x88, ODD = 0xdd; // quarters of either
#pragma GCC unroll 4
  for (int i = 0; i < LANES / 4; i++) {
    const __m512i a = v[i], b = v[i + 4], c = v[i + 8], d = v[i + 12];
    const __m512i even[2] = {_mm512_shuffle_i32x4(a, b, EVEN), _mm512_shuffle_i32x4(c, d, EVEN)};
    const __m512i odd[2] = {_mm512_shuffle_i32x4(a, b, ODD), _mm512_shuffle_i32x4(c, d, ODD)};
    v[i] = _mm512_shuffle_i32x4(even[0], even[1], EVEN);
    v[i + 4] = _mm512_shuffle_i32x4(odd[0], odd[1], EVEN);
    v[i + 8] = _mm512_shuffle_i32x4(even[0], even[1], ODD);
    v[i + 12] = _mm512_shuffle_i32x4(odd[0], odd[1], ODD);
  }
}

// Rows of keys and values that the next block will read, brought into the cache one by one between the
// products of this one: a core waits for few lines at a time, and for more of them it would stand still.
class Ahead {
public:
  Ahead() = default;
  Ahead(const Bfloat16 *const *keys, const Bfloat16 *const *values, int64_t rows, int64_t bytes)
      : keys_(keys), values_(values), left_(2 * rows), bytes_(bytes) {}
  template <bool IS_FIRST = true> void step() {
    if (!IS_FIRST || left_ <= 0) return;
    left_--;
    const Bfloat16 *const *row = left_ & 1 ? keys_++ : values_++;
    for (int64_t at = 0; at < bytes_; at += 64)
      _mm_prefetch(reinterpret_cast<const char *>(*row) + at, _MM_HINT_T0);
  }

  void rest() {
    while (left_ > 0) step();
  }

private:
  const Bfloat16 *const *keys_ = nullptr, *const *values_ = nullptr;
  int64_t left_ = 0, bytes_ = 0; // rows of both, and bytes of a row
};

// Keys of a block by pairs of elements: so scores of sixteen keys are one vector, and no sum is folded.
template <int N> void turn_keys(int64_t parts, Ahead &ahead, Buffers &buffers) {
  constexpr int64_t width = N * 2 * LANES;
  for (int64_t part = 0; part < parts; part++)
    for (int n = 0; n < N; n++) {
      __m512i v[LANES];
      for (int k = 0; k < LANES; k++)
        v[k] = _mm512_loadu_si512(buffers.key_parts[part] + k * width + n * 32);
      turn(v);
      for (int i = 0; i < 4; i++) ahead.step();
      Bfloat16 *to = buffers.turned_keys.data() + (n * LANES * PARTS + part) * 32;
      for (int k = 0; k < LANES; k++) _mm512_store_si512(to + k * PARTS * 32, v[k]);
    }
}

// Weights of R rows for the P parts of a block, and their running sums brought up to date.
template <int N, int R, int P, bool IS_FIRST>
inline void weigh(int64_t row, bool masked, float scale, Ahead &ahead, Buffers &buffers) {
  constexpr int64_t width = N * 2 * LANES;
  const Bfloat16 *queries = buffers.queries.data() + row * width;
  const Bfloat16 *keys = buffers.turned_keys.data();
  __m512 scores[R][P];
#pragma GCC unroll 4
  for (int r = 0; r < R; r++)
    for (int part = 0; part < P; part++) scores[r][part] = _mm512_setzero_ps();
  for (int64_t pair = 0; pair < width / 2; pair++, keys += PARTS * 32) {
    __m512bh key[P];
    for (int part = 0; part < P; part++) key[part] = load_pairs(keys + part * 32);
    ahead.template step<IS_FIRST>();
#pragma GCC unroll 4
    for (int r = 0; r < R; r++) {
      const __m512bh query = both_everywhere(queries + r * width + 2 * pair);
      for (int part = 0; part < P; part++)
        scores[r][part] = _mm512_dpbf16_ps(scores[r][part], key[part], query);
    }
  }
  const __m512 scales = _mm512_set1_ps(scale);
  const auto lowest = _mm512_set1_ps(LOWEST);
  const __m512bh ones = reinterpret_cast<__m512bh>(_mm512_set1_epi16(0x3f80));
#pragma GCC unroll 4
  for (int r = 0; r < R; r++) {
    __mmask16 counts[P];
    __m512 highest = lowest;
    for (int part = 0; part < P; part++) {
      __m512 score = scores[r][part];
      if (masked) {
        counts[part] = counted(part, buffers.seen[row + r], buffers.from[row + r]);
        score = _mm512_mask_mov_ps(lowest, counts[part], score);
      }
      highest = _mm512_max_ps(highest, score);
    }
    const float before = buffers.top[row + r];
    const float top = std::max(before, _mm512_reduce_max_ps(highest) * scale);
    const __m512 tops = _mm512_set1_ps(top);
    __m512 powers[P];
    for (int part = 0; part < P; part++) {
      powers[part] = coarse_power_of_two(_mm512_fmsub_ps(scores[r][part], scales, tops));
      if (masked) powers[part] = _mm512_maskz_mov_ps(counts[part], powers[part]);
    }
    Bfloat16 *weights = buffers.weights.data() + (row + r) * BLOCK;
    __m512 added = _mm512_setzero_ps();
    for (int part = 0; part < P; part += 2) {
      const __m512 right = part + 1 < P ? powers[part + 1 < P ? part + 1 : part] : _mm512_setzero_ps();
      const __m512bh both = _mm512_cvtne2ps_pbh(right, powers[part]); // to nearest, ties to even
      added = _mm512_dpbf16_ps(added, both, ones);
      _mm512_store_si512(weights + part * LANES, reinterpret_cast<__m512i>(both));
    }
    const float factor =
        before == top ? 1 : _mm512_cvtss_f32(power_of_two(_mm512_set1_ps(before - top)));
    float *norms = buffers.norms.data() + (row + r) * LANES;
    _mm512_store_ps(norms, _mm512_fmadd_ps(_mm512_load_ps(norms), _mm512_set1_ps(factor), added));
    buffers.top[row + r] = top;
    buffers.factor[row + r] = factor;
  }
}

// Outputs of R rows from `row` on, V vectors of each from element `d` on, by their factors and plus
// their weights times the values.
template <int R, int V, bool IS_FIRST>
inline void add_values(int64_t row, int64_t d, int64_t pairs, int64_t width, Ahead &ahead,
                       Buffers &buffers) {
  const Bfloat16 *weights = buffers.weights.data() + row * BLOCK;
  const Bfloat16 *values = buffers.values.data() + 2 * d;
  float *outputs = buffers.outputs.data() + row * width + d;
  __m512 sum[R][V];
#pragma GCC unroll 4
  for (int r = 0; r < R; r++) {
    const __m512 factor = _mm512_set1_ps(buffers.factor[row + r]);
    for (int v = 0; v < V; v++)
      sum[r][v] = _mm512_mul_ps(_mm512_load_ps(outputs + r * width + v * LANES), factor);
  }
  for (int64_t pair = 0; pair < pairs; pair++, values += 2 * width) {
    __m512bh value[V];
    for (int v = 0; v < V; v++) value[v] = load_pairs(values + v * 32);
    ahead.template step<IS_FIRST>();
#pragma GCC unroll 4
    for (int r = 0; r < R; r++) {
      const __m512bh weight = both_everywhere(weights + r * BLOCK + 2 * pair);
      for (int v = 0; v < V; v++) sum[r][v] = _mm512_dpbf16_ps(sum[r][v], weight, value[v]);
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; r++)
    for (int v = 0; v < V; v++) _mm512_store_ps(outputs + r * width + v * LANES, sum[r][v]);
}

template <auto VALUE> using Constant = std::integral_constant<decltype(VALUE), VALUE>;

// R rows against one block.
template <int N, int R, bool IS_FIRST>
inline void attend_rows(int64_t row, int64_t keys, bool masked, float scale, Ahead &ahead,
                        Buffers &buffers) {
  constexpr int64_t width = N * 2 * LANES;
  if (keys <= LANES)
    weigh<N, R, 1, IS_FIRST>(row, masked, scale, ahead, buffers);
  else if (keys <= 2 * LANES)
    weigh<N, R, 2, IS_FIRST>(row, masked, scale, ahead, buffers);
  else
    weigh<N, R, PARTS, IS_FIRST>(row, masked, scale, ahead, buffers);
  const int64_t pairs = (keys + 1) / 2;
  int n = 0;
  for (; n + 2 <= N; n += 2) add_values<R, 4, IS_FIRST>(row, n * 32, pairs, width, ahead, buffers);
  if (n < N) add_values<R, 2, IS_FIRST>(row, n * 32, pairs, width, ahead, buffers);
}

// All rows of a tile against one block of `keys` keys. Scores are `scale` times the products, and
// powers of two.
template <int N>
void attend_block(int64_t rows, int64_t keys, float scale, Ahead &ahead, Buffers &buffers) {
  bool masked = keys % LANES != 0 || (keys > 2 * LANES && keys < BLOCK); // keys behind them are zeros
  for (int64_t row = 0; row < rows; row++)
    masked = masked || buffers.seen[row] < keys || buffers.from[row] > 0;
  turn_keys<N>(keys > 2 * LANES ? PARTS : (keys + LANES - 1) / LANES, ahead, buffers);
  const auto some = [&](auto rows_of, auto is_first, int64_t row) {
    attend_rows<N, rows_of.value, is_first.value>(row, keys, masked, scale, ahead, buffers);
  };
  const auto at = [&](int64_t row, auto is_first) { // returns the row behind those that it took
    if (row + 4 <= rows) return some(Constant<4>(), is_first, row), row + 4;
    if (row + 2 <= rows) return some(Constant<2>(), is_first, row), row + 2;
    return some(Constant<1>(), is_first, row), row + 1;
  };
  for (int64_t row = at(0, Constant<true>()); row < rows;) row = at(row, Constant<false>());
}

} // namespace

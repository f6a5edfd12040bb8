// One block of keys and values of attention in bfloat16, in matrix tiles (AMX): for many query rows.
//
// Scores come out turned, [keys, 16 rows]: so keys are loaded as they are kept, and the softmax of
// sixteen rows runs side by side. Weights are turned back for the product with the values.

#pragma once

#include "attention_bf16.h"

#if defined(__AMX_BF16__) && defined(__AMX_TILE__) && defined(__linux__)

#include <sys/syscall.h>
#include <unistd.h>

namespace {

// Asks the system for the tiles, once for all threads.
inline bool may_use_tiles() {
  constexpr int REQUEST = 0x1023, TILE_DATA = 18; // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  static const bool granted = syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
  return granted;
}

// While it lives, this thread's eight tiles are of 16 rows of 64 bytes; then they are as before.
class TileState {
public:
  explicit TileState(bool used) : used(used) {
    if (!used) return;
    _tile_storeconfig(before);
    alignas(64) uint8_t shape[64] = {1}; // palette; [16..]: bytes of a row, [48..]: rows
    for (int tile = 0; tile < 8; tile++) shape[16 + 2 * tile] = 64, shape[48 + tile] = 16;
    _tile_loadconfig(shape);
  }
  ~TileState() {
    if (!used) return;
    if (before[0])
      _tile_loadconfig(before);
    else
      _tile_release();
  }
  TileState(const TileState &) = delete;
  TileState &operator=(const TileState &) = delete;

private:
  alignas(64) uint8_t before[64];
  bool used;
};

template <int N> void turn_queries(int64_t rows, Buffers &buffers) {
  constexpr int64_t width = N * 2 * LANES;
  for (int64_t row = 0; row < rows; row += LANES)
    for (int n = 0; n < N; n++) {
      __m512i v[LANES];
      for (int i = 0; i < LANES; i++)
        v[i] = _mm512_loadu_si512(buffers.queries.data() + (row + i) * width + n * 32);
      turn(v);
      for (int i = 0; i < LANES; i++)
        _mm512_storeu_si512(buffers.turned.data() + row * width + (n * LANES + i) * 32, v[i]);
    }
}

// Scores of 32 or 16 rows: products of keys [first, first + 32) with the turned queries.
template <int N, bool TWO> inline void multiply_keys(int64_t first, Buffers &buffers) {
  constexpr int64_t width = N * 2 * LANES, key_bytes = width * sizeof(Bfloat16);
  const Bfloat16 *one = buffers.key_parts[first / LANES];
  const Bfloat16 *other = buffers.key_parts[first / LANES + 1];
  const Bfloat16 *queries = buffers.turned.data();
  float *scores = buffers.scores.data() + first * LANES;
  _tile_zero(0);
  _tile_zero(1);
  if (TWO) _tile_zero(2);
  if (TWO) _tile_zero(3);
  for (int n = 0; n < N; n++) {
    _tile_loadd(4, one + n * 32, key_bytes);
    _tile_loadd(5, other + n * 32, key_bytes);
    _tile_loadd(6, queries + n * LANES * 32, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 5, 6);
    if (TWO) {
      _tile_loadd(7, queries + LANES * width + n * LANES * 32, 64);
      _tile_dpbf16ps(2, 4, 7);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, scores, 64);
  _tile_stored(1, scores + LANES * LANES, 64);
  if (TWO) _tile_stored(2, scores + BLOCK * LANES, 64);
  if (TWO) _tile_stored(3, scores + BLOCK * LANES + LANES * LANES, 64);
}

// Weights of sixteen rows from their scores; MASKED: not every row sees every key of the block.
template <int N, bool MASKED>
inline void weigh_rows(int64_t row, int64_t keys, float scale, Buffers &buffers) {
  constexpr int64_t width = N * 2 * LANES;
  const float *scores = buffers.scores.data() + row * BLOCK;
  const __m512i seen = _mm512_load_si512(buffers.seen + row);
  const __m512i from = _mm512_load_si512(buffers.from + row);
  const auto counts = [&](int64_t key) -> __mmask16 {
    if (!MASKED) return 0xffff;
    const __m512i number = _mm512_set1_epi32(static_cast<int>(key));
    return _mm512_cmplt_epi32_mask(number, seen) & _mm512_cmpge_epi32_mask(number, from);
  };
  __m512 highest[4];
  for (auto &one : highest) one = _mm512_set1_ps(LOWEST);
  for (int64_t key = 0; key < keys; key += 4)
    for (int i = 0; i < 4; i++)
      highest[i] = _mm512_mask_max_ps(highest[i], counts(key + i), highest[i],
                                      _mm512_load_ps(scores + (key + i) * LANES));
  const __m512 found = _mm512_max_ps(_mm512_max_ps(highest[0], highest[1]),
                                     _mm512_max_ps(highest[2], highest[3]));
  const __m512 before = _mm512_load_ps(buffers.top + row), scales = _mm512_set1_ps(scale);
  const __m512 top = _mm512_max_ps(before, _mm512_mul_ps(found, scales));
  const __m512 factor = power_of_two(_mm512_sub_ps(before, top));
  __m512 added[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
  for (int64_t first = 0; first < keys; first += 32) {
    __m512i pairs[LANES];
#pragma GCC unroll 16
    for (int pair = 0; pair < LANES; pair++) {
      __m512i weight[2];
      for (int i = 0; i < 2; i++) {
        const int64_t key = first + 2 * pair + i;
        const __m512 score = _mm512_load_ps(scores + key * LANES);
        const __m512 power = power_of_two(_mm512_fmsub_ps(score, scales, top));
        weight[i] = MASKED ? _mm512_maskz_mov_epi32(counts(key), rounded(power)) : rounded(power);
        added[i] = _mm512_add_ps(added[i], _mm512_castsi512_ps(weight[i]));
      }
      pairs[pair] = _mm512_or_si512(_mm512_srli_epi32(weight[0], 16), weight[1]);
    }
    turn(pairs);
    Bfloat16 *weights = buffers.weights.data() + row * BLOCK + first * LANES;
    for (int i = 0; i < LANES; i++) _mm512_store_si512(weights + i * 32, pairs[i]);
  }
  const __m512 norm = _mm512_load_ps(buffers.norm + row);
  _mm512_store_ps(buffers.norm + row,
                  _mm512_fmadd_ps(norm, factor, _mm512_add_ps(added[0], added[1])));
  _mm512_store_ps(buffers.top + row, top);
  alignas(64) float factors[LANES];
  _mm512_store_ps(factors, factor);
  for (int i = 0; i < LANES; i++)
    rescale(buffers.outputs.data() + (row + i) * width, width, factors[i]);
}

// Outputs plus weights times values, 32 elements of a head after another.
template <int N, bool TWO> inline void multiply_values(int64_t keys, Buffers &buffers) {
  constexpr int64_t width = N * 2 * LANES;
  constexpr int64_t output_bytes = width * sizeof(float), value_bytes = 2 * width * sizeof(Bfloat16);
  for (int n = 0; n < N; n++) {
    float *one = buffers.outputs.data() + n * 32, *other = one + LANES * width;
    _tile_loadd(0, one, output_bytes);
    _tile_loadd(1, one + LANES, output_bytes);
    if (TWO) _tile_loadd(2, other, output_bytes);
    if (TWO) _tile_loadd(3, other + LANES, output_bytes);
    for (int64_t first = 0; first < keys; first += 32) {
      const Bfloat16 *values = buffers.values.data() + first * width + n * 64;
      const Bfloat16 *weights = buffers.weights.data() + first * LANES;
      _tile_loadd(4, weights, 64);
      _tile_loadd(6, values, value_bytes);
      _tile_loadd(7, values + 32, value_bytes);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      if (TWO) {
        _tile_loadd(5, weights + LANES * BLOCK, 64);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
      }
    }
    _tile_stored(0, one, output_bytes);
    _tile_stored(1, one + LANES, output_bytes);
    if (TWO) _tile_stored(2, other, output_bytes);
    if (TWO) _tile_stored(3, other + LANES, output_bytes);
  }
}

template <int N, bool TWO>
void attend_rows_in_tiles(int64_t keys, bool masked, float scale, Buffers &buffers) {
  for (int64_t first = 0; first < keys; first += 32) multiply_keys<N, TWO>(first, buffers);
  for (int64_t row = 0; row < (TWO ? 2 * LANES : LANES); row += LANES)
    if (masked)
      weigh_rows<N, true>(row, keys, scale, buffers);
    else
      weigh_rows<N, false>(row, keys, scale, buffers);
  multiply_values<N, TWO>(keys, buffers);
}

// Does what `attend_block` does.
template <int N>
void attend_block_in_tiles(int64_t rows, int64_t keys, float scale, Buffers &buffers) {
  bool masked = keys % 32 != 0; // keys beyond the last are zeros
  for (int64_t row = 0; row < rows; row++)
    masked = masked || buffers.seen[row] < keys || buffers.from[row] > 0;
  for (int64_t row = rows; row < MOST_ROWS; row++) // rows of no query
    buffers.seen[row] = static_cast<int32_t>(keys), buffers.from[row] = 0;
  if (rows > LANES)
    attend_rows_in_tiles<N, true>(keys, masked, scale, buffers);
  else
    attend_rows_in_tiles<N, false>(keys, masked, scale, buffers);
}

} // namespace

#else

namespace {

inline bool may_use_tiles() { return false; }
struct TileState {
  explicit TileState(bool) {}
};
template <int N> void turn_queries(int64_t, Buffers &) {}
template <int N> void attend_block_in_tiles(int64_t, int64_t, float, Buffers &) {}

} // namespace

#endif

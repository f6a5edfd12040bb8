// Dot products of rows with rows of weights, each added in one order (LANES partial sums, folded in a
// tree), so that what comes out for a row does not depend on the other rows; and SiLU.

#pragma once

#include <algorithm>

#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

#include "vectors.h"

namespace batchgen {

// How weights of type T meet their inputs: STEP products at a time, added to LANES sums.
template <class T> struct Product {
  using Input = float;
  using Wide = Vec;
  static constexpr int STEP = LANES;
  static Wide load_input(const Input *from) { return load(from); }
  static Wide load_weight(const T *from) { return load_wide(from); }
  static Vec add(Vec sum, Wide input, Wide weight) { return sum + input * weight; }
};
#ifdef __AVX512BF16__
template <> struct Product<Bfloat16> { // inputs are bfloat16 anyway, those of `down` are rounded
  using Input = Bfloat16;
  using Wide = __m512bh;
  static constexpr int STEP = 2 * LANES;
  static Wide load_input(const Input *from) {
    return reinterpret_cast<Wide>(_mm512_loadu_si512(from));
  }
  static Wide load_weight(const Bfloat16 *from) { return load_input(from); }
  static Vec add(Vec sum, Wide input, Wide weight) {
    return reinterpret_cast<Vec>(_mm512_dpbf16_ps(reinterpret_cast<__m512>(sum), input, weight));
  }
};
#endif

constexpr int64_t PADDING = 2 * LANES;
inline int64_t padded(int64_t n) { return (n + PADDING - 1) / PADDING * PADDING; }

// Dot products of TOKENS rows of inputs (padded with zeros) with 16 / TOKENS rows of weights: result
// t * (16 / TOKENS) + n is of token t and weight row n.
template <int TOKENS, class T, class P = Product<T>>
inline Vec dots(const typename P::Input *const *inputs, const T *const *weights, int64_t length) {
  constexpr int ROWS = LANES / TOKENS;
  Vec partial[LANES];
  for (int i = 0; i < LANES; i++) partial[i] = Vec{};
  const auto step = [&](int64_t at, auto weight_at) {
    typename P::Wide wide[TOKENS];
    for (int t = 0; t < TOKENS; t++) wide[t] = P::load_input(inputs[t] + at);
    for (int n = 0; n < ROWS; n++) {
      typename P::Wide weight = weight_at(n);
      for (int t = 0; t < TOKENS; t++)
        partial[t * ROWS + n] = P::add(partial[t * ROWS + n], wide[t], weight);
    }
  };
  int64_t at = 0;
  for (; at + P::STEP <= length; at += P::STEP)
    step(at, [&](int n) { return P::load_weight(weights[n] + at); });
  if (at < length)
    step(at, [&](int n) {
      T part[P::STEP] = {};
      std::memcpy(part, weights[n] + at, (length - at) * sizeof(T));
      return P::load_weight(part);
    });
  return sums(partial);
}

// out[t][n] = dot(inputs[t], weights row n) for rows [from, count) of inputs, as many as TOKENS at a
// time cover, and weight rows [begin, end); returns the first row that is left.
template <int TOKENS, class T, class Input>
int64_t product_part(const Input *const *inputs, int64_t from, int64_t count, const T *weights,
                     int64_t begin, int64_t end, int64_t length, float *const *out) {
  constexpr int ROWS = LANES / TOKENS;
  for (; from + TOKENS <= count; from += TOKENS) {
    for (int64_t row = begin; row < end; row += ROWS) {
      const T *rows[ROWS];
      for (int n = 0; n < ROWS; n++) rows[n] = weights + std::min(row + n, end - 1) * length;
      float results[LANES];
      store(results, dots<TOKENS>(inputs + from, rows, length));
      const int64_t real = std::min<int64_t>(ROWS, end - row);
      for (int t = 0; t < TOKENS; t++)
        std::copy_n(results + t * ROWS, real, out[from + t] + row - begin);
    }
  }
  return from;
}

template <class T, class Input>
void product(const Input *const *inputs, int64_t count, const T *weights, int64_t begin,
             int64_t end, int64_t length, float *const *out) {
  int64_t done = product_part<8>(inputs, 0, count, weights, begin, end, length, out);
  done = product_part<4>(inputs, done, count, weights, begin, end, length, out);
  done = product_part<2>(inputs, done, count, weights, begin, end, length, out);
  product_part<1>(inputs, done, count, weights, begin, end, length, out);
}

// x * sigmoid(x), written so that the exponential is of a negative number.
inline Vec silu(Vec x) {
  Vec power = exponential(x < 0 ? x : -x);
  Vec numerator = x < 0 ? power : all(1.0f);
  return x * (numerator / (power + 1.0f));
}

} // namespace batchgen

// A sparse MLP on the CPU: router, softmax, top K, gated experts, weighted sum.
//
// Does what SparseMlp of exec/mlp.py does in torch, in one call and without a padded group. Experts of
// a token may be given instead, with their weights.
// Built and called by exec/compiled.py; knows no torch.
//
// Every product is a dot product added in one order (LANES partial sums, folded in a tree), so what
// comes out for a token does not depend on the other tokens or the threads.

#include <algorithm>

#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

#include "vectors.h"

namespace {

using namespace batchgen;

constexpr int NEURONS = 32;           // outputs of an expert that one thread takes at a time
constexpr int64_t WORTH_THREADS = 1 << 18; // multiplications below which other threads stay asleep

struct Job {
  const void *x;       // [tokens, hidden]
  const void *router;  // [experts, hidden], unless the next two are given
  const int32_t *given_experts; // [tokens, top_k]
  const float *given_weights;   // [tokens, top_k]
  const void *gate_up; // [experts, 2 * width, hidden]
  const void *down;    // [experts, hidden, width]
  void *out;           // [tokens, hidden]
  int64_t tokens, hidden, width, experts, top_k, renormalise;
};

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

// Softmax over the experts, the K largest (the lower number of two equal ones), their weights.
void choose(const Job &job, float *scores, int32_t *experts, float *weights) {
  const int64_t count = job.experts, wide = padded(count);
  float top = *std::max_element(scores, scores + count);
  for (int64_t e = count; e < wide; e++) scores[e] = top - 1000.0f;
  Vec added{};
  for (int64_t e = 0; e < wide; e += LANES) {
    Vec power = exponential(load(scores + e) - top);
    added += power;
    store(scores + e, power);
  }
  const float norm = total(added);
  float chosen = 0;
  for (int64_t k = 0; k < job.top_k; k++) {
    int64_t best = std::max_element(scores, scores + count) - scores;
    experts[k] = static_cast<int32_t>(best);
    weights[k] = scores[best] / norm;
    chosen += weights[k];
    scores[best] = -1.0f;
  }
  if (job.renormalise)
    for (int64_t k = 0; k < job.top_k; k++) weights[k] /= chosen;
}

template <class T> void run(const Job &job, int threads) {
  const int64_t tokens = job.tokens, hidden = job.hidden, width = job.width, top_k = job.top_k;
  const int64_t slots = tokens * top_k, wide_hidden = padded(hidden), wide_width = padded(width);
  using Input = typename Product<T>::Input;
  Lines<Input> x(tokens * wide_hidden, Input{}), inner(slots * wide_width, Input{});
  std::vector<float> outputs(slots * hidden), weights(slots);
  std::vector<int32_t> chosen(slots), places(slots), owners(slots), begins(job.experts + 1);
  std::vector<int64_t> items, pieces; // (expert, first neuron) of each piece of work
  const T *given = static_cast<const T *>(job.x), *router = static_cast<const T *>(job.router);
  const T *gate_up = static_cast<const T *>(job.gate_up), *down = static_cast<const T *>(job.down);
  T *out = static_cast<T *>(job.out);
  const bool many = slots * width * hidden * 3 > WORTH_THREADS;
  const auto group = [&](int64_t expert) { return begins[expert + 1] - begins[expert]; };
#pragma omp parallel num_threads(threads) if (threads > 1 && many)
  {
    std::vector<float> scores(padded(job.experts));
#pragma omp for
    for (int64_t t = 0; t < tokens; t++) {
      Input *row = x.data() + t * wide_hidden;
      for (int64_t h = 0; h < hidden; h++) narrow(widen(given[t * hidden + h]), row[h]);
      if (job.given_experts) {
        std::copy_n(job.given_experts + t * top_k, top_k, chosen.data() + t * top_k);
        std::copy_n(job.given_weights + t * top_k, top_k, weights.data() + t * top_k);
        continue;
      }
      float *into = scores.data();
      const Input *input = row;
      product(&input, 1, router, 0, job.experts, hidden, &into);
      choose(job, into, chosen.data() + t * top_k, weights.data() + t * top_k);
    }
#pragma omp single
    { // Slots by expert, then by token: neighbours in memory for the products.
      for (int32_t expert : chosen) begins[expert + 1]++;
      for (int64_t e = 0; e < job.experts; e++) begins[e + 1] += begins[e];
      std::vector<int32_t> next(begins.begin(), begins.end() - 1);
      for (int64_t i = 0; i < slots; i++) {
        places[i] = next[chosen[i]]++;
        owners[places[i]] = static_cast<int32_t>(i / top_k);
      }
      for (int64_t e = 0; e < job.experts; e++)
        for (int64_t n = 0; group(e) && n < std::max(width, hidden); n += NEURONS) {
          items.push_back(e);
          pieces.push_back(n);
        }
    }
    const int64_t num_items = static_cast<int64_t>(items.size());
    std::vector<const Input *> inputs;
    std::vector<float *> results;
    std::vector<float> gates;
#pragma omp for schedule(dynamic, 1)
    for (int64_t item = 0; item < num_items; item++) {
      const int64_t expert = items[item], begin = pieces[item], count = group(expert);
      const int64_t end = std::min(begin + NEURONS, width);
      if (begin >= width) continue;
      gates.assign(count * NEURONS * 2, 0.0f);
      inputs.resize(count);
      results.resize(count);
      for (int64_t half = 0; half < 2; half++) {
        for (int64_t s = 0; s < count; s++) {
          inputs[s] = x.data() + owners[begins[expert] + s] * wide_hidden;
          results[s] = gates.data() + (s * 2 + half) * NEURONS;
        }
        product(inputs.data(), count, gate_up + (expert * 2 + half) * width * hidden, begin, end,
                   hidden, results.data());
      }
      for (int64_t s = 0; s < count; s++) {
        const float *gate = gates.data() + s * 2 * NEURONS;
        float values[NEURONS];
        for (int n = 0; n < NEURONS; n += LANES)
          store(values + n, silu(load(gate + n)) * load(gate + NEURONS + n));
        Input *into = inner.data() + (begins[expert] + s) * wide_width + begin;
        for (int64_t n = 0; n < end - begin; n++) narrow(values[n], into[n]);
      }
    }
#pragma omp for schedule(dynamic, 1)
    for (int64_t item = 0; item < num_items; item++) {
      const int64_t expert = items[item], begin = pieces[item], count = group(expert);
      if (begin >= hidden) continue;
      inputs.resize(count);
      results.resize(count);
      for (int64_t s = 0; s < count; s++) {
        inputs[s] = inner.data() + (begins[expert] + s) * wide_width;
        results[s] = outputs.data() + (begins[expert] + s) * hidden + begin;
      }
      product(inputs.data(), count, down + expert * hidden * width, begin,
                 std::min(begin + NEURONS, hidden), width, results.data());
    }
#pragma omp for
    for (int64_t t = 0; t < tokens; t++)
      for (int64_t h = 0; h < hidden; h++) {
        float sum = 0; // experts by falling weight
        for (int64_t k = 0; k < top_k; k++)
          sum += weights[t * top_k + k] * outputs[places[t * top_k + k] * hidden + h];
        narrow(sum, out[t * hidden + h]);
      }
  }
}

} // namespace

// Returns 0, or 1 for a kind that it does not know.
extern "C" int batchgen_experts(int kind, int threads, const void *x, const void *router,
                                const int32_t *given_experts, const float *given_weights,
                                const void *gate_up, const void *down, void *out,
                                const int64_t *sizes) {
  Job job{x,        router,   given_experts, given_weights, gate_up,  down,     out,
          sizes[0], sizes[1], sizes[2],      sizes[3],      sizes[4], sizes[5]};
  switch (kind) {
  case FLOAT32: run<float>(job, threads); return 0;
  case BFLOAT16: run<Bfloat16>(job, threads); return 0;
  case FLOAT16: run<_Float16>(job, threads); return 0;
  default: return 1;
  }
}

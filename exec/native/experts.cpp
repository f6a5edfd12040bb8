// A sparse MLP on the CPU: router, softmax, top K, gated experts, weighted sum.
//
// Does what SparseMlp of exec/mlp.py does in torch, in one call and without a padded group. Experts of
// a token may be given instead, with their weights.
// Built and called by exec/compiled.py; knows no torch.
//
// Every product is a dot product added in one order (LANES partial sums, folded in a tree), so what
// comes out for a token does not depend on the other tokens or the threads.

#include "failures.h"
#include "routing.h"

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

template <class T> void run(const Job &job, int threads) {
  const int64_t tokens = job.tokens, hidden = job.hidden, width = job.width, top_k = job.top_k;
  const int64_t slots = tokens * top_k, wide_hidden = padded(hidden), wide_width = padded(width);
  using Input = typename Product<T>::Input;
  Lines<Input> x(tokens * wide_hidden, Input{}), inner(slots * wide_width, Input{});
  std::vector<float> outputs(slots * hidden);
  Slots order;
  order.resize(tokens, top_k);
  std::vector<int32_t> &chosen = order.chosen, &places = order.places, &owners = order.owners;
  std::vector<int64_t> &begins = order.begins;
  std::vector<float> &weights = order.weights;
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
      choose(job.experts, top_k, job.renormalise, into, chosen.data() + t * top_k, weights.data() + t * top_k);
    }
#pragma omp single
    {
      order.sort(job.experts, top_k);
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

// Returns 0, or a failure.
extern "C" int batchgen_experts(int kind, int threads, const void *x, const void *router,
                                const int32_t *given_experts, const float *given_weights,
                                const void *gate_up, const void *down, void *out,
                                const int64_t *sizes) {
  Job job{x,        router,   given_experts, given_weights, gate_up,  down,     out,
          sizes[0], sizes[1], sizes[2],      sizes[3],      sizes[4], sizes[5]};
  return guarded([&]() -> int {
    switch (kind) {
    case FLOAT32: run<float>(job, threads); return 0;
    case BFLOAT16: run<Bfloat16>(job, threads); return 0;
    case FLOAT16: run<_Float16>(job, threads); return 0;
    default: return UNKNOWN;
    }
  });
}

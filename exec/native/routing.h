// Which experts a token goes to, and slots (a token's place with an expert) in the order of experts.

#pragma once

#include "dots.h"

namespace batchgen {

// `scores` has room for padded(count) of them, and is used up.
// Softmax over the experts, the K largest (the lower number of two equal ones), their weights.
inline void choose(int64_t count, int64_t top_k, bool renormalise, float *scores, int32_t *experts,
                   float *weights) {
  const int64_t wide = padded(count);
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
  for (int64_t k = 0; k < top_k; k++) {
    int64_t best = std::max_element(scores, scores + count) - scores;
    experts[k] = static_cast<int32_t>(best);
    weights[k] = scores[best] / norm;
    chosen += weights[k];
    scores[best] = -1.0f;
  }
  if (renormalise)
    for (int64_t k = 0; k < top_k; k++) weights[k] /= chosen;
}

// Slots by expert, then by token, so that rows of an expert are neighbours.
struct Slots {
  std::vector<int32_t> chosen; // [tokens * top_k] expert of each
  std::vector<float> weights;  // [tokens * top_k]
  std::vector<int32_t> places; // [tokens * top_k] where each went
  std::vector<int32_t> owners; // [tokens * top_k] by place: its token
  std::vector<int64_t> begins; // [experts + 1] first place of each expert

  void resize(int64_t tokens, int64_t top_k) {
    chosen.resize(tokens * top_k);
    weights.resize(tokens * top_k);
    places.resize(tokens * top_k);
    owners.resize(tokens * top_k);
  }

  // From `chosen`.
  void sort(int64_t experts, int64_t top_k) {
    const int64_t count = static_cast<int64_t>(chosen.size());
    begins.assign(experts + 1, 0);
    for (int32_t expert : chosen) begins[expert + 1]++;
    for (int64_t e = 0; e < experts; e++) begins[e + 1] += begins[e];
    std::vector<int32_t> next(begins.begin(), begins.end() - 1);
    for (int64_t i = 0; i < count; i++) {
      places[i] = next[chosen[i]]++;
      owners[places[i]] = static_cast<int32_t>(i / top_k);
    }
  }
};

} // namespace batchgen

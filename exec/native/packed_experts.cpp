// A sparse MLP on the CPU with packed bfloat16 experts: router, top K, gated experts, weighted sum.
//
// Does what experts.cpp does, with the products of packed.h: decoding reads each weight once, at the
// speed of memory. Built and called by exec/compiled.py; knows no torch.

#include <atomic>
#include <thread>

#include "layers.h"
#include "packed.h"
#include "routing.h"

namespace {

using namespace batchgen;

#ifdef BATCHGEN_PACKED

constexpr int64_t PIECE_SIZE = 1 << 17;      // weights that a thread takes at a time
constexpr int64_t MIN_TOKENS = 512;          // of a call are taken together, and more while that gives
constexpr int64_t GROUP_ROWS = 128;          // an expert fewer rows: what lies between stays in caches
constexpr int64_t WORTH_THREADS = 1 << 18;   // multiplications below which other threads stay asleep

struct Job {
  const Bfloat16 *x;            // [tokens, hidden]
  const Bfloat16 *router;       // packed [experts, hidden], unless the next two are given
  const int32_t *given_experts; // [tokens, top_k]
  const float *given_weights;   // [tokens, top_k]
  const Bfloat16 *gate_up;      // [experts], each packed, gated
  const Bfloat16 *down;         // [experts], each packed
  Bfloat16 *out;                // [tokens, hidden]
  int64_t tokens, hidden, width, experts, top_k;
  bool renormalise;
};

// Tokens [begin, end).
Job part(Job job, int64_t begin, int64_t end) {
  job.x += begin * job.hidden;
  job.out += begin * job.hidden;
  if (job.given_experts) {
    job.given_experts += begin * job.top_k;
    job.given_weights += begin * job.top_k;
  }
  job.tokens = end - begin;
  return job;
}

// A matrix of each expert: `panels` panels of `steps` steps.
struct Matrices {
  const Bfloat16 *first;
  int64_t steps, panels;
  const Bfloat16 *of(int64_t expert) const {
    return first + expert * steps * panels * 2 * TILE_SIZE;
  }
};

struct Piece {
  int64_t expert, begin, end, first, last; // rows and panels
};

// What is kept between calls: fresh memory of this size would cost page faults each time.
struct Scratch {
  Slots slots;
  Lines<Bfloat16> gathered, inner; // rows by place
  Lines<float> outputs;            // rows by place
  std::vector<Piece> up, down;
  std::atomic<int64_t> next;                 // piece, the first ones of `up`
  std::vector<std::atomic<int64_t>> waiting; // [experts] pieces of `up` that are not done
};

// Waits a little; after a while the processor may go to the thread that is waited for.
struct Pause {
  int spins = 0;
  void operator()() {
    if (++spins < 1000)
      _mm_pause();
    else
      std::this_thread::yield();
  }
};

// All products, expert by expert; pieces small enough that no thread waits long for another.
void cut(const Slots &slots, int64_t experts, const Matrices &matrices, std::vector<Piece> &out) {
  out.clear();
  const int64_t size = matrices.steps * 2 * TILE_SIZE, chunk = chunk_rows(matrices.steps * STEP);
  const int64_t group = std::clamp<int64_t>(PIECE_SIZE / size, 1, matrices.panels);
  for (int64_t e = 0; e < experts; e++)
    for (int64_t row = slots.begins[e]; row < slots.begins[e + 1]; row += chunk)
      for (int64_t panel = 0; panel < matrices.panels; panel += group)
        out.push_back({e, row, std::min(row + chunk, slots.begins[e + 1]), panel,
                       std::min(panel + group, matrices.panels)});
}

// Experts and weights of tokens [begin, end), at most BLOCK_ROWS.
void route(const Job &job, int64_t begin, int64_t end, Multiplier &multiplier, Slots &slots) {
  const int64_t wide = whole(job.hidden, STEP), scored = whole(job.experts, PANEL);
  int32_t *chosen = slots.chosen.data();
  float *weights = slots.weights.data();
  if (job.given_experts) {
    std::copy(job.given_experts + begin * job.top_k, job.given_experts + end * job.top_k,
              chosen + begin * job.top_k);
    std::copy(job.given_weights + begin * job.top_k, job.given_weights + end * job.top_k,
              weights + begin * job.top_k);
    return;
  }
  static thread_local Lines<Bfloat16> rows;
  static thread_local Lines<float> scores;
  const Bfloat16 *inputs = job.x + begin * job.hidden;
  if (wide != job.hidden) { // tiles are loaded whole
    rows.assign(BLOCK_ROWS * wide, Bfloat16{0});
    for (int64_t t = begin; t < end; t++)
      std::copy_n(job.x + t * job.hidden, job.hidden, rows.data() + (t - begin) * wide);
    inputs = rows.data();
  }
  scores.resize(BLOCK_ROWS * scored);
  const auto place = [&](int64_t row, int64_t panel) {
    return scores.data() + row * scored + panel * PANEL;
  };
  multiplier.panels(inputs, wide, 0, end - begin, job.router, wide / STEP, 0, scored / PANEL, {},
                    place, scored * 4, 2,
                    [&](const Results &block, int64_t row, int64_t count, int64_t panel) {
                      write_floats(block, count, place(row, panel), scored);
                    });
  for (int64_t t = begin; t < end; t++)
    choose(job.experts, job.top_k, job.renormalise, place(t - begin, 0), chosen + t * job.top_k,
           weights + t * job.top_k);
}

// The outputs of a token's experts by their weights, the largest first.
void add(const Job &job, const Scratch &scratch, int64_t stride, int64_t token) {
  const int32_t *places = scratch.slots.places.data() + token * job.top_k;
  const float *weights = scratch.slots.weights.data() + token * job.top_k;
  for (int64_t h = 0; h < job.hidden; h += TILE) {
    Vec sum{};
    for (int64_t k = 0; k < job.top_k; k++)
      sum += load(scratch.outputs.data() + places[k] * stride + h) * weights[k];
    const int64_t real = std::min(job.hidden - h, TILE);
    _mm256_mask_storeu_epi16(job.out + token * job.hidden + h,
                             static_cast<__mmask16>((1u << real) - 1),
                             rounded(reinterpret_cast<__m512>(sum)));
  }
}

void feed(const Job &job, int threads, int way) {
  static thread_local Scratch kept;
  Scratch &scratch = kept; // of the caller, for all threads
  const int64_t hidden = job.hidden, wide = whole(hidden, STEP), inner = whole(job.width, STEP);
  // A line more than the row: rows 1024 bytes apart would share few sets of the first cache.
  const int64_t stride = wide + STEP, inner_stride = inner + STEP, num_slots = job.tokens * job.top_k;
  const Matrices gate_up{job.gate_up, wide / STEP, inner / TILE};
  const Matrices down{job.down, inner / STEP, wide / PANEL};
  Slots &slots = scratch.slots;
  slots.resize(job.tokens, job.top_k);
  scratch.gathered.resize(num_slots * stride);
  scratch.inner.resize(num_slots * inner_stride);
  scratch.outputs.resize(num_slots * wide);
  const bool many = num_slots * inner * wide * 3 > WORTH_THREADS;
#pragma omp parallel num_threads(threads) if (threads > 1 && many)
  {
    Multiplier multiplier(way);
#pragma omp for
    for (int64_t t = 0; t < job.tokens; t += BLOCK_ROWS)
      route(job, t, std::min(t + BLOCK_ROWS, job.tokens), multiplier, slots);
#pragma omp single
    {
      slots.sort(job.experts, job.top_k);
      cut(slots, job.experts, gate_up, scratch.up);
      cut(slots, job.experts, down, scratch.down);
      if (static_cast<int64_t>(scratch.waiting.size()) < job.experts)
        scratch.waiting = std::vector<std::atomic<int64_t>>(job.experts);
      scratch.next = 0;
      for (auto &count : scratch.waiting) count = 0;
      for (const Piece &piece : scratch.up) scratch.waiting[piece.expert]++;
    }
#pragma omp for
    for (int64_t s = 0; s < num_slots; s++) {
      Bfloat16 *row = scratch.gathered.data() + s * stride;
      std::copy_n(job.x + slots.owners[s] * hidden, hidden, row);
      std::fill(row + hidden, row + wide, Bfloat16{0});
    }
    // The second matrices follow the first ones: experts that a thread needs were taken before, by
    // threads that wait for nobody.
    const int64_t num_up = static_cast<int64_t>(scratch.up.size());
    const auto piece_of = [&](int64_t i) -> const Piece & {
      return i < num_up ? scratch.up[i] : scratch.down[i - num_up];
    };
    const auto weights_of = [&](int64_t i) {
      if (i < 0) return Panel{};
      const Piece &piece = piece_of(i);
      const Matrices &matrices = i < num_up ? gate_up : down;
      return Panel{matrices.of(piece.expert) + piece.first * matrices.steps * 2 * TILE_SIZE,
                   matrices.steps};
    };
    const auto up_piece = [&](const Piece &piece, Panel after) {
      const auto place = [&](int64_t row, int64_t panel) {
        return scratch.inner.data() + row * inner_stride + panel * TILE;
      };
      multiplier.panels(scratch.gathered.data(), stride, piece.begin, piece.end,
                        gate_up.of(piece.expert), gate_up.steps, piece.first, piece.last, after,
                        place, inner_stride * 2, 1,
                        [&](const Results &block, int64_t row, int64_t count, int64_t panel) {
                          write_gated(block, count, place(row, panel), inner_stride);
                        });
      scratch.waiting[piece.expert].fetch_sub(1, std::memory_order_release);
    };
    const auto down_piece = [&](const Piece &piece, Panel after) {
      Pause pause;
      while (scratch.waiting[piece.expert].load(std::memory_order_acquire)) pause();
      const auto place = [&](int64_t row, int64_t panel) {
        return scratch.outputs.data() + row * wide + panel * PANEL;
      };
      multiplier.panels(scratch.inner.data(), inner_stride, piece.begin, piece.end,
                        down.of(piece.expert), down.steps, piece.first, piece.last, after, place,
                        wide * 4, 2,
                        [&](const Results &block, int64_t row, int64_t count, int64_t panel) {
                          write_floats(block, count, place(row, panel), wide);
                        });
    };
    take(scratch.next, num_up + static_cast<int64_t>(scratch.down.size()), threads,
         [&](int64_t i, int64_t following) {
           if (i < num_up)
             up_piece(piece_of(i), weights_of(following));
           else
             down_piece(piece_of(i), weights_of(following));
         });
#pragma omp barrier
#pragma omp for nowait
    for (int64_t t = 0; t < job.tokens; t++) add(job, scratch, wide, t);
  }
}

#endif // BATCHGEN_PACKED

} // namespace

// Returns 0, or a failure. sizes: tokens, hidden, width, experts, top_k, whether weights of a token are
// made to sum to 1.
extern "C" int batchgen_packed_experts(int way, int threads, const void *x, const void *router,
                                       const int32_t *given_experts, const float *given_weights,
                                       const void *gate_up, const void *down, void *out,
                                       const int64_t *sizes) {
#ifdef BATCHGEN_PACKED
  if (way < AVX512 || way > batchgen_packed_way()) return UNKNOWN;
  const auto bfloats = [](const void *from) { return static_cast<const Bfloat16 *>(from); };
  const Job job{bfloats(x), bfloats(router), given_experts, given_weights, bfloats(gate_up),
                bfloats(down), static_cast<Bfloat16 *>(out), sizes[0], sizes[1], sizes[2],
                sizes[3], sizes[4], sizes[5] != 0};
  const int64_t most = std::max(MIN_TOKENS, GROUP_ROWS * job.experts / job.top_k);
  return guarded([&] {
    for (int64_t begin = 0; begin < job.tokens; begin += most)
      feed(part(job, begin, std::min(begin + most, job.tokens)), threads, way);
    return 0;
  });
#else
  return UNKNOWN;
#endif
}

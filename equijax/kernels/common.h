// SIMD vectors, compile-time unrolling and a parallel loop on XLA's own threads. Scalar Real and vector size BYTES are
// defined by the generated head of the source.
#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

#define INLINE inline __attribute__((always_inline))

typedef Real Vector __attribute__((vector_size(BYTES)));
typedef Real Unaligned __attribute__((vector_size(BYTES), aligned(sizeof(Real)), may_alias));
constexpr int LANES = BYTES / sizeof(Real);

INLINE Vector load(const Real* p) { return *reinterpret_cast<const Unaligned*>(p); }
INLINE void store(Real* p, Vector v) { *reinterpret_cast<Unaligned*>(p) = v; }

template <int SIZE>
INLINE Real horizontal_sum(const Real* v) {
  Real s = 0;
  for (int i = 0; i < SIZE; ++i) s += v[i];
  return s;
}
INLINE Real horizontal_sum(Vector v) {
  alignas(BYTES) Real x[LANES];
  store(x, v);
  for (int half = LANES / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) x[i] += x[i + half];
  return x[0];
}

// each<N>(f) calls f(0), ..., f(N-1) with compile-time constants, so that small arrays live in registers.
template <class F, int... I>
INLINE void each_of(F&& f, std::integer_sequence<int, I...>) {
  (f(std::integral_constant<int, I>{}), ...);
}
template <int N, class F>
INLINE void each(F&& f) {
  each_of(f, std::make_integer_sequence<int, N>{});
}

// body(begin, end) over 0..size. The caller works too and waits only for blocks that are already running elsewhere, so a
// busy pool delays nothing and nested calls cannot lock up.
template <class Body>
void parallel_for(ffi::ThreadPool& pool, int64_t size, const Body& body) {
  struct State {
    std::atomic<int64_t> next{0}, done{0};
    std::mutex mutex;
    std::condition_variable ready;
  };
  const int64_t threads = std::max<int64_t>(1, pool.num_threads());
  const int64_t block = std::max<int64_t>(1, size / (8 * threads));
  const int64_t blocks = (size + block - 1) / block;
  auto state = std::make_shared<State>();
  const Body* shared = &body;  // alive while a block is unfinished, because the caller waits for all of them
  auto work = [state, shared, size, block, blocks] {
    for (int64_t b; (b = state->next.fetch_add(1)) < blocks;) {
      (*shared)(b * block, std::min(size, (b + 1) * block));
      if (state->done.fetch_add(1) + 1 == blocks) {
        std::lock_guard<std::mutex> lock(state->mutex);
        state->ready.notify_all();
      }
    }
  };
  for (int64_t i = 1; i < std::min(threads, blocks); ++i) pool.Schedule(std::function<void()>(work));
  work();
  std::unique_lock<std::mutex> lock(state->mutex);
  state->ready.wait(lock, [&] { return state->done.load() >= blocks; });
}

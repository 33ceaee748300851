// SIMD vectors, and loops that are written out, so that small arrays live in registers. Scalar Real and vector size
// BYTES are defined by the generated head of the source.
#pragma once

#include <utility>

#ifdef __clang__
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 64")
#endif
#define INLINE inline __attribute__((always_inline))

typedef Real Vector __attribute__((vector_size(BYTES)));
typedef Real Unaligned __attribute__((vector_size(BYTES), aligned(sizeof(Real)), may_alias));
constexpr int LANES = BYTES / sizeof(Real);

INLINE Vector load(const Real* p) { return *reinterpret_cast<const Unaligned*>(p); }
INLINE void store(Real* p, Vector v) { *reinterpret_cast<Unaligned*>(p) = v; }

INLINE Real horizontal_sum(Vector v) {
  alignas(BYTES) Real x[LANES];
  store(x, v);
  for (int half = LANES / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) x[i] += x[i + half];
  return x[0];
}

// each<N>(f) calls f(0), ..., f(N-1) with compile-time constants: where types depend on them. UNROLL compiles faster.
template <class F, int... I>
INLINE void each_of(F&& f, std::integer_sequence<int, I...>) {
  (f(std::integral_constant<int, I>{}), ...);
}
template <int N, class F>
INLINE void each(F&& f) {
  each_of(f, std::make_integer_sequence<int, N>{});
}

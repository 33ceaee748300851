// The neighbour sum Phi(R, Y, h, A) = sum_{n k p m1 m2 m3 c} C_p[m1, m2, m3] R[n, k, p, c] h[s_nk, m1, c] Y[n, k, m2]
// A[n, p m3, c] and its four partial derivatives: the same sum with one operand left out is the output.
//
// Path<i> (generated) holds l1, l2, l3, the first row of A, the first entry of B and the coefficients of path i, where
// B[m1, m3] = sum_m2 C[m1, m2, m3] Y[m2] is made once per edge. NUM_PATHS, NUM_ROWS, NUM_B, NUM_H, NUM_Y are totals.
#include "common.h"

template <int I>
constexpr bool coupled(int m1, int m3) {
  for (int m2 = 0; m2 < 2 * Path<I>::l2 + 1; ++m2)
    if (Path<I>::c[m1][m2][m3] != 0) return true;
  return false;
}

template <int I>
struct Shape {
  static constexpr int d1 = 2 * Path<I>::l1 + 1, d2 = 2 * Path<I>::l2 + 1, d3 = 2 * Path<I>::l3 + 1;
  static constexpr int h0 = Path<I>::l1 * Path<I>::l1, y0 = Path<I>::l2 * Path<I>::l2;
};

struct Operand {
  Real* data = nullptr;
  int64_t stride = 0;  // between members of a batch; 0 where one array serves all
  Real* at(int64_t b) const { return data + b * stride; }
};

struct Problem {
  int64_t N, K, M, C, batch;
  Operand R, Y, h, A, out[3];
  const int32_t *senders, *reverse;
};

INLINE void fold(const Real* Y, Real* B) {
  each<NUM_PATHS>([&](auto i) __attribute__((always_inline)) {
    using S = Shape<i>;
    each<S::d1>([&](auto m1) __attribute__((always_inline)) {
      each<S::d3>([&](auto m3) __attribute__((always_inline)) {
        Real sum = 0;
        each<S::d2>([&](auto m2) __attribute__((always_inline)) {
          constexpr Real c = Path<i>::c[m1][m2][m3];
          if constexpr (c != 0) sum += c * Y[S::y0 + m2];
        });
        B[Path<i>::b + m1 * S::d3 + m3] = sum;
      });
    });
  });
}

constexpr int EDGES = 8;  // edges in flight: their R stays in the nearest caches while A is in registers

template <int I, int NV>
INLINE void sum_path(const Real* R, const Real* const* h, const Real (*B)[NUM_B], int edges, Real* A, int64_t C) {
  using S = Shape<I>;
  Vector acc[S::d3][NV];
  each<S::d3>([&](auto m3) __attribute__((always_inline)) {
    each<NV>([&](auto v) __attribute__((always_inline)) { acc[m3][v] = load(A + m3 * C + v * LANES); });
  });
  for (int k = 0; k < edges; ++k) {
    Vector r[NV];
    each<NV>([&](auto v) __attribute__((always_inline)) { r[v] = load(R + k * NUM_PATHS * C + v * LANES); });
    each<S::d1>([&](auto m1) __attribute__((always_inline)) {
      Vector x[NV];
      each<NV>([&](auto v) __attribute__((always_inline)) {
        x[v] = r[v] * load(h[k] + (S::h0 + m1) * C + v * LANES);
      });
      each<S::d3>([&](auto m3) __attribute__((always_inline)) {
        if constexpr (coupled<I>(m1, m3)) {
          const Real b = B[k][Path<I>::b + m1 * S::d3 + m3];
          each<NV>([&](auto v) __attribute__((always_inline)) { acc[m3][v] += b * x[v]; });
        }
      });
    });
  }
  each<S::d3>([&](auto m3) __attribute__((always_inline)) {
    each<NV>([&](auto v) __attribute__((always_inline)) { store(A + m3 * C + v * LANES, acc[m3][v]); });
  });
}

void sum_neighbours(const Problem& p, int64_t b, int64_t n) {
  const int64_t C = p.C, K = p.K;
  Real* A = p.out[0].at(b) + n * NUM_ROWS * C;
  std::fill(A, A + NUM_ROWS * C, Real(0));
  Real B[EDGES][NUM_B];
  for (int64_t k0 = 0; k0 < K; k0 += EDGES) {
    const int edges = static_cast<int>(std::min<int64_t>(EDGES, K - k0));
    const int64_t first = n * K + k0;
    const Real* h[EDGES];
    for (int k = 0; k < edges; ++k) {
      fold(p.Y.at(b) + (first + k) * NUM_Y, B[k]);
      h[k] = p.h.at(b) + p.senders[first + k] * NUM_H * C;
    }
    const Real* R = p.R.at(b) + first * NUM_PATHS * C;
    each<NUM_PATHS>([&](auto i) __attribute__((always_inline)) {
      constexpr int NV = Shape<i>::d3 <= 3 ? WIDE : NARROW;
      Real* rows = A + Path<i>::row * C;
      int64_t c = 0;
      const Real* hc[EDGES];
      for (; c + NV * LANES <= C; c += NV * LANES) {
        for (int k = 0; k < edges; ++k) hc[k] = h[k] + c;
        sum_path<i, NV>(R + i * C + c, hc, B, edges, rows + c, C);
      }
      for (; c < C; c += LANES) {
        for (int k = 0; k < edges; ++k) hc[k] = h[k] + c;
        sum_path<i, 1>(R + i * C + c, hc, B, edges, rows + c, C);
      }
    });
  }
}

// The derivatives with respect to R and to Y of one edge share their loads.
template <bool DO_R, bool DO_Y>
void edge_derivatives(const Problem& p, int64_t b, int64_t n) {
  const int64_t C = p.C;
  const Real* A = p.A.at(b) + n * NUM_ROWS * C;
  Real B[NUM_B];
  for (int64_t e = n * p.K; e < (n + 1) * p.K; ++e) {
    const Real* h = p.h.at(b) + p.senders[e] * NUM_H * C;
    const Real* R = DO_Y ? p.R.at(b) + e * NUM_PATHS * C : nullptr;
    Real* R_out = DO_R ? p.out[0].at(b) + e * NUM_PATHS * C : nullptr;
    if constexpr (DO_R) fold(p.Y.at(b) + e * NUM_Y, B);
    Vector y[NUM_Y] = {};
    each<NUM_PATHS>([&](auto i) __attribute__((always_inline)) {
      using S = Shape<i>;
      Vector dB[S::d1][S::d3] = {};
      for (int64_t c = 0; c < C; c += LANES) {
        Vector a[S::d3], total = {}, r = {};
        each<S::d3>([&](auto m3) __attribute__((always_inline)) { a[m3] = load(A + (Path<i>::row + m3) * C + c); });
        if constexpr (DO_Y) r = load(R + i * C + c);
        each<S::d1>([&](auto m1) __attribute__((always_inline)) {
          const Vector x = load(h + (S::h0 + m1) * C + c), rx = r * x;
          Vector t = {};
          each<S::d3>([&](auto m3) __attribute__((always_inline)) {
            if constexpr (coupled<i>(m1, m3)) {
              if constexpr (DO_R) t += B[Path<i>::b + m1 * S::d3 + m3] * a[m3];
              if constexpr (DO_Y) dB[m1][m3] += rx * a[m3];
            }
          });
          if constexpr (DO_R) total += t * x;
        });
        if constexpr (DO_R) store(R_out + i * C + c, total);
      }
      if constexpr (DO_Y) {
        each<S::d1>([&](auto m1) __attribute__((always_inline)) {
          each<S::d2>([&](auto m2) __attribute__((always_inline)) {
            each<S::d3>([&](auto m3) __attribute__((always_inline)) {
              constexpr Real c = Path<i>::c[m1][m2][m3];
              if constexpr (c != 0) y[S::y0 + m2] += c * dB[m1][m3];
            });
          });
        });
      }
    });
    if constexpr (DO_Y) {
      Real* Y_out = p.out[DO_R ? 1 : 0].at(b) + e * NUM_Y;
      for (int m = 0; m < NUM_Y; ++m) Y_out[m] = horizontal_sum(y[m]);
    }
  }
}

// Row s of h owns the N K / M slots that `reverse` maps its own slots to: those whose sender it is.
void sum_to_sender(const Problem& p, int64_t b, int64_t s, const Operand& out) {
  const int64_t C = p.C, slots = p.N * p.K / p.M;
  Real* h = out.at(b) + s * NUM_H * C;
  std::fill(h, h + NUM_H * C, Real(0));
  Real B[NUM_B];
  for (int64_t j = 0; j < slots; ++j) {
    const int64_t e = p.reverse[s * slots + j];
    const Real* R = p.R.at(b) + e * NUM_PATHS * C;
    const Real* A = p.A.at(b) + (e / p.K) * NUM_ROWS * C;
    fold(p.Y.at(b) + e * NUM_Y, B);
    for (int64_t c = 0; c < C; c += LANES) {
      Vector acc[NUM_H];
      each<NUM_H>([&](auto m) __attribute__((always_inline)) { acc[m] = load(h + m * C + c); });
      each<NUM_PATHS>([&](auto i) __attribute__((always_inline)) {
        using S = Shape<i>;
        const Vector r = load(R + i * C + c);
        Vector t[S::d1] = {};
        each<S::d3>([&](auto m3) __attribute__((always_inline)) {
          const Vector a = load(A + (Path<i>::row + m3) * C + c);
          each<S::d1>([&](auto m1) __attribute__((always_inline)) {
            if constexpr (coupled<i>(m1, m3)) t[m1] += B[Path<i>::b + m1 * S::d3 + m3] * a;
          });
        });
        each<S::d1>([&](auto m1) __attribute__((always_inline)) { acc[S::h0 + m1] += r * t[m1]; });
      });
      each<NUM_H>([&](auto m) __attribute__((always_inline)) { store(h + m * C + c, acc[m]); });
    }
  }
}

// One output for each letter of `outputs`, out of A, R, Y, RY, h; operands in the order R, Y, h, A without the missing.
ffi::Error convolution(ffi::ThreadPool pool, ffi::RemainingArgs args, ffi::RemainingRets rets, std::string_view present,
                       std::string_view outputs, int64_t N, int64_t K, int64_t M, int64_t C) {
  Problem p{N, K, M, C, 1, {}, {}, {}, {}, {}, nullptr, nullptr};
  const size_t operands = present.size();
  if (args.size() != operands + 2) return ffi::Error::InvalidArgument("convolution: wrong number of operands");
  for (size_t i = 0; i < operands; ++i) {
    auto x = *args.get<ffi::AnyBuffer>(i);
    Operand& o = present[i] == 'R' ? p.R : present[i] == 'Y' ? p.Y : present[i] == 'h' ? p.h : p.A;
    const int64_t members = x.dimensions()[0];
    o.data = static_cast<Real*>(x.untyped_data());
    o.stride = members == 1 ? 0 : static_cast<int64_t>(x.element_count()) / members;
    p.batch = std::max(p.batch, members);
  }
  p.senders = args.get<ffi::AnyBuffer>(operands)->typed_data<int32_t>();
  p.reverse = args.get<ffi::AnyBuffer>(operands + 1)->typed_data<int32_t>();
  for (size_t i = 0; i < outputs.size(); ++i) {
    auto x = *rets.get<ffi::AnyBuffer>(i);
    p.out[i].data = static_cast<Real*>((*x).untyped_data());
    p.out[i].stride = static_cast<int64_t>((*x).element_count()) / p.batch;
  }
  auto nodes = [&](int64_t rows, auto&& f) {
    parallel_for(pool, p.batch * rows, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) f(i / rows, i % rows);
    });
  };
  if (outputs == "A") nodes(N, [&](int64_t b, int64_t n) { sum_neighbours(p, b, n); });
  if (outputs == "R") nodes(N, [&](int64_t b, int64_t n) { edge_derivatives<true, false>(p, b, n); });
  if (outputs == "Y") nodes(N, [&](int64_t b, int64_t n) { edge_derivatives<false, true>(p, b, n); });
  if (outputs == "RY" || outputs == "RYh") nodes(N, [&](int64_t b, int64_t n) { edge_derivatives<true, true>(p, b, n); });
  if (outputs == "h" || outputs == "RYh") {
    const Operand& out = p.out[outputs.size() - 1];
    nodes(M, [&](int64_t b, int64_t s) { sum_to_sender(p, b, s, out); });
  }
  return ffi::Error::Success();
}

XLA_FFI_DEFINE_HANDLER_SYMBOL(handler, convolution,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .RemainingArgs()
                                  .RemainingRets()
                                  .Attr<std::string_view>("present")
                                  .Attr<std::string_view>("outputs")
                                  .Attr<int64_t>("N")
                                  .Attr<int64_t>("K")
                                  .Attr<int64_t>("M")
                                  .Attr<int64_t>("C"));

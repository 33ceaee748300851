// The neighbour sum Phi(R, Y, h, A) = sum_{n k p m1 m2 m3 c} C_p[m1, m2, m3] R[n, k, p, c] h[s_nk, m1, c] Y[n, k, m2]
// A[n, p m3, c] and its four partial derivatives: the same sum with one operand left out is the output.
//
// R is an array or, where TERMS > 0, the expansion R[n, k, p, c] = sum_j phi[n, k, j] W[first[n, k] + j, p, c] over TERMS
// consecutive rows of a table that is made edge by edge and never stored. Then phi stands wherever R would, and slots
// with first < 0 are empty and cost nothing.
//
// Path<i> (generated) holds l1, l2, l3, the first row of A, the first entry of B and the coefficients of path i, where
// B[m1, m3] = sum_m2 C[m1, m2, m3] Y[m2] is made once per edge. NUM_PATHS, NUM_ROWS, NUM_B, NUM_H, NUM_Y are totals, C the
// number of channels.
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

constexpr int64_t ROW = int64_t{NUM_PATHS} * C;  // radial functions of one edge

struct Problem {
  int64_t N, K, M, batch, rows;
  Operand R, Y, h, A, W, out[3];
  const int32_t *senders, *reverse, *first;
  bool used(int64_t e) const { return TERMS == 0 || first[e] >= 0; }
  // Indices are 32 bits wide, what they are multiplied by is 64; out of range, they are clamped as XLA clamps them.
  const Real* sender(int64_t b, int64_t e) const { return h.at(b) + clamp(senders[e], M) * NUM_H * C; }
  int64_t reversed(int64_t e) const { return clamp(reverse[e], N * K); }
  const Real* table(int64_t e) const { return W.data + clamp(first[e], rows - TERMS + 1) * ROW; }
  static int64_t clamp(int64_t i, int64_t size) { return std::clamp<int64_t>(i, 0, size - 1); }
};

// R of edge e: where it lies, or `scratch` filled from the table.
INLINE const Real* radial(const Problem& p, int64_t b, int64_t e, Real* scratch) {
  if constexpr (TERMS == 0) {
    return p.R.at(b) + e * ROW;
  } else {
    const Real* phi = p.R.at(b) + e * TERMS;
    const Real* W = p.table(e);
    for (int64_t c = 0; c < ROW; c += LANES) {
      Vector sum = phi[0] * load(W + c);
      each<TERMS - 1>([&](auto j) __attribute__((always_inline)) { sum += phi[j + 1] * load(W + (j + 1) * ROW + c); });
      store(scratch + c, sum);
    }
    return scratch;
  }
}

// The derivative with respect to phi from that with respect to R, for the slots of the table that edge e uses.
INLINE void project(const Problem& p, int64_t e, const Real* dR, Real* dphi) {
  const Real* W = p.table(e);
  Vector sum[TERMS + 1] = {};
  for (int64_t c = 0; c < ROW; c += LANES) {
    const Vector d = load(dR + c);
    each<TERMS>([&](auto j) __attribute__((always_inline)) { sum[j] += d * load(W + j * ROW + c); });
  }
  each<TERMS>([&](auto j) __attribute__((always_inline)) { dphi[j] = horizontal_sum(sum[j]); });
}

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

// Edges in flight: their R stays in the nearest caches while A is in registers.
constexpr int EDGES = TERMS == 0 ? 8 : 4;

template <int I, int NV>
INLINE void sum_path(const Real* const* R, const Real* const* h, const Real (*B)[NUM_B], int edges, Real* A, int64_t c) {
  using S = Shape<I>;
  Vector acc[S::d3][NV];
  each<S::d3>([&](auto m3) __attribute__((always_inline)) {
    each<NV>([&](auto v) __attribute__((always_inline)) { acc[m3][v] = load(A + m3 * C + v * LANES); });
  });
  for (int k = 0; k < edges; ++k) {
    Vector r[NV];
    each<NV>([&](auto v) __attribute__((always_inline)) { r[v] = load(R[k] + I * C + c + v * LANES); });
    each<S::d1>([&](auto m1) __attribute__((always_inline)) {
      Vector x[NV];
      each<NV>([&](auto v) __attribute__((always_inline)) {
        x[v] = r[v] * load(h[k] + (S::h0 + m1) * C + c + v * LANES);
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
  Real* A = p.out[0].at(b) + n * NUM_ROWS * C;
  std::fill(A, A + NUM_ROWS * C, Real(0));
  Real B[EDGES][NUM_B], scratch[EDGES][TERMS == 0 ? 1 : ROW];
  const Real *h[EDGES], *R[EDGES];
  for (int64_t e = n * p.K, end = e + p.K; e < end;) {
    int edges = 0;
    for (; e < end && edges < EDGES; ++e) {
      if (!p.used(e)) continue;
      fold(p.Y.at(b) + e * NUM_Y, B[edges]);
      h[edges] = p.sender(b, e);
      R[edges] = radial(p, b, e, scratch[edges]);
      ++edges;
    }
    each<NUM_PATHS>([&](auto i) __attribute__((always_inline)) {
      constexpr int NV = Shape<i>::d3 <= 3 ? WIDE : NARROW;
      Real* rows = A + Path<i>::row * C;
      int64_t c = 0;
      for (; c + NV * LANES <= C; c += NV * LANES) sum_path<i, NV>(R, h, B, edges, rows + c, c);
      for (; c < C; c += LANES) sum_path<i, 1>(R, h, B, edges, rows + c, c);
    });
  }
}

// The derivatives with respect to R and to Y of one edge share their loads.
template <bool DO_R, bool DO_Y>
void edge_derivatives(const Problem& p, int64_t b, int64_t n) {
  constexpr bool TABLE = TERMS > 0;
  const Real* A = p.A.at(b) + n * NUM_ROWS * C;
  Real B[NUM_B], scratch[TABLE ? ROW : 1], dR[TABLE ? ROW : 1];
  for (int64_t e = n * p.K; e < (n + 1) * p.K; ++e) {
    Real* out = DO_R ? p.out[0].at(b) + e * (TABLE ? TERMS : ROW) : nullptr;
    Real* Y_out = DO_Y ? p.out[DO_R ? 1 : 0].at(b) + e * NUM_Y : nullptr;
    if (!p.used(e)) {
      if constexpr (DO_R) std::fill(out, out + TERMS, Real(0));
      if constexpr (DO_Y) std::fill(Y_out, Y_out + NUM_Y, Real(0));
      continue;
    }
    const Real* h = p.sender(b, e);
    const Real* R = DO_Y ? radial(p, b, e, scratch) : nullptr;
    Real* R_out = TABLE ? dR : out;
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
      for (int m = 0; m < NUM_Y; ++m) Y_out[m] = horizontal_sum(y[m]);
    }
    if constexpr (DO_R && TABLE) project(p, e, dR, out);
  }
}

// Row s of h owns the N K / M slots that `reverse` maps its own slots to: those whose sender it is.
void sum_to_sender(const Problem& p, int64_t b, int64_t s, const Operand& out) {
  const int64_t slots = p.N * p.K / p.M;
  Real* h = out.at(b) + s * NUM_H * C;
  std::fill(h, h + NUM_H * C, Real(0));
  Real B[NUM_B], scratch[TERMS == 0 ? 1 : ROW];
  for (int64_t j = 0; j < slots; ++j) {
    const int64_t e = p.reversed(s * slots + j);
    if (!p.used(e)) continue;
    const Real* R = radial(p, b, e, scratch);
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

// One output for each letter of `outputs`, out of A, R, Y, RY, RYh, h; operands in the order of `present`, a string of R, Y,
// h, A, W; then senders, reverse and, with a table, first.
ffi::Error convolution(ffi::ThreadPool pool, ffi::RemainingArgs args, ffi::RemainingRets rets, std::string_view present,
                       std::string_view outputs, int64_t N, int64_t K, int64_t M) {
  Problem p{};
  p.N = N, p.K = K, p.M = M, p.batch = 1;
  const size_t operands = present.size();
  if (args.size() != operands + 2 + (TERMS > 0)) return ffi::Error::InvalidArgument("convolution: wrong number of operands");
  for (size_t i = operands; i < args.size(); ++i)
    if (static_cast<int64_t>(args.get<ffi::AnyBuffer>(i)->element_count()) != N * K)
      return ffi::Error::InvalidArgument("convolution: one sender, reverse and first for each of the N K slots");
  for (size_t i = 0; i < operands; ++i) {
    auto x = *args.get<ffi::AnyBuffer>(i);
    const char name = present[i];
    Operand& o = name == 'R' ? p.R : name == 'Y' ? p.Y : name == 'h' ? p.h : name == 'W' ? p.W : p.A;
    const int64_t members = x.dimensions()[0];
    o.data = static_cast<Real*>(x.untyped_data());
    o.stride = members == 1 ? 0 : static_cast<int64_t>(x.element_count()) / members;
    p.batch = std::max(p.batch, members);
    if (name == 'W') p.rows = x.dimensions()[1];
  }
  p.senders = args.get<ffi::AnyBuffer>(operands)->typed_data<int32_t>();
  p.reverse = args.get<ffi::AnyBuffer>(operands + 1)->typed_data<int32_t>();
  if (TERMS > 0) p.first = args.get<ffi::AnyBuffer>(operands + 2)->typed_data<int32_t>();
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
                                  .Attr<int64_t>("M"));

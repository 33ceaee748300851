// The neighbour sum Phi(R, Y, h, A) = sum_{n k p m1 m2 m3 c} C_p[m1, m2, m3] R[n, k, p, c] h[s_nk, m1, c] Y[n, k, m2]
// A[n, p m3, c] and its four partial derivatives: the same sum with one operand left out is the output.
//
// R is an array or, where TERMS > 0, the expansion R[n, k, p, c] = sum_j phi[n, k, j] W[first[n, k] + j, p, c] over TERMS
// consecutive rows of a table that is made edge by edge and never stored. Then phi stands wherever R would, and slots
// with first < 0 are empty and cost nothing.
//
// Path<i> (generated) holds l1, l2, l3, the first row of A, the first entry of B and the coefficients c of path i, where
// B[m1, m3] = sum_m2 C[m1, m2, m3] Y[m2] is made once per edge and is zero where not coupled[m1][m3]. NUM_PATHS,
// NUM_ROWS, NUM_B, NUM_H, NUM_Y are totals, C the number of channels.
#include "simd.h"
#include "xla.h"

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
      UNROLL for (int j = 0; j < TERMS - 1; ++j) { sum += phi[j + 1] * load(W + (j + 1) * ROW + c); }
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
    UNROLL for (int j = 0; j < TERMS; ++j) { sum[j] += d * load(W + j * ROW + c); }
  }
  UNROLL for (int j = 0; j < TERMS; ++j) { dphi[j] = horizontal_sum(sum[j]); }
}

void fold(const Real* Y, Real* B) {
  each<NUM_PATHS>([&](auto i) __attribute__((always_inline)) {
    using S = Shape<i>;
    UNROLL for (int m1 = 0; m1 < S::d1; ++m1) {
      UNROLL for (int m3 = 0; m3 < S::d3; ++m3) {
        Real sum = 0;
        UNROLL for (int m2 = 0; m2 < S::d2; ++m2) {
          const Real c = Path<i>::c[m1][m2][m3];
          if (c != 0) sum += c * Y[S::y0 + m2];
        }
        B[Path<i>::b + m1 * S::d3 + m3] = sum;
      }
    }
  });
}

// Edges in flight: their R stays in the nearest caches while A is in registers.
constexpr int EDGES = TERMS == 0 ? 8 : 4;

template <int I, int NV>
INLINE void sum_path(const Real* const* R, const Real* const* h, const Real (*B)[NUM_B], int edges, Real* A, int64_t c) {
  using S = Shape<I>;
  Vector acc[S::d3][NV];
  UNROLL for (int m3 = 0; m3 < S::d3; ++m3) {
    UNROLL for (int v = 0; v < NV; ++v) { acc[m3][v] = load(A + m3 * C + v * LANES); }
  }
  for (int k = 0; k < edges; ++k) {
    Vector r[NV];
    UNROLL for (int v = 0; v < NV; ++v) { r[v] = load(R[k] + I * C + c + v * LANES); }
    UNROLL for (int m1 = 0; m1 < S::d1; ++m1) {
      Vector x[NV];
      UNROLL for (int v = 0; v < NV; ++v) {
        x[v] = r[v] * load(h[k] + (S::h0 + m1) * C + c + v * LANES);
      }
      UNROLL for (int m3 = 0; m3 < S::d3; ++m3) {
        if (Path<I>::coupled[m1][m3]) {
          const Real b = B[k][Path<I>::b + m1 * S::d3 + m3];
          UNROLL for (int v = 0; v < NV; ++v) { acc[m3][v] += b * x[v]; }
        }
      }
    }
  }
  UNROLL for (int m3 = 0; m3 < S::d3; ++m3) {
    UNROLL for (int v = 0; v < NV; ++v) { store(A + m3 * C + v * LANES, acc[m3][v]); }
  }
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
      if constexpr (C % (NV * LANES) != 0)
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
        UNROLL for (int m3 = 0; m3 < S::d3; ++m3) { a[m3] = load(A + (Path<i>::row + m3) * C + c); }
        if constexpr (DO_Y) r = load(R + i * C + c);
        UNROLL for (int m1 = 0; m1 < S::d1; ++m1) {
          const Vector x = load(h + (S::h0 + m1) * C + c), rx = r * x;
          Vector t = {};
          UNROLL for (int m3 = 0; m3 < S::d3; ++m3) {
            if (Path<i>::coupled[m1][m3]) {
              if constexpr (DO_R) t += B[Path<i>::b + m1 * S::d3 + m3] * a[m3];
              if constexpr (DO_Y) dB[m1][m3] += rx * a[m3];
            }
          }
          if constexpr (DO_R) total += t * x;
        }
        if constexpr (DO_R) store(R_out + i * C + c, total);
      }
      if constexpr (DO_Y) {
        UNROLL for (int m1 = 0; m1 < S::d1; ++m1) {
          UNROLL for (int m2 = 0; m2 < S::d2; ++m2) {
            UNROLL for (int m3 = 0; m3 < S::d3; ++m3) {
              const Real c = Path<i>::c[m1][m2][m3];
              if (c != 0) y[S::y0 + m2] += c * dB[m1][m3];
            }
          }
        }
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
      UNROLL for (int m = 0; m < NUM_H; ++m) { acc[m] = load(h + m * C + c); }
      each<NUM_PATHS>([&](auto i) __attribute__((always_inline)) {
        using S = Shape<i>;
        const Vector r = load(R + i * C + c);
        Vector t[S::d1] = {};
        UNROLL for (int m3 = 0; m3 < S::d3; ++m3) {
          const Vector a = load(A + (Path<i>::row + m3) * C + c);
          UNROLL for (int m1 = 0; m1 < S::d1; ++m1) {
            if (Path<i>::coupled[m1][m3]) t[m1] += B[Path<i>::b + m1 * S::d3 + m3] * a;
          }
        }
        UNROLL for (int m1 = 0; m1 < S::d1; ++m1) { acc[S::h0 + m1] += r * t[m1]; }
      });
      UNROLL for (int m = 0; m < NUM_H; ++m) { store(h + m * C + c, acc[m]); }
    }
  }
}

// One output for each letter of `outputs`, out of A, R, Y, RY, RYh, h; operands in the order of `present`, a string of
// R, Y, h, A, W; then senders, reverse and, with a table, first.
Failure convolution(const Call& call) {
  Problem p{};
  p.N = call.number("N"), p.K = call.number("K"), p.M = call.number("M"), p.batch = 1;
  const Text present = call.text("present"), outputs = call.text("outputs");
  const int64_t operands = present.size;
  if (call.operands() != operands + 2 + (TERMS > 0)) return call.refuse("convolution: wrong number of operands");
  for (int64_t i = operands; i < call.operands(); ++i)
    if (call.operand(i).size() != p.N * p.K)
      return call.refuse("convolution: one sender, reverse and first for each of the N K slots");
  for (int64_t i = 0; i < operands; ++i) {
    const Buffer x = call.operand(i);
    const char name = present[i];
    Operand& o = name == 'R' ? p.R : name == 'Y' ? p.Y : name == 'h' ? p.h : name == 'W' ? p.W : p.A;
    const int64_t members = x.dimensions[0];
    o.data = static_cast<Real*>(x.data);
    o.stride = members == 1 ? 0 : x.size() / members;
    p.batch = std::max(p.batch, members);
    if (name == 'W') p.rows = x.dimensions[1];
  }
  p.senders = static_cast<const int32_t*>(call.operand(operands).data);
  p.reverse = static_cast<const int32_t*>(call.operand(operands + 1).data);
  if (TERMS > 0) p.first = static_cast<const int32_t*>(call.operand(operands + 2).data);
  for (int64_t i = 0; i < outputs.size; ++i) {
    const Buffer x = call.result(i);
    p.out[i] = {static_cast<Real*>(x.data), x.size() / p.batch};
  }
  const auto nodes = [&](int64_t rows, auto&& f) {
    parallel_for(call, p.batch * rows, [&](int64_t i) { f(i / rows, i % rows); });
  };
  if (outputs == "A") nodes(p.N, [&](int64_t b, int64_t n) { sum_neighbours(p, b, n); });
  if (outputs == "R") nodes(p.N, [&](int64_t b, int64_t n) { edge_derivatives<true, false>(p, b, n); });
  if (outputs == "Y") nodes(p.N, [&](int64_t b, int64_t n) { edge_derivatives<false, true>(p, b, n); });
  if (outputs == "RY" || outputs == "RYh")
    nodes(p.N, [&](int64_t b, int64_t n) { edge_derivatives<true, true>(p, b, n); });
  if (outputs == "h" || outputs == "RYh") {
    const Operand& out = p.out[outputs.size - 1];
    nodes(p.M, [&](int64_t b, int64_t s) { sum_to_sender(p, b, s, out); });
  }
  return nullptr;
}

HANDLER(convolution)

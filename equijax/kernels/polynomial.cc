// Directional derivatives of per-species polynomials, elementwise in the channel:
//
//   S(w, x, O, t_1..t_K) = sum_{n m c} O[n, m, c] d/de_1 .. d/de_K P_m(w[slot_n, :, c], x[n, :, c] + sum_a e_a t_a[n, :, c])
//
// with P_m a sum of monomials w_q x_i x_j .. of DEGREE factors, or its derivative with respect to w, O or another
// direction. Variable VARIABLES is the constant one, which fills up monomials of lower degree. DEGREE and VARIABLES are
// generated; the monomials come with the call: their variables, and runs (component m, first q, last q + 1).
#include "simd.h"
#include "xla.h"

constexpr int WIDE = 4;  // registers of channels in flight: enough independent sums to hide the latency of an addition

struct Array {
  Real* data = nullptr;
  int64_t stride = 0;  // between members of a batch; 0 where one array serves all
  int64_t rows = 0, columns = 0;
  Real* at(int64_t b, int64_t row) const { return data + b * stride + row * columns; }
};

struct Problem {
  int64_t C = 0, species = 0, batch = 1;
  int directions = 0;
  Array x, w, O, t[DEGREE], out;
  const int32_t *slot = nullptr, *factors = nullptr, *runs = nullptr;
  int64_t num_runs = 0;
  int64_t row(int64_t n) const { return std::clamp<int64_t>(slot[n], 0, species - 1); }
};

template <int K, int NV>
struct Point {  // x and its K directions at one node and a block of channels
  Vector x[VARIABLES + 1][NV], t[K + 1][VARIABLES + 1][NV];

  Point(const Problem& p, int64_t b, int64_t n, int64_t c) {
    fill(x, p.x.at(b, n) + c, p.C, 1);
    UNROLL for (int a = 0; a < K; ++a) { fill(t[a], p.t[a].at(b, n) + c, p.C, 0); }
  }
  static INLINE void fill(Vector (*rows)[NV], const Real* from, int64_t C, Real constant) {
    for (int i = 0; i < VARIABLES; ++i)
      UNROLL for (int v = 0; v < NV; ++v) { rows[i][v] = load(from + i * C + v * LANES); }
    UNROLL for (int v = 0; v < NV; ++v) { rows[VARIABLES][v] = Vector{} + constant; }
  }
};

constexpr int bits(int s) { return s == 0 ? 0 : (s & 1) + bits(s >> 1); }

// Coefficient of e_1 .. e_K in the product of (x_i + sum_a e_a t_a,i) over a monomial's factors i, but factor SKIP.
// p[s] is the coefficient of the directions in the set of bits s.
template <int SKIP, int K, int NV>
INLINE Vector derivative(const Point<K, NV>& y, const int32_t* factors, int v) {
  Vector p[1 << K];
  p[0] = Vector{} + Real(1);
  UNROLL for (int d = 0; d < DEGREE; ++d) {
    if (d != SKIP) {
      const int done = d - (SKIP >= 0 && d > SKIP);
      const int i = factors[d];
      Vector q[1 << K];
      UNROLL for (int s = 0; s < (1 << K); ++s) {
        if (bits(s) <= done + 1) {
          Vector sum = {};
          if (bits(s) <= done) sum = done == 0 ? y.x[i][v] : p[s] * y.x[i][v];
          UNROLL for (int a = 0; a < K; ++a) {
            if ((s >> a) & 1) sum += done == 0 ? y.t[a][i][v] : p[s ^ (1 << a)] * y.t[a][i][v];
          }
          q[s] = sum;
        }
      }
      UNROLL for (int s = 0; s < (1 << K); ++s) {
        if (bits(s) <= done + 1) p[s] = q[s];
      }
    }
  }
  return p[(1 << K) - 1];
}

template <int K, int NV>
void values(const Problem& p, int64_t b, int64_t n, int64_t c) {
  const Point<K, NV> y(p, b, n, c);
  const Real* w = p.w.at(b, p.row(n)) + c;
  Real* out = p.out.at(b, n) + c;
  for (int64_t i = 0; i < p.out.columns; i += p.C)
    UNROLL for (int v = 0; v < NV; ++v) { store(out + i + v * LANES, Vector{}); }
  for (const int32_t* r = p.runs; r < p.runs + 3 * p.num_runs; r += 3) {
    Real* sum = out + r[0] * p.C;
    Vector acc[NV];
    UNROLL for (int v = 0; v < NV; ++v) { acc[v] = load(sum + v * LANES); }
    for (int q = r[1]; q < r[2]; ++q)
      UNROLL for (int v = 0; v < NV; ++v) {
        acc[v] += load(w + q * p.C + v * LANES) * derivative<-1>(y, p.factors + q * DEGREE, v);
      }
    UNROLL for (int v = 0; v < NV; ++v) { store(sum + v * LANES, acc[v]); }
  }
}

template <int K, int NV>
void gradient(const Problem& p, int64_t b, int64_t n, int64_t c) {
  const Point<K, NV> y(p, b, n, c);
  const Real* w = p.w.at(b, p.row(n)) + c;
  Vector acc[VARIABLES + 1][NV] = {};
  for (const int32_t* r = p.runs; r < p.runs + 3 * p.num_runs; r += 3) {
    const Real* O = p.O.at(b, n) + r[0] * p.C + c;
    Vector o[NV];
    UNROLL for (int v = 0; v < NV; ++v) { o[v] = load(O + v * LANES); }
    for (int q = r[1]; q < r[2]; ++q) {
      const int32_t* factors = p.factors + q * DEGREE;
      Vector g[NV];
      UNROLL for (int v = 0; v < NV; ++v) { g[v] = o[v] * load(w + q * p.C + v * LANES); }
      each<DEGREE>([&](auto d) __attribute__((always_inline)) {
        UNROLL for (int v = 0; v < NV; ++v) {
          acc[factors[d]][v] += g[v] * derivative<d>(y, factors, v);
        }
      });
    }
  }
  Real* out = p.out.at(b, n) + c;
  for (int i = 0; i < VARIABLES; ++i)
    UNROLL for (int v = 0; v < NV; ++v) { store(out + i * p.C + v * LANES, acc[i][v]); }
}

// One block of channels belongs to one thread, because nodes of the same species share their coefficients.
template <int K>
void coefficients(const Problem& p, int64_t b, int64_t c) {
  for (int64_t z = 0; z < p.species; ++z)
    for (int64_t i = 0; i < p.out.columns; i += p.C) store(p.out.at(b, z) + i + c, Vector{});
  for (int64_t n = 0; n < p.x.rows; ++n) {
    const Point<K, 1> y(p, b, n, c);
    Real* out = p.out.at(b, p.row(n)) + c;
    for (const int32_t* r = p.runs; r < p.runs + 3 * p.num_runs; r += 3) {
      const Vector o = load(p.O.at(b, n) + r[0] * p.C + c);
      for (int q = r[1]; q < r[2]; ++q) {
        Real* at = out + q * p.C;
        store(at, load(at) + o * derivative<-1>(y, p.factors + q * DEGREE, 0));
      }
    }
  }
}

template <int K>
void run(const Call& call, const Problem& p, char output) {
  const int64_t wide = p.C / (WIDE * LANES), narrow = p.C / LANES - wide * WIDE, N = p.x.rows;
  if (output == 'w') {
    const int64_t blocks = p.C / LANES;
    parallel_for(call, p.batch * blocks, [&](int64_t i) { coefficients<K>(p, i / blocks, i % blocks * LANES); });
    return;
  }
  // nodes run fastest: their coefficients of one block of channels stay in the nearest caches
  parallel_for(call, p.batch * (wide + narrow) * N, [&](int64_t i) {
    const int64_t n = i % N, block = i / N % (wide + narrow), b = i / N / (wide + narrow);
    const bool full = block < wide;
    const int64_t c = (full ? block * WIDE : wide * WIDE + block - wide) * LANES;
    if constexpr (K < DEGREE)
      if (output == 't') full ? gradient<K, WIDE>(p, b, n, c) : gradient<K, 1>(p, b, n, c);
    if (output == 'O') full ? values<K, WIDE>(p, b, n, c) : values<K, 1>(p, b, n, c);
  });
}

Array array(const Buffer& x, Problem& p) {
  const int64_t* dims = x.dimensions;  // member of the batch, node or species, row, channel
  p.C = dims[3];
  p.batch = std::max<int64_t>(p.batch, dims[0]);
  return {static_cast<Real*>(x.data), dims[0] == 1 ? 0 : dims[1] * dims[2] * dims[3], dims[1], dims[2] * dims[3]};
}

// `roles` names the operands in order: x, then some of w, O, t..; the last operand is slot.
Failure polynomial(const Call& call) {
  Problem p;
  const Text roles = call.text("roles"), output = call.text("output");
  if (call.operands() != roles.size + 1) return call.refuse("polynomial: wrong number of operands");
  for (int64_t i = 0; i < roles.size; ++i) {
    if (roles[i] == 't' && p.directions == DEGREE) return call.refuse("polynomial: too many directions");
    Array& to = roles[i] == 'x' ? p.x : roles[i] == 'w' ? p.w : roles[i] == 'O' ? p.O : p.t[p.directions++];
    to = array(call.operand(i), p);
  }
  p.out = array(call.result(0), p);
  p.species = output[0] == 'w' ? p.out.rows : p.w.rows;
  p.slot = static_cast<const int32_t*>(call.operand(roles.size).data);
  p.factors = call.integers("factors").data;
  const Integers runs = call.integers("runs");
  p.runs = runs.data, p.num_runs = runs.size / 3;
  each<DEGREE + 1>([&](auto k) {
    if (k == p.directions) run<k>(call, p, output[0]);
  });
  return nullptr;
}

HANDLER(polynomial)

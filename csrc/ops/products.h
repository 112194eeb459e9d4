// The products that linear, matmul and their gradients are, read off a call: what a backend computes by its gemm(). In the
// namespace of the including code, as abi/call.h.
//
// Batch axes of matmul that only A has are folded into its rows where memory allows, so that (B, L, K) x (K, N) is one
// product; likewise a gradient's sum over such axes becomes a longer K. What cannot be folded is added up call by call, in f32.
#pragma once
#include <initializer_list>

#include "abi/gemm.h"
#include "ops/linear.h"
#include "ops/matmul.h"

namespace MM_CALL_NAMESPACE {

inline int64_t leading(const MMTensorView& x) {
  int64_t n = 1;
  for (int i = 0; i + 1 < x.ndim; i++) n *= x.shape[i];
  return n;
}

// x W^T into `to`, which is laid out like y
inline Gemm forwardProduct(const MMTensorView& x, const MMTensorView& w, void* to, int32_t dtype) {
  Gemm g;
  g.m = leading(x), g.n = w.shape[0], g.k = w.shape[1];
  g.a.data = x.data, g.a.dtype = x.dtype, g.a.ld = g.k;
  g.b.data = w.data, g.b.dtype = w.dtype, g.b.ld = g.k, g.b.transposed = true;
  g.c.data = to, g.c.dtype = dtype, g.c.ld = g.n;
  return g;
}

inline Gemm linearProduct(const MMCall* c) {
  using namespace ops::linear;
  Gemm g = forwardProduct(in(c, X), in(c, WEIGHT), out(c, Y).data, out(c, Y).dtype);
  g.activation = Activation(attrs<Attrs>(c).activation);
  if (has(c, BIAS)) g.bias = in(c, BIAS).data, g.bias_dtype = in(c, BIAS).dtype;
  if (has(c, RESIDUAL)) g.other = in(c, RESIDUAL).data;
  return g;
}

// The products of linear's backward pass: dZ = dY act'(x W^T + b), the product again with the gradient as its epilogue, lies
// at the start of the workspace where there is an activation; dX = dZ W, dW = dZ^T x.
struct LinearGradients {
  Gemm z, dx, dw;
  int64_t m, n;
  bool recompute;
  uint64_t dzBytes;
  const void* dz;

  explicit LinearGradients(const MMCall* c) {
    using namespace ops::linear_bwd;
    const auto &x = in(c, X), &w = in(c, WEIGHT), &dy = in(c, DY);
    const bool wantDx = hasOut(c, DX), wantDw = hasOut(c, DWEIGHT), wantDb = hasOut(c, DBIAS);
    m = leading(x), n = w.shape[0];
    const int64_t k = w.shape[1];
    const Activation f = Activation(attrs<Attrs>(c).activation);
    recompute = f != Activation::None && (wantDx || wantDw || wantDb);
    dzBytes = recompute ? (uint64_t(m * n) * (dy.dtype == MM_F32 ? 4 : 2) + 255) & ~uint64_t(255) : 0;
    dz = recompute ? c->workspace : dy.data;
    if (recompute) {
      z = forwardProduct(x, w, c->workspace, dy.dtype);
      z.activation = f, z.gradient = true, z.other = dy.data;
      if (has(c, BIAS)) z.bias = in(c, BIAS).data, z.bias_dtype = in(c, BIAS).dtype;
    }
    if (wantDx) {
      dx.m = m, dx.n = k, dx.k = n;
      dx.a.data = dz, dx.a.dtype = dy.dtype, dx.a.ld = n;
      dx.b.data = w.data, dx.b.dtype = w.dtype, dx.b.ld = k;
      dx.c.data = out(c, DX).data, dx.c.dtype = out(c, DX).dtype, dx.c.ld = k;
    }
    if (wantDw) {
      dw.m = n, dw.n = k, dw.k = m;
      dw.a.data = dz, dw.a.dtype = dy.dtype, dw.a.ld = n, dw.a.transposed = true;
      dw.b.data = x.data, dw.b.dtype = x.dtype, dw.b.ld = k;
      dw.c.data = out(c, DWEIGHT).data, dw.c.dtype = MM_F32, dw.c.ld = k;
    }
  }
};

// The workspace of linear's gradients, which are computed one after the other behind dZ; gemmBytes(product) and columnBytes(m, n):
// that of one product, and of the column sums for the bias.
template <class F, class G>
uint64_t linearGradientsWorkspace(const MMCall* c, F&& gemmBytes, G&& columnBytes) {
  using namespace ops::linear_bwd;
  const LinearGradients g(c);
  uint64_t most = 0;
  const auto share = [&](uint64_t bytes) { most = bytes > most ? bytes : most; };
  if (g.recompute) share(gemmBytes(g.z));
  if (hasOut(c, DX)) share(gemmBytes(g.dx));
  if (hasOut(c, DWEIGHT)) share(gemmBytes(g.dw));
  if (hasOut(c, DBIAS)) share(columnBytes(g.m, g.n));
  return g.dzBytes + most;
}

inline GemmMatrix matrix(const MMTensorView& x, bool transposed) {
  GemmMatrix r;
  const int64_t rows = x.shape[x.ndim - 2], cols = x.shape[x.ndim - 1];
  r.data = x.data, r.dtype = x.dtype, r.transposed = transposed;
  r.ld = rows > 1 ? x.stride[x.ndim - 2] : cols > 1 ? cols : 1;
  return r;
}

// Adds the batch axes of `whole` (the shape of y), aligned at the right; an operand is broadcast where its axis is 1.
inline void addBatch(Gemm& g, const MMTensorView& whole, const MMTensorView& a, const MMTensorView& b, const MMTensorView& c) {
  const auto stride = [&](const MMTensorView& x, int axis) {
    const int own = axis - (whole.ndim - x.ndim);
    return own < 0 || x.shape[own] == 1 ? 0 : x.stride[own];
  };
  for (int axis = 0; axis < whole.ndim - 2; axis++) {
    if (whole.shape[axis] == 1) continue;
    const int i = g.batch_dims++;
    g.batch_shape[i] = whole.shape[axis];
    g.a.batch_stride[i] = stride(a, axis), g.b.batch_stride[i] = stride(b, axis), g.c.batch_stride[i] = stride(c, axis);
  }
}

inline void dropAxis(Gemm& g, int axis) {
  for (int i = axis; i + 1 < g.batch_dims; i++) {
    g.batch_shape[i] = g.batch_shape[i + 1];
    for (GemmMatrix* x : {&g.a, &g.b, &g.c}) x->batch_stride[i] = x->batch_stride[i + 1];
  }
  g.batch_dims--;
}

// The innermost axes first, as long as rows continue in memory.
inline void fold(Gemm& g) {
  for (int i = g.batch_dims - 1; i >= 0; i--) {
    const int64_t sa = g.a.batch_stride[i], sb = g.b.batch_stride[i], sc = g.c.batch_stride[i];
    if (!sb && sa && sc && !g.a.transposed && (g.m == 1 || (sa == g.m * g.a.ld && sc == g.m * g.c.ld))) {
      if (g.m == 1) g.a.ld = sa, g.c.ld = sc;
      g.m *= g.batch_shape[i];
    } else if (!sc && sa && sb && g.a.transposed && !g.b.transposed && (g.k == 1 || (sa == g.k * g.a.ld && sb == g.k * g.b.ld))) {
      if (g.k == 1) g.a.ld = sa, g.b.ld = sb;
      g.k *= g.batch_shape[i];
    } else {
      return;
    }
    dropAxis(g, i);
  }
}

inline Gemm matmulProduct(const MMCall* c) {
  using namespace ops::matmul;
  const auto &a = in(c, A), &b = in(c, B), &y = out(c, Y);
  const auto& at = attrs<Attrs>(c);
  Gemm g;
  g.m = y.shape[y.ndim - 2], g.n = y.shape[y.ndim - 1], g.k = a.shape[a.ndim - (at.transposeA ? 2 : 1)];
  g.a = matrix(a, at.transposeA), g.b = matrix(b, at.transposeB), g.c = matrix(y, false);
  addBatch(g, y, a, b, y);
  fold(g);
  return g;
}

// dA or dB as a product of stored matrices: A' B' with A' and B' among A, B, dY.
inline Gemm matmulGradient(const MMCall* c, int slot) {
  using namespace ops::matmul_bwd;
  const auto &a = in(c, A), &b = in(c, B), &dy = in(c, DY), &to = out(c, slot);
  const auto& at = attrs<Attrs>(c);
  const bool ta = at.transposeA, tb = at.transposeB;
  const MMTensorView *left, *right;
  Gemm g;
  if (slot == DA) left = ta ? &b : &dy, right = ta ? &dy : &b;
  else left = tb ? &dy : &a, right = tb ? &a : &dy;
  // dA = dY B^T, or its transpose B dY^T; dB = A^T dY, or its transpose dY^T A
  g.a = matrix(*left, slot == DA ? ta && tb : tb || !ta);
  g.b = matrix(*right, slot == DA ? ta || !tb : tb && ta);
  g.c = matrix(to, false);
  g.m = to.shape[to.ndim - 2], g.n = to.shape[to.ndim - 1];
  g.k = dy.shape[dy.ndim - (slot == DA ? 1 : 2)];
  addBatch(g, dy, *left, *right, to);
  fold(g);
  return g;
}

// The axes summed over by repeated calls are those along which the result does not move.
inline bool repeats(const Gemm& g) {
  for (int i = 0; i < g.batch_dims; i++)
    if (!g.c.batch_stride[i]) return true;
  return false;
}
inline Gemm once(Gemm g) {
  for (int i = g.batch_dims - 1; i >= 0; i--)
    if (!g.c.batch_stride[i]) dropAxis(g, i);
  return g;
}

// Where a 16-bit gradient is such a sum, it is added up in f32 at the start of the workspace.
inline uint64_t sumBytes(const Gemm& g, const MMTensorView& to) {
  return repeats(g) && to.dtype != MM_F32 ? (uint64_t(numel(to)) * sizeof(float) + 255) & ~uint64_t(255) : 0;
}

// The workspace of matmul's gradients, which are computed one after the other; gemmBytes(product): that of one product.
template <class F>
uint64_t matmulGradientsWorkspace(const MMCall* c, F&& gemmBytes) {
  using namespace ops::matmul_bwd;
  uint64_t most = 0;
  for (int slot : {DA, DB}) {
    if (!hasOut(c, slot) || !numel(in(c, DY))) continue;
    const Gemm g = matmulGradient(c, slot);
    const uint64_t bytes = sumBytes(g, out(c, slot)) + gemmBytes(once(g));
    most = bytes > most ? bytes : most;
  }
  return most;
}

// Calls step(product) for every product of a sum, in order, each adding to the last; they go to `sums` in f32.
template <class F>
int32_t eachSummand(const Gemm& g, float* sums, F&& step) {
  Gemm one = once(g);
  one.c.data = sums, one.c.dtype = MM_F32;
  int64_t count = 1;
  for (int i = 0; i < g.batch_dims; i++)
    if (!g.c.batch_stride[i]) count *= g.batch_shape[i];
  const int64_t element = g.a.dtype == MM_F32 ? 4 : 2;
  for (int64_t t = 0; t < count; t++) {
    int64_t oa = 0, ob = 0, rest = t;
    for (int i = g.batch_dims - 1; i >= 0; i--) {
      if (g.c.batch_stride[i]) continue;
      const int64_t index = rest % g.batch_shape[i];
      rest /= g.batch_shape[i];
      oa += index * g.a.batch_stride[i], ob += index * g.b.batch_stride[i];
    }
    one.a.data = static_cast<const char*>(g.a.data) + oa * element;
    one.b.data = static_cast<const char*>(g.b.data) + ob * element;
    one.accumulate = t > 0;
    if (const int32_t status = step(one)) return status;
  }
  return MM_OK;
}

}  // namespace MM_CALL_NAMESPACE

// matmul and its gradients: one batched call of cpu/gemm.h.
//
// Batch axes that only A has are folded into its rows where memory allows, so that (B, L, K) x (K, N) is one product;
// likewise a gradient's sum over such axes becomes a longer K. What cannot be folded is added up call by call, in f32.
#include "ops/matmul.h"

#include "cpu/gemm.h"

namespace mm::cpu::MM_ISA {
namespace {

GemmMatrix matrix(const MMTensorView& x, bool transposed) {
  GemmMatrix r;
  const int64_t rows = x.shape[x.ndim - 2], cols = x.shape[x.ndim - 1];
  r.data = x.data, r.dtype = x.dtype, r.transposed = transposed;
  r.ld = rows > 1 ? x.stride[x.ndim - 2] : cols > 1 ? cols : 1;
  return r;
}

// Adds the batch axes of `whole` (the shape of y), aligned at the right; an operand is broadcast where its axis is 1.
void addBatch(Gemm& g, const MMTensorView& whole, const MMTensorView& a, const MMTensorView& b, const MMTensorView& c) {
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

void dropAxis(Gemm& g, int axis) {
  for (int i = axis; i + 1 < g.batch_dims; i++) {
    g.batch_shape[i] = g.batch_shape[i + 1];
    for (GemmMatrix* x : {&g.a, &g.b, &g.c}) x->batch_stride[i] = x->batch_stride[i + 1];
  }
  g.batch_dims--;
}

// The innermost axes first, as long as rows continue in memory.
void fold(Gemm& g) {
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

Gemm forwardProduct(const MMCall* c) {
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
uint64_t matmulWorkspace(const MMCall* c) { return numel(out(c, 0)) ? gemmWorkspace(forwardProduct(c)) : 0; }
int32_t matmul(const MMCall* c) { return numel(out(c, 0)) ? gemm(forwardProduct(c), c->workspace) : MM_OK; }

// dA or dB as a product of stored matrices: A' B' with A' and B' among A, B, dY.
Gemm gradientProduct(const MMCall* c, int slot) {
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
bool repeats(const Gemm& g) {
  for (int i = 0; i < g.batch_dims; i++)
    if (!g.c.batch_stride[i]) return true;
  return false;
}
Gemm once(Gemm g) {
  for (int i = g.batch_dims - 1; i >= 0; i--)
    if (!g.c.batch_stride[i]) dropAxis(g, i);
  return g;
}
uint64_t sumBytes(const Gemm& g, const MMTensorView& to) {
  return repeats(g) && to.dtype != MM_F32 ? (uint64_t(numel(to)) * sizeof(float) + 63) & ~uint64_t(63) : 0;
}

int32_t sumProducts(const Gemm& g, const MMTensorView& to, char* workspace) {
  if (!repeats(g)) return gemm(g, workspace);
  const uint64_t bytes = sumBytes(g, to);
  float* sums = bytes ? reinterpret_cast<float*>(workspace) : data<float>(to);
  Gemm step = once(g);
  step.c.data = sums, step.c.dtype = MM_F32;
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
    step.a.data = static_cast<const char*>(g.a.data) + oa * element;
    step.b.data = static_cast<const char*>(g.b.data) + ob * element;
    step.accumulate = t > 0;
    const int32_t status = gemm(step, workspace + bytes);
    if (status) return status;
  }
  if (bytes)
    dispatchFloat(to.dtype, [&](auto tag) {
      using T = decltype(tag);
      parallelFor(numel(to), 16384, [&](int64_t begin, int64_t end, int) {
        for (int64_t j = begin; j < end; j += VL) storeUpTo(data<T>(to) + j, loadUpTo(sums + j, end - j), end - j);
      });
    });
  return MM_OK;
}

uint64_t matmulBackwardWorkspace(const MMCall* c) {
  using namespace ops::matmul_bwd;
  if (!numel(in(c, DY))) return 0;
  uint64_t most = 0;
  for (int slot : {DA, DB}) {
    if (!hasOut(c, slot)) continue;
    const Gemm g = gradientProduct(c, slot);
    const uint64_t bytes = sumBytes(g, out(c, slot)) + gemmWorkspace(once(g));
    most = bytes > most ? bytes : most;
  }
  return most;
}

int32_t matmulBackward(const MMCall* c) {
  using namespace ops::matmul_bwd;
  for (int slot : {DA, DB}) {
    if (!hasOut(c, slot)) continue;
    const auto& to = out(c, slot);
    if (!numel(in(c, DY))) {
      std::memset(to.data, 0, size_t(numel(to)) * (to.dtype == MM_F32 ? 4 : 2));
      continue;
    }
    const int32_t status = sumProducts(gradientProduct(c, slot), to, static_cast<char*>(c->workspace));
    if (status) return status;
  }
  return MM_OK;
}

}  // namespace
}  // namespace mm::cpu::MM_ISA

MM_CPU_KERNELS(matmul, {"matmul", "gemm", nullptr, matmulWorkspace, matmul},
               {"matmulBackward", "gemm", nullptr, matmulBackwardWorkspace, matmulBackward})

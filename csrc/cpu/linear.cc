// linear and its gradients, all through cpu/gemm.h: y = act(x W^T + b) + r with the epilogue in the product's blocks.
// Backward: dZ = dY act'(x W^T + b), the product again with the gradient as its epilogue; dX = dZ W, dW = dZ^T x,
// db = column sums of dZ, dR = dY.
#include "ops/linear.h"

#include "cpu/gemm.h"

namespace mm::cpu::MM_ISA {
namespace {

int64_t leading(const MMTensorView& x) {
  int64_t n = 1;
  for (int i = 0; i + 1 < x.ndim; i++) n *= x.shape[i];
  return n;
}

// x W^T into `to`, which is laid out like y
Gemm forwardProduct(const MMTensorView& x, const MMTensorView& w, void* to, int32_t dtype) {
  Gemm g;
  g.m = leading(x), g.n = w.shape[0], g.k = w.shape[1];
  g.a.data = x.data, g.a.dtype = x.dtype, g.a.ld = g.k;
  g.b.data = w.data, g.b.dtype = w.dtype, g.b.ld = g.k, g.b.transposed = true;
  g.c.data = to, g.c.dtype = dtype, g.c.ld = g.n;
  return g;
}

Gemm linearProduct(const MMCall* c) {
  using namespace ops::linear;
  Gemm g = forwardProduct(in(c, X), in(c, WEIGHT), out(c, Y).data, out(c, Y).dtype);
  g.activation = Activation(attrs<Attrs>(c).activation);
  if (has(c, BIAS)) g.bias = in(c, BIAS).data, g.bias_dtype = in(c, BIAS).dtype;
  if (has(c, RESIDUAL)) g.other = in(c, RESIDUAL).data;
  return g;
}
uint64_t linearWorkspace(const MMCall* c) { return gemmWorkspace(linearProduct(c)); }
int32_t linear(const MMCall* c) { return gemm(linearProduct(c), c->workspace); }

// The products of the backward pass and where its scratch lies.
struct Backward {
  Gemm z, dx, dw;
  int64_t m, n;
  bool recompute;
  uint64_t dzBytes, shared = 0;

  explicit Backward(const MMCall* c) {
    using namespace ops::linear_bwd;
    const auto &x = in(c, X), &w = in(c, WEIGHT), &dy = in(c, DY);
    const bool wantDx = hasOut(c, DX), wantDw = hasOut(c, DWEIGHT), wantDb = hasOut(c, DBIAS);
    m = leading(x), n = w.shape[0];
    const int64_t k = w.shape[1];
    const Activation f = Activation(attrs<Attrs>(c).activation);
    recompute = f != Activation::None && (wantDx || wantDw || wantDb);
    dzBytes = recompute ? (uint64_t(m * n) * (dy.dtype == MM_F32 ? 4 : 2) + 63) & ~uint64_t(63) : 0;
    const void* dz = recompute ? c->workspace : dy.data;
    if (recompute) {
      z = forwardProduct(x, w, c->workspace, dy.dtype);
      z.activation = f, z.gradient = true, z.other = dy.data;
      if (has(c, BIAS)) z.bias = in(c, BIAS).data, z.bias_dtype = in(c, BIAS).dtype;
      share(gemmWorkspace(z));
    }
    if (wantDx) {
      dx.m = m, dx.n = k, dx.k = n;
      dx.a.data = dz, dx.a.dtype = dy.dtype, dx.a.ld = n;
      dx.b.data = w.data, dx.b.dtype = w.dtype, dx.b.ld = k;
      dx.c.data = out(c, DX).data, dx.c.dtype = out(c, DX).dtype, dx.c.ld = k;
      share(gemmWorkspace(dx));
    }
    if (wantDw) {
      dw.m = n, dw.n = k, dw.k = m;
      dw.a.data = dz, dw.a.dtype = dy.dtype, dw.a.ld = n, dw.a.transposed = true;
      dw.b.data = x.data, dw.b.dtype = x.dtype, dw.b.ld = k;
      dw.c.data = out(c, DWEIGHT).data, dw.c.dtype = MM_F32, dw.c.ld = k;
      share(gemmWorkspace(dw));
    }
    if (wantDb) share(columnSumsWorkspace(m, n));
  }
  void share(uint64_t bytes) { shared = bytes > shared ? bytes : shared; }
};

uint64_t linearBackwardWorkspace(const MMCall* c) {
  const Backward b(c);
  return b.dzBytes + b.shared;
}

int32_t linearBackward(const MMCall* c) {
  using namespace ops::linear_bwd;
  const Backward b(c);
  const auto& dy = in(c, DY);
  char* scratch = static_cast<char*>(c->workspace) + b.dzBytes;
  int32_t status = MM_OK;
  if (b.recompute) status = gemm(b.z, scratch);
  if (!status && hasOut(c, DX)) status = gemm(b.dx, scratch);
  if (!status && hasOut(c, DWEIGHT)) status = gemm(b.dw, scratch);
  if (status) return status;
  if (hasOut(c, DBIAS)) columnSums(b.recompute ? c->workspace : dy.data, dy.dtype, b.m, b.n, data<float>(out(c, DBIAS)), scratch);
  if (hasOut(c, DRESIDUAL)) {
    const int64_t bytes = numel(dy) * (dy.dtype == MM_F32 ? 4 : 2);
    parallelFor(bytes, 1 << 18, [&](int64_t begin, int64_t end, int) {
      std::memcpy(data<char>(out(c, DRESIDUAL)) + begin, data<char>(dy) + begin, size_t(end - begin));
    });
  }
  return MM_OK;
}

}  // namespace
}  // namespace mm::cpu::MM_ISA

MM_CPU_KERNELS(linear, {"linear", "gemm", nullptr, linearWorkspace, linear},
               {"linearBackward", "gemm", nullptr, linearBackwardWorkspace, linearBackward})

// patchEmbed: patches do not overlap, so the convolution is a product: the patches become rows of (c p p) values in
// scratch, then y = rows W^T + b. Backward: dW = dY^T rows, dX = dY W put back where the patches came from.
#include "ops/patch_embed.h"

#include "cpu/gemm.h"

namespace mm::cpu::MM_ISA {
namespace {

struct Patches {
  int64_t images, channels, height, width, p, gridH, gridW, features;

  Patches(const MMTensorView& x, const MMTensorView& weight)
      : images(x.shape[0]), channels(x.shape[1]), height(x.shape[2]), width(x.shape[3]), p(weight.shape[2]), gridH(height / p),
        gridW(width / p), features(channels * p * p) {}
  int64_t rows() const { return images * gridH * gridW; }
  uint64_t bytes(int32_t dtype) const { return (uint64_t(rows() * features) * (dtype == MM_F32 ? 4 : 2) + 63) & ~uint64_t(63); }
};

// Between images (n, c, H, W) and rows of patches; `gather` copies towards the rows.
template <class E, bool gather>
void movePatches(const Patches& s, E* image, E* rows) {
  parallelFor(s.images * s.gridH, 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; i++) {
      const int64_t n = i / s.gridH, py = i % s.gridH;
      for (int64_t ch = 0; ch < s.channels; ch++)
        for (int64_t dy = 0; dy < s.p; dy++) {
          E* line = image + ((n * s.channels + ch) * s.height + py * s.p + dy) * s.width;
          E* row = rows + i * s.gridW * s.features + (ch * s.p + dy) * s.p;
          for (int64_t px = 0; px < s.gridW; px++)
            for (int64_t dx = 0; dx < s.p; dx++)
              if (gather) row[px * s.features + dx] = line[px * s.p + dx];
              else line[px * s.p + dx] = row[px * s.features + dx];
        }
    }
  });
}
template <bool gather>
void movePatches(const Patches& s, int32_t dtype, void* image, void* rows) {
  if (dtype == MM_F32) movePatches<uint32_t, gather>(s, static_cast<uint32_t*>(image), static_cast<uint32_t*>(rows));
  else movePatches<uint16_t, gather>(s, static_cast<uint16_t*>(image), static_cast<uint16_t*>(rows));
}

Gemm forwardProduct(const MMCall* c, const Patches& s) {
  using namespace ops::patch_embed;
  const auto &w = in(c, WEIGHT), &y = out(c, Y);
  Gemm g;
  g.m = s.rows(), g.n = w.shape[0], g.k = s.features;
  g.a.data = c->workspace, g.a.dtype = w.dtype, g.a.ld = g.k;
  g.b.data = w.data, g.b.dtype = w.dtype, g.b.ld = g.k, g.b.transposed = true;
  g.c.data = y.data, g.c.dtype = y.dtype, g.c.ld = g.n;
  if (has(c, BIAS)) g.bias = in(c, BIAS).data, g.bias_dtype = in(c, BIAS).dtype;
  return g;
}
uint64_t patchEmbedWorkspace(const MMCall* c) {
  using namespace ops::patch_embed;
  const Patches s(in(c, X), in(c, WEIGHT));
  return s.bytes(in(c, X).dtype) + gemmWorkspace(forwardProduct(c, s));
}
int32_t patchEmbed(const MMCall* c) {
  using namespace ops::patch_embed;
  const auto& x = in(c, X);
  const Patches s(x, in(c, WEIGHT));
  movePatches<true>(s, x.dtype, x.data, c->workspace);
  return gemm(forwardProduct(c, s), static_cast<char*>(c->workspace) + s.bytes(x.dtype));
}

struct Backward {
  Gemm dx, dw;
  uint64_t shared = 0;

  Backward(const MMCall* c, const Patches& s) {
    using namespace ops::patch_embed_bwd;
    const auto &w = in(c, WEIGHT), &dy = in(c, DY);
    const int64_t m = s.rows(), n = w.shape[0], k = s.features;
    if (hasOut(c, DX)) {
      dx.m = m, dx.n = k, dx.k = n;
      dx.a.data = dy.data, dx.a.dtype = dy.dtype, dx.a.ld = n;
      dx.b.data = w.data, dx.b.dtype = w.dtype, dx.b.ld = k;
      dx.c.data = c->workspace, dx.c.dtype = dy.dtype, dx.c.ld = k;
      share(gemmWorkspace(dx));
    }
    if (hasOut(c, DWEIGHT)) {
      dw.m = n, dw.n = k, dw.k = m;
      dw.a.data = dy.data, dw.a.dtype = dy.dtype, dw.a.ld = n, dw.a.transposed = true;
      dw.b.data = c->workspace, dw.b.dtype = dy.dtype, dw.b.ld = k;
      dw.c.data = out(c, DWEIGHT).data, dw.c.dtype = MM_F32, dw.c.ld = k;
      share(gemmWorkspace(dw));
    }
    if (hasOut(c, DBIAS)) share(columnSumsWorkspace(m, n));
  }
  void share(uint64_t bytes) { shared = bytes > shared ? bytes : shared; }
};

uint64_t patchEmbedBackwardWorkspace(const MMCall* c) {
  using namespace ops::patch_embed_bwd;
  const Patches s(in(c, X), in(c, WEIGHT));
  return s.bytes(in(c, X).dtype) + Backward(c, s).shared;
}

int32_t patchEmbedBackward(const MMCall* c) {
  using namespace ops::patch_embed_bwd;
  const auto &x = in(c, X), &dy = in(c, DY);
  const Patches s(x, in(c, WEIGHT));
  const Backward b(c, s);
  char* scratch = static_cast<char*>(c->workspace) + s.bytes(x.dtype);
  int32_t status = MM_OK;
  if (hasOut(c, DX)) {
    status = gemm(b.dx, scratch);
    if (status) return status;
    movePatches<false>(s, x.dtype, out(c, DX).data, c->workspace);
  }
  if (hasOut(c, DWEIGHT)) {
    movePatches<true>(s, x.dtype, x.data, c->workspace);
    status = gemm(b.dw, scratch);
    if (status) return status;
  }
  if (hasOut(c, DBIAS)) columnSums(dy.data, dy.dtype, s.rows(), dy.shape[2], data<float>(out(c, DBIAS)), scratch);
  return MM_OK;
}

}  // namespace
}  // namespace mm::cpu::MM_ISA

MM_CPU_KERNELS(patch_embed, {"patchEmbed", "gemm", nullptr, patchEmbedWorkspace, patchEmbed},
               {"patchEmbedBackward", "gemm", nullptr, patchEmbedBackwardWorkspace, patchEmbedBackward})

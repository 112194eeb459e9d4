// patchEmbed: a convolution whose stride is its kernel: every p x p patch of an image becomes one token.
#pragma once
#include "ops/schema.h"

namespace mm::ops::patch_embed {
enum In { X, WEIGHT, BIAS };
enum Out { Y };
struct Attrs {};
#ifdef MM_OP_SCHEMA
inline Shape resultShape(Infer& c) {
  c.expectRank(0, 4);
  c.expectRank(1, 4);
  const int64_t p = c.dim(1, 2), h = c.dim(0, 2), w = c.dim(0, 3);
  c.require(p > 0 && c.dim(1, 3) == p && c.dim(1, 1) == c.dim(0, 1), "ERR_SHAPE",
            "weight has shape %s; expected (E, c, p, p) with the %lld channels of x", shapeText(c.shape(1)).c_str(),
            static_cast<long long>(c.dim(0, 1)));
  c.require(h % p == 0 && w % p == 0, "ERR_SHAPE", "x has shape %s; height and width must be multiples of the patch, %lld",
            shapeText(c.shape(0)).c_str(), static_cast<long long>(p));
  c.expectSameDtype(1, 0);
  return {c.dim(0, 0), (h / p) * (w / p), c.dim(1, 0)};
}
inline void infer(Infer& c) {
  const Shape y = resultShape(c);
  c.expectShape(BIAS, {y[2]}, "(E)");
  c.expectParameterDtype(BIAS, X);
  c.out(Y, c.dtype(X), y);
}
MM_REGISTER_OP({
    "patchEmbed",
    "Patch embedding of images: a convolution with stride p and kernel p x p, its patches in row-major order as tokens.",
    {input("x", kFloat, "(n, c, H, W), H and W multiples of p"), input("weight", kFloat, "(E, c, p, p), x's dtype"),
     optional(input("bias", kFloat, "(E), f32 or x's dtype"))},
    {},
    {{"y", "(n, H/p * W/p, E), x's dtype"}},
    infer,
    "patchEmbedBackward",
});
#endif
}  // namespace mm::ops::patch_embed

namespace mm::ops::patch_embed_bwd {
enum In { X, WEIGHT, DY };
enum Out { DX, DWEIGHT, DBIAS };
struct Attrs {
  int64_t needs;
};
#ifdef MM_OP_SCHEMA
inline void infer(Infer& c) {
  const int64_t needs = c.attrs<Attrs>().needs;
  c.expectShape(DY, patch_embed::resultShape(c), "(n, H/p * W/p, E)");
  c.expectSameDtype(DY, X);
  if (needs & 1) c.out(DX, c.dtype(X), c.shape(X));
  if (needs & 2) c.out(DWEIGHT, MM_F32, c.shape(WEIGHT));
  if (needs & 4) c.out(DBIAS, MM_F32, {c.dim(WEIGHT, 0)});
}
MM_REGISTER_OP({
    "patchEmbedBackward",
    "Gradients of patchEmbed.",
    {input("x", kFloat, "(n, c, H, W)"), input("weight", kFloat, "(E, c, p, p), x's dtype"),
     input("dY", kFloat, "(n, H/p * W/p, E), x's dtype")},
    {integer("needs", 7, "bits 0 to 2: dX, dWeight, dBias")},
    {{"dX", "(n, c, H, W), x's dtype"}, {"dWeight", "(E, c, p, p), f32"}, {"dBias", "(E), f32"}},
    infer,
    "none: second derivatives are not provided",
});
#endif
}  // namespace mm::ops::patch_embed_bwd

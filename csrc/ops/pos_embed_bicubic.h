// posEmbedBicubic: a learned square grid of position embeddings, resized to another grid.
#pragma once
#include "ops/schema.h"

namespace mm::ops::pos_embed_bicubic {
enum In { POS_EMBED };
enum Out { Y };
struct Attrs {
  int64_t outH;
  int64_t outW;
};
#ifdef MM_OP_SCHEMA
inline Shape resultShape(Infer& c, int64_t outH, int64_t outW) {
  c.expectRank(POS_EMBED, 3);
  const int64_t tokens = c.dim(POS_EMBED, 1);
  int64_t side = 1;
  while (side * side < tokens) side++;
  c.require(c.dim(POS_EMBED, 0) == 1 && side * side == tokens, "ERR_SHAPE", "posEmbed has shape %s; expected (1, g*g, c)",
            shapeText(c.shape(POS_EMBED)).c_str());
  constexpr int64_t most = 1 << 20;
  c.require(outH > 0 && outW > 0 && outH <= most && outW <= most, "ERR_ARGUMENT", "outH and outW are %lld and %lld; both must be from 1 to %lld",
            static_cast<long long>(outH), static_cast<long long>(outW), static_cast<long long>(most));
  return {1, outH * outW, c.dim(POS_EMBED, 2)};
}
inline void infer(Infer& c) {
  const Attrs& a = c.attrs<Attrs>();
  c.out(Y, c.dtype(POS_EMBED), resultShape(c, a.outH, a.outW));
}
MM_REGISTER_OP({
    "posEmbedBicubic",
    "Bicubic resize of position embeddings (A = -0.75, half-pixel centres, clamped border, no antialiasing), as in PyTorch.",
    {input("posEmbed", kFloat, "(1, g*g, c), row-major grid")},
    {required(integer("outH", 0, "rows of the new grid")), required(integer("outW", 0, "columns of the new grid"))},
    {{"y", "(1, outH*outW, c), posEmbed's dtype"}},
    infer,
    "posEmbedBicubicBackward",
});
#endif
}  // namespace mm::ops::pos_embed_bicubic

namespace mm::ops::pos_embed_bicubic_bwd {
enum In { POS_EMBED, DY };
enum Out { DPOS_EMBED };
struct Attrs {
  int64_t outH;
  int64_t outW;
  int64_t needs;
};
#ifdef MM_OP_SCHEMA
inline void infer(Infer& c) {
  const Attrs& a = c.attrs<Attrs>();
  c.expectShape(DY, pos_embed_bicubic::resultShape(c, a.outH, a.outW), "(1, outH*outW, c)");
  c.expectSameDtype(DY, POS_EMBED);
  if (a.needs & 1) c.out(DPOS_EMBED, MM_F32, c.shape(POS_EMBED));
}
MM_REGISTER_OP({
    "posEmbedBicubicBackward",
    "Gradient of posEmbedBicubic.",
    {input("posEmbed", kFloat, "(1, g*g, c), only its shape is used"),
     input("dY", kFloat, "(1, outH*outW, c), posEmbed's dtype")},
    {required(integer("outH", 0, "as in the forward")), required(integer("outW", 0, "as in the forward")),
     integer("needs", 1, "bit 0: dPosEmbed")},
    {{"dPosEmbed", "(1, g*g, c), f32"}},
    infer,
    "none: second derivatives are not provided",
});
#endif
}  // namespace mm::ops::pos_embed_bicubic_bwd

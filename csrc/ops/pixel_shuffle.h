// pixelShuffle: joins the 2 x 2 neighbours of a square grid of tokens into one token of four times the channels.
#pragma once
#include "ops/schema.h"

namespace mm::ops::pixel_shuffle {
enum In { X };
enum Out { Y };
struct Attrs {};
#ifdef MM_OP_SCHEMA
inline void infer(Infer& c) {
  c.expectRank(X, 3);
  const int64_t tokens = c.dim(X, 1);
  int64_t side = 0;
  while (side * side < tokens) side += 2;
  c.require(side * side == tokens, "ERR_SHAPE", "x has shape %s; expected (n, h*h, c) with an even h",
            shapeText(c.shape(X)).c_str());
  c.out(Y, c.dtype(X), {c.dim(X, 0), tokens / 4, c.dim(X, 2) * 4});
}
MM_REGISTER_OP({
    "pixelShuffle",
    "Joins 2 x 2 neighbours of a square grid of tokens: token (r, q) holds the channels of (2r, 2q), (2r, 2q+1), (2r+1, 2q), "
    "(2r+1, 2q+1).",
    {input("x", kFloat, "(n, h*h, c), h even, row-major")},
    {},
    {{"y", "(n, h*h/4, 4c), x's dtype"}},
    infer,
    "pixelShuffleBackward",
});
#endif
}  // namespace mm::ops::pixel_shuffle

namespace mm::ops::pixel_shuffle_bwd {
enum In { DY };
enum Out { DX };
struct Attrs {
  int64_t needs;
};
#ifdef MM_OP_SCHEMA
inline void infer(Infer& c) {
  c.expectRank(DY, 3);
  const int64_t tokens = c.dim(DY, 1);
  int64_t side = 0;
  while (side * side < tokens) side++;
  c.require(side * side == tokens && c.dim(DY, 2) % 4 == 0, "ERR_SHAPE", "dY has shape %s; expected (n, h*h/4, 4c)",
            shapeText(c.shape(DY)).c_str());
  c.out(DX, c.dtype(DY), {c.dim(DY, 0), tokens * 4, c.dim(DY, 2) / 4});
}
MM_REGISTER_OP({
    "pixelShuffleBackward",
    "Gradient of pixelShuffle: the permutation backwards.",
    {input("dY", kFloat, "(n, h*h/4, 4c)")},
    {integer("needs", 1, "bit 0: dX")},
    {{"dX", "(n, h*h, c), dY's dtype"}},
    infer,
    "none: second derivatives are not provided",
});
#endif
}  // namespace mm::ops::pixel_shuffle_bwd

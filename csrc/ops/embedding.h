// embedding: y = rows of a table picked by ids.
#pragma once
#include "ops/schema.h"

namespace mm::ops::embedding {
enum In { WEIGHT, IDS };
enum Out { Y };
struct Attrs {};
#ifdef MM_OP_SCHEMA
inline Shape resultShape(Infer& c) {
  c.expectRank(WEIGHT, 2);
  c.expectRank(IDS, 0, MM_MAX_DIMS - 1);
  Shape y = c.shape(IDS);
  y.push_back(c.dim(WEIGHT, 1));
  return y;
}
inline void infer(Infer& c) { c.out(Y, c.dtype(WEIGHT), resultShape(c)); }
MM_REGISTER_OP({
    "embedding",
    "Looks rows up: `y[...] = weight[ids[...]]`. An id outside [0, V) fails.",
    {input("weight", kFloat, "(V, C)"), input("ids", kI32, "(...), each in [0, V)")},
    {},
    {{"y", "(..., C), weight's dtype"}},
    infer,
    "embeddingBackward",
});
#endif
}  // namespace mm::ops::embedding

namespace mm::ops::embedding_bwd {
enum In { WEIGHT, IDS, DY };
enum Out { DWEIGHT };
struct Attrs {
  int64_t needs;
};
#ifdef MM_OP_SCHEMA
inline void infer(Infer& c) {
  c.expectShape(DY, embedding::resultShape(c), "(..., C)");
  c.expectSameDtype(DY, WEIGHT);
  if (c.attrs<Attrs>().needs & 1) c.out(DWEIGHT, MM_F32, c.shape(WEIGHT));
}
MM_REGISTER_OP({
    "embeddingBackward",
    "Gradient of embedding: the rows of dY summed by id, in the order of the ids.",
    {input("weight", kFloat, "(V, C), only its shape is used"), input("ids", kI32, "(...)"),
     input("dY", kFloat, "(..., C), weight's dtype")},
    {integer("needs", 1, "bit 0: dWeight")},
    {{"dWeight", "(V, C), f32"}},
    infer,
    "none: second derivatives are not provided",
});
#endif
}  // namespace mm::ops::embedding_bwd

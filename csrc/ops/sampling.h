// argmax and sample: the next token from logits.
//
// Random numbers come from Philox4x32-10 (Salmon et al. 2011): key = (seed low, seed high), counter = (offset low,
// offset high, row, 0), and the first word's upper 24 bits divided by 2^24 are the uniform number u of that row. So a
// call is a pure function of its operands: advance `offset` by one for each generated token.
#pragma once
#include "ops/schema.h"

namespace mm::ops::argmax {
enum In { X };
enum Out { INDEX };
struct Attrs {};
#ifdef MM_OP_SCHEMA
inline void infer(Infer& c) {
  c.expectRank(X, 1, MM_MAX_DIMS);
  c.require(c.dim(X, -1) > 0, "ERR_SHAPE", "x has shape %s; expected (..., V) with V > 0", shapeText(c.shape(X)).c_str());
  Shape s = c.shape(X);
  s.pop_back();
  c.out(INDEX, MM_I32, s);
}
MM_REGISTER_OP({
    "argmax",
    "Index of the largest element of each row, the first one of equals; NaN is never chosen.",
    {rows(input("x", kFloat, "(..., V)"))},
    {},
    {{"index", "(...), i32"}},
    infer,
    "none: an index has no gradient",
});
#endif
}  // namespace mm::ops::argmax

namespace mm::ops::sample {
enum In { LOGITS };
enum Out { TOKEN };
struct Attrs {
  double temperature;
  int64_t topK;
  double topP;
  int64_t seed;
  int64_t offset;
};
// The first word of the generator; constexpr, so that GPU code may call it too.
constexpr uint32_t philox(uint64_t seed, uint64_t offset, uint32_t row) {
  uint32_t c[4] = {uint32_t(offset), uint32_t(offset >> 32), row, 0}, k0 = uint32_t(seed), k1 = uint32_t(seed >> 32);
  for (int round = 0; round < 10; round++) {
    const uint64_t p = uint64_t(0xD2511F53u) * c[0], q = uint64_t(0xCD9E8D57u) * c[2];
    const uint32_t a = uint32_t(q >> 32) ^ c[1] ^ k0, b = uint32_t(p >> 32) ^ c[3] ^ k1;
    c[0] = a, c[1] = uint32_t(q), c[2] = b, c[3] = uint32_t(p);
    k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
  }
  return c[0];
}
#ifdef MM_OP_SCHEMA
inline void infer(Infer& c) {
  const auto& a = c.attrs<Attrs>();
  c.expectRank(LOGITS, 2);
  c.require(c.dim(LOGITS, 1) > 0, "ERR_SHAPE", "logits has shape %s; expected (B, V) with V > 0",
      shapeText(c.shape(LOGITS)).c_str());
  c.require(a.temperature >= 0, "ERR_ARGUMENT", "temperature is %g; expected 0 (greedy) or more", a.temperature);
  c.require(a.topK >= 0, "ERR_ARGUMENT", "topK is %lld; expected 0 (no limit) or more", static_cast<long long>(a.topK));
  c.require(a.topP > 0, "ERR_ARGUMENT", "topP is %g; expected a probability in (0, 1], 1 for no limit", a.topP);
  c.out(TOKEN, MM_I32, {c.dim(LOGITS, 0)});
}
MM_REGISTER_OP({
    "sample",
    "Draws one token a row from softmax(logits / temperature), limited first to the topK largest logits (of equal ones the first), "
    "then to the fewest most probable tokens that reach topP of the rest. Temperature 0 is argmax. The token is the first, by index, "
    "at which the cumulated probability of the kept tokens exceeds u (Philox4x32-10 of seed, offset and row).",
    {rows(input("logits", kFloat, "(B, V)"))},
    {number("temperature", 1, "0: greedy"), integer("topK", 0, "0: no limit"), number("topP", 1, "1: no limit"),
     integer("seed", 0, "the generator's key"), integer("offset", 0, "number of the draw in its sequence")},
    {{"token", "(B), i32"}},
    infer,
    "none: an index has no gradient",
});
#endif
}  // namespace mm::ops::sample

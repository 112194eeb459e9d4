// attentionKvCache: attention of the newest queries over a cache of keys and values; kvCacheAppend fills the cache.
#pragma once
#include "ops/schema.h"

namespace mm::ops::attention_kv_cache {
enum In { Q, K_CACHE, V_CACHE, LENGTHS };
enum Out { O };
struct Attrs {
  double scale;
  int64_t causal, windowLeft;
};
#ifdef MM_OP_SCHEMA
inline void infer(Infer& c) {
  c.expectRank(Q, 4), c.expectRank(K_CACHE, 4);
  const int64_t heads = c.dim(Q, 2), dim = c.dim(Q, 3), kvHeads = c.dim(K_CACHE, 2);
  c.require(dim >= 1 && dim <= 256, "ERR_SHAPE", "q has heads of %lld channels; 1 to 256 are possible", (long long)dim);
  c.require(kvHeads >= 1 && heads % kvHeads == 0, "ERR_SHAPE",
            "q has %lld heads, which must be a multiple of the %lld heads of the cache", (long long)heads, (long long)kvHeads);
  const Shape cache = {c.dim(Q, 0), c.dim(K_CACHE, 1), kvHeads, dim};
  c.expectShape(K_CACHE, cache, "(B, Lmax, Hk, D)"), c.expectShape(V_CACHE, cache, "(B, Lmax, Hk, D)");
  c.expectSameDtype(K_CACHE, Q), c.expectSameDtype(V_CACHE, Q);
  c.expectShape(LENGTHS, {c.dim(Q, 0)}, "(B)");
  c.require(c.attrs<Attrs>().windowLeft >= -1, "ERR_ARGUMENT", "windowLeft is at least -1 (unlimited), not %lld",
            (long long)c.attrs<Attrs>().windowLeft);
  c.out(O, c.dtype(Q), c.shape(Q));
}
MM_REGISTER_OP({
    "attentionKvCache",
    "Attention of Lq new queries over the first `lengths[b]` keys and values of a cache, which hold the newest tokens already: "
    "query i stands at position `lengths[b] - Lq + i`. Otherwise as attention.",
    {rows(input("q", kFloat, "(B, Lq, H, D), D up to 256")), rows(input("kCache", kFloat, "(B, Lmax, Hk, D), Hk divides H")),
     rows(input("vCache", kFloat, "(B, Lmax, Hk, D)")), input("lengths", kI32, "(B) valid keys, the newest included")},
    {number("scale", 0, "factor of the scores; 0 is 1 / sqrt(D)"),
     flag("causal", true, "a query sees the keys up to its own position"),
     integer("windowLeft", -1, "keys this far before the query are seen; -1 is unlimited")},
    {{"o", "(B, Lq, H, D), q's dtype"}},
    infer,
    "none: a cache serves generation only",
});
#endif
}  // namespace mm::ops::attention_kv_cache

namespace mm::ops::kv_cache_append {
enum In { CACHE, X, POSITIONS };
struct Attrs {};
#ifdef MM_OP_SCHEMA
inline void infer(Infer& c) {
  c.expectRank(CACHE, 4), c.expectRank(X, 4);
  c.expectShape(X, {c.dim(CACHE, 0), c.dim(X, 1), c.dim(CACHE, 2), c.dim(CACHE, 3)}, "(B, Lnew, Hk, D)");
  c.expectSameDtype(X, CACHE);
  c.expectShape(POSITIONS, {c.dim(CACHE, 0)}, "(B)");
  c.require(c.dim(X, 1) <= c.dim(CACHE, 1), "ERR_SHAPE", "x holds %lld tokens, the cache only %lld", (long long)c.dim(X, 1),
            (long long)c.dim(CACHE, 1));
}
MM_REGISTER_OP({
    "kvCacheAppend",
    "Writes new keys or values into a cache: `cache[b, positions[b] + t] = x[b, t]`. Fails, and writes nothing, when they would "
    "run over its end.",
    {mutated(input("cache", kFloat, "(B, Lmax, Hk, D)")), rows(input("x", kFloat, "(B, Lnew, Hk, D), cache's dtype")),
     input("positions", kI32, "(B) where the first new token goes")},
    {},
    {},
    infer,
    "none: writes in place",
});
#endif
}  // namespace mm::ops::kv_cache_append

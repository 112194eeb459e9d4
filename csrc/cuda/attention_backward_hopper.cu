#include "cuda/attention_backward_hopper.cuh"

#include "ops/attention.h"

namespace mm::cuda {
namespace {

using namespace ops::attention_bwd;

// Maps with boxes of `queries` rows of q and dO and of `keys` rows of k and v.
bool encodeMaps(const MMCall* c, int queries, int keys, BackwardMaps& maps) {
  return encodeHeads(maps.q, in(c, Q), queries) && encodeHeads(maps.dO, in(c, D_O), queries) && encodeHeads(maps.k, in(c, K), keys) &&
         encodeHeads(maps.v, in(c, V), keys);
}

template <class T, int D>
bool runGradients(const MMCall* c, const AttentionProblem& p, const BackwardOperands<T>& x, int32_t& status) {
  constexpr int kKeyStages = D > 64 ? 3 : 4, kKeys = 128, kQueryStages = D > 64 ? 2 : 3;
  using KeyLayout = KeyGradientLayout<D, kKeyStages>;
  using QueryLayout = QueryGradientLayout<D, kKeys, kQueryStages>;
  BackwardMaps byKeys, byQueries;
  if (!encodeMaps(c, KeyLayout::Streamed::rows, KeyLayout::Resident::rows, byKeys)) return false;
  if (!encodeMaps(c, QueryLayout::Resident::rows, QueryLayout::Streamed::rows, byQueries)) return false;
  if (hasOut(c, DK) || hasOut(c, DV)) {
    const BlockOrder order = blockOrder<KeyLayout::Resident::rows, true>(p, deviceOf(c).l2Bytes);
    status = launch(c, attentionKeyGradientWgmmaKernel<T, D, kKeyStages>, dim3(order.tiles()), dim3(kGradientThreads),
                    KeyLayout::shared, p, order, x, byKeys);
  }
  if (!status && hasOut(c, DQ)) {
    const BlockOrder order = blockOrder<QueryLayout::Resident::rows, false>(p, deviceOf(c).l2Bytes);
    status = launch(c, attentionQueryGradientWgmmaKernel<T, D, kKeys, kQueryStages>, dim3(order.tiles()), dim3(kGradientThreads),
                    QueryLayout::shared, p, order, x, byQueries);
  }
  return true;
}

}  // namespace

template <class T>
bool runHopperBackward(const MMCall* c, const AttentionProblem& p, const BackwardOperands<T>& x, int32_t& status) {
  static const bool built = builtForHopper(attentionKeyGradientWgmmaKernel<bf16, 64, 4>);
  if (!built) return false;
  return p.dim <= 64 ? runGradients<T, 64>(c, p, x, status) : runGradients<T, 128>(c, p, x, status);
}
template bool runHopperBackward(const MMCall*, const AttentionProblem&, const BackwardOperands<bf16>&, int32_t&);
template bool runHopperBackward(const MMCall*, const AttentionProblem&, const BackwardOperands<f16>&, int32_t&);

}  // namespace mm::cuda

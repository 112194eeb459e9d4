#include "cuda/attention_forward_hopper.cuh"

namespace mm::cuda {
namespace {

template <class T, int D, int GROUPS, int KEYS, int SLOTS>
bool run(const MMCall* c, const AttentionProblem& p, const AttentionTensors& x, int32_t& status) {
  using Layout = HopperForwardLayout<D, GROUPS, KEYS, SLOTS>;
  constexpr int kRows = Layout::Queries::rows;
  ForwardMaps maps;
  if (!encodeHeads(maps.q, *x.q, kRows) || !encodeHeads(maps.k, *x.k, KEYS) || !encodeHeads(maps.v, *x.v, KEYS)) return false;
  const BlockOrder order = blockOrder<kRows, false>(p, deviceOf(c).l2Bytes);
  status = launch(c, attentionForwardWgmmaKernel<T, D, GROUPS, KEYS, SLOTS>, dim3(order.tiles()), dim3(Layout::threads), Layout::shared, p,
                  order, forwardOperands<T>(x), maps);
  return true;
}

}  // namespace

bool runHopperForward(const MMCall* c, const AttentionProblem& p, const AttentionTensors& x, int32_t& status) {
  static const bool built = builtForHopper(attentionForwardWgmmaKernel<bf16, 64, 2, 128, 6>);
  if (!hopperTakes(p, x.q->dtype, deviceOf(c).capability()) || !built) return false;
  // Where large tiles leave multiprocessors idle, two blocks with half a tile each share one.
  const bool large = 4 * tileSlots(p, p.queries, 128) * p.heads >= 3 * deviceOf(c).multiprocessors;
  const auto dispatch = [&](auto type) {
    using T = decltype(type);
    if (p.dim <= 64) return large ? run<T, 64, 2, 128, 6>(c, p, x, status) : run<T, 64, 1, 128, 4>(c, p, x, status);
    return large ? run<T, 128, 2, 128, 4>(c, p, x, status) : run<T, 128, 1, 64, 4>(c, p, x, status);
  };
  return x.q->dtype == MM_BF16 ? dispatch(bf16{}) : dispatch(f16{});
}

}  // namespace mm::cuda

#include "cuda/attention_kv_cache.cuh"

#include <algorithm>

#include "ops/attention_kv_cache.h"

namespace mm::cuda {
namespace {

// Whether the tensor-core kernel takes it; addresses are only known when it runs.
bool splitsOnMma(const MMCall* c, const AttentionProblem& p, const AttentionTensors& x) {
  return mmaTakes(p, x.q->dtype, deviceOf(c).capability()) && rowsAlign(*x.q, 8) && rowsAlign(*x.k, 8) && rowsAlign(*x.v, 8) &&
         aligned(16, x.q->data, x.k->data, x.v->data);
}

constexpr int kTileRows[] = {16, 4};  // of the tensor-core kernel, of the general one

// The number of splits. On tensor cores one large block a multiprocessor has enough bytes under way; more of them only make the join
// longer. The general kernel, and more owners than one wave of blocks, take the splits that fill waves of two blocks a multiprocessor
// best.
int splitCount(const MMCall* c, const AttentionProblem& p, bool mma, int owners) {
  const int all = deviceOf(c).multiprocessors, slots = 2 * all;
  const int most = int(std::clamp<int64_t>(ceilDiv(p.keys, 128), 1, kMostSplits));
  if (mma && owners > 0 && owners <= all && all / owners * owners * 10 >= all * 9) return std::min(most, all / owners);
  int best = 1;
  double least = 1e30;
  for (int n = 1; n <= most; n++) {
    // time in units of one owner's keys; a split costs about as much as 16 keys on top
    const double cost = double(ceilDiv(int64_t(owners) * n, slots)) * (1.0 / n + 16.0 / (p.keys + 1));
    if (cost < least * 0.999) least = cost, best = n;
  }
  return best;
}

SplitPlan splitPlan(const MMCall* c, const AttentionProblem& p, bool mma, Scratch& scratch) {
  SplitPlan plan{};
  plan.rows = p.group * p.queries, plan.tileRows = kTileRows[mma ? 0 : 1];
  plan.tiles = int(ceilDiv(plan.rows, plan.tileRows));
  plan.depth = p.dim <= 32 ? 32 : p.dim <= 64 ? 64 : p.dim <= 128 ? 128 : 256;
  const int owners = p.sequences * p.kvHeads * plan.tiles;
  plan.splits = splitCount(c, p, mma, owners);
  if (plan.splits > 1) {
    const int64_t rows = int64_t(owners) * plan.splits * plan.tileRows;
    plan.o = scratch.take<float>(rows * plan.depth), plan.top = scratch.take<float>(rows), plan.total = scratch.take<float>(rows);
    // One block joins a tile unless its partial rows are so many that they had better be spread over the device.
    const bool few = int64_t(std::min(plan.rows, plan.tileRows)) * plan.splits * plan.depth * 4 <= 160 << 10;
    if (mma && few && owners <= kTickets) plan.tickets = static_cast<const Stream*>(c->stream)->tickets;
  }
  return plan;
}

unsigned blockCount(const AttentionProblem& p, const SplitPlan& plan) {
  return unsigned(p.sequences * p.kvHeads * plan.tiles * plan.splits);
}

template <class T, int D, class Tile>
int32_t runMma(const MMCall* c, const AttentionProblem& p, const SplitPlan& plan, const AttentionTensors& x) {
  return launchOverlapping(c, attentionSplitMmaKernel<T, D, Tile>, dim3(blockCount(p, plan)), dim3(Tile::threads), Tile::shared, p, plan,
                           forwardOperands<T>(x));
}

template <class T, int V, int D, int R>
int32_t runLanes(const MMCall* c, const AttentionProblem& p, const SplitPlan& plan, const ForwardOperands<T>& x) {
  return launch(c, attentionSplitKernel<T, V, D, R>, dim3(blockCount(p, plan)), dim3(128), LaneTile<V, D, R>::shared, p, plan, x);
}

template <class T>
int32_t runGeneral(const MMCall* c, const AttentionProblem& p, const SplitPlan& plan, const AttentionTensors& x) {
  const ForwardOperands<T> operands = forwardOperands<T>(x);
  if constexpr (std::is_same_v<T, float>) {
    if (p.dim % 4 == 0 && rowsAlign(*x.k, 4) && rowsAlign(*x.v, 4) && aligned(16, x.k->data, x.v->data))
      return dispatchSize<32, 64, 128, 256>(p.dim, [&](auto dim) {
        constexpr int D = decltype(dim)::value;
        return plan.rows == 1 ? runLanes<T, 4, D, 1>(c, p, plan, operands) : runLanes<T, 4, D, 4>(c, p, plan, operands);
      });
  }
  return dispatchSize<64, 256>(plan.depth, [&](auto dim) {
    constexpr int D = decltype(dim)::value;
    return runLanes<T, 1, D, 4>(c, p, plan, operands);
  });
}

// ---- attentionKvCache
AttentionProblem problemOf(const MMCall* c) {
  using namespace ops::attention_kv_cache;
  const Attrs& a = attrs<Attrs>(c);
  AttentionProblem p = attentionProblem(in(c, Q), in(c, K_CACHE), a.scale, a.causal != 0, a.windowLeft, -1);
  p.lengths = data<int32_t>(in(c, LENGTHS));
  return p;
}
AttentionTensors tensorsOf(const MMCall* c) {
  using namespace ops::attention_kv_cache;
  return {&in(c, Q), &in(c, K_CACHE), &in(c, V_CACHE), &out(c, O), nullptr};
}

int32_t takesFew(const MMCall* c) { return splitsKeys(c, problemOf(c)); }
uint64_t fewWorkspace(const MMCall* c) { return splitKeysWorkspace(c, problemOf(c)); }
int32_t few(const MMCall* c) { return attendSplitKeys(c, problemOf(c), tensorsOf(c)); }
int32_t many(const MMCall* c) { return attendBlocks(c, problemOf(c), tensorsOf(c), true); }

// ---- kvCacheAppend
template <class U>
int32_t append(const MMCall* c) {
  using namespace ops::kv_cache_append;
  const auto &cache = in(c, CACHE), &x = in(c, X);
  const int64_t size = x.dtype == MM_F32 ? 4 : 2, per = int64_t(sizeof(U)) / size;  // elements of a unit
  const auto view = [&](const MMTensorView& v) {
    return HeadView<U>{static_cast<U*>(v.data), v.stride[0] / per, v.stride[1] / per, v.stride[2] / per};
  };
  const HeadView<U> from = view(x);
  return launch(c, kvCacheAppendKernel<U>, dim3(unsigned(numel(x) ? x.shape[0] * x.shape[1] : 0)), dim3(128), 0, view(cache),
                HeadView<const U>{from.data, from.batch, from.row, from.head}, data<int32_t>(in(c, POSITIONS)), int(x.shape[0]),
                int(x.shape[1]), int(x.shape[2]), int(x.shape[3] / per), int(cache.shape[1]));
}

int32_t kvCacheAppend(const MMCall* c) {
  using namespace ops::kv_cache_append;
  const auto &cache = in(c, CACHE), &x = in(c, X);
  const int per = x.dtype == MM_F32 ? 4 : 8;  // elements of 16 bytes
  if (x.shape[3] % per == 0 && rowsAlign(cache, per) && rowsAlign(x, per) && aligned(16, cache.data, x.data)) return append<uint4>(c);
  return x.dtype == MM_F32 ? append<uint32_t>(c) : append<uint16_t>(c);
}

}  // namespace

// Few rows are bound by the bytes of the keys. More rows are still better off this way where a tile of one head's queries would be
// mostly empty, or where there are too few such tiles for the device.
bool splitsKeys(const MMCall* c, const AttentionProblem& p) {
  const int64_t rows = int64_t(p.group) * p.queries;
  if (rows <= 16) return true;
  const bool idle = ceilDiv(p.queries, 64) * p.heads * p.sequences < deviceOf(c).multiprocessors;
  return rows <= 64 ? p.keys >= 128 && (p.queries < 16 || idle) : rows <= 256 && p.keys >= 2048 && idle;
}

uint64_t splitKeysWorkspace(const MMCall* c, const AttentionProblem& p) {
  Scratch mma, general;
  splitPlan(c, p, true, mma), splitPlan(c, p, false, general);
  return std::max(mma.bytes(), general.bytes());
}

int32_t attendSplitKeys(const MMCall* c, const AttentionProblem& p, const AttentionTensors& x) {
  if (!numel(*x.q)) return MM_OK;
  const bool mma = splitsOnMma(c, p, x);
  Scratch scratch(c);
  const SplitPlan plan = splitPlan(c, p, mma, scratch);
  return dispatchFloat(x.q->dtype, [&](auto type) {
    using T = decltype(type);
    int32_t status = MM_OK;
    if constexpr (!std::is_same_v<T, float>) {
      if (mma)
        status = dispatchSize<32, 64, 128, 256>(p.dim, [&](auto dim) {
          constexpr int D = decltype(dim)::value;
          const Device& device = deviceOf(c);
          const bool alone = blockCount(p, plan) <= unsigned(device.multiprocessors) && SplitTile<D, 1>::shared <= device.sharedPerBlock;
          return alone ? runMma<T, D, SplitTile<D, 1>>(c, p, plan, x) : runMma<T, D, SplitTile<D, 2>>(c, p, plan, x);
        });
    }
    if (!mma) status = runGeneral<T>(c, p, plan, x);
    if (status || plan.splits == 1 || plan.tickets) return status;
    return launchOverlapping(c, attentionJoinSplitsKernel<T>, dim3(unsigned(p.sequences * p.queries * p.heads)), dim3(128), 0, p, plan,
                  forwardOperands<T>(x));
  });
}

}  // namespace mm::cuda

MM_CUDA_KERNELS(attention_kv_cache, {"attentionKvCache", "split keys", mm::cuda::takesFew, mm::cuda::fewWorkspace, mm::cuda::few},
                {"attentionKvCache", "blocks", nullptr, nullptr, mm::cuda::many},
                {"kvCacheAppend", "rows", nullptr, nullptr, mm::cuda::kvCacheAppend})

#include "cuda/attention_forward.cuh"

#include "ops/attention.h"

namespace mm::cuda {
namespace {

template <class T, int D, int MT>
int32_t runMma(const MMCall* c, const AttentionProblem& p, const AttentionTensors& x) {
  using Tile = ForwardTile<D, MT>;
  return launch(c, attentionForwardMmaKernel<T, D, MT>, dim3(unsigned(tileSlots(p, p.queries, Tile::rows) * p.heads)), dim3(Tile::threads),
                Tile::shared, p, forwardOperands<T>(x));
}

int32_t attendMma(const MMCall* c, const AttentionProblem& p, const AttentionTensors& x) {
  // The large tile needs queries to fill it and blocks to fill the device.
  const bool large = p.queries > 64 * (p.packed() ? p.sequences : 1) &&
                     tileSlots(p, p.queries, 128) * p.heads >= 2 * deviceOf(c).multiprocessors;
  return dispatchHalf(x.q->dtype, [&](auto type) {
    using T = decltype(type);
    return dispatchSize<32, 64, 96, 128, 256>(p.dim, [&](auto dim) {
      constexpr int D = decltype(dim)::value;
      if constexpr (D <= 128)
        if (large) return runMma<T, D, 2>(c, p, x);
      return runMma<T, D, 1>(c, p, x);
    });
  });
}

template <class Tile>
int32_t runTile(const MMCall* c, const AttentionProblem& p, const AttentionTensors& x) {
  const GeneralForward operands = {headView<char>(*x.q), headView<char>(*x.k), headView<char>(*x.v), headView<char>(*x.o), x.lse,
                                   storageOf(*x.q, *x.k, *x.v, *x.o)};
  return launch(c, attentionForwardTileKernel<Tile>, dim3(unsigned(tileSlots(p, p.queries, Tile::rows) * p.heads)), dim3(Tile::threads),
                kForwardFloats<Tile> * sizeof(float), p, operands);
}

int32_t attendTiles(const MMCall* c, const AttentionProblem& p, const AttentionTensors& x) {
  const bool small = p.queries <= 32 * (p.packed() ? p.sequences : 1);
  if (p.dim <= 32) return small ? runTile<FloatTile<32, 32, 32, 8, 8>>(c, p, x) : runTile<FloatTile<32, 64, 64, 16, 16>>(c, p, x);
  if (p.dim <= 64) return small ? runTile<FloatTile<64, 32, 32, 8, 8>>(c, p, x) : runTile<FloatTile<64, 64, 64, 16, 16>>(c, p, x);
  if (p.dim <= 128) return runTile<FloatTile<128, 64, 32, 16, 16>>(c, p, x);
  return runTile<FloatTile<256, 32, 16, 8, 8>>(c, p, x);
}

AttentionProblem problemOf(const MMCall* c) {
  using namespace ops::attention;
  const Attrs& a = attrs<Attrs>(c);
  AttentionProblem p = attentionProblem(in(c, Q), in(c, K), a.scale, a.causal != 0, a.windowLeft, a.windowRight);
  if (has(c, CU_SEQLENS_Q)) {
    p.sequences = int(in(c, CU_SEQLENS_Q).shape[0]) - 1;
    p.cuQ = data<int32_t>(in(c, CU_SEQLENS_Q)), p.cuK = data<int32_t>(in(c, CU_SEQLENS_K));
  }
  return p;
}
AttentionTensors tensorsOf(const MMCall* c) {
  using namespace ops::attention;
  return {&in(c, Q), &in(c, K), &in(c, V), &out(c, O), data<float>(out(c, LSE))};
}

int32_t takesSplit(const MMCall* c) { return !has(c, ops::attention::CU_SEQLENS_Q) && splitsKeys(c, problemOf(c)); }
uint64_t splitWorkspace(const MMCall* c) { return splitKeysWorkspace(c, problemOf(c)); }
int32_t runSplit(const MMCall* c) { return attendSplitKeys(c, problemOf(c), tensorsOf(c)); }

int32_t takesHopper(const MMCall* c) {
  return hopperTakes(problemOf(c), in(c, ops::attention::Q).dtype, deviceOf(c).capability());
}
int32_t takesMma(const MMCall* c) {
  using namespace ops::attention;
  return mmaTakes(problemOf(c), in(c, Q).dtype, deviceOf(c).capability());
}
template <bool HOPPER>
int32_t runBlocks(const MMCall* c) {
  return attendBlocks(c, problemOf(c), tensorsOf(c), HOPPER);
}

}  // namespace

int32_t attendBlocks(const MMCall* c, const AttentionProblem& p, const AttentionTensors& x, bool hopper) {
  if (!p.heads) return MM_OK;
  const bool mma = mmaTakes(p, x.q->dtype, deviceOf(c).capability()) && rowsAlign(*x.q, 8) && rowsAlign(*x.k, 8) && rowsAlign(*x.v, 8) &&
                   rowsAlign(*x.o, 8) && aligned(16, x.q->data, x.k->data, x.v->data, x.o->data);
  int32_t status = MM_OK;
  if (mma && hopper && runHopperForward(c, p, x, status)) return status;
  return mma ? attendMma(c, p, x) : attendTiles(c, p, x);
}

}  // namespace mm::cuda

MM_CUDA_KERNELS(attention_forward, {"attention", "split keys", mm::cuda::takesSplit, mm::cuda::splitWorkspace, mm::cuda::runSplit},
                {"attention", "wgmma", mm::cuda::takesHopper, nullptr, mm::cuda::runBlocks<true>},
                {"attention", "mma", mm::cuda::takesMma, nullptr, mm::cuda::runBlocks<false>},
                {"attention", "tiles", nullptr, nullptr, mm::cuda::runBlocks<false>})

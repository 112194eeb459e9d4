#include "cuda/selective_state_update.cuh"

#include "ops/selective_state_update.h"

namespace mm::cuda {
namespace {

using namespace ops::selective_state_update;

// x, dt and z with their rows last; parameters are dense and have no batch.
StateOperand operand(const MMTensorView& v, bool perHead) {
  const bool tied = perHead && v.ndim == 2;
  return {v.data, v.dtype, v.stride[0], perHead ? v.stride[1] : 0, tied ? 0 : v.stride[v.ndim - 1]};
}
StateOperand parameter(const MMCall* c, int slot, int64_t rows, bool perHead) {
  if (!has(c, slot)) return {};
  const auto& v = in(c, slot);
  const bool tied = perHead && v.ndim == 1;
  return {v.data, v.dtype, 0, tied ? 1 : rows, tied ? 0 : 1};
}

// The lanes of a team for n states in vectors of V.
int lanesFor(int n, int V) {
  int lanes = 1;
  while (lanes < 32 && lanes * V < n) lanes *= 2;
  return lanes;
}

template <class T, class P, bool TIED, int V, int R>
int32_t launchUpdate(const MMCall* c, StateUpdate<T> v, int64_t heads) {
  v.lanes = lanesFor(v.states, V);
  v.blocks = unsigned(ceilDiv(v.rows, 256 / v.lanes * R));
  // One block of few rows: no more threads than they need.
  const int64_t teams = ceilDiv(v.rows, R), threads = v.blocks == 1 ? ceilDiv(teams * v.lanes, 32) * 32 : 256;
  return launch(c, selectiveStateUpdateKernel<T, P, TIED, V, R>, dim3(unsigned(heads * v.blocks)), dim3(unsigned(threads)), 0, v);
}

template <class T>
int32_t launchTied(const MMCall* c, StateUpdate<T> v, int64_t heads) {
  v.blocks = unsigned(ceilDiv(v.rows, kTiedRows));
  const unsigned processors = unsigned(deviceOf(c).multiprocessors), lanes = unsigned(v.lanes);
  TiedTeams teams;
  teams.tiles = unsigned(heads * v.blocks), teams.ahead = processors * kTiedBlocks * kTiedThreads / lanes, teams.early = teams.ahead / 2;
  // Large blocks start faster, as long as there are some for every multiprocessor.
  const int64_t all = int64_t(teams.tiles) * lanes;
  unsigned threads = 32;
  while (threads < kTiedThreads && all >= int64_t(processors) * 6 * threads) threads *= 2;
  return launchOverlapping(c, selectiveStateUpdateTiedKernel<T>, dim3(unsigned(ceilDiv(all, threads))), dim3(threads), 0, v, teams);
}

template <class T, class P, bool TIED>
int32_t update(const MMCall* c) {
  const auto &state = in(c, STATE), &a = in(c, A), &vb = in(c, B), &vc = in(c, C);
  const bool perHead = state.ndim == 4;
  const auto head = [&](const MMTensorView& v) { return perHead ? v.stride[1] : 0; };
  StateUpdate<T> v;
  v.state = data<float>(state);
  v.stateBatch = state.stride[0], v.stateHead = head(state), v.stateRow = state.stride[state.ndim - 2];
  v.heads = unsigned(perHead ? state.shape[1] : 1);
  v.rows = int32_t(state.shape[state.ndim - 2]), v.states = int32_t(lastDim(state));
  v.headsPerGroup = perHead ? unsigned(v.heads / vb.shape[1]) : 1;
  v.x = operand(in(c, X), perHead), v.dt = operand(in(c, DT), perHead);
  v.gate = has(c, Z) ? operand(in(c, Z), perHead) : StateOperand{};
  v.skip = parameter(c, D, v.rows, perHead), v.bias = parameter(c, DT_BIAS, v.rows, perHead);
  v.b = data<const T>(vb), v.bBatch = vb.stride[0], v.bGroup = head(vb);
  v.c = data<const T>(vc), v.cBatch = vc.stride[0], v.cGroup = head(vc);
  v.a = a.data, v.aDtype = a.dtype;
  v.out = data<T>(out(c, OUT));
  v.softplus = attrs<Attrs>(c).dtSoftplus;
  const int64_t heads = state.shape[0] * v.heads;
  const auto fits = [](const MMTensorView& x) {  // every row begins at a multiple of 4 elements
    for (int i = 0; i + 1 < x.ndim; i++)
      if (x.shape[i] > 1 && x.stride[i] % 4) return false;
    return true;
  };
  const bool vectors = v.states % 4 == 0 && fits(state) && fits(vb) && fits(vc) && aligned(16, v.state) &&
      aligned(4 * sizeof(T), v.b, v.c) &&
      (TIED || aligned(4 * sizeof(P), static_cast<const P*>(v.a)));
  if (!vectors) return launchUpdate<T, P, TIED, 1, 1>(c, v, heads);
  if constexpr (TIED) {
    v.lanes = lanesFor(v.states, 4);
    if (v.states <= 128 && v.lanes >= kTiedRows) return launchTied(c, v, heads);
  }
  // Four rows a team once they keep the device full, else as many teams as there are rows.
  const bool many = heads * v.rows * ceilDiv(v.states, 4) >= int64_t(deviceOf(c).multiprocessors) * 2048;
  return many ? launchUpdate<T, P, TIED, 4, 4>(c, v, heads) : launchUpdate<T, P, TIED, 4, 1>(c, v, heads);
}

int32_t selectiveStateUpdate(const MMCall* c) {
  const bool tied = in(c, STATE).ndim == 4 && in(c, DT).ndim == 2;
  if (!numel(in(c, X))) return MM_OK;
  return dispatchFloat(in(c, X).dtype, [&](auto t) {
    using T = decltype(t);
    if (tied) return update<T, float, true>(c);  // A is one number a head, of either dtype
    return in(c, A).dtype == MM_F32 ? update<T, float, false>(c) : update<T, T, false>(c);
  });
}

}  // namespace
}  // namespace mm::cuda

MM_CUDA_KERNELS(selective_state_update, {"selectiveStateUpdate", "rows", nullptr, nullptr, selectiveStateUpdate})

// Launchers of the general chunk engine, instantiated for one kind of decay a file: chunk_scan_general_{head,channel}.cu.
#pragma once
#include "cuda/chunk_scan_general_channel.cuh"
#include "cuda/chunk_scan_general_forward.cuh"
#include "cuda/chunk_scan_general_head.cuh"

namespace mm::cuda::chunk_scan {

struct GeneralPlan {
  int r = 4;  // chunks of 16 r steps
  int64_t slots = 0;
  Task task;
  int64_t chunk() const { return 16 * r; }
};

// f(T{}, R) with the dtype and the tile of the call
template <class F>
int32_t dispatchGeneral(const Scan& s, const GeneralPlan& p, F&& f) {
  return dispatchFloat(s.v.dtype, [&](auto t) { return dispatchSize<2, 4>(p.r, [&](auto r) { return f(t, r); }); });
}

template <Decay KIND>
int32_t runStates(const MMCall* c, const Scan& s, const Gradient& g, const GeneralPlan& p, int direction, int directions) {
  const int64_t tiles = ceilDiv(s.n, p.chunk()) * ceilDiv(s.p, p.chunk());
  const dim3 grid(unsigned(p.slots * s.heads * tiles), directions);
  return dispatchGeneral(s, p, [&](auto t, auto r) {
    constexpr int R = decltype(r)::value;
    constexpr size_t shared = statesShared<R, KIND>();
    return launch(c, chunkStatesKernel<decltype(t), R, KIND>, grid, dim3(kGeneralThreads), shared, s, g, p.task, direction);
  });
}

inline dim3 valueBlocks(const Scan& s, const GeneralPlan& p) {
  return dim3(unsigned(p.slots * s.heads * ceilDiv(s.p, p.chunk() * p.task.valueTiles)));
}

template <Decay KIND>
int32_t forwardGeneral(const MMCall* c, const Scan& s, const GeneralPlan& p) {
  int32_t status = runStates<KIND>(c, s, {}, p, 0, 1);
  if (status == MM_OK && !p.task.single) {
    const Pass pass = {p.task.states, s.initial, s.final};
    status = passStates(c, s, p.chunk(), {}, p.task.totals, KIND == Decay::Channel, pass, {});
  }
  if (status != MM_OK) return status;
  return dispatchGeneral(s, p, [&](auto t, auto r) {
    constexpr int R = decltype(r)::value;
    return launch(c, chunkOutputKernel<decltype(t), R, KIND>, valueBlocks(s, p), dim3(kGeneralThreads), outputShared<R, KIND>(), s, p.task);
  });
}

template <Decay KIND>
int32_t backwardGeneral(const MMCall* c, const Scan& s, const Gradient& g, const GeneralPlan& p) {
  int32_t status = MM_OK;
  if (!p.task.single) {
    status = runStates<KIND>(c, s, g, p, 0, 2);
    if (status == MM_OK)
      status = passStates(c, s, p.chunk(), {}, p.task.totals, KIND == Decay::Channel, {p.task.states, s.initial, nullptr},
                          {p.task.dstates, g.dFinal, g.dInitial});
  } else if (g.wantsInitial) status = runStates<KIND>(c, s, g, p, 1, 1);
  const int64_t blocks = p.slots * s.heads;
  if (status == MM_OK)
    status = dispatchGeneral(s, p, [&](auto t, auto r) {
      using T = decltype(t);
      constexpr int R = decltype(r)::value;
      if constexpr (KIND == Decay::Head) {
        return launch(c, chunkGradientKernel<T, R>, dim3(unsigned(blocks)), dim3(kGeneralThreads), gradientShared<R>(), s, g, p.task);
      } else {
        const dim3 keyBlocks(unsigned(blocks * ceilDiv(s.n, p.chunk()))), threads(kGeneralThreads);
        int32_t done = MM_OK;
        if (g.dv.given) done = launch(c, channelValuesKernel<T, R>, valueBlocks(s, p), threads, channelShared<R>(4), s, g, p.task);
        if (done == MM_OK && (g.dq.given || g.dk.given || g.dgate.given))
          done = launch(c, channelKeysKernel<T, R>, keyBlocks, threads, channelShared<R>(5), s, g, p.task);
        return done;
      }
    });
  if (status == MM_OK) status = sumHeads(c, s, g);
  if (status == MM_OK) status = sumParts(c, s, g, p.slots, p.slots);
  return status;
}

extern template int32_t forwardGeneral<Decay::Head>(const MMCall*, const Scan&, const GeneralPlan&);
extern template int32_t forwardGeneral<Decay::Channel>(const MMCall*, const Scan&, const GeneralPlan&);
extern template int32_t backwardGeneral<Decay::Head>(const MMCall*, const Scan&, const Gradient&, const GeneralPlan&);
extern template int32_t backwardGeneral<Decay::Channel>(const MMCall*, const Scan&, const Gradient&, const GeneralPlan&);

}  // namespace mm::cuda::chunk_scan

// Launchers of the general chunk engine.
#include "cuda/chunk_scan_general.cuh"

namespace mm::cuda::chunk_scan {
namespace {

struct General {
  int r = 4;  // chunks of 16 r steps
  int64_t slots = 0;
  Task task;
  int64_t chunk() const { return 16 * r; }
};

int tileOf(const Scan& s) { return s.n <= 32 && s.p <= 32 ? 2 : 4; }

General plan(const Scan& s, Gradient* g, Decay kind, Scratch& scratch) {
  General p;
  p.r = tileOf(s);
  p.slots = slotCount(s, p.chunk());
  p.task.single = mostSlots(s, p.chunk()) == 1;
  const int64_t blocks = p.slots * s.heads;
  if (!p.task.single) {
    p.task.states = scratch.take<float>(blocks * s.stateSize());
    if (g) p.task.dstates = scratch.take<float>(blocks * s.stateSize());
    p.task.totals = scratch.take<float>(kind == Decay::Channel ? blocks * s.n : blocks);
  }
  if (!g) return p;
  if (g->wantsRate) g->rateParts = scratch.take<float>(blocks);
  if (g->wantsBias) g->biasParts = scratch.take<float>(blocks);
  if (g->wantsSkip) g->skipParts = scratch.take<float>(blocks * (s.skip.wide ? s.p : 1));
  g->sharers = s.share();
  if (g->sharers != 1) {
    const int64_t keys = int64_t(s.batch) * s.length * s.heads * s.n;
    if (g->dq.given) g->dqHeads = scratch.take<float>(keys);
    if (g->dk.given) g->dkHeads = scratch.take<float>(keys);
  }
  return p;
}

// f(T{}, R) with the dtype and the tile of the call
template <class F>
int32_t dispatch(const Scan& s, const General& p, F&& f) {
  return dispatchFloat(s.v.dtype, [&](auto t) { return dispatchSize<2, 4>(p.r, [&](auto r) { return f(t, r); }); });
}

template <Decay KIND>
int32_t runStates(const MMCall* c, const Scan& s, const Gradient& g, const General& p, int direction, int directions) {
  const int64_t tiles = ceilDiv(s.n, p.chunk()) * ceilDiv(s.p, p.chunk());
  const dim3 grid(unsigned(p.slots * s.heads * tiles), directions);
  return dispatch(s, p, [&](auto t, auto r) {
    constexpr int R = decltype(r)::value;
    return launch(c, chunkStatesKernel<decltype(t), R, KIND>, grid, dim3(kGeneralThreads), statesShared<R, KIND>(), s, g, p.task, direction);
  });
}

template <Decay KIND>
int32_t forward(const MMCall* c, const Scan& s, const General& p) {
  int32_t status = runStates<KIND>(c, s, {}, p, 0, 1);
  if (status == MM_OK && !p.task.single) {
    const Pass pass = {p.task.states, s.initial, s.final};
    status = passStates(c, s, p.chunk(), {}, p.task.totals, KIND == Decay::Channel, pass, {});
  }
  if (status != MM_OK) return status;
  const dim3 grid(unsigned(p.slots * s.heads * ceilDiv(s.p, p.chunk())));
  return dispatch(s, p, [&](auto t, auto r) {
    constexpr int R = decltype(r)::value;
    return launch(c, chunkOutputKernel<decltype(t), R, KIND>, grid, dim3(kGeneralThreads), outputShared<R, KIND>(), s, p.task);
  });
}

template <Decay KIND>
int32_t backward(const MMCall* c, const Scan& s, const Gradient& g, const General& p) {
  int32_t status = MM_OK;
  if (!p.task.single) {
    status = runStates<KIND>(c, s, g, p, 0, 2);
    if (status == MM_OK)
      status = passStates(c, s, p.chunk(), {}, p.task.totals, KIND == Decay::Channel, {p.task.states, s.initial, nullptr},
                          {p.task.dstates, g.dFinal, g.dInitial});
  } else if (g.wantsInitial) status = runStates<KIND>(c, s, g, p, 1, 1);
  const int64_t blocks = p.slots * s.heads;
  if (status == MM_OK)
    status = dispatch(s, p, [&](auto t, auto r) {
      using T = decltype(t);
      constexpr int R = decltype(r)::value;
      if constexpr (KIND == Decay::Head) {
        return launch(c, chunkGradientKernel<T, R>, dim3(unsigned(blocks)), dim3(kGeneralThreads), gradientShared<R>(), s, g, p.task);
      } else {
        int32_t done = MM_OK;
        if (g.dv.given)
          done = launch(c, channelValuesKernel<T, R>, dim3(unsigned(blocks * ceilDiv(s.p, p.chunk()))), dim3(kGeneralThreads),
                        channelShared<R>(4), s, g, p.task);
        if (done == MM_OK && (g.dq.given || g.dk.given || g.dgate.given))
          done = launch(c, channelKeysKernel<T, R>, dim3(unsigned(blocks * ceilDiv(s.n, p.chunk()))), dim3(kGeneralThreads),
                        channelShared<R>(5), s, g, p.task);
        return done;
      }
    });
  if (status == MM_OK) status = sumHeads(c, s, g);
  if (status == MM_OK) status = sumParts(c, s, g, p.slots, p.slots);
  return status;
}

}  // namespace

int32_t solveGeneral(const MMCall* c, Problem& problem, Scratch& scratch, bool run) {
  if (problem.prologue) {
    const int32_t status = problem.prologue(c, problem, 16 * tileOf(problem.scan), scratch, run);
    if (status != MM_OK) return status;
  }
  const Scan& s = problem.scan;
  Gradient& g = problem.gradient;
  const bool byChannel = problem.kind == Decay::Channel;
  const General p = plan(s, problem.backward ? &g : nullptr, problem.kind, scratch);
  if (!run) return MM_OK;
  if (problem.backward) return byChannel ? backward<Decay::Channel>(c, s, g, p) : backward<Decay::Head>(c, s, g, p);
  return byChannel ? forward<Decay::Channel>(c, s, p) : forward<Decay::Head>(c, s, p);
}

}  // namespace mm::cuda::chunk_scan

#include "cuda/attention_backward.cuh"

#include "ops/attention.h"

namespace mm::cuda {
namespace {

using namespace ops::attention_bwd;

AttentionProblem problemOf(const MMCall* c) {
  const Attrs& a = attrs<Attrs>(c);
  AttentionProblem p = attentionProblem(in(c, Q), in(c, K), a.scale, a.causal != 0, a.windowLeft, a.windowRight);
  if (has(c, CU_SEQLENS_Q)) {
    p.sequences = int(in(c, CU_SEQLENS_Q).shape[0]) - 1;
    p.cuQ = data<int32_t>(in(c, CU_SEQLENS_Q)), p.cuK = data<int32_t>(in(c, CU_SEQLENS_K));
  }
  return p;
}

template <class T>
HeadView<T> gradientView(const MMCall* c, int slot) {
  return hasOut(c, slot) ? headView<T>(out(c, slot)) : HeadView<T>{};
}

int64_t statRows(const MMCall* c) { return numel(in(c, LSE)); }

uint64_t workspace(const MMCall* c) {
  Scratch s;
  s.take<float>(statRows(c));
  s.take<float>(statRows(c));
  return s.bytes();
}

// Operands of the general kernels, the first pass among them.
GeneralBackward generalOperands(const MMCall* c) {
  GeneralBackward x{headView<char>(in(c, Q)), headView<char>(in(c, K)),    headView<char>(in(c, V)),   headView<char>(in(c, O)),
                    headView<char>(in(c, D_O)), gradientView<char>(c, DQ), gradientView<char>(c, DK), gradientView<char>(c, DV),
                    data<float>(in(c, LSE)), has(c, D_LSE) ? data<float>(in(c, D_LSE)) : nullptr, nullptr, nullptr,
                    storageOf(in(c, Q), in(c, K), in(c, V), in(c, O), in(c, D_O))};
  for (int slot : {DQ, DK, DV})
    if (hasOut(c, slot)) x.storage.vectors &= storageOf(out(c, slot)).vectors;
  return x;
}

int32_t rowSums(const MMCall* c, const AttentionProblem& p, GeneralBackward& x) {
  const int64_t rows = statRows(c);
  Scratch s(c);
  x.lse2 = s.take<float>(rows), x.delta = s.take<float>(rows);
  return launch(c, attentionRowSumsKernel, dim3(unsigned(ceilDiv(rows, 32))), dim3(256), 0, p, rows, x);
}

// ---- general
template <class Tile, bool ALL>
int32_t runKeyTiles(const MMCall* c, const AttentionProblem& p, const GeneralBackward& x) {
  return launch(c, attentionKeyGradientTileKernel<Tile, ALL>, dim3(unsigned(tileSlots(p, p.keys, Tile::rows) * p.kvHeads)),
                dim3(Tile::threads), kBackwardFloats<Tile> * sizeof(float), p, x);
}
template <class Tile>
int32_t runTiles(const MMCall* c, const AttentionProblem& p, const GeneralBackward& x) {
  if (hasOut(c, DK) || hasOut(c, DV))
    if (const int32_t status = runKeyTiles<Tile, false>(c, p, x)) return status;
  if (!hasOut(c, DQ)) return MM_OK;
  return launch(c, attentionQueryGradientTileKernel<Tile>, dim3(unsigned(tileSlots(p, p.queries, Tile::rows) * p.heads)),
                dim3(Tile::threads), kBackwardFloats<Tile> * sizeof(float), p, x);
}

int32_t general(const MMCall* c) {
  const AttentionProblem p = problemOf(c);
  GeneralBackward x = generalOperands(c);
  if (!p.packed() && p.keys >= 1 && p.keys <= 32 && p.dim <= 64)
    return p.dim <= 32 ? runKeyTiles<FloatTile<32, 32, 32, 8, 8>, true>(c, p, x) : runKeyTiles<FloatTile<64, 32, 32, 8, 8>, true>(c, p, x);
  if (const int32_t status = rowSums(c, p, x)) return status;
  if (p.dim <= 32) return runTiles<FloatTile<32, 64, 64, 16, 16>>(c, p, x);
  if (p.dim <= 64) return runTiles<FloatTile<64, 64, 32, 16, 16>>(c, p, x);
  if (p.dim <= 128) return runTiles<FloatTile<128, 32, 32, 8, 16>>(c, p, x);
  return runTiles<FloatTile<256, 16, 16, 8, 16>>(c, p, x);
}

// ---- tensor cores
template <class T, int D, bool WITH_DK, bool WITH_DV>
int32_t runKeyMma(const MMCall* c, const AttentionProblem& p, const BackwardOperands<T>& x) {
  using Tile = KeyGradientTile<D>;
  return launch(c, attentionKeyGradientMmaKernel<T, D, WITH_DK, WITH_DV>, dim3(unsigned(tileSlots(p, p.keys, Tile::rows) * p.kvHeads)),
                dim3(Tile::threads), Tile::shared, p, x);
}
template <class T, int D, int MT>
int32_t runQueryMma(const MMCall* c, const AttentionProblem& p, const BackwardOperands<T>& x) {
  using Tile = QueryGradientTile<D, MT>;
  return launch(c, attentionQueryGradientMmaKernel<T, D, MT>, dim3(unsigned(tileSlots(p, p.queries, Tile::rows) * p.heads)),
                dim3(Tile::threads), Tile::shared, p, x);
}

template <class T, int D>
int32_t runMma(const MMCall* c, const AttentionProblem& p, const BackwardOperands<T>& x) {
  int32_t status = MM_OK;
  if constexpr (D <= 128) {
    if (hasOut(c, DK) || hasOut(c, DV)) status = runKeyMma<T, D, true, true>(c, p, x);
  } else {
    if (hasOut(c, DK)) status = runKeyMma<T, D, true, false>(c, p, x);
    if (!status && hasOut(c, DV)) status = runKeyMma<T, D, false, true>(c, p, x);
  }
  if (status || !hasOut(c, DQ)) return status;
  const bool large = p.queries > 64 * (p.packed() ? p.sequences : 1) &&
                     tileSlots(p, p.queries, 128) * p.heads >= 2 * deviceOf(c).multiprocessors;
  if constexpr (D <= 128)
    if (large) return runQueryMma<T, D, 2>(c, p, x);
  return runQueryMma<T, D, 1>(c, p, x);
}

int32_t takesMma(const MMCall* c) { return mmaTakes(problemOf(c), in(c, Q).dtype, deviceOf(c).capability()); }
int32_t takesHopper(const MMCall* c) { return hopperTakes(problemOf(c), in(c, Q).dtype, deviceOf(c).capability()); }

uint64_t hopperWorkspace(const MMCall* c) {
  const uint64_t ordered = orderedBackwardWorkspace(c, problemOf(c)), other = workspace(c);
  return ordered > other ? ordered : other;
}

template <bool HOPPER>
int32_t tensorCores(const MMCall* c) {
  const AttentionProblem p = problemOf(c);
  bool fits = true;
  for (int slot : {Q, K, V, D_O}) fits = fits && rowsAlign(in(c, slot), 8) && aligned(16, in(c, slot).data);
  for (int slot : {DQ, DK, DV})
    if (hasOut(c, slot)) fits = fits && rowsAlign(out(c, slot), 8) && aligned(16, out(c, slot).data);
  if (!fits) return general(c);
  int32_t status = MM_OK;
  if (HOPPER && runOrderedBackward(c, p, status)) return status;
  GeneralBackward general = generalOperands(c);
  if ((status = rowSums(c, p, general))) return status;
  return dispatchHalf(in(c, Q).dtype, [&](auto type) {
    using T = decltype(type);
    const BackwardOperands<T> x = {headView<const T>(in(c, Q)), headView<const T>(in(c, K)), headView<const T>(in(c, V)),
                                   headView<const T>(in(c, D_O)), gradientView<T>(c, DQ), gradientView<T>(c, DK), gradientView<T>(c, DV),
                                   general.lse2, general.delta};
    if (HOPPER && runHopperBackward<T>(c, p, x, status)) return status;
    return dispatchSize<32, 64, 96, 128, 256>(p.dim, [&](auto dim) { return runMma<T, decltype(dim)::value>(c, p, x); });
  });
}

}  // namespace
}  // namespace mm::cuda

MM_CUDA_KERNELS(attention_backward,
                {"attentionBackward", "wgmma", mm::cuda::takesHopper, mm::cuda::hopperWorkspace, mm::cuda::tensorCores<true>},
                {"attentionBackward", "mma", mm::cuda::takesMma, mm::cuda::workspace, mm::cuda::tensorCores<false>},
                {"attentionBackward", "tiles", nullptr, mm::cuda::workspace, mm::cuda::general})

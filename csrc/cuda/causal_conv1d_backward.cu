#include "cuda/causal_conv1d_backward.cuh"

#include "cuda/common/rows.cuh"
#include "ops/causal_conv1d.h"

namespace mm::cuda {
namespace {

using namespace ops::causal_conv1d_bwd;

// As many blocks as run at once, whose threads take slices in turns. Long slices have less rows before them to be read again, but
// all threads should get equally many rows.
struct RowsPlan {
  int lanes, rows, each = 0;
  int64_t columns, slices, parts;

  RowsPlan(const MMTensorView& x, int V, int multiprocessors) {
    constexpr int kBefore = 8;  // what the begin of a slice costs, in rows
    const int64_t vectors = ceilDiv(x.shape[1], V), batch = x.shape[0], length = x.shape[2];
    lanes = convColumns(vectors), rows = kConvRowsThreads / lanes;
    columns = ceilDiv(vectors, lanes);
    const int64_t resident = int64_t(multiprocessors) * kConvRowsBlocks / columns, most = resident > 0 ? resident : 1;
    int64_t least = 0;
    for (int64_t turns = 1; turns <= 8 && batch > 0; turns++) {
      const int64_t pieces = turns * most * rows / batch, length8 = ceilDiv(ceilDiv(length, pieces > 0 ? pieces : 1), 8) * 8;
      const int64_t cost = ceilDiv(batch * ceilDiv(length, length8 > 0 ? length8 : 1), most * rows) * (length8 + kBefore);
      if (turns == 1 || cost < least) least = cost, each = int(length8);
    }
    if (each == 0) each = 8;
    slices = ceilDiv(length, each);
    const int64_t groups = ceilDiv(batch * slices, rows);
    parts = groups < most ? groups : most;
  }
};

// A line's segments go to teams of up to 8 warps, whose sums are added in the block: as large ones as leave few warps idle.
struct LinesPlan {
  int shift, teamShift;
  int64_t parts;

  LinesPlan(const MMTensorView& x, int V, int U) {
    const int64_t chunks = ceilDiv(x.shape[2], V);
    shift = teamShift = convLanes(chunks);
    const int64_t segments = ceilDiv(chunks, int64_t(U) << shift);
    for (int warps = 3; shift == 5 && warps > 0 && teamShift == shift; warps--)
      if (((ceilDiv(segments, 1 << warps) << warps) - segments) * 8 <= segments) teamShift += warps;
    parts = ceilDiv(segments, int64_t(1) << (teamShift - shift));
  }
};

// Everything that shapes and strides decide, and the workspace.
struct Plan {
  const MMTensorView &x, &dy;
  int64_t width;
  ConvPath path;
  bool copies;  // dY, to x's layout
  int64_t parts = 1, sumsEach = 0;
  void *copy, *noDx;
  float *sums, *gradients;
  uint64_t bytes;

  explicit Plan(const MMCall* c, Scratch s) : x(in(c, X)), dy(in(c, DY)), width(in(c, WEIGHT).shape[1]) {
    const int multiprocessors = deviceOf(c).multiprocessors, size = x.dtype == MM_F32 ? 4 : 2;
    path = convPath(x, width, has(c, CU_SEQLENS));
    if (hasOut(c, DX) && !followsPath(path, out(c, DX))) path = ConvPath::elements;
    copies = !followsPath(path, dy);
    if (path == ConvPath::rows) {
      const RowsPlan vectors(x, kConvBwdBytes / size, multiprocessors), single(x, 1, multiprocessors);
      parts = vectors.parts > single.parts ? vectors.parts : single.parts;
    } else if (path == ConvPath::lines) {
      parts = x.shape[0] * LinesPlan(x, 16 / size, 1).parts;  // longer segments have less
    }
    sumsEach = (hasOut(c, DWEIGHT) ? x.shape[1] * width : 0) + (hasOut(c, DBIAS) ? x.shape[1] : 0);
    copy = s.take<char>(copies ? numel(x) * size : 0);
    const int64_t line = path == ConvPath::rows ? x.shape[1] : x.shape[2];
    noDx = s.take<char>(path != ConvPath::elements && !hasOut(c, DX) ? line * size : 0);
    sums = s.take<float>(parts * sumsEach);
    gradients = s.take<float>(path == ConvPath::elements ? numel(x) : 0);
    bytes = s.bytes();
  }
  // dY in x's layout.
  MMTensorView copied() const {
    MMTensorView v = dy;
    const int64_t channels = x.shape[1], length = x.shape[2];
    v.data = copy;
    v.stride[0] = channels * length;
    v.stride[1] = path == ConvPath::rows ? 1 : length;
    v.stride[2] = path == ConvPath::rows ? channels : 1;
    return v;
  }
};

uint64_t workspace(const MMCall* c) { return Plan(c, Scratch()).bytes; }

// Where there is one partial row, it is the result.
template <class T>
bool writesSums(const MMCall* c, ConvGradients<T>& to, int64_t parts) {
  if (parts != 1) return false;
  if (to.weightSums) to.weightSums = data<float>(out(c, DWEIGHT));
  if (to.biasSums) to.biasSums = data<float>(out(c, DBIAS));
  return true;
}

template <class T, int W, int V>
int32_t launchRows(const MMCall* c, const Plan& plan, const Conv<T>& v, ConvGradients<T> to, int64_t& parts) {
  constexpr int R = V > 1 ? kConvAhead : 2 * kConvAhead;
  const RowsPlan rows(plan.x, V, deviceOf(c).multiprocessors);
  parts = writesSums(c, to, rows.parts) ? 0 : rows.parts;
  return dispatchBool(v.silu, [&](auto silu) {
    return launchOverlapping(c, causalConv1dRowsBwdKernel<T, W, V, R, kConvRowsBlocks, decltype(silu)::value>,
        dim3(unsigned(rows.columns * rows.parts)), dim3(rows.lanes, rows.rows), 0, v, to, unsigned(rows.columns), unsigned(rows.slices),
        unsigned(v.batch * rows.slices), rows.each, unsigned(rows.parts));
  });
}

template <class T, int W, int U, bool WHOLE>
int32_t launchLines(const MMCall* c, const Plan& plan, const Conv<T>& v, ConvGradients<T> to, int64_t& parts) {
  const LinesPlan lines(plan.x, kVector<T>, U);
  const int64_t count = v.batch * v.channels;
  parts = writesSums(c, to, v.batch * lines.parts) ? 0 : v.batch * lines.parts;
  return dispatchBool(v.silu, [&](auto silu) {
    return launchOverlapping(c, causalConv1dLinesBwdKernel<T, W, U, kConvLinesBlocks, decltype(silu)::value, WHOLE>,
        convGrid((count * lines.parts) << lines.teamShift, kConvLinesBwdThreads), dim3(kConvLinesBwdThreads), 0, v, to,
        unsigned(lines.parts), unsigned(count), lines.shift, lines.teamShift, 4 * unsigned(deviceOf(c).multiprocessors));
  });
}

template <class T>
int32_t launchElements(const MMCall* c, const Plan& plan, const Conv<T>& v, const ConvGradients<T>& to) {
  const dim3 grid = convGrid(numel(plan.x), 256), block(256);
  const bool channelFastest = plan.x.stride[1] < plan.x.stride[2];
  if (const int32_t status = launch(c, causalConv1dElementsGradientKernel<T>, grid, block, 0, v, to, plan.gradients,
      channelFastest)) return status;
  if (to.dx)
    if (const int32_t status = launch(c, causalConv1dElementsBwdKernel<T>, grid, block, 0, v, to, plan.gradients,
        channelFastest)) return status;
  return launch(c, causalConv1dElementsWeightKernel<T>, dim3(plan.sumsEach ? unsigned(v.channels * (v.width + 1)) : 0), block, 0, v, to,
      plan.gradients, channelFastest);
}

template <class T>
int32_t backward(const MMCall* c) {
  const Plan plan(c, Scratch(c));
  const auto& x = plan.x;
  const Conv<T> v = convOf<T>(x, in(c, WEIGHT), has(c, BIAS) ? &in(c, BIAS) : nullptr, has(c, INITIAL_STATES) ? &in(c, INITIAL_STATES)
      : nullptr,
      has(c, CU_SEQLENS) ? &in(c, CU_SEQLENS) : nullptr, attrs<Attrs>(c).activation == ops::causal_conv1d::SILU);
  const bool channelFastest = plan.path == ConvPath::rows;
  ConvGradients<T> to = {};
  const auto reads = [&](const MMTensorView& dy) {
    to.dy = data<const T>(dy);
    to.dyBatch = dy.stride[0], to.dyChannel = dy.stride[1], to.dyTime = dy.stride[2];
  };
  reads(plan.dy);
  if (plan.copies) {
    const int64_t tiles = v.batch * ceilDiv(v.channels, 32) * ceilDiv(v.length, 32);
    if (const int32_t status = launch(c, causalConv1dRelayoutKernel<T>, dim3(unsigned(tiles)), dim3(32, 8), 0, to,
        static_cast<T*>(plan.copy), v.channels, v.length, channelFastest))
      return status;
    reads(plan.copied());
  }
  const MMTensorView dy = plan.copies ? plan.copied() : plan.dy;
  to.finalStates = has(c, DFINAL_STATES) ? data<const T>(in(c, DFINAL_STATES)) : nullptr;
  if (hasOut(c, DX)) {
    const auto& dx = out(c, DX);
    to.dx = data<T>(dx);
    to.dxBatch = dx.stride[0], to.dxChannel = dx.stride[1], to.dxTime = dx.stride[2];
  } else if (plan.path != ConvPath::elements) {
    to.dx = static_cast<T*>(plan.noDx);
    (plan.path == ConvPath::rows ? to.dxChannel : to.dxTime) = 1;
  }
  to.sumsEach = plan.sumsEach;
  to.weightSums = hasOut(c, DWEIGHT) ? plan.sums : nullptr;
  to.biasSums = hasOut(c, DBIAS) ? plan.sums + (hasOut(c, DWEIGHT) ? v.channels * v.width : 0) : nullptr;
  T* states = hasOut(c, DINITIAL_STATES) ? data<T>(out(c, DINITIAL_STATES)) : nullptr;
  // The walkers write the gradient of the initial states on their way, but for packed sequences, of which some may be empty.
  const bool apart = plan.path == ConvPath::elements || v.sequences.starts || v.length == 0;
  if (states && apart) {
    to.initialStates = states;
    const int64_t count = v.sequences.count * v.channels * (v.width - 1);
    if (const int32_t status = launch(c, causalConv1dInitialStatesBwdKernel<T>, convGrid(count, 256), dim3(256), 0, v, to)) return status;
  }
  to.initialStates = apart ? nullptr : states;
  int64_t parts = numel(x) ? plan.parts : 0;
  int32_t status = MM_OK;
  if (numel(x) && (hasOut(c, DX) || to.initialStates || plan.sumsEach)) {
    if (plan.path == ConvPath::elements) {
      status = launchElements<T>(c, plan, v, to);
    } else {
      status = dispatchTaps(v.width, [&](auto taps) {
        constexpr int W = decltype(taps)::value;
        const bool rows = plan.path == ConvPath::rows;
        constexpr int kRowVector = kConvBwdBytes / int(sizeof(T));
        const int axis = rows ? 1 : 2, V = rows ? kRowVector : kVector<T>;
        const bool vectors = convVectors<T>(x, axis, V) && convVectors<T>(dy, axis, V) &&
            (!hasOut(c, DX) || convVectors<T>(out(c, DX), axis, V));
        if (rows) {
          return vectors && aligned(16, v.weight.data, v.bias.data) ? launchRows<T, W, kRowVector>(c, plan, v, to, parts)
                                                                    : launchRows<T, W, 1>(c, plan, v, to, parts);
        }
        if (!vectors) return launchLines<T, W, 1, false>(c, plan, v, to, parts);
        return v.length > 32 * V ? launchLines<T, W, kConvBwdChunks, true>(c, plan, v, to, parts)
                                 : launchLines<T, W, 1, true>(c, plan, v, to, parts);
      });
    }
  }
  if (status != MM_OK || !plan.sumsEach || (!parts && numel(x))) return status;
  float* dWeight = hasOut(c, DWEIGHT) ? data<float>(out(c, DWEIGHT)) : nullptr;
  float* dBias = hasOut(c, DBIAS) ? data<float>(out(c, DBIAS)) : nullptr;
  return addPartials<float>(c, plan.sums, dWeight, dBias, parts, plan.sumsEach, dWeight ? v.channels * v.width : 0);
}

int32_t causalConv1dBackward(const MMCall* c) {
  return dispatchFloat(in(c, X).dtype, [&](auto t) { return backward<decltype(t)>(c); });
}

}  // namespace
}  // namespace mm::cuda

MM_CUDA_KERNELS(causal_conv1d_backward, {"causalConv1dBackward", "rows, lines or elements", nullptr, workspace, causalConv1dBackward})

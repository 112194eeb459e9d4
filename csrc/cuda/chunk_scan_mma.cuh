// The chunk engine (chunk_scan.cuh has the formulas) on the tensor cores: bf16 and f16 operands, f32 accumulation, chunks of 64
// steps.
//
// A head's N key channels stay whole (NT = 32, 64 or 128, padded with zeros); its value channels are cut into slices of PT, each
// a virtual head that shares decay, keys and queries, so a state is at most 128 x 128 and fits the registers of a block.
// States are held transposed, (PT, NT).
//
// Forward. Sequences are cut into segments of many chunks, about as many as fill the device. One kernel walks the segments
// and leaves what each adds to the state, a short scan passes the states on, and a second kernel walks the segments again,
// now with the right state in its registers, and writes the outputs. Chunk states never go to memory: at L = 103424, H = 16,
// N = P = 128 they would be 0.8 GB in bf16, twice the size of x, while reading k and v twice costs 0.8 GB.
//   Warp w owns the 16 value channels from 16 w: the accumulators of its state, rounded and packed, are the B fragments of
//   q S as they stand, and a transposed A fragment of v serves both att v and the state's update.
//
// Backward. The chunk's gradients need S before and dS behind it at once, and the two walks run in opposite directions; so
// both walks store the state of every chunk in the dtype of the operands, and the gradients are one kernel over all chunks in
// parallel. Heads of a group are taken one after the other by one block, dq and dk stay in registers, and what several blocks
// sum for one group goes through f32 parts that are added in order.
//
// With a decay per channel (chunk_scan_mma_channel.cuh) the walks are the same; their keys and queries are decayed beforehand, and
// the triangle is there already.
//
// f16 states beyond 65504 overflow here; the general kernels keep them in f32.
//
// The kernels are in chunk_scan_mma_{states,output,gradient,channel_operands,channel_gradient}.cuh, their launchers in the .cu files
// beside them.
#pragma once
#include "cuda/chunk_scan.cuh"

namespace mm::cuda::chunk_scan {

constexpr int kChunk = 64;
// Scalars by step: c_t = hi + lo, w, exp(c_t), exp(c_T - c_t)
enum { HI, LO, W, UP, DOWN, kStepKinds };
constexpr int kStepFloats = kStepKinds * kChunk, kStepBytes = kStepFloats * 4;
constexpr int kGradientThreads = 256;
// Sums by step that the decays' gradient is made of (decayGradient)
enum { CROSSING, CARRIED, DIRECT, kGradientKinds };

struct MmaTask {
  int slices = 1;
  int64_t segment = 1;             // chunks of a segment
  const float* steps = nullptr;    // (chunk slots, heads, kStepKinds, 64)
  // (segment slots, virtual heads, PT, NT): what a segment adds, then the states before (behind) it; null: one segment
  float *segmentStates = nullptr, *segmentGradients = nullptr;
  float* segmentTotals = nullptr;  // (segment slots, heads), by channel (.., N)
  void *states = nullptr, *gradients = nullptr;  // (chunk slots, virtual heads, PT, NT) before and behind every chunk
  float* sums = nullptr;           // (chunk slots, virtual heads, kGradientKinds, 64)
  float* through = nullptr;        // (chunk slots, virtual heads)
  int headsPerPart = 1;            // virtual heads that a block of the gradient kernel takes
  // decay per channel: exp(c_T) (chunk slots, heads, N), att (chunk slots, heads, 64, 64); s.q and s.k are decayed to the ends of chunks
  const float* totals = nullptr;
  const void* attention = nullptr;

  __host__ __device__ int virtualHeads(const Scan& s) const { return s.heads * slices; }
};

// ---- launchers of the instances

struct MmaSizes {
  int nt = 0, pt = 0;
};
// Calls f(T{}, NT, PT) with the instance of these sizes.
template <class F>
int32_t dispatchMma(int32_t dtype, const MmaSizes& sizes, F&& f) {
  const auto bySize = [&](auto t) {
    const auto call = [&](auto nt, auto pt) { return f(t, nt, pt); };
    using std::integral_constant;
    constexpr integral_constant<int, 32> c32{};
    constexpr integral_constant<int, 64> c64{};
    constexpr integral_constant<int, 128> c128{};
    if (sizes.nt == 32) return call(c32, c32);
    if (sizes.nt == 64) return sizes.pt == 64 ? call(c64, c64) : call(c64, c128);
    return sizes.pt == 32 ? call(c128, c32) : sizes.pt == 64 ? call(c128, c64) : call(c128, c128);
  };
  return dtype == MM_BF16 ? bySize(bf16{}) : bySize(f16{});
}

int32_t launchMmaStates(const MMCall* c, const Scan& s, const Gradient& g, const MmaTask& task, const MmaSizes& sizes, Decay kind,
                        int64_t segments, bool chunks, int direction, int directions);
int32_t launchMmaOutput(const MMCall* c, const Scan& s, const Gradient& g, const MmaTask& task, const MmaSizes& sizes, Decay kind,
                        int64_t segments, bool gate);
int32_t launchMmaGradient(const MMCall* c, const Scan& s, const Gradient& g, const MmaTask& task, const MmaSizes& sizes, int64_t blocks);

// ---- decay per channel, chunk_scan_mma_channel*

struct ChannelTask {
  void *queries = nullptr, *keys = nullptr;  // q decayed from the start of the chunk, k to its end (B, L, heads, N)
  void* attention = nullptr;                 // (chunk slots, heads, 64, 64)
  float* totals = nullptr;                   // (chunk slots, heads, N)
};
size_t channelGradientShared(const MmaSizes& sizes);
int32_t launchChannelOperands(const MMCall* c, const Scan& s, const ChannelTask& channel, const MmaSizes& sizes, int64_t blocks);
int32_t launchChannelGradient(const MMCall* c, const Scan& s, const Gradient& g, const MmaTask& task, const ChannelTask& channel,
                              const MmaSizes& sizes, int64_t blocks);

}  // namespace mm::cuda::chunk_scan

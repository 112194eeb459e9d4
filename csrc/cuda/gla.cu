// gla and its gradient on the chunk engine, with a log-decay per key channel and step; on Hopper with kernels of its own.
#include "cuda/gated_linear_attention.cuh"
#include "cuda/gla_hopper.h"

namespace mm::cuda {
namespace {

using Forward = chunk_scan::Entries<chunk_scan::describeGatedForward<chunk_scan::Decay::Channel>>;
using Backward = chunk_scan::Entries<chunk_scan::describeGatedBackward<chunk_scan::Decay::Channel>>;

template <chunk_scan::Problem (*DESCRIBE)(const MMCall*)>
struct Hopper {
  using Others = chunk_scan::Entries<DESCRIBE>;
  static int32_t fits(const MMCall* c) { return gla::fitsHopper(c, DESCRIBE(c)); }
  static uint64_t workspace(const MMCall* c) {
    const uint64_t mine = gla::hopperWorkspace(c, DESCRIBE(c)), others = Others::mmaWorkspace(c);
    return mine > others ? mine : others;
  }
  // Addresses are known only now.
  static int32_t run(const MMCall* c) {
    int32_t status = MM_OK;
    return gla::runHopper(c, DESCRIBE(c), status) ? status : Others::runMma(c);
  }
};
using HopperForward = Hopper<chunk_scan::describeGatedForward<chunk_scan::Decay::Channel>>;
using HopperBackward = Hopper<chunk_scan::describeGatedBackward<chunk_scan::Decay::Channel>>;

}  // namespace
}  // namespace mm::cuda

MM_CUDA_KERNELS(gla, {"gla", "wgmma", HopperForward::fits, HopperForward::workspace, HopperForward::run},
                {"gla", "mma", Forward::fits, Forward::mmaWorkspace, Forward::runMma},
                {"gla", "general", nullptr, Forward::workspace, Forward::run},
                {"glaBackward", "wgmma", HopperBackward::fits, HopperBackward::workspace, HopperBackward::run},
                {"glaBackward", "mma", Backward::fits, Backward::mmaWorkspace, Backward::runMma},
                {"glaBackward", "general", nullptr, Backward::workspace, Backward::run})

// simpleGla and its gradient on the chunk engine, with a log-decay per head and step.
#include "cuda/gated_linear_attention.cuh"

namespace mm::cuda {
namespace {

using Forward = chunk_scan::Entries<chunk_scan::describeGatedForward<chunk_scan::Decay::Head>>;
using Backward = chunk_scan::Entries<chunk_scan::describeGatedBackward<chunk_scan::Decay::Head>>;

}  // namespace
}  // namespace mm::cuda

MM_CUDA_KERNELS(simple_gla, {"simpleGla", "mma", Forward::fits, Forward::mmaWorkspace, Forward::runMma},
                {"simpleGla", "general", nullptr, Forward::workspace, Forward::run},
                {"simpleGlaBackward", "wgmma", Backward::fitsHopper, Backward::hopperWorkspace, Backward::runHopper},
                {"simpleGlaBackward", "mma", Backward::fits, Backward::mmaWorkspace, Backward::runMma},
                {"simpleGlaBackward", "general", nullptr, Backward::workspace, Backward::run})

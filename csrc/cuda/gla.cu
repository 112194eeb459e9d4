// gla and its gradient on the chunk engine, with a log-decay per key channel and step.
#include "cuda/gated_linear_attention.cuh"

namespace mm::cuda {
namespace {

using Forward = chunk_scan::Entries<chunk_scan::describeGatedForward<chunk_scan::Decay::Channel>>;
using Backward = chunk_scan::Entries<chunk_scan::describeGatedBackward<chunk_scan::Decay::Channel>>;

}  // namespace
}  // namespace mm::cuda

MM_CUDA_KERNELS(gla, {"gla", "mma", Forward::fits, Forward::mmaWorkspace, Forward::runMma},
                {"gla", "general", nullptr, Forward::workspace, Forward::run},
                {"glaBackward", "mma", Backward::fits, Backward::mmaWorkspace, Backward::runMma},
                {"glaBackward", "general", nullptr, Backward::workspace, Backward::run})

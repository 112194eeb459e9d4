// Instances of the general chunk engine with a decay per channel.
#include "cuda/chunk_scan_general_launch.cuh"

namespace mm::cuda::chunk_scan {

template int32_t forwardGeneral<Decay::Channel>(const MMCall*, const Scan&, const GeneralPlan&);
template int32_t backwardGeneral<Decay::Channel>(const MMCall*, const Scan&, const Gradient&, const GeneralPlan&);

}  // namespace mm::cuda::chunk_scan

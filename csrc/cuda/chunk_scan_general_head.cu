// Instances of the general chunk engine with a decay per head.
#include "cuda/chunk_scan_general_launch.cuh"

namespace mm::cuda::chunk_scan {

template int32_t forwardGeneral<Decay::Head>(const MMCall*, const Scan&, const GeneralPlan&);
template int32_t backwardGeneral<Decay::Head>(const MMCall*, const Scan&, const Gradient&, const GeneralPlan&);

}  // namespace mm::cuda::chunk_scan

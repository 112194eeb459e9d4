// embedding: y = weight[ids]: rows moved by index (index.cuh); a row of NaN where the id is out of range. Backward: dWeight in f32
// is zeroed, then the rows of dY are added by id: the ids are sorted, so that only the rows in use are touched again, no float
// atomics are needed, and the order of the additions is fixed.
#pragma once
#include "cuda/index.cuh"

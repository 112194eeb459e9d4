// pixelShuffle: y[n, r*(h/2) + q, (2i + j)*c + k] = x[n, (2r + i)*h + 2q + j, k]. Two tokens that are neighbours in a row of the grid
// stay neighbours in memory, so a result token is two runs of 2c channels, and the whole op is one strided copy (copy.cuh) of
// (n*h/2, i, q, run), whose target has i and q exchanged. Backward: the same copy back.
#pragma once
#include "cuda/copy.cuh"

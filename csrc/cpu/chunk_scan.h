// The chunk engine behind ssd, linearAttention, simpleGla and gla: linear attention with a decaying state,
//
//   S_t = decay_t S_{t-1} + w_t k_t v_t^T                   S (N, P), for every sequence and head
//   y_t = (scale q_t S_t / den_t + D v_t) * silu(z_t)       w, den, D and z are optional
//
// with decay_t = 1, a number per head (exp(dt_t A) or exp(g_t)), or a vector over N (exp(gk_t)).
//
// The recurrence is never walked. A sequence is cut into chunks of 64 steps; with c_t the sum of the log-decays since
// the start of the chunk, state-space duality (arXiv 2405.21060) turns the work of a chunk into matrix products:
//
//   intra   y_t += sum_{s<=t} (q_t.k_s) exp(c_t - c_s) w_s v_s         a lower triangle of 64 x 64
//   inter   y_t += exp(c_t) q_t S_in
//   state   S_out = exp(c_T) S_in + sum_s exp(c_T - c_s) w_s k_s v_s^T
//
// Only differences of c with s <= t are exponentiated, so strong decays cannot overflow. Sums c are kept as two floats
// (c = hi + lo), so that differences keep their precision however far the sum has run. The mask saves work by blocks of rows.
//
// 64 steps: with N = P = 128 the operands of a chunk (0.3 MB) stay in the second-level cache, the triangle costs a
// quarter of the state products, and every product is a whole number of register tiles. Rows of scratch are padded to
// whole vectors (nv, pv), so no product has a tail. k comes in transposed, because the right operand needs dense rows.
//
// Two orders of the same arithmetic, to the bit: with enough (sequence, head) pairs for all workers each pair runs
// through its chunks with the state in cache; otherwise the chunks' states are computed in parallel, passed on in a
// short sequential scan, and the chunks' outputs are computed in parallel. A state is always
// `decay * state + increment` with the increment summed from zero, which is what makes both orders agree.
//
// Rejected: fetching the next chunk's rows between register tiles. With f32, L = 8192, H = 16, N = P = 128 the loads
// went from 7 to 2 us a chunk, but the products slowed down by more: 37.4 us a chunk without, 39 to 43 us with it
// (medians of 2048 chunks, one Zen 5 core).
//
// A decay per channel (gla) cannot be split off the products as a mask. Within sub-chunks of 16 steps the decay is
// multiplied up step by step on k (never divided); between sub-chunks i > j the products are
// (q_t prod_{start of i..t} e^g) . (k_s prod_{s+1..start of i} e^g): all factors are products of exp(g), at most 1.
#pragma once
#include "cpu/chunk_scan/backward.h"
#include "cpu/chunk_scan/forward.h"

#include "cuda/gemm.cuh"

#include <algorithm>
#include <array>
#include <map>
#include <mutex>
#include <string>

#include "cuda/cublas.h"

namespace mm::cuda {

namespace {

constexpr uint64_t kLibraryWorkspace = uint64_t(32) << 20;  // what NVIDIA recommends for Hopper

cudaDataType_t cublasType(int32_t dtype) { return dtype == MM_BF16 ? CUDA_R_16BF : dtype == MM_F16 ? CUDA_R_16F : CUDA_R_32F; }
uint64_t sizeOf(int32_t dtype) { return dtype == MM_F32 ? 4 : 2; }

// One call of the library: a product with at most one batch axis.
struct Product {
  const Gemm& g;
  const void *a, *b, *add;  // add: what is added to the product (the residual, or C itself), or null
  void* c;
  int64_t batch = 1, strideA = 0, strideB = 0, strideC = 0;
  bool bias = false;
};

// What an algorithm is chosen for.
using Key = std::array<int64_t, 21>;

uint32_t alignment(const void* p, int64_t ld, int64_t stride, int32_t dtype) {
  const uint64_t bits = reinterpret_cast<uint64_t>(p) | uint64_t(ld) * sizeOf(dtype) | uint64_t(stride) * sizeOf(dtype) | 256;
  return uint32_t(bits & ~(bits - 1));
}

Key keyOf(const Product& p) {
  const Gemm& g = p.g;
  return {g.m, g.n, g.k, g.a.dtype, g.c.dtype, g.a.ld, g.b.ld, g.c.ld, g.a.transposed, g.b.transposed, p.batch, p.strideA, p.strideB, p.strideC, p.bias,
          g.bias_dtype, p.add != nullptr, alignment(p.a, g.a.ld, p.strideA, g.a.dtype), alignment(p.b, g.b.ld, p.strideB, g.b.dtype),
          alignment(p.c, g.c.ld, p.strideC, g.c.dtype), p.add ? alignment(p.add, g.c.ld, p.strideC, g.c.dtype) : 0};
}

// A product as the library knows it, kept with the algorithm that it chose.
struct Plan {
  cublasLtMatmulDesc_t op = nullptr;
  cublasLtMatrixLayout_t a = nullptr, b = nullptr, c = nullptr;
  cublasLtMatmulAlgo_t algorithm{};
  bool found = false;
};

struct State {
  const Cublas* lt;
  cublasLtHandle_t handle = nullptr;
  std::map<Key, Plan> plans;
};

State& stateOf(const MMCall* c) {
  Stream& s = *static_cast<Stream*>(c->stream);
  if (!s.gemm) {
    std::string reason;
    auto* state = new State{cublas(reason), nullptr, {}};  // there, or the device would not be
    state->lt->cublasLtCreate(&state->handle);
    s.gemm = state;
  }
  return *static_cast<State*>(s.gemm);
}

// Row-major matrices are the library's column-major ones transposed: it computes C^T = B^T A^T.
const Plan& planOf(State& s, const Product& p) {
  Plan& plan = s.plans[keyOf(p)];
  if (plan.op) return plan;
  const Cublas& lt = *s.lt;
  const Gemm& g = p.g;
  const cublasOperation_t opA = g.b.transposed ? CUBLAS_OP_T : CUBLAS_OP_N, opB = g.a.transposed ? CUBLAS_OP_T : CUBLAS_OP_N;
  lt.cublasLtMatmulDescCreate(&plan.op, CUBLAS_COMPUTE_32F, CUDA_R_32F);
  lt.cublasLtMatmulDescSetAttribute(plan.op, CUBLASLT_MATMUL_DESC_TRANSA, &opA, sizeof opA);
  lt.cublasLtMatmulDescSetAttribute(plan.op, CUBLASLT_MATMUL_DESC_TRANSB, &opB, sizeof opB);
  if (p.bias) {
    const cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_BIAS;
    lt.cublasLtMatmulDescSetAttribute(plan.op, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, sizeof epilogue);
    lt.cublasLtMatmulDescSetAttribute(plan.op, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &g.bias, sizeof g.bias);
  }
  const auto layout = [&](cublasLtMatrixLayout_t& to, const GemmMatrix& x, int64_t rows, int64_t cols, int64_t stride) {
    lt.cublasLtMatrixLayoutCreate(&to, cublasType(x.dtype), uint64_t(rows), uint64_t(cols), x.ld);
    const int32_t batch = int32_t(p.batch);
    lt.cublasLtMatrixLayoutSetAttribute(to, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &batch, sizeof batch);
    lt.cublasLtMatrixLayoutSetAttribute(to, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &stride, sizeof stride);
  };
  layout(plan.a, g.b, g.b.transposed ? g.k : g.n, g.b.transposed ? g.n : g.k, p.strideB);
  layout(plan.b, g.a, g.a.transposed ? g.m : g.k, g.a.transposed ? g.k : g.m, p.strideA);
  layout(plan.c, g.c, g.n, g.m, p.strideC);

  cublasLtMatmulPreference_t preference = nullptr;
  lt.cublasLtMatmulPreferenceCreate(&preference);
  const auto prefer = [&](cublasLtMatmulPreferenceAttributes_t what, auto value) {
    lt.cublasLtMatmulPreferenceSetAttribute(preference, what, &value, sizeof value);
  };
  prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, kLibraryWorkspace);
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, alignment(p.b, g.b.ld, p.strideB, g.b.dtype));
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, alignment(p.a, g.a.ld, p.strideA, g.a.dtype));
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, alignment(p.add ? p.add : p.c, g.c.ld, p.strideC, g.c.dtype));
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, alignment(p.c, g.c.ld, p.strideC, g.c.dtype));
  cublasLtMatmulHeuristicResult_t result{};
  int count = 0;
  lt.cublasLtMatmulAlgoGetHeuristic(s.handle, plan.op, plan.a, plan.b, plan.c, plan.c, preference, 1, &result, &count);
  lt.cublasLtMatmulPreferenceDestroy(preference);
  plan.found = count > 0;
  plan.algorithm = result.algo;
  return plan;
}

// Writes zeros where a product goes.
int32_t clear(const MMCall* c, const Product& p, int32_t dtype) {
  const size_t row = size_t(p.g.n) * sizeOf(dtype), pitch = size_t(p.g.c.ld) * sizeOf(dtype);
  for (int64_t i = 0; i < p.batch; i++) {
    char* to = static_cast<char*>(p.c) + i * p.strideC * int64_t(sizeOf(dtype));
    const cudaError_t status = cudaMemset2DAsync(to, pitch, 0, row, size_t(p.g.m), streamOf(c));
    if (status != cudaSuccess) return checked(*static_cast<Stream*>(c->stream), status, c->error, c->error_size);
  }
  return MM_OK;
}

int32_t multiply(const MMCall* c, const Product& p, void* workspace) {
  State& s = stateOf(c);
  const Plan& plan = planOf(s, p);
  const Gemm& g = p.g;
  if (!plan.found)
    return fail(c, "cuBLASLt has no algorithm for a product of %lld x %lld x %lld", static_cast<long long>(g.m), static_cast<long long>(g.n),
                static_cast<long long>(g.k));
  if (p.bias) s.lt->cublasLtMatmulDescSetAttribute(plan.op, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &g.bias, sizeof g.bias);
  const float one = 1.f, beta = p.add ? 1.f : 0.f;
  const cublasStatus_t status = s.lt->cublasLtMatmul(s.handle, plan.op, &one, p.b, plan.a, p.a, plan.b, &beta, p.add ? p.add : p.c, plan.c, p.c, plan.c,
                                                     &plan.algorithm, workspace, kLibraryWorkspace, streamOf(c));
  if (status != CUBLAS_STATUS_SUCCESS)
    return fail(c, "cuBLASLt failed with status %d for a product of %lld x %lld x %lld", int(status), static_cast<long long>(g.m),
                static_cast<long long>(g.n), static_cast<long long>(g.k));
  return launched(c);
}

bool libraryHasEpilogue(const Gemm& g) { return g.k > 0 && g.activation == Activation::None && !g.gradient && (!g.bias || g.bias_dtype == g.c.dtype); }

Epilogue epilogueOf(const Gemm& g) { return {g.bias, g.bias_dtype, g.activation, g.gradient, g.other}; }

bool isRow(const Gemm& g) { return g.m == 1 && !g.batch_dims && g.b.transposed && !g.a.transposed && !g.accumulate; }

template <class T>
bool rowFits(const Gemm& g) {
  return g.k % kVector<T> == 0 && g.b.ld % kVector<T> == 0 && aligned(16, static_cast<const T*>(g.a.data), static_cast<const T*>(g.b.data));
}

bool empty(const Gemm& g) {
  int64_t n = g.m * g.n;
  for (int i = 0; i < g.batch_dims; i++) n *= g.batch_shape[i];
  return n == 0;
}

// The f32 product that an epilogue of our own finishes.
uint64_t rawBytes(const Gemm& g) { return libraryHasEpilogue(g) ? 0 : (uint64_t(g.m * g.n) * 4 + 255) & ~uint64_t(255); }

}  // namespace

uint64_t gemmWorkspace(const Gemm& g) { return empty(g) ? 0 : kLibraryWorkspace + rawBytes(g); }

int32_t gemm(const MMCall* c, const Gemm& g, void* workspace) {
  use(*static_cast<Stream*>(c->stream));
  if (empty(g)) return MM_OK;
  int32_t status = MM_OK;
  if (isRow(g)) {
    bool done = false;
    dispatchFloat(g.a.dtype, [&](auto t) {
      using T = decltype(t);
      if (!rowFits<T>(g)) return;
      done = true;
      const auto run = [&](auto y) {
        using Y = decltype(y);
        // A warp has enough bytes under way with eight vectors a lane; longer rows are shared.
        const auto rows = [&](auto shared) {
          constexpr int S = decltype(shared)::value;
          status = launchOverlapping(c, gemvKernel<T, Y, S>, dim3(unsigned(ceilDiv(g.n, 4 / S))), dim3(128), 0,
                                     static_cast<const T*>(g.a.data), static_cast<const T*>(g.b.data),
                                     static_cast<Y*>(const_cast<void*>(g.c.data)), g.n, g.k, g.b.ld, epilogueOf(g),
                                     2 * unsigned(deviceOf(c).multiprocessors));
        };
        if (g.k > 8 * 32 * kVector<T>) rows(std::integral_constant<int, 4>{});
        else rows(std::integral_constant<int, 1>{});
      };
      if (g.c.dtype == MM_F32) run(float{});
      else run(t);
    });
    if (done) return status;
  }
  const bool native = libraryHasEpilogue(g);
  Gemm plain = g;
  char* scratch = static_cast<char*>(workspace);
  if (!native) {
    plain.c.data = scratch, plain.c.dtype = MM_F32, plain.c.ld = g.n;
    scratch += rawBytes(g);
  }
  // The last batch axis is the library's; those before it are separate calls.
  const int inner = g.batch_dims - 1;
  int64_t calls = 1;
  for (int i = 0; i < inner; i++) calls *= g.batch_shape[i];
  for (int64_t t = 0; t < calls && !status; t++) {
    int64_t oa = 0, ob = 0, oc = 0, rest = t;
    for (int i = inner - 1; i >= 0; i--) {
      const int64_t index = rest % g.batch_shape[i];
      rest /= g.batch_shape[i];
      oa += index * g.a.batch_stride[i], ob += index * g.b.batch_stride[i], oc += index * g.c.batch_stride[i];
    }
    const auto at = [](const void* p, int64_t offset, int32_t dtype) { return static_cast<const char*>(p) + offset * int64_t(sizeOf(dtype)); };
    Product p{plain, at(plain.a.data, oa, g.a.dtype), at(plain.b.data, ob, g.b.dtype), nullptr, const_cast<char*>(at(plain.c.data, oc, plain.c.dtype))};
    if (inner >= 0) p.batch = g.batch_shape[inner], p.strideA = g.a.batch_stride[inner], p.strideB = g.b.batch_stride[inner], p.strideC = g.c.batch_stride[inner];
    p.bias = native && g.bias;
    if (g.accumulate) p.add = p.c;
    else if (native && g.other) p.add = at(g.other, oc, g.c.dtype);
    // A product over no elements is zero. And initcheck does not see what cuBLASLt's kernels for Hopper write by bulk copies.
    if (!g.accumulate && (g.k == 0 || !caching())) status = clear(c, p, plain.c.dtype);
    if (g.k > 0 && !status) status = multiply(c, p, scratch);
  }
  if (native || status) return status;
  dispatchFloat(g.c.dtype, [&](auto y) {
    using Y = decltype(y);
    status = launch(c, epilogueKernel<Y>, dim3(unsigned(ceilDiv(g.m * g.n, 256))), dim3(256), 0, static_cast<const float*>(plain.c.data),
                    static_cast<Y*>(const_cast<void*>(g.c.data)), g.m * g.n, g.n, epilogueOf(g));
  });
  return status;
}

void destroyGemm(Stream& stream) {
  auto* s = static_cast<State*>(stream.gemm);
  if (!s) return;
  for (auto& [key, plan] : s->plans) {
    s->lt->cublasLtMatmulDescDestroy(plan.op);
    for (cublasLtMatrixLayout_t layout : {plan.a, plan.b, plan.c}) s->lt->cublasLtMatrixLayoutDestroy(layout);
  }
  s->lt->cublasLtDestroy(s->handle);
  delete s;
  stream.gemm = nullptr;
}

}  // namespace mm::cuda

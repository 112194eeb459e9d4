// oneDNN, typed from its own headers, opened by name. Linking it would make libgomp and OpenCL conditions of loading the
// addon, so both stay behind dlopen: first a library beside the addon, then the system's.
//
// Threads: our pool runs one primitive a thread on blocks of a product. Each thread tells OpenMP once that it has one
// thread, so that oneDNN computes in the caller and never starts workers that spin against the pool.
//
// A call costs about 0.3 us (memory objects are kept and only their pointers change); compiling a primitive about
// 0.1 ms, therefore the cache, keyed by everything that oneDNN bakes into the code.
#include "cpu/onednn.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "abi/backend.h"
#include "abi/cut_off.h"

#if (defined(__x86_64__) || defined(_M_X64)) && __has_include(<dlfcn.h>)
#define MM_ONEDNN_PLATFORM 1
#endif
#if defined(MM_ONEDNN_PLATFORM) && __has_include(<oneapi/dnnl/dnnl.h>) && !defined(MM_WITHOUT_ONEDNN)
#include <dlfcn.h>
#include <oneapi/dnnl/dnnl.h>
#if DNNL_VERSION_MAJOR == 2 || DNNL_VERSION_MAJOR == 3
#define MM_ONEDNN 1
#endif
#endif

namespace mm::cpu {

#ifdef MM_ONEDNN
namespace {

#define MM_STRING2(x) #x
#define MM_STRING(x) MM_STRING2(x)
constexpr const char* kSoname = "libdnnl.so." MM_STRING(DNNL_VERSION_MAJOR);

#if DNNL_VERSION_MAJOR == 2
#define MM_ONEDNN_VERSION_FUNCTIONS(F) F(dnnl_memory_desc_init_by_strides) F(dnnl_matmul_desc_init) F(dnnl_primitive_desc_create)
#else
#define MM_ONEDNN_VERSION_FUNCTIONS(F) \
  F(dnnl_memory_desc_create_with_strides) F(dnnl_memory_desc_destroy) F(dnnl_matmul_primitive_desc_create)
#endif
#define MM_ONEDNN_FUNCTIONS(F)                                                                                           \
  MM_ONEDNN_VERSION_FUNCTIONS(F)                                                                                         \
  F(dnnl_version) F(dnnl_get_effective_cpu_isa) F(dnnl_engine_create) F(dnnl_stream_create) F(dnnl_stream_destroy)       \
  F(dnnl_primitive_attr_create) F(dnnl_primitive_attr_destroy) F(dnnl_primitive_attr_set_scratchpad_mode)                \
  F(dnnl_primitive_attr_set_post_ops) F(dnnl_post_ops_create) F(dnnl_post_ops_destroy) F(dnnl_post_ops_append_sum)       \
  F(dnnl_primitive_desc_destroy) F(dnnl_primitive_desc_query_md) F(dnnl_memory_desc_get_size) F(dnnl_primitive_create)   \
  F(dnnl_primitive_destroy) F(dnnl_primitive_execute) F(dnnl_memory_create) F(dnnl_memory_destroy)                       \
  F(dnnl_memory_set_data_handle)

struct Library {
#define MM_MEMBER(name) decltype(&::name) name = nullptr;
  MM_ONEDNN_FUNCTIONS(MM_MEMBER)
#undef MM_MEMBER
  void (*omp_set_num_threads)(int) = nullptr;
  dnnl_engine_t engine = nullptr;
  bool ready = false, bf16 = false;
  std::string status;

  Library();

 private:
  bool bind(void* handle);
};

// The directory of the file that holds this code, with its last slash.
std::string ownDirectory() {
  Dl_info info;
  if (!dladdr(reinterpret_cast<void*>(&onednnStatus), &info) || !info.dli_fname) return "";
  const std::string path = info.dli_fname;
  const size_t slash = path.rfind('/');
  return slash == std::string::npos ? "" : path.substr(0, slash + 1);
}

const char* isaName(int isa) {
  const auto includes = [isa](int level) { return (isa & level) == level; };
  if (includes(dnnl_cpu_isa_avx512_core_amx)) return "avx512_core_amx";
  if (includes(dnnl_cpu_isa_avx512_core_bf16)) return "avx512_core_bf16";
  if (includes(dnnl_cpu_isa_avx512_core_vnni)) return "avx512_core_vnni";
  if (includes(dnnl_cpu_isa_avx512_core)) return "avx512_core";
  if (includes(dnnl_cpu_isa_avx2)) return "avx2";
  if (includes(dnnl_cpu_isa_avx)) return "avx";
  return "sse4.1";
}

bool Library::bind(void* handle) {
#define MM_BIND(symbol)                                                                 \
  symbol = reinterpret_cast<decltype(symbol)>(dlsym(handle, #symbol));                  \
  if (!symbol) {                                                                        \
    status = std::string(kSoname) + " has no symbol " #symbol;                          \
    return false;                                                                       \
  }
  MM_ONEDNN_FUNCTIONS(MM_BIND)
#undef MM_BIND
  const dnnl_version_t* v = dnnl_version();
  char number[64];
  std::snprintf(number, sizeof number, "oneDNN %d.%d.%d", v->major, v->minor, v->patch);
  if (v->major != DNNL_VERSION_MAJOR) {
    status = std::string(number) + " found, but the addon was built for version " MM_STRING(DNNL_VERSION_MAJOR);
    return false;
  }
  if (v->cpu_runtime == DNNL_RUNTIME_OMP) {
    // dlsym of a handle also searches the libraries that it depends on: the very libgomp or libiomp that it uses
    omp_set_num_threads = reinterpret_cast<void (*)(int)>(dlsym(handle, "omp_set_num_threads"));
    if (!omp_set_num_threads) {
      status = std::string(number) + " is built for OpenMP, but omp_set_num_threads is missing";
      return false;
    }
    omp_set_num_threads(1);
  } else if (v->cpu_runtime == DNNL_RUNTIME_TBB) {
    status = std::string(number) + " is built for TBB, whose threads would compete with ours; use a build for OpenMP";
    return false;
  }
  if (dnnl_engine_create(&engine, dnnl_cpu, 0) != dnnl_success) {
    status = std::string(number) + ": no CPU engine";
    return false;
  }
  const int isa = dnnl_get_effective_cpu_isa();
  // Elsewhere oneDNN emulates bf16 or falls to a reference; converting to f32 ourselves is faster.
  bf16 = (isa & dnnl_cpu_isa_avx512_core_bf16) == dnnl_cpu_isa_avx512_core_bf16;
  Dl_info info;
  const bool known = dladdr(reinterpret_cast<void*>(dnnl_version), &info) && info.dli_fname;
  status = std::string(number) + " (" + isaName(isa) + (known ? std::string("), ") + info.dli_fname : std::string(")"));
  return true;
}

Library::Library() {
  const char* wish = std::getenv("MMMAMBA_ONEDNN");
  if (wish && !std::strcmp(wish, "0")) {
    status = "oneDNN is switched off by MMMAMBA_ONEDNN=0";
    return;
  }
  const std::string beside = ownDirectory() + kSoname;
  if (const std::string wrong = cutOff(beside); !wrong.empty()) {
    status = beside + ": " + wrong;
    return;
  }
  void* handle = dlopen(beside.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!handle) handle = dlopen(kSoname, RTLD_NOW | RTLD_LOCAL);
  if (!handle) {
    const char* why = dlerror();
    const bool absent = !why || std::strstr(why, "cannot open shared object file: No such file");
    status = std::string(kSoname) + (absent ? " not found: apt-get install libdnnl-dev" : " cannot be loaded: ");
    if (!absent) status += why;
    return;
  }
  ready = bind(handle);
}

// Lives until the process ends: threads may still compute while static objects are destroyed.
Library& library() {
  static Library* const instance = new Library;
  return *instance;
}

// What one thread needs to run one product; kept between calls.
struct Context {
  dnnl_memory_t a = nullptr, b = nullptr, c = nullptr, scratch = nullptr;
  dnnl_stream_t stream = nullptr;
};

// One for each thread: oneDNN's own scratch is not safe when several threads run one primitive.
struct Scratch {
  void* data = nullptr;
  size_t bytes = 0;
  ~Scratch() { std::free(data); }
  void* atLeast(size_t wanted) {
    if (wanted > bytes) {
      std::free(data);
      bytes = (wanted + 65535) & ~size_t(65535);
      data = std::aligned_alloc(64, bytes);
      if (!data) bytes = 0;
    }
    return data;
  }
};
thread_local Scratch thread_scratch;
thread_local bool thread_single = false;

void makeThreadSingle(Library& lib) {
  if (thread_single) return;
  if (lib.omp_set_num_threads) lib.omp_set_num_threads(1);
  thread_single = true;
}

#if DNNL_VERSION_MAJOR == 2
using MemoryDesc = dnnl_memory_desc_t;
const dnnl_memory_desc_t* view(const MemoryDesc& d) { return &d; }
bool describe(Library& lib, MemoryDesc& d, const dnnl_dims_t dims, dnnl_data_type_t type, const dnnl_dims_t strides) {
  return lib.dnnl_memory_desc_init_by_strides(&d, 2, dims, type, strides) == dnnl_success;
}
#else
struct MemoryDesc {
  dnnl_memory_desc_t d = nullptr;
  MemoryDesc() = default;
  MemoryDesc(const MemoryDesc&) = delete;
  ~MemoryDesc() {
    if (d) library().dnnl_memory_desc_destroy(d);
  }
};
const_dnnl_memory_desc_t view(const MemoryDesc& d) { return d.d; }
bool describe(Library& lib, MemoryDesc& d, const dnnl_dims_t dims, dnnl_data_type_t type, const dnnl_dims_t strides) {
  return lib.dnnl_memory_desc_create_with_strides(&d.d, 2, dims, type, strides) == dnnl_success;
}
#endif

dnnl_data_type_t dataType(int32_t dtype) { return dtype == MM_BF16 ? dnnl_bf16 : dnnl_f32; }

}  // namespace

struct OnednnMatmul {
  MemoryDesc a, b, c;
  dnnl_primitive_t primitive = nullptr;
  dnnl_primitive_desc_t desc = nullptr;
  size_t scratch_bytes = 0;
  int users = 0;       // under the cache's lock
  uint64_t used = 0;   // cache's clock
  std::mutex lock;     // of idle
  std::vector<Context*> idle;

  bool create(Library& lib, const OnednnKey& key);
  Context* context(Library& lib);
  static void destroy(Library& lib, Context* x);
  ~OnednnMatmul();
};

bool OnednnMatmul::create(Library& lib, const OnednnKey& key) {
  const dnnl_data_type_t in = dataType(key.in), out = dataType(key.out);
  const dnnl_dims_t shape_a = {key.m, key.k}, shape_b = {key.k, key.n}, shape_c = {key.m, key.n};
  const dnnl_dims_t stride_a = {key.trans_a ? 1 : key.lda, key.trans_a ? key.lda : 1};
  const dnnl_dims_t stride_b = {key.trans_b ? 1 : key.ldb, key.trans_b ? key.ldb : 1};
  const dnnl_dims_t stride_c = {key.ldc, 1};
  if (!describe(lib, a, shape_a, in, stride_a) || !describe(lib, b, shape_b, in, stride_b) ||
      !describe(lib, c, shape_c, out, stride_c))
    return false;
  dnnl_primitive_attr_t attr = nullptr;
  if (lib.dnnl_primitive_attr_create(&attr) != dnnl_success) return false;
  bool ok = lib.dnnl_primitive_attr_set_scratchpad_mode(attr, dnnl_scratchpad_mode_user) == dnnl_success;
  if (ok && key.accumulate) {
    dnnl_post_ops_t post = nullptr;
    ok = lib.dnnl_post_ops_create(&post) == dnnl_success;
#if DNNL_VERSION_MAJOR == 2
    ok = ok && lib.dnnl_post_ops_append_sum(post, 1.f) == dnnl_success;
#else
    ok = ok && lib.dnnl_post_ops_append_sum(post, 1.f, 0, dnnl_data_type_undef) == dnnl_success;
#endif
    ok = ok && lib.dnnl_primitive_attr_set_post_ops(attr, post) == dnnl_success;
    if (post) lib.dnnl_post_ops_destroy(post);
  }
#if DNNL_VERSION_MAJOR == 2
  dnnl_matmul_desc_t op;
  ok = ok && lib.dnnl_matmul_desc_init(&op, view(a), view(b), nullptr, view(c)) == dnnl_success &&
       lib.dnnl_primitive_desc_create(&desc, &op, attr, lib.engine, nullptr) == dnnl_success;
#else
  ok = ok && lib.dnnl_matmul_primitive_desc_create(&desc, lib.engine, view(a), view(b), nullptr, view(c), attr) == dnnl_success;
#endif
  ok = ok && lib.dnnl_primitive_create(&primitive, desc) == dnnl_success;
  if (ok) scratch_bytes = lib.dnnl_memory_desc_get_size(lib.dnnl_primitive_desc_query_md(desc, dnnl_query_scratchpad_md, 0));
  lib.dnnl_primitive_attr_destroy(attr);
  return ok;
}

void OnednnMatmul::destroy(Library& lib, Context* x) {
  for (dnnl_memory_t m : {x->a, x->b, x->c, x->scratch})
    if (m) lib.dnnl_memory_destroy(m);
  if (x->stream) lib.dnnl_stream_destroy(x->stream);
  delete x;
}

Context* OnednnMatmul::context(Library& lib) {
  {
    std::lock_guard<std::mutex> hold(lock);
    if (!idle.empty()) {
      Context* x = idle.back();
      idle.pop_back();
      return x;
    }
  }
  Context* x = new Context;
  const auto memory = [&](dnnl_memory_t& m, auto md) {
    return lib.dnnl_memory_create(&m, md, lib.engine, DNNL_MEMORY_NONE) == dnnl_success;
  };
  if (memory(x->a, view(a)) && memory(x->b, view(b)) && memory(x->c, view(c)) &&
      memory(x->scratch, lib.dnnl_primitive_desc_query_md(desc, dnnl_query_scratchpad_md, 0)) &&
      lib.dnnl_stream_create(&x->stream, lib.engine, dnnl_stream_default_flags) == dnnl_success)
    return x;
  destroy(lib, x);
  return nullptr;
}

OnednnMatmul::~OnednnMatmul() {
  Library& lib = library();
  for (Context* x : idle) destroy(lib, x);
  if (primitive) lib.dnnl_primitive_destroy(primitive);
  if (desc) lib.dnnl_primitive_desc_destroy(desc);
}

namespace {

struct Hash {
  size_t operator()(const OnednnKey& k) const {
    uint64_t h = 1469598103934665603ull;
    const int64_t kinds = k.in | k.out << 4 | k.trans_a << 8 | k.trans_b << 9 | k.accumulate << 10;
    for (int64_t x : {k.m, k.n, k.k, k.lda, k.ldb, k.ldc, kinds}) h = (h ^ uint64_t(x)) * 1099511628211ull, h ^= h >> 29;
    return h;
  }
};
struct Equal {
  bool operator()(const OnednnKey& x, const OnednnKey& y) const {
    return x.m == y.m && x.n == y.n && x.k == y.k && x.lda == y.lda && x.ldb == y.ldb && x.ldc == y.ldc && x.in == y.in &&
           x.out == y.out && x.trans_a == y.trans_a && x.trans_b == y.trans_b && x.accumulate == y.accumulate;
  }
};

// Sequence lengths change, and every remainder of a block is a product of its own: the oldest half goes when it is full.
constexpr size_t kCacheEntries = 1024;

struct Cache {
  std::mutex lock;
  std::unordered_map<OnednnKey, OnednnMatmul*, Hash, Equal> entries;  // null: oneDNN refused
  uint64_t clock = 0, trimmed = 0;

  void trim() {
    const uint64_t horizon = trimmed + (clock - trimmed) / 2;
    for (auto it = entries.begin(); it != entries.end();) {
      OnednnMatmul* m = it->second;
      if (m && (m->users || m->used > horizon)) {
        ++it;
        continue;
      }
      delete m;
      it = entries.erase(it);
    }
    trimmed = horizon;
  }
};
Cache& cache() {
  static Cache* const instance = new Cache;
  return *instance;
}

}  // namespace

const char* onednnStatus() { return library().status.c_str(); }

OnednnMatmul* onednnAcquire(const OnednnKey& key) {
  Library& lib = library();
  if (!lib.ready || !(key.in == MM_F32 ? key.out == MM_F32 : key.in == MM_BF16 && lib.bf16 && key.out != MM_F16)) return nullptr;
  Cache& all = cache();
  std::lock_guard<std::mutex> hold(all.lock);
  auto it = all.entries.find(key);
  if (it == all.entries.end()) {
    if (all.entries.size() >= kCacheEntries) all.trim();
    makeThreadSingle(lib);
    OnednnMatmul* m = new OnednnMatmul;
    if (!m->create(lib, key)) delete m, m = nullptr;
    it = all.entries.emplace(key, m).first;
  }
  OnednnMatmul* m = it->second;
  if (m) m->users++, m->used = ++all.clock;
  return m;
}

void onednnRelease(OnednnMatmul* matmul) {
  if (!matmul) return;
  std::lock_guard<std::mutex> hold(cache().lock);
  matmul->users--;
}

bool onednnRun(OnednnMatmul* matmul, const void* a, const void* b, void* c) {
  Library& lib = library();
  makeThreadSingle(lib);
  void* scratch = matmul->scratch_bytes ? thread_scratch.atLeast(matmul->scratch_bytes) : nullptr;
  if (matmul->scratch_bytes && !scratch) return false;
  Context* x = matmul->context(lib);
  if (!x) return false;
  lib.dnnl_memory_set_data_handle(x->a, const_cast<void*>(a));
  lib.dnnl_memory_set_data_handle(x->b, const_cast<void*>(b));
  lib.dnnl_memory_set_data_handle(x->c, c);
  lib.dnnl_memory_set_data_handle(x->scratch, scratch);
  const dnnl_exec_arg_t args[] = {
      {DNNL_ARG_SRC, x->a}, {DNNL_ARG_WEIGHTS, x->b}, {DNNL_ARG_DST, x->c}, {DNNL_ARG_SCRATCHPAD, x->scratch}};
  const bool ok = lib.dnnl_primitive_execute(matmul->primitive, x->stream, 4, args) == dnnl_success;
  std::lock_guard<std::mutex> hold(matmul->lock);
  matmul->idle.push_back(x);
  return ok;
}

#else  // without headers, or on a platform that the portable product serves as well

const char* onednnStatus() {
#ifdef MM_ONEDNN_PLATFORM
  return "built without oneDNN: its headers were not there (apt-get install libdnnl-dev, then build again)";
#else
  return "oneDNN is used on x86-64 only";
#endif
}
OnednnMatmul* onednnAcquire(const OnednnKey&) { return nullptr; }
void onednnRelease(OnednnMatmul*) {}
bool onednnRun(OnednnMatmul*, const void*, const void*, void*) { return false; }

#endif

}  // namespace mm::cpu

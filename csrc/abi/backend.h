/* The contract between the core and a device backend, C only: what crosses the boundary of a shared library.
 * Rules: structures only grow at their end, with a new MM_ABI_VERSION; nothing here throws; no pointer of a call
 * outlives the call, except the data pointers, which the core keeps alive until the stream has passed the call. */
#ifndef MM_ABI_BACKEND_H
#define MM_ABI_BACKEND_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define MM_ABI_VERSION 2u
#define MM_MAX_DIMS 6

enum MMDtype { MM_F32 = 0, MM_BF16 = 1, MM_F16 = 2, MM_I32 = 3, MM_U8 = 4 };

enum MMStatus {
  MM_OK = 0,
  MM_ERR_KERNEL = 1,       /* the message in MMCall.error says what */
  MM_ERR_OUT_OF_MEMORY = 2
};

/* A strided view of device memory. Strides count elements; a dense tensor has the row-major strides. */
typedef struct MMTensorView {
  void* data;
  int64_t shape[MM_MAX_DIMS];
  int64_t stride[MM_MAX_DIMS];
  int32_t ndim;
  int32_t dtype; /* MMDtype */
} MMTensorView;

/* One call of one operator. Operand slot s is the views [begin[s], begin[s+1]): none when an optional operand is
 * absent, several when the schema declares a list. */
typedef struct MMCall {
  const MMTensorView* inputs;
  const int32_t* input_begin;
  const MMTensorView* outputs;
  const int32_t* output_begin;
  const void* attrs; /* the op's Attrs structure: 8-byte fields in schema order */
  void* workspace;   /* 64-byte aligned scratch, contents undefined */
  uint64_t workspace_bytes;
  void* stream; /* the backend's stream; null on the CPU, where calls run in order on the executor's thread */
  char* error;  /* the kernel writes a NUL-terminated reason here when it fails */
  uint64_t error_size;
} MMCall;

/* Entries of one op are tried in table order: the fast ones first, the last one general. */
typedef struct MMKernelEntry {
  const char* op;      /* schema name */
  const char* variant; /* for benchmarks and error texts */
  int32_t (*supports)(const MMCall* call);   /* null: takes everything the schema lets through. Data pointers unset */
  uint64_t (*workspace)(const MMCall* call); /* null: needs none. Data pointers unset */
  int32_t (*run)(const MMCall* call);        /* MMStatus */
} MMKernelEntry;

typedef struct MMBackend {
  uint32_t abi_version; /* MM_ABI_VERSION the backend was built with */
  uint32_t struct_size; /* sizeof(MMBackend) then */
  const char* name;     /* "cpu", "cuda" */

  const MMKernelEntry* kernels;
  uint64_t kernel_count;

  int32_t (*device_count)(char* reason, uint64_t reason_size); /* 0 with a reason when there is none */
  void (*device_info)(int32_t device, char* json, uint64_t json_size);

  int32_t (*stream_create)(int32_t device, void** stream);
  void (*stream_destroy)(void* stream);

  /* Memory comes and goes in the order of the stream, so that a block freed behind a kernel may be reused by the next. */
  int32_t (*allocate)(void* stream, uint64_t bytes, void** data, char* error, uint64_t error_size);
  void (*release)(void* stream, void* data, uint64_t bytes);
  int32_t (*upload)(void* stream, void* dst, const void* host, uint64_t bytes, char* error, uint64_t error_size);
  int32_t (*zero)(void* stream, void* dst, uint64_t bytes, char* error, uint64_t error_size);

  /* Reading in two parts, so that the executor goes on queueing meanwhile: read_begin queues a copy of `bytes` (0: none,
   * only the wait) and, where that takes time, gives a ticket; read_end, on any thread, waits for all that was queued
   * before, fills `host` and frees the ticket. Without a ticket all is done already. */
  int32_t (*read_begin)(void* stream, void* host, const void* src, uint64_t bytes, void** ticket, char* error, uint64_t error_size);
  int32_t (*read_end)(void* ticket, char* error, uint64_t error_size);

  /* A capture records what kernels put on the stream, instead of running it, and keeps the memory they used; a launch
   * replays it with the same addresses. Null where the backend has none. */
  int32_t (*capture_begin)(void* stream, char* error, uint64_t error_size);
  int32_t (*capture_end)(void* stream, void** graph, char* error, uint64_t error_size);
  int32_t (*graph_launch)(void* stream, void* graph, char* error, uint64_t error_size);
  void (*graph_destroy)(void* stream, void* graph);
} MMBackend;

/* The one entry point of a device library. Null when `abi_version` is not the library's own. */
typedef const MMBackend* (*MMBackendEntry)(uint32_t abi_version);

#ifdef __cplusplus
}
#endif
#endif

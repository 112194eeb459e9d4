// Device memory with a reference count, and strided tensors over it.
//
// A storage gets its memory when the stream first runs an op that writes it, not when the op is queued: however far the
// caller runs ahead, the memory in use is that of the op being run. The last reference frees it, on any thread; handles,
// views, queued ops and the tape all hold one.
#pragma once
#include <cstdint>
#include <memory>
#include <string>

#include "core/dtype.h"
#include "core/registry.h"

namespace mm {

class Stream;

struct Storage {
  Storage(std::shared_ptr<Stream> stream, uint64_t bytes);
  ~Storage();
  Storage(const Storage&) = delete;
  Storage& operator=(const Storage&) = delete;

  // Allocates on first use; called in stream order. False with a reason when there is no memory.
  bool materialize(char* error, uint64_t error_size);

  const std::shared_ptr<Stream> stream;
  const uint64_t bytes;
  void* data = nullptr;
  bool captured = false;  // its memory is that of a graph, which keeps it
  int handles = 0;      // JavaScript handles, views included; touched by the environment's thread alone
  std::string poison;  // why the contents are invalid: the op that should have written them failed
};

struct Tensor {
  std::shared_ptr<Storage> storage;
  int64_t offset = 0;  // elements
  Desc desc;           // strides always filled

  int64_t numel() const;
  bool dense() const;
  MMTensorView view() const;  // data pointer from the storage as it is now
};

Shape denseStrides(const Shape& shape);
int64_t numelOf(const Shape& shape);

}  // namespace mm

#include "core/storage.h"

#include "core/stream.h"

namespace mm {

Storage::Storage(std::shared_ptr<Stream> owner, uint64_t size) : stream(std::move(owner)), bytes(size) {
  stream->stats().tensors.fetch_add(1, std::memory_order_relaxed);
}

Storage::~Storage() {
  if (data) stream->release(data, bytes);
  stream->stats().tensors.fetch_sub(1, std::memory_order_relaxed);
}

bool Storage::materialize(char* error, uint64_t error_size) {
  if (data) return true;
  data = stream->allocate(bytes, error, error_size);
  captured = stream->recording != nullptr;
  return data != nullptr;
}

Shape denseStrides(const Shape& shape) {
  Shape strides(shape.size());
  int64_t step = 1;
  for (size_t i = shape.size(); i-- > 0;) strides[i] = step, step *= shape[i];
  return strides;
}

int64_t numelOf(const Shape& shape) {
  int64_t n = 1;
  for (int64_t d : shape) n *= d;
  return n;
}

int64_t Tensor::numel() const { return numelOf(desc.shape); }

bool Tensor::dense() const {
  int64_t step = 1;
  for (size_t i = desc.shape.size(); i-- > 0;) {
    if (desc.shape[i] != 1 && desc.strides[i] != step) return numel() == 0;
    step *= desc.shape[i];
  }
  return true;
}

MMTensorView Tensor::view() const {
  MMTensorView v{};
  v.data = storage->data ? static_cast<char*>(storage->data) + offset * dtypeSize(desc.dtype) : nullptr;
  v.ndim = static_cast<int32_t>(desc.shape.size());
  v.dtype = desc.dtype;
  for (int i = 0; i < v.ndim; i++) v.shape[i] = desc.shape[i], v.stride[i] = desc.strides[i];
  return v;
}

}  // namespace mm

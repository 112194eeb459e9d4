#include "core/dispatcher.h"

#include <algorithm>
#include <chrono>

#include "core/graph.h"
#include "core/kernels.h"
#include "core/profile.h"

namespace mm {

namespace {

// One queued call: owns everything the kernel will see.
struct Task {
  const Schema* schema;
  const MMKernelEntry* kernel;
  std::vector<Tensor> inputs, outputs;
  std::vector<int32_t> input_begin, output_begin;
  std::vector<uint64_t> attrs;
  uint64_t workspace_bytes = 0;
  Stream* stream;  // kept alive by the operands' storages and by the environment that owns the queue

  MMCall call(std::vector<MMTensorView>& in, std::vector<MMTensorView>& out) const {
    in.clear(), out.clear();
    for (const Tensor& t : inputs) in.push_back(t.view());
    for (const Tensor& t : outputs) out.push_back(t.view());
    MMCall c{};
    c.inputs = in.data(), c.input_begin = input_begin.data();
    c.outputs = out.data(), c.output_begin = output_begin.data();
    c.attrs = attrs.data();
    c.stream = stream->handle();
    return c;
  }

  bool writesInPlace() const {
    return std::any_of(schema->inputs.begin(), schema->inputs.end(), [](const InputSpec& spec) { return spec.mutates; });
  }

  void failed(const std::string& message) {
    for (Tensor& t : outputs) t.storage->poison = message;
    stream->fail(message, writesInPlace());
  }

  void execute() {
    for (const Tensor& t : inputs)
      if (!t.storage->poison.empty()) {
        for (Tensor& o : outputs) o.storage->poison = t.storage->poison;
        if (writesInPlace()) stream->fail(t.storage->poison, true);
        return;
      }
    char error[512] = "";
    const std::string op = schema->name;
    for (Tensor& t : outputs)
      if (!t.storage->materialize(error, sizeof error)) return failed(op + ": " + error);
    void* workspace = nullptr;
    if (workspace_bytes) {
      workspace = stream->allocate(workspace_bytes, error, sizeof error);
      if (!workspace) return failed(op + ": workspace: " + error);
    }
    if (stream->recording)
      for (const Tensor& t : inputs)
        if (!t.storage->captured) stream->recording->hold(t.storage);
    std::vector<MMTensorView> in, out;
    MMCall c = call(in, out);
    c.workspace = workspace, c.workspace_bytes = workspace_bytes;
    c.error = error, c.error_size = sizeof error;
    const bool timed = profiling();
    const auto start = timed ? std::chrono::steady_clock::now() : std::chrono::steady_clock::time_point();
    const int32_t status = kernel->run(&c);
    if (timed) recordKernel(kernel, std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now() - start).count());
    if (workspace) stream->release(workspace, workspace_bytes);
    if (status != MM_OK) failed(op + ": " + (error[0] ? error : "kernel failed"));
  }
};

void flatten(Operands& slots, std::vector<Tensor>& flat, std::vector<int32_t>& begin) {
  begin.push_back(0);
  for (auto& slot : slots) {
    for (Tensor& t : slot) flat.push_back(t);
    begin.push_back(static_cast<int32_t>(flat.size()));
  }
}

bool lastAxisDense(const Tensor& t) {
  return t.desc.shape.empty() || t.desc.shape.back() <= 1 || t.desc.strides.back() == 1 || t.numel() == 0;
}

void arrange(const Schema& schema, Operands& inputs) {
  for (size_t s = 0; s < inputs.size(); s++) {
    const InputSpec& spec = schema.inputs[s];
    for (Tensor& t : inputs[s]) {
      const bool fits = spec.strided ? !spec.lastDense || lastAxisDense(t) : t.dense();
      if (fits) continue;
      if (spec.mutates)
        throw OpError{"ERR_ARGUMENT", std::string(schema.name) + ": " + spec.name +
                                          " is written in place, so its last axis must be dense; pass a tensor rather than a permuted view"};
      t = denseCopy(t);
    }
  }
}

}  // namespace

Tensor emptyTensor(const std::shared_ptr<Stream>& stream, int32_t dtype, const Shape& shape, Shape strides) {
  const int64_t n = numelOf(shape);
  return {std::make_shared<Storage>(stream, static_cast<uint64_t>(n) * dtypeSize(dtype)), 0,
          {dtype, shape, strides.empty() ? denseStrides(shape) : std::move(strides)}};
}

Tensor denseCopy(const Tensor& t) {
  static const int copy = opId("copy");
  return run(t.storage->stream, copy, {{t}}, {})[0][0];
}

Operands run(const std::shared_ptr<Stream>& stream, int op, Operands inputs, std::vector<uint64_t> attrs) {
  const Schema& schema = schemas()[op];
  for (size_t s = 0; s < inputs.size(); s++)
    for (const Tensor& t : inputs[s])
      if (t.storage->stream != stream)
        throw OpError{"ERR_DEVICE", std::string(schema.name) + ": operands lie on different devices: " + schema.inputs[s].name +
                                        " on " + t.storage->stream->deviceName() + ", the call on " + stream->deviceName() +
                                        "; make all of them on one device"};
  arrange(schema, inputs);  // before infer(), which lays results out like the operands that the kernel will see
  std::vector<std::vector<Desc>> descs(inputs.size());
  for (size_t s = 0; s < inputs.size(); s++)
    for (const Tensor& t : inputs[s]) descs[s].push_back(t.desc);
  Infer infer(schema, descs, attrs.data());
  schema.infer(infer);

  Operands outputs(infer.outputs.size());
  for (size_t s = 0; s < outputs.size(); s++)
    for (Desc& d : infer.outputs[s]) outputs[s].push_back(emptyTensor(stream, d.dtype, d.shape, d.strides));

  auto task = std::make_shared<Task>();
  task->schema = &schema;
  task->attrs = std::move(attrs);
  task->stream = stream.get();
  flatten(inputs, task->inputs, task->input_begin);
  flatten(outputs, task->outputs, task->output_begin);
  std::vector<MMTensorView> in, out;
  const MMCall probe = task->call(in, out);
  task->kernel = pickKernel(stream->backend(), op, &probe);
  if (!task->kernel)
    throw OpError{"ERR_UNSUPPORTED",
                  std::string(schema.name) + ": no kernel of the " + stream->backend()->name + " backend takes these operands"};
  if (task->kernel->workspace) task->workspace_bytes = task->kernel->workspace(&probe);
  stream->enqueue([task] { task->execute(); });
  return outputs;
}

}  // namespace mm

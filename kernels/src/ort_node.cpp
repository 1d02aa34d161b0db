// One node NMLinear: its kernel is created from attributes and constant inputs, then run.
#include "ort_node.h"

#include <cinttypes>
#include <cstdio>
#include <cstring>
#include <vector>

#include "isa.h"
#include "linear.h"
#include "threads.h"

namespace sparsify {
namespace {

constexpr std::int64_t kLayoutVersion = 1;

struct Tensor {
  const void* data;
  int type;
  std::vector<std::int64_t> dims;
};

Tensor read(const ort::Api& api, const ort::Value* value) {
  struct Info {
    const ort::Api& api;
    ort::TensorInfo* info = nullptr;
    ~Info() {
      if (info != nullptr) api.release_tensor_info(info);
    }
  } holder{api};
  ort::require(api.tensor_info(value, &holder.info));
  Tensor tensor{nullptr, 0, {}};
  ort::require(api.element_type(holder.info, &tensor.type));
  std::size_t rank = 0;
  ort::require(api.rank(holder.info, &rank));
  tensor.dims.resize(rank);
  ort::require(api.dims(holder.info, tensor.dims.data(), rank));
  void* data = nullptr;
  ort::require(api.tensor_data(const_cast<ort::Value*>(value), &data));  // the data is only read
  tensor.data = data;
  return tensor;
}

constexpr std::size_t kTitle = 240;

struct Kernel {
  const ort::Api& api;
  Layout layout;
  char title[kTitle];  // "NMLinear 'name' (sizes)", the beginning of every sentence
};

const std::uint8_t* packed_weight(const ort::Api& api, const ort::Value* value, const Layout& layout) {
  const Tensor w = read(api, value);
  if (w.type != ort::kUint8) throw Refusal("W must hold uint8, not element type %d", w.type);
  if (w.dims.size() != 1) throw Refusal("W must have one dimension, not %zu", w.dims.size());
  check_bytes(layout, static_cast<std::size_t>(w.dims[0]));
  return static_cast<const std::uint8_t*>(w.data);
}

const float* bias(const ort::Api& api, const ort::Value* value, const Layout& layout) {
  const Tensor b = read(api, value);
  if (b.type != ort::kFloat) throw Refusal("B must hold float, not element type %d", b.type);
  if (b.dims.size() != 1 || b.dims[0] != static_cast<std::int64_t>(layout.out)) {
    throw Refusal("B must have the shape [%zu], it has rank %zu and begins with %" PRId64, layout.out,
                  b.dims.size(), b.dims.empty() ? 1 : b.dims[0]);
  }
  return static_cast<const float*>(b.data);
}

std::int64_t integer(const ort::Api& api, const ort::KernelInfo* info, const char* name) {
  std::int64_t value = 0;
  if (ort::Status* status = api.attribute(info, name, &value)) {
    api.release_status(status);
    throw Refusal("the integer attribute '%s' is missing", name);
  }
  return value;
}

std::int64_t values_attribute(const ort::Api& api, const ort::KernelInfo* info) {
  char name[16] = "";
  std::size_t size = sizeof name;
  if (ort::Status* status = api.attribute(info, "values", name, &size)) {
    api.release_status(status);
    return -1;  // missing, or longer than any name we know
  }
  name[sizeof name - 1] = 0;
  return values_number(name);
}

// Writes "NMLinear 'name of the node'"; a name that does not fit is left out.
void write_title(const ort::Api& api, const ort::KernelInfo* info, char* title, std::size_t room) {
  char name[80];
  std::size_t size = sizeof name;
  if (ort::Status* status = api.node_name(info, name, &size)) {
    api.release_status(status);
  } else if (name[0] != 0) {
    std::snprintf(title, room, "NMLinear '%.*s'", static_cast<int>(sizeof name), name);
  }
}

Stated read_attributes(const ort::Api& api, const ort::KernelInfo* info) {
  Stated stated{};
  stated.n = integer(api, info, "n");
  stated.m = integer(api, info, "m");
  stated.in = integer(api, info, "in_features");
  stated.out = integer(api, info, "out_features");
  stated.group = integer(api, info, "group");
  stated.values = values_attribute(api, info);
  return stated;
}

void check_constant_inputs(const ort::Api& api, const ort::KernelInfo* info, const Layout& layout) {
  int constant = 0;
  const ort::Value* value = nullptr;
  ort::require(api.constant_input(info, 1, &constant, &value));
  if (!constant || value == nullptr) throw Refusal("W must be a constant initializer of the model");
  check_content(layout, packed_weight(api, value, layout));
  value = nullptr;
  ort::require(api.constant_input(info, 2, &constant, &value));
  if (constant && value != nullptr) bias(api, value, layout);
}

struct Threads {
  const ort::Api& api;
  const ort::KernelContext* context;
};

void run_on_session(void* handle, void (*task)(void*, std::size_t), void* data, std::size_t count) {
  const Threads& threads = *static_cast<const Threads*>(handle);
  Guard guard(task, data);
  ort::require(threads.api.parallel_for(threads.context, Guard::run, count, 0, &guard));
  guard.finish();
}

// Number of tokens of X [..., in]; turns its dimensions into those of Y.
std::size_t tokens_of(Tensor& x, const Layout& layout) {
  if (x.type != ort::kFloat) throw Refusal("X must hold float, not element type %d", x.type);
  if (x.dims.empty()) throw Refusal("X has no dimension, its last one must be %zu", layout.in);
  if (x.dims.back() != static_cast<std::int64_t>(layout.in)) {
    throw Refusal("the last dimension of X is %" PRId64 ", not %zu", x.dims.back(), layout.in);
  }
  x.dims.back() = static_cast<std::int64_t>(layout.out);
  std::size_t tokens = 1;
  for (std::size_t i = 0; i + 1 < x.dims.size(); ++i) tokens *= static_cast<std::size_t>(x.dims[i]);
  return tokens;
}

void run(const Kernel& kernel, ort::KernelContext* context) {
  const ort::Api& api = kernel.api;
  const ort::Value* values[3] = {nullptr, nullptr, nullptr};
  std::size_t count = 0;
  ort::require(api.input_count(context, &count));
  for (std::size_t i = 0; i < count && i < 3; ++i) require(api.input(context, i, &values[i]));
  if (values[0] == nullptr || values[1] == nullptr) throw Refusal("X and W must be given");
  Tensor x = read(api, values[0]);
  const std::size_t tokens = tokens_of(x, kernel.layout);
  const std::uint8_t* packed = packed_weight(api, values[1], kernel.layout);
  const float* b = values[2] == nullptr ? nullptr : bias(api, values[2], kernel.layout);
  ort::Value* y = nullptr;
  ort::require(api.output(context, 0, x.dims.data(), x.dims.size(), &y));
  void* result = nullptr;
  ort::require(api.tensor_data(y, &result));
  Threads threads{api, context};
  linear(best_isa(), kernel.layout, packed, b, static_cast<const float*>(x.data), tokens,
         static_cast<float*>(result), Pool{&threads, run_on_session});
}

}  // namespace

ort::Status* create_node(const ort::CustomOp*, const ort::Api* table, const ort::KernelInfo* info,
                         void** result) {
  const ort::Api& api = *table;
  char title[kTitle] = "NMLinear";
  return guarded(api, title, [&] {
    write_title(api, info, title, sizeof title);
    const Stated stated = read_attributes(api, info);
    char sizes[128];
    describe(stated, sizes, sizeof sizes);
    const std::size_t used = std::strlen(title);
    std::snprintf(title + used, sizeof title - used, " (%s)", sizes);
    const std::int64_t version = integer(api, info, "layout");
    if (version != kLayoutVersion) {
      throw Refusal("W has the packed layout %" PRId64 ", this library knows %" PRId64, version,
                    kLayoutVersion);
    }
    const Layout layout = checked_layout(stated);
    check_constant_inputs(api, info, layout);
    auto* kernel = new Kernel{api, layout, ""};
    std::memcpy(kernel->title, title, sizeof title);
    *result = kernel;
  });
}

ort::Status* run_node(void* handle, ort::KernelContext* context) {
  const Kernel& kernel = *static_cast<const Kernel*>(handle);
  return guarded(kernel.api, kernel.title, [&] { run(kernel, context); });
}

void destroy_node(void* handle) { delete static_cast<Kernel*>(handle); }

}  // namespace sparsify

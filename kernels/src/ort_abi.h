// The part of ONNX Runtime's C interface that the operator uses, so that no header and no library of the
// runtime is needed to build it.
//
// The runtime hands out one table of functions that only ever grows at its end: a function keeps its slot in
// every version. Version 17 is the first that holds every slot named here.
#pragma once

#include <cstddef>
#include <cstdint>

namespace sparsify::ort {

// Objects of the runtime; only their addresses are handled here.
struct Status;
struct SessionOptions;
struct OpDomain;
struct KernelInfo;
struct KernelContext;
struct Value;
struct TensorInfo;

enum ErrorCode : int { kFail = 1, kInvalidArgument = 2 };
enum ElementType : int { kFloat = 1, kUint8 = 2 };
enum Presence : int { kRequired = 0, kOptional = 1 };
enum MemoryType : int { kDefaultMemory = 0 };

constexpr std::uint32_t kVersion = 17;

// A function that returns a Status* returns null when all went well.
class Api {
 public:
  Status* create_status(ErrorCode code, const char* text) const {
    return at<0, Status*(ErrorCode, const char*)>()(code, text);
  }
  void release_status(Status* status) const { at<93, void(Status*)>()(status); }

  Status* create_domain(const char* name, OpDomain** domain) const {
    return at<26, Status*(const char*, OpDomain**)>()(name, domain);
  }
  Status* add_op(OpDomain* domain, const struct CustomOp* op) const {
    return at<27, Status*(OpDomain*, const CustomOp*)>()(domain, op);
  }
  Status* add_domain(SessionOptions* options, OpDomain* domain) const {
    return at<28, Status*(SessionOptions*, OpDomain*)>()(options, domain);
  }

  Status* tensor_data(Value* value, void** data) const {
    return at<51, Status*(Value*, void**)>()(value, data);
  }
  Status* tensor_info(const Value* value, TensorInfo** info) const {
    return at<65, Status*(const Value*, TensorInfo**)>()(value, info);
  }
  Status* element_type(const TensorInfo* info, int* type) const {
    return at<60, Status*(const TensorInfo*, int*)>()(info, type);
  }
  Status* rank(const TensorInfo* info, std::size_t* rank) const {
    return at<61, Status*(const TensorInfo*, std::size_t*)>()(info, rank);
  }
  Status* dims(const TensorInfo* info, std::int64_t* dims, std::size_t rank) const {
    return at<62, Status*(const TensorInfo*, std::int64_t*, std::size_t)>()(info, dims, rank);
  }
  void release_tensor_info(TensorInfo* info) const { at<99, void(TensorInfo*)>()(info); }

  Status* attribute(const KernelInfo* info, const char* name, std::int64_t* value) const {
    return at<86, Status*(const KernelInfo*, const char*, std::int64_t*)>()(info, name, value);
  }
  // `size` is the room in `text` and becomes the length with the closing zero; too little room is an error.
  Status* attribute(const KernelInfo* info, const char* name, char* text, std::size_t* size) const {
    return at<87, Status*(const KernelInfo*, const char*, char*, std::size_t*)>()(info, name, text, size);
  }
  Status* node_name(const KernelInfo* info, char* text, std::size_t* size) const {
    return at<244, Status*(const KernelInfo*, char*, std::size_t*)>()(info, text, size);
  }
  Status* constant_input(const KernelInfo* info, std::size_t index, int* constant,
                         const Value** value) const {
    return at<249, Status*(const KernelInfo*, std::size_t, int*, const Value**)>()(info, index, constant,
                                                                                   value);
  }

  Status* input_count(const KernelContext* context, std::size_t* count) const {
    return at<88, Status*(const KernelContext*, std::size_t*)>()(context, count);
  }
  Status* input(const KernelContext* context, std::size_t index, const Value** value) const {
    return at<90, Status*(const KernelContext*, std::size_t, const Value**)>()(context, index, value);
  }
  Status* output(KernelContext* context, std::size_t index, const std::int64_t* dims, std::size_t rank,
                 Value** value) const {
    return at<91, Status*(KernelContext*, std::size_t, const std::int64_t*, std::size_t, Value**)>()(
        context, index, dims, rank, value);
  }
  // Runs `task(data, i)` for every i below `count` on the threads of the session; with `batches` 0 they share
  // them as they come.
  Status* parallel_for(const KernelContext* context, void (*task)(void*, std::size_t), std::size_t count,
                       std::size_t batches, void* data) const {
    using Task = void(void*, std::size_t);
    return at<274, Status*(const KernelContext*, Task*, std::size_t, std::size_t, void*)>()(
        context, task, count, batches, data);
  }

 private:
  static constexpr std::size_t kSlots = 275;

  template <std::size_t slot, typename Function>
  Function* at() const {
    static_assert(slot < kSlots, "version 17 has no such slot");
    return reinterpret_cast<Function*>(slots_[slot]);
  }

  void (*slots_[kSlots])();
};

struct ApiBase {
  const Api* (*get_api)(std::uint32_t version);  // null for a version newer than the runtime
  const char* (*version)();
};

// An operator as the runtime calls it; a version 17 object is read up to `end_version`, newer runtimes know
// the four functions after it. With create_v2 and compute_v2 the first create and compute are never called.
struct CustomOp {
  std::uint32_t version;
  void* (*create)(const CustomOp*, const Api*, const KernelInfo*);
  const char* (*name)(const CustomOp*);
  const char* (*provider)(const CustomOp*);  // null: the CPU
  int (*input_type)(const CustomOp*, std::size_t index);
  std::size_t (*input_count)(const CustomOp*);
  int (*output_type)(const CustomOp*, std::size_t index);
  std::size_t (*output_count)(const CustomOp*);
  void (*compute)(void* kernel, KernelContext*);
  void (*destroy)(void* kernel);
  int (*input_presence)(const CustomOp*, std::size_t index);
  int (*output_presence)(const CustomOp*, std::size_t index);
  int (*input_memory)(const CustomOp*, std::size_t index);
  int (*variadic_input_least)(const CustomOp*);
  int (*variadic_input_homogeneous)(const CustomOp*);
  int (*variadic_output_least)(const CustomOp*);
  int (*variadic_output_homogeneous)(const CustomOp*);
  Status* (*create_v2)(const CustomOp*, const Api*, const KernelInfo*, void** kernel);
  Status* (*compute_v2)(void* kernel, KernelContext*);
  Status* (*output_shape)(const CustomOp*, void* context);  // null: not inferred
  int (*start_version)(const CustomOp*);
  int (*end_version)(const CustomOp*);
  void* later[4];
};

static_assert(sizeof(void*) == 8, "the kernels are built for 64-bit processors");
static_assert(sizeof(Api) == 275 * 8, "the table is functions and nothing else");
static_assert(offsetof(CustomOp, create) == 8 && offsetof(CustomOp, name) == 16);
static_assert(offsetof(CustomOp, provider) == 24 && offsetof(CustomOp, input_type) == 32);
static_assert(offsetof(CustomOp, input_count) == 40 && offsetof(CustomOp, output_type) == 48);
static_assert(offsetof(CustomOp, output_count) == 56 && offsetof(CustomOp, compute) == 64);
static_assert(offsetof(CustomOp, destroy) == 72 && offsetof(CustomOp, input_presence) == 80);
static_assert(offsetof(CustomOp, output_presence) == 88 && offsetof(CustomOp, input_memory) == 96);
static_assert(offsetof(CustomOp, variadic_input_least) == 104);
static_assert(offsetof(CustomOp, variadic_output_homogeneous) == 128);
static_assert(offsetof(CustomOp, create_v2) == 136 && offsetof(CustomOp, compute_v2) == 144);
static_assert(offsetof(CustomOp, output_shape) == 152 && offsetof(CustomOp, start_version) == 160);
static_assert(offsetof(CustomOp, end_version) == 168 && sizeof(CustomOp) == 208);

}  // namespace sparsify::ort

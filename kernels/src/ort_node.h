// One node NMLinear inside ONNX Runtime, and how its errors reach the runtime.
#pragma once

#include <cstdio>
#include <new>

#include "checks.h"
#include "ort_abi.h"

namespace sparsify {

namespace ort {
// An error that the runtime itself has stated, thrown.
struct Failure {
  Status* status;
};

inline void require(Status* status) {
  if (status != nullptr) throw Failure{status};
}
}  // namespace ort

// Turns whatever `body` throws into an error of the runtime that begins with `title`.
template <typename Body>
ort::Status* guarded(const ort::Api& api, const char* title, Body body) noexcept {
  const auto status = [&](ort::ErrorCode code, const char* text) {
    char sentence[720];
    std::snprintf(sentence, sizeof sentence, "%s: %s", title, text);
    return api.create_status(code, sentence);
  };
  try {
    body();
    return nullptr;
  } catch (const Refusal& refusal) {
    return status(ort::kInvalidArgument, refusal.text());
  } catch (const ort::Failure& failure) {
    return failure.status;
  } catch (const std::bad_alloc&) {
    return status(ort::kFail, "out of memory");
  } catch (...) {
    return status(ort::kFail, "an unexpected error");
  }
}

// The callbacks of the operator: everything a file can state wrongly is found when the node is created, what
// a caller can feed wrongly when it runs.
ort::Status* create_node(const ort::CustomOp*, const ort::Api* api, const ort::KernelInfo* info, void** node);
ort::Status* run_node(void* node, ort::KernelContext* context);
void destroy_node(void* node);

}  // namespace sparsify

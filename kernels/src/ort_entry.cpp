// The operator NMLinear of the domain `sparsify`, version 1, as ONNX Runtime registers it:
//
// X float [..., in], W uint8 [bytes] (constant), optional B float [out] -> Y float [..., out], with the
// integer attributes n, m, in_features, out_features, group, layout and the string `values`.
#include <mutex>
#include <vector>

#include "ort_node.h"
#include "sparsify_kernels.h"

namespace sparsify {
namespace {

ort::CustomOp make_op() {
  ort::CustomOp op{};
  op.version = ort::kVersion;
  op.name = [](const ort::CustomOp*) { return "NMLinear"; };
  op.provider = [](const ort::CustomOp*) -> const char* { return nullptr; };
  op.input_type = [](const ort::CustomOp*, std::size_t i) -> int {
    return i == 1 ? ort::kUint8 : ort::kFloat;
  };
  op.input_count = [](const ort::CustomOp*) -> std::size_t { return 3; };
  op.output_type = [](const ort::CustomOp*, std::size_t) -> int { return ort::kFloat; };
  op.output_count = [](const ort::CustomOp*) -> std::size_t { return 1; };
  op.destroy = destroy_node;
  op.input_presence = [](const ort::CustomOp*, std::size_t i) -> int {
    return i == 2 ? ort::kOptional : ort::kRequired;
  };
  op.output_presence = [](const ort::CustomOp*, std::size_t) -> int { return ort::kRequired; };
  op.input_memory = [](const ort::CustomOp*, std::size_t) -> int { return ort::kDefaultMemory; };
  op.variadic_input_least = op.variadic_output_least = [](const ort::CustomOp*) { return 1; };
  op.variadic_input_homogeneous = op.variadic_output_homogeneous = [](const ort::CustomOp*) { return 1; };
  op.create_v2 = create_node;
  op.compute_v2 = run_node;
  op.start_version = [](const ort::CustomOp*) { return 1; };
  op.end_version = [](const ort::CustomOp*) { return 1; };
  return op;
}

// The domain of one copy of the runtime. Sessions keep its address, so it stays for good; a process that
// holds two copies of the runtime gets two.
ort::OpDomain* domain_of(const ort::Api& api) {
  struct Known {
    const ort::Api* api;
    ort::OpDomain* domain;
  };
  static const ort::CustomOp op = make_op();
  static std::mutex mutex;
  static auto* known = new std::vector<Known>;
  const std::lock_guard<std::mutex> lock(mutex);
  for (const Known& one : *known) {
    if (one.api == &api) return one.domain;
  }
  known->reserve(known->size() + 1);
  ort::OpDomain* domain = nullptr;
  ort::require(api.create_domain("sparsify", &domain));
  ort::require(api.add_op(domain, &op));
  known->push_back({&api, domain});
  return domain;
}

}  // namespace
}  // namespace sparsify

extern "C" SPARSIFY_EXPORT sparsify::ort::Status* RegisterCustomOps(sparsify::ort::SessionOptions* options,
                                                                    const sparsify::ort::ApiBase* base) {
  using namespace sparsify;
  const ort::Api* api = base->get_api(ort::kVersion);
  if (api == nullptr) {
    char sentence[160];
    std::snprintf(sentence, sizeof sentence, "sparsify kernels need ONNX Runtime 1.17 or newer, this is %s",
                  base->version());
    return base->get_api(1)->create_status(ort::kFail, sentence);
  }
  return guarded(*api, "sparsify kernels", [&] { ort::require(api->add_domain(options, domain_of(*api))); });
}

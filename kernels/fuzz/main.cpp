// Runs the harness without libFuzzer: on the files named, or on random inputs.
//
//   fuzz_linear FILE...      fuzz_linear SECONDS [MOST_INPUTS [SEED]]
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <random>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

namespace {

bool run_file(const char* name) {
  std::ifstream file(name, std::ios::binary);
  if (!file) return false;
  const std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
  LLVMFuzzerTestOneInput(reinterpret_cast<const std::uint8_t*>(bytes.data()), bytes.size());
  return true;
}

}  // namespace

int main(int count, char** words) {
  if (count > 1 && run_file(words[1])) {
    for (int i = 2; i < count; ++i) run_file(words[i]);
    return 0;
  }
  const double seconds = count > 1 ? std::atof(words[1]) : 10;
  const long most = count > 2 ? std::atol(words[2]) : 1000000000;
  std::mt19937_64 random(count > 3 ? std::strtoull(words[3], nullptr, 10) : 0);
  const auto start = std::chrono::steady_clock::now();
  long inputs = 0;
  std::uint8_t bytes[64];
  const auto passed = [&] { return std::chrono::duration<double>(std::chrono::steady_clock::now() - start); };
  while (inputs < most && passed().count() < seconds) {
    for (std::uint8_t& byte : bytes) byte = static_cast<std::uint8_t>(random());
    LLVMFuzzerTestOneInput(bytes, sizeof bytes);
    ++inputs;
  }
  std::printf("%ld inputs, no error\n", inputs);
}

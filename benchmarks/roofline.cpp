// What one and several threads of this machine can do at most: bytes read from memory and float32 operations
// in fused multiply-adds, on the widest vectors that it has. Prints "THREADS GB/s GFLOP/s" for each count in the
// arguments.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <thread>
#include <utility>
#include <vector>

#if defined(__AVX512F__)
constexpr std::size_t kBytes = 64;
#else
constexpr std::size_t kBytes = 32;
#endif
typedef float Vector __attribute__((vector_size(kBytes)));
constexpr std::size_t kLine = 64;
#if defined(__x86_64__)
#define ANY_VECTOR "v"
#else
#define ANY_VECTOR "w"
#endif

// One thread is timed by the time that it runs, as the benchmark does it; several by the clock.
double seconds(int threads) {
  if (threads == 1) {
    timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
  }
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Reads `count` vectors once, in `kStreams` places by turns, fetched `kAhead` bytes before: which numbers are the
// fastest depends on the machine.
template <int kStreams, std::size_t kAhead>
void read(const Vector* from, std::size_t count) {
  Vector sums[8] = {};
  const std::size_t part = count / kStreams / 16 * 16;
  for (std::size_t i = 0; i < part; i += 16)
    for (int stream = 0; stream < kStreams; ++stream) {
      const Vector* at = from + stream * part + i;
      for (std::size_t b = 0; b < 16 * kBytes; b += kLine)
        __builtin_prefetch(reinterpret_cast<const char*>(at) + kAhead + b, 0, 2);
#pragma GCC unroll 16
      for (int j = 0; j < 16; ++j) sums[j % 8] += at[j];
    }
  for (Vector& sum : sums) asm volatile("" : : ANY_VECTOR(sum));
}

inline void multiply_add(Vector& sum, const Vector& factor) {
#if defined(__FMA__)
  asm volatile("vfmadd231ps %1, %1, %0" : "+" ANY_VECTOR(sum) : ANY_VECTOR(factor));
#else
  sum += factor * factor;
  asm volatile("" : "+" ANY_VECTOR(sum));
#endif
}

// Independent chains of multiply-adds, so that none waits for its own last result.
template <std::size_t... I>
void multiply(std::size_t steps, std::index_sequence<I...>) {
  Vector sums[] = {(Vector{} + static_cast<float>(I))...};
  const Vector factor = Vector{} + 0.999f;
  for (std::size_t i = 0; i < steps; ++i) (multiply_add(sums[I], factor), ...);
}

template <typename Work>
double best(int threads, Work work) {
  double least = 1e9;
  for (int round = 0; round < 9; ++round) {
    const double start = seconds(threads);
    std::vector<std::thread> others;
    for (int t = 1; t < threads; ++t) others.emplace_back(work, t);
    work(0);
    for (std::thread& other : others) other.join();
    least = std::min(least, seconds(threads) - start);
  }
  return least;
}

int main(int count, char** words) {
  const std::size_t bytes = std::size_t{256} << 20, steps = 10'000'000;
  for (int i = 1; i < count; ++i) {
    const int threads = std::atoi(words[i]);
    std::vector<std::vector<Vector>> memory(threads);
    for (auto& part : memory) part.assign(bytes / sizeof(Vector), Vector{} + 1.0f);
    const auto reads = [&](auto way) {
      return best(threads, [&](int t) { way(memory[t].data(), memory[t].size()); });
    };
    const double reading = std::min({reads(read<1, 2048>), reads(read<8, 2048>), reads(read<1, 16384>),
                                     reads(read<8, 4096>)});
    const double computing = best(threads, [&](int) { multiply(steps, std::make_index_sequence<12>()); });
    std::printf("%d %.3f %.3f\n", threads, threads * bytes / reading / 1e9,
                threads * steps * 12.0 * 2 * (kBytes / sizeof(float)) / computing / 1e9);
  }
}

// What one and several threads of this machine can do at most: bytes read from memory and float32 operations
// in fused multiply-adds, on 256-bit vectors. Prints "THREADS GB/s GFLOP/s" for each count in the arguments.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <thread>
#include <utility>
#include <vector>

typedef float Vector __attribute__((vector_size(32)));

// One thread is timed by the time that it runs, as the benchmark does it; several by the clock.
double seconds(int threads) {
  if (threads == 1) {
    timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
  }
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Reads `count` vectors once, in `kStreams` places by turns: which number is the fastest depends on the machine.
template <int kStreams>
void read(const Vector* from, std::size_t count) {
  Vector sums[8] = {};
  const std::size_t part = count / kStreams / 16 * 16;
  for (std::size_t i = 0; i < part; i += 16)
    for (int stream = 0; stream < kStreams; ++stream) {
      const Vector* at = from + stream * part + i;
      for (int line = 0; line < 16; line += 2) __builtin_prefetch(at + 64 + line, 0, 2);
#pragma GCC unroll 16
      for (int j = 0; j < 16; ++j) sums[j % 8] += at[j];
    }
  for (Vector& sum : sums) asm volatile("" : : "x"(sum));
}

inline void multiply_add(Vector& sum, const Vector& factor) {
#if defined(__FMA__)
  asm volatile("vfmadd231ps %1, %1, %0" : "+x"(sum) : "x"(factor));
#else
  sum += factor * factor;
  asm volatile("" : "+x"(sum));
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
    const double reading = std::min(best(threads, [&](int t) { read<1>(memory[t].data(), memory[t].size()); }),
                                    best(threads, [&](int t) { read<8>(memory[t].data(), memory[t].size()); }));
    const double computing = best(threads, [&](int) { multiply(steps, std::make_index_sequence<12>()); });
    std::printf("%d %.3f %.3f\n", threads, threads * bytes / reading / 1e9,
                threads * steps * 12.0 * 16.0 / computing / 1e9);
  }
}

// What one and several threads of this machine can do at most: bytes read from memory and float32 operations
// in fused multiply-adds, on 256-bit vectors. Prints "THREADS GB/s GFLOP/s" for each count in the arguments.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <thread>
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

// Reads `count` vectors once.
void read(const Vector* from, std::size_t count) {
  Vector sums[8] = {};
  for (std::size_t i = 0; i + 8 <= count; i += 8)
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) sums[j] += from[i + j];
  for (Vector& sum : sums) asm volatile("" : : "x"(sum));
}

// 12 independent chains of multiply-adds, so that none waits for its own last result.
void multiply(std::size_t steps) {
  Vector sums[12];
#pragma GCC unroll 12
  for (int j = 0; j < 12; ++j) sums[j] = Vector{} + static_cast<float>(j);
  const Vector factor = Vector{} + 0.999f, term = Vector{} + 0.001f;
  for (std::size_t i = 0; i < steps; ++i)
#pragma GCC unroll 12
    for (int j = 0; j < 12; ++j) {
      sums[j] = sums[j] * factor + term;
      asm volatile("" : "+x"(sums[j]));
    }
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
    const double reading = best(threads, [&](int t) { read(memory[t].data(), memory[t].size()); });
    const double computing = best(threads, [&](int) { multiply(steps); });
    std::printf("%d %.3f %.3f\n", threads, threads * bytes / reading / 1e9,
                threads * steps * 12.0 * 16.0 / computing / 1e9);
  }
}

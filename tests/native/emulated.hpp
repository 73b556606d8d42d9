// Threads that ThreadSanitizer can follow, for kernels.cpp in place of OpenMP's; and enough of CUDA to run kernels.cu on a CPU: a
// thread of the host for each of a block's, one block after the other.
#pragma once

#include <pthread.h>

#include <thread>
#include <vector>

#define EACH_BLOCK emulated::share_out
#define THREADS 16
#define __device__
#define __global__ static
#define __shared__ static
#define __launch_bounds__(...)
#define UNROLL(times)
#define PREFETCH(address) static_cast<void>(address)
#define LAUNCH(kernel, grid, stream, ...) (static_cast<void>(stream), emulated::launch(grid, [&] { kernel(__VA_ARGS__); }))
#define FAILURE() nullptr

namespace emulated {

struct Index {
    unsigned x;
};
inline thread_local Index thread{}, block{}, blocks{};
inline pthread_barrier_t barrier;

template <class Act>
void share_out(long blocks, int threads, const Act& act) {
    std::vector<std::thread> all;
    for (int t = 0; t < threads; ++t)
        all.emplace_back([=, &act] {
            for (long b = blocks * t / threads; b < blocks * (t + 1) / threads; ++b) act(b);
        });
    for (std::thread& one : all) one.join();
}

template <class Kernel>
void launch(long grid, Kernel kernel) {
    std::vector<std::thread> threads;
    pthread_barrier_init(&barrier, nullptr, THREADS);
    for (unsigned t = 0; t < THREADS; ++t)
        threads.emplace_back([&, t] {
            thread.x = t, blocks.x = static_cast<unsigned>(grid);
            for (block.x = 0; block.x < blocks.x; ++block.x, pthread_barrier_wait(&barrier)) kernel();
        });
    for (std::thread& one : threads) one.join();
    pthread_barrier_destroy(&barrier);
}

}  // namespace emulated

#define threadIdx emulated::thread
#define blockIdx emulated::block
#define gridDim emulated::blocks
#define __syncthreads() pthread_barrier_wait(&emulated::barrier)

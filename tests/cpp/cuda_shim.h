// Runs CUDA kernels on the CPU: every thread of a block is a fiber, blocks run one after another.
//
// The blocks of a cluster run concurrently. Include it before a .cuh file, link
// cuda_shim_machine.cpp, and compile with the include folder of the CUDA toolkit (for cuda_fp16.h
// and cuda_bf16.h). It finds wrong indices, tails and reductions; threads that diverge at a barrier
// or at a shuffle; misaligned vector accesses; reads of uninitialised shared memory (it holds NaN);
// and, because fibers run in both orders, many missing barriers. Asynchronous copies arrive at
// different times (Launch::delivery); cuda_shim_async.h says what is wrong with them. It cannot
// show races between instructions, hardware limits, or speed.
//
// Shared memory: Machine::shared_memory(), with the size in Launch; or `static __shared__ T
// name[n]` in a kernel, which does not compile here without `static`.
#pragma once

#include <cmath>
#include <cstdint>

#include "cuda_shim_machine.h"
#include "cuda_shim_ptx.h"

#define ALR_FAST_KERNELS_ON_CPU 1

#undef __shared__
#undef __launch_bounds__
#define __launch_bounds__(...)
#undef __forceinline__
#define __forceinline__ inline  // forced, sanitized code takes minutes to compile
#define __shared__ __attribute__((section("cuda_shim_shared")))

#define threadIdx (cuda_shim::Machine::get().thread_index())
#define blockIdx (cuda_shim::Machine::get().block_index())
#define blockDim (cuda_shim::Machine::get().block)
#define gridDim (cuda_shim::Machine::get().grid)

#define __syncthreads() ((void)cuda_shim::Machine::get().barrier(__FILE__, __LINE__))
#define __syncthreads_or(predicate) \
  (cuda_shim::Machine::get().barrier(__FILE__, __LINE__, (predicate) != 0))

#define ALR_DEVICE_CHECK(condition) \
  ((condition) ? (void)0 : cuda_shim::Machine::get().fail("check failed: " #condition))

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = cuda_shim::kWarpSize) {
  const int lane = cuda_shim::lane(), source = lane ^ lane_mask;
  return cuda_shim::shuffle(mask, value, source / width > lane / width ? lane : source,
                            "__shfl_xor_sync", width);
}

template <class T>
T __shfl_sync(unsigned mask, T value, int from, int width = cuda_shim::kWarpSize) {
  const int lane = cuda_shim::lane();
  return cuda_shim::shuffle(mask, value, lane / width * width + from % width, "__shfl_sync", width);
}

inline unsigned __ballot_sync(unsigned mask, int predicate) {
  return static_cast<unsigned>(cuda_shim::Machine::get().exchange(
      mask, predicate != 0, 0, "__ballot_sync", cuda_shim::kWarpSize, true));
}

inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }

inline void __syncwarp(unsigned mask = 0xffffffffu) {
  cuda_shim::Machine::get().exchange(mask, 0, 0, "__syncwarp", cuda_shim::kWarpSize, true);
}

inline void __threadfence() {}

template <class T>
T atomicAdd(T* address, T value) {
  ++cuda_shim::Machine::get().memory_operations;
  const T old = *address;
  *address += value;
  return old;
}

template <class T>
T atomicCAS(T* address, T expected, T value) {
  ++cuda_shim::Machine::get().memory_operations;
  const T old = *address;
  if (old == expected) *address = value;
  return old;
}

template <class T>
T atomicMax(T* address, T value) {
  ++cuda_shim::Machine::get().memory_operations;
  const T old = *address;
  if (old < value) *address = value;
  return old;
}

// Hints to caches.
template <class T>
T __ldcg(const T* from) {
  ++cuda_shim::Machine::get().memory_operations;
  return *from;
}
template <class T>
T __ldcs(const T* from) {
  return *from;
}
template <class T>
void __stcs(T* to, T value) {
  *to = value;
}

inline void __pipeline_memcpy_async(void* to, const void* from, size_t bytes) {
  cuda_shim::Machine::get().begin_copy(to, from, bytes);
}
inline void __pipeline_commit() { cuda_shim::Machine::get().commit_copies(); }
inline void __pipeline_wait_prior(size_t newest) { cuda_shim::Machine::get().end_copies(newest); }

// Clusters: the two halves of their barrier always come together.
#define __cluster_barrier_arrive() ((void)0)
#define __cluster_barrier_arrive_relaxed() ((void)0)
#define __threadfence_cluster() ((void)0)
#define __cluster_barrier_wait() cuda_shim::Machine::get().cluster_barrier(__FILE__, __LINE__)
inline unsigned __clusterRelativeBlockRank() { return cuda_shim::Machine::get().block_rank(); }
inline void* __cluster_map_shared_rank(const void* mine, unsigned rank) {
  return cuda_shim::Machine::get().in_block(mine, rank);
}

inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }

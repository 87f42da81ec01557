// Copies between device memory and shared memory, 16 bytes at a time with a scalar head and tail.
#pragma once

#include <cstdint>
#include <type_traits>

#include "memory.cuh"

#if !defined(ALR_FAST_KERNELS_ON_CPU)
#include <cuda_pipeline_primitives.h>
#endif

namespace alr_fast {

// Division of `count` elements at any alignment into 16-byte accesses.
template <class T>
struct Accesses {
  static constexpr int kPerAccess = kAccessBytes / sizeof(T);
  int head, whole, tail;  // elements before the first whole access, whole accesses, elements after

  __device__ __forceinline__ Accesses(const T* at, int count) {
    head = min(count, static_cast<int>((kAccessBytes - offset(at)) % kAccessBytes / sizeof(T)));
    whole = (count - head) / kPerAccess;
    tail = count - head - whole * kPerAccess;
  }

  // Bytes from the preceding 16-byte boundary.
  __device__ __forceinline__ static int offset(const T* at) {
    return static_cast<int>(reinterpret_cast<uintptr_t>(at) % kAccessBytes);
  }
};

// Starts to copy to `buffer`, which has room for staged_bytes(count, sizeof(T)) at a multiple of 16
// bytes; returns the byte offset of the first element in it. Called by a whole block.
template <class T, class Group>
__device__ __forceinline__ int stage(unsigned char* buffer, const T* from, int count,
                                     const Group& group) {
  const Accesses<T> accesses(from, count);
  T* const to = reinterpret_cast<T*>(buffer + accesses.offset(from));
  if (group.rank() < accesses.head) to[group.rank()] = from[group.rank()];
  for (int n = group.rank(); n < accesses.whole; n += group.size()) {
    const int at = accesses.head + n * accesses.kPerAccess;
    __pipeline_memcpy_async(to + at, from + at, kAccessBytes);
  }
  const int last = count - accesses.tail + group.rank();
  if (last < count) to[last] = from[last];
  __pipeline_commit();
  return accesses.offset(from);
}

// Waits for the copies that this thread started.
__device__ __forceinline__ void wait_for_staged() { __pipeline_wait_prior(0); }

// Copies back. Uses 16-byte accesses if `from` is where stage() put the elements of `to`, or of a
// row with the same alignment; otherwise copies element by element.
template <Cached kCached, class T, class Group>
__device__ __forceinline__ void unstage(T* to, const T* from, int count, const Group& group) {
  const Accesses<T> accesses(to, count);
  if (accesses.offset(from) != accesses.offset(to)) {
    for (int n = group.rank(); n < count; n += group.size()) to[n] = from[n];
    return;
  }
  if (group.rank() < accesses.head) to[group.rank()] = from[group.rank()];
  for (int n = group.rank(); n < accesses.whole; n += group.size()) {
    const int at = accesses.head + n * accesses.kPerAccess;
    const auto word = *reinterpret_cast<const uint4*>(from + at);
    if constexpr (kCached == Cached::kOnce) {
      __stcs(reinterpret_cast<uint4*>(to + at), word);
    } else {
      *reinterpret_cast<uint4*>(to + at) = word;
    }
  }
  const int last = count - accesses.tail + group.rank();
  if (last < count) to[last] = from[last];
}

}  // namespace alr_fast

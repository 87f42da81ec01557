// The instructions of csrc/cuda/bulk_copy.cuh on the machine of cuda_shim_machine.h.
#pragma once

#include <vector_types.h>

#include <cstdint>

#include "cuda_shim_machine.h"

namespace cuda_shim::ptx {

inline void barrier_init(uint64_t* barrier, unsigned count) {
  Machine::get().barrier_init(barrier, count);
}
inline void fence_barrier_init() { Machine::get().fence_barrier_init(); }
inline void barrier_arrive(uint64_t* barrier) { Machine::get().barrier_arrive(barrier, 0); }
inline void barrier_arrive_expect(uint64_t* barrier, unsigned bytes) {
  Machine::get().barrier_arrive(barrier, bytes);
}
inline void barrier_arrive_remote(uint64_t* barrier, unsigned rank) {
  Machine::get().barrier_arrive_remote(barrier, rank);
}
inline bool barrier_try_wait(uint64_t* barrier, unsigned parity) {
  return Machine::get().barrier_try_wait(barrier, parity, false);
}
inline bool barrier_try_wait_cluster(uint64_t* barrier, unsigned parity) {
  return Machine::get().barrier_try_wait(barrier, parity, true);
}
inline void bulk_load(void* to, const void* from, unsigned bytes, uint64_t* barrier) {
  Machine::get().bulk_load(to, from, bytes, barrier);
}
inline void bulk_load_evict_first(void* to, const void* from, unsigned bytes, uint64_t* barrier) {
  bulk_load(to, from, bytes, barrier);
}
template <class Word>
void store_remote(void* to, Word word, uint64_t* barrier, unsigned rank) {
  Machine::get().store_remote(to, &word, sizeof(word), barrier, rank);
}

}  // namespace cuda_shim::ptx

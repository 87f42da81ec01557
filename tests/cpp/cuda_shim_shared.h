// Shared memory of the blocks that cuda_shim_machine.h runs at the same time.
#pragma once

#include <cstddef>
#include <cstring>
#include <new>
#include <vector>

#include "cuda_shim_async.h"

// Bounds of the static shared arrays, given by the linker; weak as there may be none.
extern "C" char __start_cuda_shim_shared[] __attribute__((weak));
extern "C" char __stop_cuda_shim_shared[] __attribute__((weak));

namespace cuda_shim {

class SharedMemory {
 public:
  // Memory of so many blocks. It is allocated anew, so that AddressSanitizer detects accesses out
  // of its bounds or lifetime.
  void renew(size_t blocks, size_t bytes, Filling filling) {
    const size_t fixed = __stop_cuda_shim_shared - __start_cuda_shim_shared;
    if (fixed > 0) std::memset(__start_cuda_shim_shared, filling, fixed);
    blocks_.resize(blocks);
    for (Bytes& block : blocks_) block = Bytes(bytes, static_cast<unsigned char>(filling));
  }
  void free() { blocks_.clear(); }

  unsigned char* of_block(size_t rank) { return blocks_[rank].data(); }

  // Whether it lies in the memory of that block; static arrays belong to every block.
  bool contains(size_t rank, const void* at, size_t bytes) const {
    const auto* const start = static_cast<const unsigned char*>(at);
    const auto is_in = [&](const unsigned char* memory, size_t size) {
      return start >= memory && bytes <= size && start - memory <= std::ptrdiff_t(size - bytes);
    };
    return is_in(blocks_[rank].data(), blocks_[rank].size()) ||
           is_in(reinterpret_cast<unsigned char*>(__start_cuda_shim_shared),
                 __stop_cuda_shim_shared - __start_cuda_shim_shared);
  }

 private:
  // At a multiple of 128 bytes, as on a device.
  template <class T>
  struct Allocator {
    using value_type = T;
    static constexpr std::align_val_t kAlignment{128};
    T* allocate(size_t count) {
      return static_cast<T*>(::operator new(count * sizeof(T), kAlignment));
    }
    void deallocate(T* memory, size_t) { ::operator delete(memory, kAlignment); }
    friend bool operator==(Allocator, Allocator) { return true; }
    friend bool operator!=(Allocator, Allocator) { return false; }
  };
  using Bytes = std::vector<unsigned char, Allocator<unsigned char>>;

  std::vector<Bytes> blocks_;
};

}  // namespace cuda_shim

// The machine that cuda_shim.h runs kernels on: fibers, barriers between them, shared memory.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <deque>
#include <functional>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda_shim_async.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

// Bounds of the static shared arrays, given by the linker; weak as there may be none.
extern "C" char __start_cuda_shim_shared[] __attribute__((weak));
extern "C" char __stop_cuda_shim_shared[] __attribute__((weak));

namespace cuda_shim {

constexpr int kWarpSize = 32;
constexpr size_t kStackBytes = 128 * 1024;

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Launch parameters of a kernel, and variations of the execution order.
struct Launch {
  dim3 grid{1, 1, 1};
  dim3 block{1, 1, 1};
  unsigned cluster = 1;          // blocks that run at the same time
  size_t shared_bytes = 0;       // of each block's dynamic shared memory
  bool reverse_threads = false;  // run later threads first
  bool reverse_blocks = false;
  bool newest_first = false;                // a released warp continues before others are notified
  Delivery delivery = Delivery::kEarliest;  // of asynchronous transfers
  unsigned seed = 1;
};

// Shared memory starts at a multiple of 128 bytes, as on a device.
template <class T>
struct SharedAllocator {
  using value_type = T;
  static constexpr std::align_val_t kAlignment{128};
  T* allocate(size_t count) {
    return static_cast<T*>(::operator new(count * sizeof(T), kAlignment));
  }
  void deallocate(T* memory, size_t) { ::operator delete(memory, kAlignment); }
  friend bool operator==(SharedAllocator, SharedAllocator) { return true; }
  friend bool operator!=(SharedAllocator, SharedAllocator) { return false; }
};

// A barrier at which threads wait for each other.
struct Meeting {
  const char* call = "";  // call of the first thread to arrive,
  int detail = 0;         // and its line or width
  uint64_t wanted = 0;
  uint64_t arrived = 0;
  bool any = false;
  std::vector<int> waiting;  // threads
};

// An asynchronous copy to shared memory, which is visible only after the thread has waited.
struct Copy {
  void* to;
  const void* from;
  std::vector<unsigned char> data;
  size_t group;  // the number of commits of its thread before it
};

struct Fiber {
  ucontext_t context;
  char* stack = nullptr;
  void* fake_stack = nullptr;
  uint3 index{};
  bool is_done = true;
  uint64_t value = 0, result = 0;  // of a shuffle
  int source = 0;                  // lane it reads
  std::vector<Copy> copies;        // started, not yet waited for
  size_t commits = 0;              // of copies
  uint64_t* awaited = nullptr;     // barrier in shared memory, and
  unsigned parity = 0;             // that of its phase
};

class Machine {
 public:
  static Machine& get() {
    static Machine machine;
    return machine;
  }

  dim3 grid, block;
  int64_t memory_operations = 0;  // atomic ones, and reads past the L1 cache

  const uint3& thread_index() const { return fibers_[current_].index; }
  uint3 block_index() const {
    const uint64_t at = first_block_ + block_rank();
    return {static_cast<unsigned>(at % grid.x), static_cast<unsigned>(at / grid.x % grid.y),
            static_cast<unsigned>(at / grid.x / grid.y)};
  }
  unsigned block_rank() const {
    return static_cast<unsigned>(current_ / threads_);
  }  // in a cluster
  unsigned char* shared_memory() { return shared_[block_rank()].data(); }

  // The same place in the shared memory of another block of the cluster.
  void* in_block(const void* mine, unsigned rank) {
    if (rank >= cluster_) fail("no such block in the cluster");
    if (done_[rank] == threads_) fail("access to the shared memory of a block that has exited");
    return shared_[rank].data() + (static_cast<const unsigned char*>(mine) - shared_memory());
  }

  void run(const Launch& launch, const std::function<void()>& kernel) {
    const uint64_t threads = uint64_t{launch.block.x} * launch.block.y * launch.block.z;
    if (threads == 0 || threads > 1024)
      throw Error("block of " + std::to_string(threads) + " threads");
    grid = launch.grid;
    block = launch.block;
    cluster_ = launch.cluster;
    threads_ = static_cast<int>(threads);
    kernel_ = &kernel;
    reverse_ = launch.reverse_threads;
    newest_first_ = launch.newest_first;
    async_.start(launch.delivery, launch.seed);
    const uint64_t blocks = uint64_t{grid.x} * grid.y * grid.z;
    if (cluster_ > 1 && (blocks % cluster_ != 0 || threads % kWarpSize != 0))
      throw Error("the grid is not made of whole clusters of whole warps");
    prepare_fibers();
    shared_.resize(cluster_);
    for (uint64_t n = 0; n < blocks; n += cluster_) {
      first_block_ = launch.reverse_blocks ? blocks - cluster_ - n : n;
      poison_shared(launch.shared_bytes);
      run_cluster();
      if (!error_.empty()) throw Error(error_);
    }
    for (auto& memory : shared_) memory = Bytes();  // invalidates the memory after the launch
  }

  // --- functions that kernels call ---

  // `call` is the name of a file, `line` a line in it.
  bool barrier(const char* call, int line, bool predicate = false) {
    return meet(barriers_[block_rank()], threads_, call, line, predicate);
  }
  void cluster_barrier(const char* call, int line) {
    meet(cluster_barrier_, threads_ * static_cast<int>(cluster_), call, line, false);
  }

  // Lets all other threads run before this one goes on, which waits for what another block writes.
  void pause() {
    if (++pauses_ > kMostPauses) fail("a thread waits for what no other one writes");
    ready_.insert(newest_first_ ? ready_.begin() + next_ready_ : ready_.end(), current_);
    switch_to_next();
  }

  void begin_copy(void* to, const void* from, size_t bytes) {
    if ((reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from)) % bytes != 0)
      fail("misaligned copy to shared memory");
    check_shared(to, bytes);
    const auto* const data = static_cast<const unsigned char*>(from);
    Fiber& fiber = fibers_[current_];
    fiber.copies.push_back({to, from, {data, data + bytes}, fiber.commits});
    if (async_.arrives_at_once()) {
      std::memcpy(to, from, bytes);
    } else {
      std::memset(to, kPoison, bytes);
    }
  }
  void commit_copies() { ++fibers_[current_].commits; }
  // Waits for the copies of all commits but the `newest` last ones.
  void end_copies(size_t newest) {
    Fiber& fiber = fibers_[current_];
    std::vector<Copy> left;
    for (Copy& copy : fiber.copies) {
      if (copy.group + newest >= fiber.commits) {
        left.push_back(std::move(copy));
        continue;
      }
      if (std::memcmp(copy.from, copy.data.data(), copy.data.size()) != 0)
        fail("the source of a copy changed before the copy was complete");
      std::memcpy(copy.to, copy.data.data(), copy.data.size());
    }
    fiber.copies = std::move(left);
  }

  void barrier_init(uint64_t* barrier, unsigned count) {
    check_shared(barrier, sizeof(*barrier));
    async_.init(barrier, count);
  }
  void fence_barrier_init() { async_.fence_init(); }
  void barrier_arrive(uint64_t* barrier, unsigned expected_bytes) {
    check_shared(barrier, sizeof(*barrier));
    async_.arrive(barrier, expected_bytes);
    wake_arrived();
  }
  void barrier_arrive_remote(uint64_t* barrier, unsigned rank) {
    check_shared(barrier, sizeof(*barrier));
    async_.arrive_remote(static_cast<uint64_t*>(in_block(barrier, rank)), rank != block_rank());
    wake_arrived();
  }

  // A wait that is not of cluster scope may not see what other blocks have written.
  bool barrier_try_wait(uint64_t* barrier, unsigned parity, bool is_cluster_scope) {
    check_shared(barrier, sizeof(*barrier));
    async_.maybe_deliver();
    wake_arrived();
    if (async_.has_completed(barrier, parity, is_cluster_scope)) return true;
    if (async_.is_wakeup_spurious()) return false;
    async_.wait(barrier, current_);
    fibers_[current_].awaited = barrier;
    fibers_[current_].parity = parity;
    switch_to_next();
    fibers_[current_].awaited = nullptr;
    return async_.has_completed(barrier, parity, is_cluster_scope);
  }

  void bulk_load(void* to, const void* from, size_t bytes, uint64_t* barrier) {
    check_shared(to, bytes);
    check_shared(barrier, sizeof(*barrier));
    async_.copy(to, from, bytes, barrier);
    wake_arrived();
  }

  void store_remote(void* to, const void* value, size_t bytes, uint64_t* barrier, unsigned rank) {
    check_shared(to, bytes);
    check_shared(barrier, sizeof(*barrier));
    async_.store(in_block(to, rank), value, bytes, static_cast<uint64_t*>(in_block(barrier, rank)),
                 rank != block_rank());
    wake_arrived();
  }

  // Threads of the warp in `mask` pass a value and receive that of lane `source`; a ballot receives
  // all values.
  uint64_t exchange(unsigned mask, uint64_t value, int source, const char* call, int width,
                    bool ballot) {
    const int lane = current_ % kWarpSize;
    if ((mask >> lane & 1) == 0) fail(std::string(call) + ": the calling lane is not in the mask");
    Meeting& meeting = warp_meeting(mask);
    ++meetings_;
    if (meeting.arrived == 0) {
      meeting.call = call;
      meeting.detail = width;
    } else if (meeting.detail != width || !is_same(meeting.call, call)) {
      fail("lanes diverge: some are at " + name_of(meeting) + ", one at " + call + ":" +
           std::to_string(width));
    }
    fibers_[current_].value = value;
    fibers_[current_].source = source;
    meeting.arrived |= uint64_t{1} << lane;
    if (meeting.arrived == meeting.wanted) {
      meeting.arrived = 0;
      give_results(mask, current_ - lane, ballot);
      wake(meeting);
    } else {
      meeting.waiting.push_back(current_);
      switch_to_next();
    }
    return fibers_[current_].result;
  }

  [[noreturn]] void fail(const std::string& message) {
    error_ = message + " (block " + std::to_string(block_index().x) + ", thread " +
             std::to_string(current_ % threads_) + ")";
    leave();
    __builtin_unreachable();
  }

 private:
  // `wanted` threads wait for each other.
  bool meet(Meeting& meeting, int wanted, const char* call, int line, bool predicate) {
    ++meetings_;
    if (meeting.arrived == 0) {
      meeting.call = call;
      meeting.detail = line;
      meeting.wanted = wanted;
      meeting.any = false;
    } else if (meeting.detail != line || !is_same(meeting.call, call)) {
      fail("threads diverge: some are at " + name_of(meeting) + ", one at " + call + ":" +
           std::to_string(line));
    }
    meeting.any = meeting.any || predicate;
    if (++meeting.arrived == meeting.wanted) {
      meeting.arrived = 0;
      for (int thread : meeting.waiting) fibers_[thread].result = meeting.any;
      wake(meeting);
      return meeting.any;
    }
    meeting.waiting.push_back(current_);
    switch_to_next();
    return fibers_[current_].result != 0;
  }

  // Whether it lies in the block's shared memory; static arrays belong to every block.
  bool is_shared(const void* at, size_t bytes, unsigned rank) const {
    const auto* const start = static_cast<const unsigned char*>(at);
    const auto is_in = [&](const unsigned char* memory, size_t size) {
      return start >= memory && bytes <= size && start - memory <= std::ptrdiff_t(size - bytes);
    };
    return is_in(shared_[rank].data(), shared_[rank].size()) ||
           is_in(reinterpret_cast<unsigned char*>(__start_cuda_shim_shared),
                 __stop_cuda_shim_shared - __start_cuda_shim_shared);
  }
  void check_shared(const void* at, size_t bytes) {
    if (!is_shared(at, bytes, block_rank()))
      fail("a barrier or the target of a copy is out of the bounds of the block's shared memory");
  }

  // The last thread of a block has ended.
  void exit_block() {
    const unsigned rank = block_rank();
    async_.check_exit([&](const void* at) { return is_shared(at, 1, rank); });
  }

  int ended() const {
    int count = 0;
    for (int done : done_) count += done;
    return count;
  }

  void wake_arrived() {
    const std::vector<int> threads = async_.take_woken();
    for (size_t n = 0; n < threads.size(); ++n)
      ready_.push_back(threads[reverse_ ? threads.size() - 1 - n : n]);
  }

  // Called when no thread is ready: completes a transfer, or lets all threads at barriers in shared
  // memory try again if anything has happened since they last did. Returns whether one is ready.
  bool continue_after_idling() {
    while (next_ready_ == ready_.size()) {
      if (!async_.deliver()) {
        const uint64_t progress = async_.progress() + meetings_;
        if (progress == progress_when_idle_) return false;
        progress_when_idle_ = progress;
        async_.wake_all();
        wake_arrived();
        return next_ready_ != ready_.size();
      }
      wake_arrived();
    }
    return true;
  }

  // Threads of a warp with another mask have another barrier.
  Meeting& warp_meeting(unsigned mask) {
    auto& meetings = warp_meetings_[current_ / kWarpSize];
    for (Meeting& meeting : meetings)
      if (meeting.wanted == mask) return meeting;
    meetings.emplace_back();
    meetings.back().wanted = mask;
    return meetings.back();
  }

  static bool is_same(const char* a, const char* b) { return a == b || std::strcmp(a, b) == 0; }

  static std::string name_of(const Meeting& meeting) {
    return std::string(meeting.call) + ":" + std::to_string(meeting.detail);
  }

  void prepare_fibers() {
    const int count = threads_ * static_cast<int>(cluster_);
    while (static_cast<int>(fibers_.size()) < count) {
      fibers_.emplace_back();
      Fiber& fiber = fibers_.back();
      void* const stack = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE,
                               MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      if (stack == MAP_FAILED) throw Error("no memory for a fiber's stack");
      fiber.stack = static_cast<char*>(stack);
      start(fiber);
    }
    if (is_broken_) {  // unfinished fibers are recreated
      for (Fiber& fiber : fibers_) start(fiber);
      is_broken_ = false;
    }
    fibers_in_use_ = count;
    warp_meetings_.assign((count + kWarpSize - 1) / kWarpSize, {});
    barriers_.assign(cluster_, Meeting());
    cluster_barrier_ = Meeting();
    error_.clear();
    for (int n = 0; n < count; ++n) {
      const unsigned at = n % threads_;
      fibers_[n].index = {at % block.x, at / block.x % block.y, at / block.x / block.y};
      fibers_[n].copies.clear();
      fibers_[n].commits = 0;
      fibers_[n].awaited = nullptr;
    }
  }

  static void start(Fiber& fiber) {
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(fiber.stack, kStackBytes);
#endif
    fiber.fake_stack = nullptr;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack;
    fiber.context.uc_stack.ss_size = kStackBytes;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, fiber_main, 0);
    // Announces the switch to the sanitizer, which would otherwise clear its records of the stack.
    fiber.context.uc_stack.ss_size = 0;
  }

  static void fiber_main() {
    Machine& machine = get();
    machine.arrived_in(machine.current_);
    while (true) {
      (*machine.kernel_)();
      if (!machine.fibers_[machine.current_].copies.empty())
        machine.fail("the thread ends with copies that it has not waited for");
      machine.fibers_[machine.current_].is_done = true;
      if (++machine.done_[machine.block_rank()] == machine.threads_) machine.exit_block();
      machine.switch_to_next();
    }
  }

  void run_cluster() {
    done_.assign(cluster_, 0);
    async_.clear();
    meetings_ = progress_when_idle_ = 0;
    pauses_ = 0;
    ready_.clear();
    next_ready_ = 0;
    for (int n = 0; n < fibers_in_use_; ++n) {
      fibers_[n].is_done = false;
      ready_.push_back(reverse_ ? fibers_in_use_ - 1 - n : n);
    }
    current_ = take_ready();
    enter(current_);
    if (!error_.empty()) is_broken_ = true;
  }

  int take_ready() {
    if (!newest_first_) return ready_[next_ready_++];
    const int thread = ready_.back();
    ready_.pop_back();
    return thread;
  }

  void wake(Meeting& meeting) {
    if (next_ready_ > 65536) {
      ready_.erase(ready_.begin(), ready_.begin() + next_ready_);
      next_ready_ = 0;
    }
    const size_t count = meeting.waiting.size();
    for (size_t n = 0; n < count; ++n)
      ready_.push_back(meeting.waiting[reverse_ ? count - 1 - n : n]);
    meeting.waiting.clear();
  }

  void give_results(unsigned mask, int first_thread, bool ballot) {
    uint64_t votes = 0;
    for (int lane = 0; lane < kWarpSize; ++lane)
      if (mask >> lane & 1) votes |= uint64_t{fibers_[first_thread + lane].value != 0} << lane;
    for (int lane = 0; lane < kWarpSize; ++lane) {
      if ((mask >> lane & 1) == 0) continue;
      Fiber& fiber = fibers_[first_thread + lane];
      if (!ballot && (mask >> fiber.source & 1) == 0)
        fail("a shuffle reads lane " + std::to_string(fiber.source) +
             ", which takes no part in it");
      fiber.result = ballot ? votes : fibers_[first_thread + fiber.source].value;
    }
  }

  // Switches from the current fiber to one that is ready, or to the end of the block.
  void switch_to_next() {
    async_.maybe_deliver();
    wake_arrived();
    const int done = ended();
    if (next_ready_ == ready_.size() && (done == fibers_in_use_ || !continue_after_idling())) {
      if (done < fibers_in_use_) {
        error_ = "threads diverge: " + std::to_string(done) + " of " +
                 std::to_string(fibers_in_use_) +
                 " have ended, the others wait for them or for each other";
        for (const auto& meetings : warp_meetings_)
          for (const Meeting& meeting : meetings)
            if (meeting.arrived != 0) error_ += "; some at " + name_of(meeting);
        for (const Meeting& meeting : barriers_)
          if (meeting.arrived != 0) error_ += "; some at " + name_of(meeting);
        if (cluster_barrier_.arrived != 0) error_ += "; some at " + name_of(cluster_barrier_);
        describe_awaited();
      }
      leave();
      return;
    }
    const int from = current_;
    current_ = take_ready();
    if (current_ == from) return;
    Fiber& fiber = fibers_[current_];
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(&fibers_[from].fake_stack, fiber.stack, kStackBytes);
#endif
    swapcontext(&fibers_[from].context, &fiber.context);
    arrived_in(from);
  }

  // Adds the barriers in shared memory at which threads wait, each with the first of its threads.
  void describe_awaited() {
    std::vector<uint64_t*> described;
    for (int n = 0; n < fibers_in_use_; ++n) {
      const Fiber& fiber = fibers_[n];
      if (fiber.is_done || fiber.awaited == nullptr) continue;
      if (std::find(described.begin(), described.end(), fiber.awaited) != described.end()) continue;
      described.push_back(fiber.awaited);
      const auto* const at = reinterpret_cast<const unsigned char*>(fiber.awaited);
      error_ += "; thread " + std::to_string(n % threads_) + " of block " +
                std::to_string(first_block_ + n / threads_) + " at mbarrier.try_wait, parity " +
                std::to_string(fiber.parity) + ", byte " +
                std::to_string(at - shared_[n / threads_].data()) +
                " of shared memory: " + async_.describe(fiber.awaited);
    }
  }

  void arrived_in([[maybe_unused]] int thread) {
#if defined(__SANITIZE_ADDRESS__)
    const void** const bottom = main_stack_ == nullptr ? &main_stack_ : nullptr;
    size_t* const size = bottom != nullptr ? &main_stack_bytes_ : nullptr;
    __sanitizer_finish_switch_fiber(fibers_[thread].fake_stack, bottom, size);
#endif
  }

  void enter(int thread) {
#if defined(__SANITIZE_ADDRESS__)
    main_stack_ = nullptr;  // set by the first fiber to run
    __sanitizer_start_switch_fiber(&main_fake_stack_, fibers_[thread].stack, kStackBytes);
#endif
    swapcontext(&main_, &fibers_[thread].context);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(main_fake_stack_, nullptr, nullptr);
#endif
  }

  // Back to run_cluster.
  void leave() {
    const int from = current_;
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(&fibers_[from].fake_stack, main_stack_, main_stack_bytes_);
#endif
    swapcontext(&fibers_[from].context, &main_);
    arrived_in(from);
  }

  using Bytes = std::vector<unsigned char, SharedAllocator<unsigned char>>;

  // Reallocated for each launch, so that AddressSanitizer detects accesses out of bounds or
  // lifetime.
  void poison_shared(size_t bytes) {
    const size_t fixed = __stop_cuda_shim_shared - __start_cuda_shim_shared;
    if (fixed > 0) std::memset(__start_cuda_shim_shared, kPoison, fixed);
    for (Bytes& memory : shared_) memory = Bytes(bytes, static_cast<unsigned char>(kPoison));
  }

  const std::function<void()>* kernel_ = nullptr;
  std::deque<Fiber> fibers_;                        // never moved: a context points into itself
  std::vector<std::deque<Meeting>> warp_meetings_;  // by warp; one for each mask
  std::vector<Meeting> barriers_;                   // of each block of the cluster
  Meeting cluster_barrier_;
  std::vector<Bytes> shared_;  // of each block of the cluster
  uint64_t first_block_ = 0;
  unsigned cluster_ = 1;
  int threads_ = 0;  // of a block
  std::vector<int> ready_;
  size_t next_ready_ = 0;
  int current_ = 0, fibers_in_use_ = 0;
  std::vector<int> done_;  // threads of each block of the cluster that have ended
  AsyncMemory async_{[this](const std::string& message) { fail(message); }};
  static constexpr int64_t kMostPauses = 100000;
  int64_t pauses_ = 0;
  uint64_t meetings_ = 0, progress_when_idle_ = 0;  // changes when threads arrive anywhere
  bool reverse_ = false, newest_first_ = false, is_broken_ = false;
  std::string error_;
  ucontext_t main_;
  void* main_fake_stack_ = nullptr;
  const void* main_stack_ = nullptr;
  size_t main_stack_bytes_ = 0;
};

template <class... Expected, class... Args>
void run(const Launch& launch, void (*kernel)(Expected...), Args... args) {
  Machine::get().run(launch, [&] { kernel(args...); });
}

template <class T>
T shuffle(unsigned mask, T value, int source, const char* name, int width) {
  static_assert(sizeof(T) <= 8, "one register or two");
  uint64_t word = 0;
  std::memcpy(&word, &value, sizeof(T));
  word = Machine::get().exchange(mask, word, source, name, width, false);
  std::memcpy(&value, &word, sizeof(T));
  return value;
}

// Accesses to words that blocks pass to each other: anything may happen before one of them.
inline unsigned long long load_relaxed(const unsigned long long* from) {
  Machine::get().pause();
  return *from;
}
inline void store_relaxed(unsigned long long* to, unsigned long long word) {
  Machine::get().pause();
  *to = word;
}

inline int lane() {
  const Machine& machine = Machine::get();
  const uint3& t = machine.thread_index();
  return (t.x + machine.block.x * (t.y + machine.block.y * t.z)) % kWarpSize;
}

}  // namespace cuda_shim

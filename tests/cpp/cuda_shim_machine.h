// The machine that cuda_shim.h runs kernels on: fibers, barriers between them, shared memory.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <cstring>
#include <deque>
#include <functional>
#include <string>
#include <vector>

#include "cuda_shim_async.h"
#include "cuda_shim_fiber.h"
#include "cuda_shim_shared.h"

namespace cuda_shim {

constexpr int kWarpSize = 32;

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
  Filling filling = kNaN;  // of shared memory when a block starts, and of what has not arrived
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

// A thread of a block.
struct Fiber {
  Context context;
  uint3 index{};
  bool is_done = true;
  uint64_t value = 0, result = 0;  // of a shuffle
  int source = 0;                  // lane it reads
  ThreadCopies copies;
  uint64_t* awaited = nullptr;  // barrier in shared memory, and
  unsigned parity = 0;          // that of its phase
};

class Machine {
 public:
  static Machine& get() {
    static Machine machine;
    return machine;
  }

  dim3 grid, block;
  int64_t memory_operations = 0;  // atomic ones, and reads past the L1 cache

  const uint3& thread_index() const { return now_->index; }
  uint3 block_index() const {
    const uint64_t at = first_block_ + block_rank();
    return {static_cast<unsigned>(at % grid.x), static_cast<unsigned>(at / grid.x % grid.y),
            static_cast<unsigned>(at / grid.x / grid.y)};
  }
  // In the cluster.
  unsigned block_rank() const { return static_cast<unsigned>(current_ / threads_); }
  unsigned char* shared_memory() { return shared_.of_block(block_rank()); }

  // The same place in the shared memory of another block of the cluster.
  void* in_block(const void* mine, unsigned rank);

  void run(const Launch& launch, const std::function<void()>& kernel);

  // --- functions that kernels call ---

  // `call` is the name of a file, `line` a line in it.
  bool barrier(const char* call, int line, bool predicate = false);
  void cluster_barrier(const char* call, int line) {
    meet(cluster_barrier_, threads_ * static_cast<int>(cluster_), call, line, false);
  }

  // Lets all other threads run before this one goes on, which waits for what another block writes.
  void pause();

  void begin_copy(void* to, const void* from, size_t bytes);
  void commit_copies() { now_->copies.commit(); }
  // Waits for the copies of all commits but the `newest` last ones.
  void end_copies(size_t newest);

  void barrier_init(uint64_t* barrier, unsigned count);
  void fence_barrier_init() { async_.fence_init(); }
  void barrier_arrive(uint64_t* barrier, unsigned expected_bytes);
  void barrier_arrive_remote(uint64_t* barrier, unsigned rank);

  // A wait that is not of cluster scope may not see what other blocks have written.
  bool barrier_try_wait(uint64_t* barrier, unsigned parity, bool is_cluster_scope);

  void bulk_load(void* to, const void* from, size_t bytes, uint64_t* barrier);

  void store_remote(void* to, const void* value, size_t bytes, uint64_t* barrier, unsigned rank);

  // Threads of the warp in `mask` pass a value and receive that of lane `source`; a ballot receives
  // all values.
  uint64_t exchange(unsigned mask, uint64_t value, int source, const char* call, int width,
                    bool ballot);

  [[noreturn]] void fail(const std::string& message);

 private:
  Machine();
  ~Machine();

  bool meet(Meeting& meeting, int wanted, const char* call, int line, bool predicate);
  void check_shared(const void* at, size_t bytes);
  void exit_block();
  int ended() const;
  void wake_arrived();
  bool continue_after_idling();
  Meeting& warp_meeting(unsigned mask);
  static bool is_same(const char* a, const char* b);
  static std::string name_of(const Meeting& meeting);
  void prepare_fibers();
  static void fiber_main();
  void run_cluster();
  int take_ready();
  void make_current(int thread);
  void wake(Meeting& meeting);
  void give_results(unsigned mask, int first_thread, bool ballot);
  void switch_to_next();
  void describe_awaited();
  void leave();

  const std::function<void()>* kernel_ = nullptr;
  std::deque<Fiber> fibers_;                        // never moved
  std::vector<std::deque<Meeting>> warp_meetings_;  // by warp; one for each mask
  std::vector<Meeting> barriers_;                   // of each block of the cluster
  Meeting cluster_barrier_;
  SharedMemory shared_;
  uint64_t first_block_ = 0;
  unsigned cluster_ = 1;
  int threads_ = 0;  // of a block
  std::vector<int> ready_;
  size_t next_ready_ = 0;
  int current_ = 0, fibers_in_use_ = 0;
  Fiber* now_ = nullptr;   // the current one
  std::vector<int> done_;  // threads of each block of the cluster that have ended
  AsyncMemory async_;
  static constexpr int64_t kMostPauses = 100000;
  int64_t pauses_ = 0;
  uint64_t meetings_ = 0, progress_when_idle_ = 0;  // changes when threads arrive anywhere
  Filling filling_ = kNaN;
  bool reverse_ = false, newest_first_ = false, is_broken_ = false;
  std::string error_;
  Context main_;
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

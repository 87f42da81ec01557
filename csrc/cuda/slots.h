// Which counters a call uses. Host code without CUDA.
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>
#include <vector>

namespace alr_fast {

// Numbers of slots, each of which belongs to one call at a time. A call that runs once takes the
// next slot in turn, without a lock, whatever its stream: a slot comes round again after so many
// calls that its last one has run (a stream holds about a thousand launches that wait). A captured
// call may run as long as its graph exists, and keeps its slot until then.
class Slots {
 public:
  static constexpr int kNone = -1;

  Slots(int in_turn, int kept);

  int count() const { return in_turn_ + kept_; }

  // In [0, in_turn).
  int next() { return static_cast<int>(calls_.fetch_add(1, std::memory_order_relaxed) % in_turn_); }

  // In [in_turn, in_turn + kept), or kNone if all are in use.
  int keep();
  void give_back(int slot);  // of keep()

 private:
  const int in_turn_, kept_;
  std::atomic<uint64_t> calls_{0};
  std::mutex mutex_;  // of free_
  std::vector<int> free_;
};

}  // namespace alr_fast

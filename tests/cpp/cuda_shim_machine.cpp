#include "cuda_shim_machine.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

namespace cuda_shim {

Machine::Machine() : async_([this](const std::string& message) { fail(message); }) {}
Machine::~Machine() = default;

void* Machine::in_block(const void* mine, unsigned rank) {
  if (rank >= cluster_) fail("no such block in the cluster");
  if (done_[rank] == threads_) fail("access to the shared memory of a block that has exited");
  return shared_.of_block(rank) + (static_cast<const unsigned char*>(mine) - shared_memory());
}

void Machine::run(const Launch& launch, const std::function<void()>& kernel) {
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
  filling_ = launch.filling;
  async_.start(launch.delivery, launch.filling, launch.seed);
  const uint64_t blocks = uint64_t{grid.x} * grid.y * grid.z;
  if (cluster_ > 1 && (blocks % cluster_ != 0 || threads % kWarpSize != 0))
    throw Error("the grid is not made of whole clusters of whole warps");
  prepare_fibers();
  for (uint64_t n = 0; n < blocks; n += cluster_) {
    first_block_ = launch.reverse_blocks ? blocks - cluster_ - n : n;
    shared_.renew(cluster_, launch.shared_bytes, launch.filling);
    run_cluster();
    if (!error_.empty()) throw Error(error_);
  }
  shared_.free();
}

bool Machine::barrier(const char* call, int line, bool predicate) {
  return meet(barriers_[block_rank()], threads_, call, line, predicate);
}

void Machine::pause() {
  if (++pauses_ > kMostPauses) fail("a thread waits for what no other one writes");
  ready_.insert(newest_first_ ? ready_.begin() + next_ready_ : ready_.end(), current_);
  switch_to_next();
}

void Machine::begin_copy(void* to, const void* from, size_t bytes) {
  if ((reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from)) % bytes != 0)
    fail("misaligned copy to shared memory");
  check_shared(to, bytes);
  now_->copies.begin(to, from, bytes, async_.arrives_at_once(), filling_);
}

void Machine::end_copies(size_t newest) {
  if (!now_->copies.end(newest)) fail("the source of a copy changed before the copy was complete");
}

void Machine::barrier_init(uint64_t* barrier, unsigned count) {
  check_shared(barrier, sizeof(*barrier));
  async_.init(barrier, count);
}

void Machine::barrier_arrive(uint64_t* barrier, unsigned expected_bytes) {
  check_shared(barrier, sizeof(*barrier));
  async_.arrive(barrier, expected_bytes);
  wake_arrived();
}

void Machine::barrier_arrive_remote(uint64_t* barrier, unsigned rank) {
  check_shared(barrier, sizeof(*barrier));
  async_.arrive_remote(static_cast<uint64_t*>(in_block(barrier, rank)), rank != block_rank());
  wake_arrived();
}

bool Machine::barrier_try_wait(uint64_t* barrier, unsigned parity, bool is_cluster_scope) {
  check_shared(barrier, sizeof(*barrier));
  async_.maybe_deliver();
  wake_arrived();
  if (async_.has_completed(barrier, parity, is_cluster_scope)) return true;
  if (async_.is_wakeup_spurious()) return false;
  async_.wait(barrier, current_);
  now_->awaited = barrier;
  now_->parity = parity;
  switch_to_next();
  now_->awaited = nullptr;
  return async_.has_completed(barrier, parity, is_cluster_scope);
}

void Machine::bulk_load(void* to, const void* from, size_t bytes, uint64_t* barrier) {
  check_shared(to, bytes);
  check_shared(barrier, sizeof(*barrier));
  async_.copy(to, from, bytes, barrier);
  wake_arrived();
}

void Machine::store_remote(void* to, const void* value, size_t bytes, uint64_t* barrier,
                           unsigned rank) {
  check_shared(to, bytes);
  check_shared(barrier, sizeof(*barrier));
  async_.store(in_block(to, rank), value, bytes, static_cast<uint64_t*>(in_block(barrier, rank)),
               rank != block_rank());
  wake_arrived();
}

uint64_t Machine::exchange(unsigned mask, uint64_t value, int source, const char* call, int width,
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
  now_->value = value;
  now_->source = source;
  meeting.arrived |= uint64_t{1} << lane;
  if (meeting.arrived == meeting.wanted) {
    meeting.arrived = 0;
    give_results(mask, current_ - lane, ballot);
    wake(meeting);
  } else {
    meeting.waiting.push_back(current_);
    switch_to_next();
  }
  return now_->result;
}

void Machine::fail(const std::string& message) {
  error_ = message + " (block " + std::to_string(block_index().x) + ", thread " +
           std::to_string(current_ % threads_) + ")";
  leave();
  __builtin_unreachable();
}

// `wanted` threads wait for each other.
bool Machine::meet(Meeting& meeting, int wanted, const char* call, int line, bool predicate) {
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
  return now_->result != 0;
}

void Machine::check_shared(const void* at, size_t bytes) {
  if (!shared_.contains(block_rank(), at, bytes))
    fail("a barrier or the target of a copy is out of the bounds of the block's shared memory");
}

// The last thread of a block has ended.
void Machine::exit_block() {
  const unsigned rank = block_rank();
  async_.check_exit([&](const void* at) { return shared_.contains(rank, at, 1); });
}

int Machine::ended() const {
  int count = 0;
  for (int done : done_) count += done;
  return count;
}

void Machine::wake_arrived() {
  const std::vector<int> threads = async_.take_woken();
  for (size_t n = 0; n < threads.size(); ++n)
    ready_.push_back(threads[reverse_ ? threads.size() - 1 - n : n]);
}

// Called when no thread is ready: completes a transfer, or lets all threads at barriers in shared
// memory try again if anything has happened since they last did. Returns whether one is ready.
bool Machine::continue_after_idling() {
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
Meeting& Machine::warp_meeting(unsigned mask) {
  auto& meetings = warp_meetings_[current_ / kWarpSize];
  for (Meeting& meeting : meetings)
    if (meeting.wanted == mask) return meeting;
  meetings.emplace_back();
  meetings.back().wanted = mask;
  return meetings.back();
}

bool Machine::is_same(const char* a, const char* b) { return a == b || std::strcmp(a, b) == 0; }

std::string Machine::name_of(const Meeting& meeting) {
  return std::string(meeting.call) + ":" + std::to_string(meeting.detail);
}

void Machine::prepare_fibers() {
  const int count = threads_ * static_cast<int>(cluster_);
  while (static_cast<int>(fibers_.size()) < count) {
    fibers_.emplace_back();
    fibers_.back().context.start(fiber_main);
  }
  if (is_broken_) {  // unfinished fibers begin anew
    for (Fiber& fiber : fibers_) fiber.context.start(fiber_main);
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
    fibers_[n].awaited = nullptr;
  }
}

void Machine::fiber_main() {
  Machine& machine = get();
  while (true) {
    (*machine.kernel_)();
    if (!machine.fibers_[machine.current_].copies.is_empty())
      machine.fail("the thread ends with copies that it has not waited for");
    machine.fibers_[machine.current_].is_done = true;
    if (++machine.done_[machine.block_rank()] == machine.threads_) machine.exit_block();
    machine.switch_to_next();
  }
}

void Machine::run_cluster() {
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
  make_current(take_ready());
  main_.switch_to(now_->context);
  if (!error_.empty()) is_broken_ = true;
}

int Machine::take_ready() {
  if (!newest_first_) return ready_[next_ready_++];
  const int thread = ready_.back();
  ready_.pop_back();
  return thread;
}

void Machine::make_current(int thread) {
  current_ = thread;
  now_ = &fibers_[thread];
}

// Back to run_cluster.
void Machine::leave() { now_->context.switch_to(main_); }

void Machine::wake(Meeting& meeting) {
  if (next_ready_ > 65536) {
    ready_.erase(ready_.begin(), ready_.begin() + next_ready_);
    next_ready_ = 0;
  }
  const size_t count = meeting.waiting.size();
  for (size_t n = 0; n < count; ++n)
    ready_.push_back(meeting.waiting[reverse_ ? count - 1 - n : n]);
  meeting.waiting.clear();
}

void Machine::give_results(unsigned mask, int first_thread, bool ballot) {
  uint64_t votes = 0;
  for (int lane = 0; lane < kWarpSize; ++lane)
    if (mask >> lane & 1) votes |= uint64_t{fibers_[first_thread + lane].value != 0} << lane;
  for (int lane = 0; lane < kWarpSize; ++lane) {
    if ((mask >> lane & 1) == 0) continue;
    Fiber& fiber = fibers_[first_thread + lane];
    if (!ballot && (mask >> fiber.source & 1) == 0)
      fail("a shuffle reads lane " + std::to_string(fiber.source) + ", which takes no part in it");
    fiber.result = ballot ? votes : fibers_[first_thread + fiber.source].value;
  }
}

// Switches from the current fiber to one that is ready, or to the end of the block.
void Machine::switch_to_next() {
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
  make_current(take_ready());
  if (current_ == from) return;
  fibers_[from].context.switch_to(now_->context);
}

// Adds the barriers in shared memory at which threads wait, each with the first of its threads.
void Machine::describe_awaited() {
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
              std::to_string(at - shared_.of_block(n / threads_)) +
              " of shared memory: " + async_.describe(fiber.awaited);
  }
}

}  // namespace cuda_shim

// Batches in which an index may occur twice: what has to be done, and memory for it. Host code
// without CUDA.
#pragma once

#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>

#include "../alr_params.h"
#include "kernels.h"
#include "launch_plan.h"

namespace alr_fast {

// Bytes of GroupMemory, and how many of them, from the first one, must be 0 before the call.
struct GroupBytes {
  int64_t all = 0, zeroed = 0;
};

// Places the groups in `memory`, which is aligned to 16 bytes; null to get the bytes alone. Throws
// std::invalid_argument for more rows than 32 bits can name.
inline GroupBytes place_groups(const RowLossParams& p, void* memory, GroupMemory* groups) {
  GroupBytes bytes;
  const auto take = [&](int64_t count) {
    const int64_t at = bytes.all;
    bytes.all += (count * static_cast<int64_t>(sizeof(int32_t)) + 15) / 16 * 16;
    return memory == nullptr ? nullptr
                             : reinterpret_cast<int32_t*>(static_cast<char*>(memory) + at);
  };
  if (!needs_groups(p)) return bytes;
  if (p.rows >= std::numeric_limits<int32_t>::max())
    throw std::invalid_argument("rows is " + std::to_string(p.rows) +
                                ": from 2147483647 on every index must occur once, and be promised "
                                "to by unique_index=True");
  if (!finds_groups_in_blocks(p)) {
    int64_t entries = 2;
    while (entries < 2 * p.rows) entries *= 2;  // at least half of them stay free
    groups->claim_mask = static_cast<uint32_t>(entries - 1);
    groups->claims = take(entries);
    groups->num_groups = take(1);
    groups->group_of = take(p.rows);
    bytes.zeroed = bytes.all;
    groups->names = take(p.rows / 2);
  } else {
    groups->group_of = take(p.rows);
  }
  groups->last_row = take(p.rows);
  return bytes;
}

// The launch after the row kernel that stores the last row of each group. It
// computes these rows again, but neither loss nor gradient nor counters of the call.
inline RowLossParams params_of_storing(const RowLossParams& p) {
  RowLossParams storing = p;
  storing.stores_groups = true;
  storing.grad_mode = GradMode::kNone;
  storing.reduction = Reduction::kSum;
  storing.status = nullptr;
  return storing;
}

// Its plan: the same division of a row, so that the same bits come out.
inline LaunchPlan plan_of_storing(const LaunchPlan& plan) {
  LaunchPlan storing = plan;
  const KernelChoice kernel = storing_kernel(plan.vector_width);
  storing.has_extras = kernel.has_extras;
  storing.any_target = kernel.any_target;
  storing.indices_at = -1;
  // The kernels of this launch read rows when their turn comes.
  const RegimeShape& shape = shape_of(plan.regime);
  if (shape.source != Source::kDirect) storing.shared_memory = exchange_bytes(shape);
  return storing;
}

}  // namespace alr_fast

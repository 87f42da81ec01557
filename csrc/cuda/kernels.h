// Which row kernels there are. Host code without CUDA or torch.
//
// A plain kernel knows the types of logits and target rows, and does nothing but train. One with
// extras has statistics, stochastic rounding, no gradient, and the second launch for equal indices
// as options. What is rare shares the kernels of AnyTarget (target.cuh), which have extras, access
// one element at a time, and are told the type of the target rows when they run.
//
//   logits and target rows       16 bytes an access   two elements   one element
//   one type                     plain, extras        plain, extras  plain
//   16 bits with a float32 bank  plain, extras        extras         plain
//   float32 with a 16-bit bank   plain, extras        extras
//   labels                       plain                plain
//   float16 with bfloat16
//
// A regime that always has extras has no plain kernels; its labels have them for 16 bytes.
#pragma once

#include <optional>

#include "../alr_params.h"
#include "launch_table.h"
#include "regimes.h"

namespace alr_fast {

// Types of a batch; no table: labels.
struct RowTypes {
  DType logits;
  std::optional<DType> table;
};

// Whether there is a kernel for these types alone, with accesses of `width` elements.
constexpr bool has_kernel(const RowTypes& types, const RegimeShape& shape, int width,
                          bool has_extras) {
  const bool is_there = has_extras || !shape.always_has_extras();
  if (width == 2 && !shape.has_pairs()) return false;
  if (!types.table) return is_there && width > 1 && (!has_extras || shape.always_has_extras());
  const bool is_one_type = *types.table == types.logits;
  const bool is_common = is_one_type || *types.table == DType::kFloat32;
  if (width == 1) return is_there && is_common && !has_extras;
  if (!is_common && types.logits != DType::kFloat32) return false;
  if (width == 2) return has_extras || is_one_type || has_tiny_finish(shape.regime);
  return is_there;
}

// Whether there is any, plain or with extras.
constexpr bool has_kernels(const RowTypes& types, const RegimeShape& shape, int width) {
  return has_kernel(types, shape, width, false) || has_kernel(types, shape, width, true);
}

struct KernelChoice {
  int width;
  bool has_extras, any_target;  // what the kernel has
};

// The kernel with the widest accesses up to `allowed` elements; `full`: those of 16 bytes.
constexpr KernelChoice choose_kernel(const RowTypes& types, const RegimeShape& shape, int full,
                                     int allowed, bool wants_extras) {
  const int widths[] = {full, 2, 1};
  for (const int width : widths) {
    if (width > allowed) continue;
    if (!wants_extras && has_kernel(types, shape, width, false)) return {width, false, false};
    if (has_kernel(types, shape, width, true)) return {width, true, false};
  }
  return {1, true, true};
}

// The kernel that stores rows with equal indices after that of a choice, whose accesses have the
// same width, so that both compute the same bits.
constexpr KernelChoice storing_kernel(int width) { return {width, true, width == 1}; }

constexpr bool wide_kernels_can_store() {
  constexpr DType kTypes[] = {DType::kFloat32, DType::kFloat16, DType::kBFloat16};
  for (const RegimeShape& shape : kShapes)
    for (const DType logits : kTypes)
      for (const DType table : kTypes)
        for (const int width : {2, 4, 8})
          if (has_kernel({logits, table}, shape, width, false) &&
              !has_kernel({logits, table}, shape, width, true))
            return false;
  return true;
}
static_assert(wide_kernels_can_store(), "storing_kernel relies on it");

}  // namespace alr_fast

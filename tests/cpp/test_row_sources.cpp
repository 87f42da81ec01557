// Tests of the kernels that request rows ahead: their plans, and that nothing is wrong with
// row_source_cases.cpp.
#include <stdexcept>
#include <string>

#include "check.h"
#include "cuda/launch_plan.h"
#include "first_error.h"

namespace {

using namespace alr_fast;

void check_plans() {
  const auto plan = [](Regime regime, int blocks, int64_t classes, DType dtype,
                       const DeviceLimits& limits = {}, bool has_extras = false) {
    return launch_plan(TableEntry{classes, regime, blocks}, 100, classes, dtype, dtype, 16,
                       has_extras, limits);
  };
  const int lines = whole_lines(reduction_bytes(128, false));
  CHECK(plan(Regime::kWarpRing, 1, 1000, DType::kFloat32).shared_memory ==
        lines + 4 * (128 + 2 * 2 * 1024 * 4));
  CHECK(plan(Regime::kWarpStaged, 1, 1000, DType::kBFloat16).shared_memory ==
        lines + 4 * 2 * 2 * 1024 * 2);
  // Rows of single 16-bit elements, and rare kernels, have no stages.
  CHECK(plan(Regime::kWarpStaged, 1, 1001, DType::kBFloat16).shared_memory == lines);
  CHECK(plan(Regime::kWarpRing, 1, 1000, DType::kFloat32, {}, true).shared_memory == lines);
  // Older devices, and shared memory that is too small.
  DeviceLimits limits;
  limits.has_bulk_copies = false;
  CHECK_THROWS(plan(Regime::kWarpRing, 1, 1000, DType::kFloat32, limits), std::invalid_argument,
               "warp_ring with 1 blocks a row does not run on this device");
  plan(Regime::kWarpStaged, 1, 1000, DType::kFloat32, limits);
  limits.shared_memory = 99 * 1024;
  CHECK_THROWS(plan(Regime::kEightWarpsRing, 1, 4096, DType::kFloat32, limits),
               std::invalid_argument, "does not run on this device");
  limits = {};
  limits.cluster_size = 8;
  plan(Regime::kSixteenWarpsRing, 8, 65536, DType::kFloat32, limits);
  CHECK_THROWS(plan(Regime::kSixteenWarpsRing, 16, 131072, DType::kFloat32, limits),
               std::invalid_argument, "does not run on this device");
}

}  // namespace

int main() {
  const std::string wrong = test::first_error();
  CHECK_MESSAGE(wrong.empty(), wrong);
  check_plans();
  return test::finish("row_sources");
}

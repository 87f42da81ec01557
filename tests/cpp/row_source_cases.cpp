// The kernels that request rows ahead (csrc/cuda/row_sources.cuh), whether a launch table names
// them or not: test_row_sources.cpp checks that nothing is wrong with them, and mutants of csrc
// (row_source_mutants.txt) that something is.
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "cuda_backend_row_loss.h"
//
#include "cuda/duplicates.h"
#include "first_error.h"
#include "row_loss_problem.h"

namespace {

using alr_fast::LaunchPlan;
using alr_fast::Regime;
using alr_fast::RegimeShape;
using alr_fast::RowLossParams;
using alr_fast::Source;
using alr_fast::TableEntry;
using cuda_shim::Delivery;

// With the numbers of blocks that are tested. Here those which differ in kind: each takes seconds
// to compile.
constexpr TableEntry kCandidates[] = {
    {alr_fast::kMaxClasses, Regime::kHalfWarpPrefetched, 1},
    {alr_fast::kMaxClasses, Regime::kHalfWarpRing, 1},
    {alr_fast::kMaxClasses, Regime::kWarpStaged, 1},
    {alr_fast::kMaxClasses, Regime::kEightWarpsRing, 1},
    {alr_fast::kMaxClasses, Regime::kEightWarps24Ring, 2},
#if defined(ALR_FAST_ALL_CANDIDATES)
    {alr_fast::kMaxClasses, Regime::kWarpRing, 1},
    {alr_fast::kMaxClasses, Regime::kWarpRing4, 1},
    {alr_fast::kMaxClasses, Regime::kEightWarpsStaged, 1},
    {alr_fast::kMaxClasses, Regime::kEightWarps24Ring, 1},
    {alr_fast::kMaxClasses, Regime::kSixteenWarpsRing, 1},
    {alr_fast::kMaxClasses, Regime::kSixteenWarpsRing, 2},
#endif
};
// Mutants are of float32.
constexpr test::DType kDTypes[] = {
    test::DType::kFloat32,
#if !defined(ALR_FAST_MUTANT)
    test::DType::kBFloat16,
#endif
};
constexpr int kCount = sizeof(kCandidates) / sizeof(TableEntry);

template <class Logits, class Target, int kAt = 0>
void run_candidate(const RowLossParams& params, const LaunchPlan& plan, bool is_counted) {
  if constexpr (kAt == kCount) {
    throw std::logic_error("no candidate");
  } else {
    constexpr Regime kRegime = kCandidates[kAt].regime;
    if (plan.regime != kRegime)
      return run_candidate<Logits, Target, kAt + 1>(params, plan, is_counted);
    constexpr int kFull =
        alr_fast::full_vector_width(sizeof(Logits), sizeof(typename Target::Element));
    const auto launch = test::launcher(params, is_counted);
    if (plan.vector_width == 1) {
      using Traits = alr_fast::RowTraits<Logits, Target, kRegime, 1, false>;
      launch(alr_fast::RowLossKernel<Traits>(), plan);
    } else {
      using Traits = alr_fast::RowTraits<Logits, Target, kRegime, kFull, false>;
      launch(alr_fast::RowLossKernel<Traits>(), plan);
    }
  }
}

template <class T>
void run_row_loss(const TableEntry& entry, const RowLossParams& params) {
  using Table = alr_fast::TableTarget<T>;
  const auto launch = [&](const RowLossParams& params, bool is_counted) {
    const LaunchPlan plan = alr_fast::launch_plan(entry, params);
    if (params.target.table != nullptr) return run_candidate<T, Table>(params, plan, is_counted);
    if constexpr (std::is_same_v<T, float>)
      run_candidate<T, alr_fast::LabelTarget<T>>(params, plan, is_counted);
  };
  const auto store_groups = [](const RowLossParams& params, bool is_counted) {
    const LaunchPlan plan =
        alr_fast::plan_of_storing(alr_fast::launch_plan(alr_fast::kFallback, params));
    alr_fast::dispatch_vector<T, Table, alr_fast::kFallback.regime>(
        plan, test::launcher(params, is_counted));
  };
  test::run_row_loss_by(params, launch, store_groups);
}

// The first error found, or nothing.
std::string wrong_in(const TableEntry& entry, test::Problem& problem) {
  const std::string where = std::string(alr_fast::shape_of(entry.regime).name) + " of " +
                            std::to_string(entry.blocks_per_row) + " blocks, " +
                            problem.facts().describe() + ": ";
  try {
    problem.reset_outputs();
    problem.row_loss_is_scratch = problem.facts().reduction != test::Reduction::kNone;
    if (problem.facts().logits == test::DType::kFloat32)
      run_row_loss<float>(entry, problem.params());
#if !defined(ALR_FAST_MUTANT)
    else
      run_row_loss<__nv_bfloat16>(entry, problem.params());
#endif
  } catch (const cuda_shim::Error& error) {
    return where + error.what();
  }
  const std::string wrong = problem.compare();
  return wrong.empty() ? "" : where + wrong;
}

// Orders of threads and blocks, times of delivery, and what is there before.
void vary(unsigned number) {
  test::variation = {};
  test::variation.reverse_threads = number % 2 == 0;
  test::variation.reverse_blocks = number / 2 % 2 == 0;
  test::variation.newest_first = number / 2 % 3 == 0;
  test::variation.delivery = number % 3 == 0   ? Delivery::kEarliest
                             : number % 3 == 1 ? Delivery::kLatest
                                               : Delivery::kRandom;
  test::variation.seed = number;
  test::variation.filling = number / 3 % 2 == 0 ? cuda_shim::kNaN : cuda_shim::kLarge;
}

// Every special row, rows at any alignment, and a few rows in flight.
std::string wrong_in_special_rows(const TableEntry& entry, test::DType dtype) {
  static unsigned number = 0;
  const int64_t columns =
      alr_fast::shape_of(entry.regime).columns() * int64_t{entry.blocks_per_row};
  const bool is_large = alr_fast::shape_of(entry.regime).warps > 1;
  for (int64_t classes : {columns / 4 * 3 + 8, columns, columns - 1, int64_t{16}, int64_t{9}}) {
    for (int layout = 0; layout < 3; ++layout) {
      ++number;
      if (is_large && number % 3 != 0) continue;  // slow
      test::Case facts;
      facts.logits = facts.table = dtype;
      facts.classes = classes;
      facts.rows = is_large ? 7 : 14;
      facts.seed = number;
      facts.off_target = 0.2 / static_cast<double>(classes);
      facts.features = test::kIgnored | test::kDuplicates | test::kNonFinite | test::kMasked |
                       test::kOutOfRange | test::kFarApart;
      if (number % 2 == 0) facts.features |= test::kLabelled | test::kWrongLabel;
      facts.has_table = dtype != test::DType::kFloat32 || number % 5 != 0;
      facts.misalignment = layout == 1 ? 1 + static_cast<int>(number % 7) : 0;
      facts.logits_padding = layout == 2 ? 3 : 0;
      facts.table_padding = layout == 2 ? 16 : 0;
      facts.reduction = static_cast<test::Reduction>(number % 3);
      facts.grad_mode = number % 2 == 0 ? test::GradMode::kFinal : test::GradMode::kPerRow;
      facts.has_weights = number % 3 != 0;
      test::Problem problem(facts);
      vary(number);
      test::variation.resident_rows = number % 4 == 0 ? 100 : 1 + number % 2;
      const std::string wrong = wrong_in(entry, problem);
      if (!wrong.empty()) return wrong;
    }
  }
  return "";
}

// So many rows that the facts of later ones are fetched while others are in flight; runs of rows
// without a target; with the pre-pass and without.
std::string wrong_in_many_rows(const TableEntry& entry, test::DType dtype) {
  static unsigned number = 0;
  const RegimeShape& shape = alr_fast::shape_of(entry.regime);
  const int64_t groups = shape.threads / (shape.lanes * shape.warps);
  // Whole vectors and single elements, in more than one warp if a row has several.
  for (int64_t classes : {shape.warps > 1 ? 264 : 8, shape.warps > 1 ? 265 : 9}) {
    for (int64_t in_turn : {1, shape.stages + 1, 2 * shape.lanes + 5}) {
      ++number;
      test::Case facts;
      facts.logits = facts.table = dtype;
      facts.classes = classes;
      facts.rows = in_turn * groups * 2 - 1;  // of two blocks
      facts.features = test::kMasked | test::kNonFinite;
      facts.seed = number;
      facts.has_weights = true;
      test::Problem problem(facts);
      std::vector<int64_t> index = problem.index;
      for (int64_t b = 0; b < facts.rows; ++b) {
        const int64_t turn = b / (2 * groups);
        if (b % 7 == 3 || turn % 25 > 15) index[b] = b % 5 == 0 ? problem.table_rows : -1;
        if (b % 13 == 2 && number % 2 == 0) index[b] = 1;
      }
      problem.set_index(index);
      if (shape.warps > 1 && (classes % 8 == 0 || entry.blocks_per_row > 1) &&
          in_turn > shape.lanes)
        continue;  // slow
      for (unsigned n = 0; n < 3; ++n) {
        problem.keep_table();
        vary(6 * number + n);
        test::variation.resident_rows = 2;
        const std::string wrong = wrong_in(entry, problem);
        if (!wrong.empty()) return wrong;
      }
    }
  }
  return "";
}

#if defined(ALR_FAST_ALL_CANDIDATES)
// The largest cluster, in which some blocks have no columns: thousands of threads, few rows.
std::string wrong_in_large_cluster() {
  test::Case facts;
  facts.rows = 5;
  facts.features = test::kDuplicates | test::kIgnored;
  for (int64_t classes : {1500, 8999}) {
    facts.classes = classes;
    test::Problem problem(facts);
    vary(static_cast<unsigned>(classes));
    test::variation.resident_rows = 1;
    const std::string wrong =
        wrong_in({alr_fast::kMaxClasses, Regime::kSixteenWarpsRing, 16}, problem);
    if (!wrong.empty()) return wrong;
  }
  return "";
}
#endif

}  // namespace

// The kernels of the launch table are not compiled here.
void test::run_row_loss_float32(const RowLossParams&, const LaunchPlan&, bool) {
  throw std::logic_error("not compiled here");
}

std::string test::first_error() {
  for (const test::DType dtype : kDTypes) {
    for (const TableEntry& entry : kCandidates) {
      std::string wrong = wrong_in_special_rows(entry, dtype);
      if (wrong.empty()) wrong = wrong_in_many_rows(entry, dtype);
      if (!wrong.empty()) return wrong;
    }
  }
#if defined(ALR_FAST_ALL_CANDIDATES)
  return wrong_in_large_cluster();
#else
  return "";
#endif
}

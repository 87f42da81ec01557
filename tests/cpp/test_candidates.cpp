// Candidates for the launch table (csrc/cuda/tournament), run on the CPU by cuda_shim.h: a few
// regimes, each with all widths and arithmetics.
#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

#include "check.h"
#include "cuda_backend_row_loss.h"
//
#include "cuda/tournament/candidates.cuh"
#include "row_loss_problem.h"

test::Variation test::variation;

namespace {

using alr_fast::Arithmetic;
using alr_fast::Regime;
using alr_fast::TableEntry;

TableEntry candidate(Regime regime, int blocks) {
  for (const TableEntry& entry : alr_fast::candidates())
    if (entry.regime == regime && entry.blocks_per_row == blocks) return entry;
  return {};
}

template <class Element, Regime kRegime, Arithmetic kArithmetic,
          alr_fast::Finish kFinish = alr_fast::Finish::kArrivals>
void run(test::Problem& problem, int blocks) {
  problem.reset_outputs();
  problem.row_loss_is_scratch = true;
  alr_fast::RowLossParams& params = problem.params();
  alr_fast::CallCounters counters = {0, 0};
  params.counters = &counters;
  alr_fast::LaunchPlan plan = alr_fast::launch_plan(candidate(kRegime, blocks), params);
  std::vector<unsigned long long> words(2 * alr_fast::kMaxPolledBlocks);
  params.polled_words = words.data();
  CHECK(alr_fast::set_finish(plan, kFinish, params));
  test::variation = {true,    false, false, kFinish == alr_fast::Finish::kArrivals ? 2 : 16,
                     1 << 20, {}};
  alr_fast::dispatch_candidate_width<Element, kRegime, kArithmetic, kFinish>(
      plan, test::launcher(params, false));
  CHECK(counters.arrived == 0);
}

bool is_copy(const test::Problem& problem) {
  const test::Case& facts = problem.facts();
  for (int64_t k = 0; k < facts.rows * facts.classes; ++k)
    if (problem.grad.get(k) != problem.logits.get(k)) return false;
  for (int64_t b = 0; b < facts.rows; ++b)
    for (int64_t k = 0; k < facts.classes; ++k)
      if (problem.table.get(problem.index[b] * facts.classes + k) != problem.target(b, k))
        return false;
  return true;
}

template <class Element, Regime kRegime>
void check_candidate(int blocks, int64_t classes) {
  for (const int64_t columns : {classes, classes - 2, classes - 1}) {  // all widths
    test::Case facts;
    facts.logits = facts.table =
        sizeof(Element) == 2 ? test::DType::kBFloat16 : test::DType::kFloat32;
    facts.rows = 9;
    facts.classes = columns;
    facts.unique_index = true;
    facts.grad_mode = test::GradMode::kPerRow;
    facts.stored_scale = 1.0 / static_cast<double>(facts.rows);
    const std::string what = facts.describe() + ", " + alr_fast::shape_of(kRegime).name;
    test::Problem copied(facts);
    run<Element, kRegime, Arithmetic::kCopy>(copied, blocks);
    CHECK_MESSAGE(is_copy(copied), what + ": not a copy");
    facts.features = test::kIgnored | test::kNonFinite | test::kMasked;
    test::Problem whole(facts), plain(facts);
    run<Element, kRegime, Arithmetic::kWhole>(whole, blocks);
    CHECK_MESSAGE(whole.compare().empty(), what + ": " + whole.compare());
    CHECK(!is_copy(whole));
    run<Element, kRegime, Arithmetic::kPlainExponential>(plain, blocks);
    CHECK_MESSAGE(plain.compare().empty(), what + ", plain: " + plain.compare());
    if constexpr (alr_fast::has_candidate(kRegime, alr_fast::Finish::kPolled)) {
      test::Problem polled(facts);
      run<Element, kRegime, Arithmetic::kWhole, alr_fast::Finish::kPolled>(polled, blocks);
      CHECK_MESSAGE(polled.compare().empty(), what + ", polled: " + polled.compare());
    }
    if (sizeof(Element) == 4) CHECK(plain.grad.bytes() != whole.grad.bytes());
  }
}

void check_list() {
  const auto all = alr_fast::candidates();
  CHECK(all.front().regime == Regime::kSubWarp && all.front().max_classes == 32);
  CHECK(std::none_of(all.begin(), all.end(),
                     [](const TableEntry& entry) { return entry.regime == Regime::kLoop; }));
  for (const TableEntry& entry : all) {
    const auto plan = [&](int64_t classes) {
      return alr_fast::launch_plan(entry, 64, classes, test::DType::kFloat32, test::DType::kFloat32,
                                   alr_fast::kAccessBytes, false);
    };
    CHECK(plan(entry.max_classes).regime == entry.regime);
    CHECK(plan(entry.max_classes).blocks_per_row == entry.blocks_per_row);
    if (entry.max_classes < alr_fast::kMaxClasses)
      CHECK_THROWS(plan(entry.max_classes + 1), std::invalid_argument, "holds no row of that size");
  }
  CHECK(candidate(Regime::kEightWarps24, 4).max_classes == 24576);
  CHECK_THROWS(alr_fast::launch_plan(TableEntry{1024, Regime::kTwoWarps, 2}, 64, 1000,
                                     test::DType::kFloat32, test::DType::kFloat32, 4, false),
               std::invalid_argument, "two_warps with 2 blocks a row");
}

}  // namespace

int main() {
  check_list();
  check_candidate<float, Regime::kHalfWarp>(1, 124);  // the only one here with pairs
  check_candidate<float, Regime::kHalfWarp16>(1, 252);
  check_candidate<__nv_bfloat16, Regime::kWarpStaged>(1, 1000);
  check_candidate<float, Regime::kEightWarpsRing>(1, 4000);
#if defined(ALR_FAST_ALL_CANDIDATES)
  check_candidate<__nv_bfloat16, Regime::kWarp32>(1, 1000);
  check_candidate<float, Regime::kFourWarps32>(1, 4000);
  check_candidate<float, Regime::kEightWarps24>(4, 21840);
  check_candidate<float, Regime::kHalfWarpPrefetched>(1, 252);
#endif
  return test::finish("candidates");
}

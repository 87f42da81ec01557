// Batches that are finished in all ways of csrc/cuda/finish.cuh: test_finish.cpp checks that
// nothing is wrong with them, and mutants of csrc (finish_mutants.txt) that something is.
#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "cuda_backend_row_loss.h"
//
#include "first_error.h"
#include "row_loss_problem.h"

namespace {

using alr_fast::Finish;
using alr_fast::Regime;
using test::Case;
using test::GradMode;
using test::Problem;
using test::Reduction;

template <Regime kRegime, int kVector, class Launch>
void dispatch_finish(const alr_fast::LaunchPlan& plan, const Launch& launch) {
  using Target = alr_fast::TableTarget<float>;
  using Traits = alr_fast::RowTraits<float, Target, kRegime, kVector, false>;
  if (plan.vector_width != kVector) throw std::logic_error("not compiled here");
  if (plan.has_extras) {  // the launch that stores groups
    using Storing = std::conditional_t<kVector == 1, alr_fast::AnyTarget, Target>;
    launch(alr_fast::RowLossKernel<alr_fast::RowTraits<float, Storing, kRegime, kVector, true>>(),
           plan);
  } else if (plan.finish == Finish::kCluster) {
    launch(alr_fast::RowLossKernel<alr_fast::FinishedBy<Traits, Finish::kCluster>>(), plan);
  } else if (plan.finish == Finish::kPolled) {
    launch(alr_fast::RowLossKernel<alr_fast::FinishedBy<Traits, Finish::kPolled>>(), plan);
  } else {
    launch(alr_fast::RowLossKernel<Traits>(), plan);
  }
}

// Sizes with a kernel here: fewer than a warp, a warp and a block of threads to a row.
constexpr int64_t kClasses[] = {9, 96, 300};

// The most rows that one cluster takes.
int64_t most_rows_of_cluster(int64_t classes) {
  return classes == 9 ? 256 : classes == 96 ? 128 : 16;
}

const char* name_of(Finish finish) {
  return finish == Finish::kArrivals  ? "arrivals"
         : finish == Finish::kCluster ? "cluster"
                                      : "polled";
}

struct Order {
  bool reverse_threads, reverse_blocks, newest_first;
};
constexpr Order kOrders[] = {{false, false, false}, {true, false, false}, {false, true, false},
                             {true, true, false},   {false, false, true}, {true, true, true}};

void set_order(const Order& order, Finish finish) {
  test::variation = {order.reverse_threads,
                     order.reverse_blocks,
                     order.newest_first,
                     1 << 20,
                     1 << 20,
                     {},
                     finish};
}

// Runs the problem in all orders; describes the first error. Every order and way gives the same
// loss, kept in `loss`, NaN before the first run.
std::string wrong_in(const Case& facts, Finish finish, int resident_rows, float* loss) {
  for (const Order& order : kOrders) {
    set_order(order, finish);
    test::variation.resident_rows = resident_rows;
    Problem run(facts);
    run.reset_outputs();
    run.row_loss_is_scratch = run.facts().reduction != Reduction::kNone;
    std::string wrong;
    try {
      test::run_row_loss(run.params());
      wrong = run.compare();
    } catch (const cuda_shim::Error& error) {
      wrong = error.what();
    }
    const float now = static_cast<float>(run.loss.get(0));
    if (wrong.empty() && *loss == *loss && now != *loss &&
        run.facts().reduction != Reduction::kNone)
      wrong = "the loss depends on the order of threads or on the way to add it";
    if (!wrong.empty())
      return std::string(name_of(finish)) + ", " + run.facts().describe() + ": " + wrong;
    *loss = now;
  }
  return "";
}

Case facts_of(int64_t rows, int64_t classes, unsigned number) {
  Case facts;
  facts.rows = rows;
  facts.classes = classes;
  facts.seed = number;
  facts.reduction = number % 3 == 0 ? Reduction::kSum : Reduction::kMean;
  facts.grad_mode = number % 2 == 0 ? GradMode::kPerRow : GradMode::kFinal;
  facts.unique_index = number % 4 < 2;
  facts.features = test::kIgnored | (facts.unique_index ? 0u : unsigned{test::kDuplicates});
  facts.has_weights = number % 5 == 0;
  return facts;
}

std::string wrong_in_batches() {
  unsigned number = 0;
  for (int64_t classes : kClasses) {
    for (int64_t rows : {1, 5, 16, 17, 100, 256}) {
      if (rows > most_rows_of_cluster(classes) && rows > 17) continue;
      for (int variant = 0; variant < (rows < 100 ? 3 : 1); ++variant) {
        const Case facts = facts_of(rows, classes, ++number);
        float loss = std::numeric_limits<float>::quiet_NaN();
        for (Finish finish : {Finish::kArrivals, Finish::kCluster, Finish::kPolled}) {
          if (finish == Finish::kCluster && rows > most_rows_of_cluster(classes)) continue;
          const std::string wrong = wrong_in(facts, finish, 1 << 20, &loss);
          if (!wrong.empty()) return wrong;
        }
      }
    }
    // Several rows to each block, one after the other.
    const Case facts = facts_of(100, classes, ++number);
    for (Finish finish : {Finish::kArrivals, Finish::kPolled}) {
      float loss = std::numeric_limits<float>::quiet_NaN();
      const std::string wrong = wrong_in(facts, finish, 3, &loss);
      if (!wrong.empty()) return wrong;
    }
  }
  return "";
}

// A loss that is not finite, or not reduced.
std::string wrong_in_special_batches() {
  for (int64_t classes : kClasses) {
    for (Finish finish : {Finish::kArrivals, Finish::kCluster, Finish::kPolled}) {
      Case facts = facts_of(14, classes, 2);
      facts.features |= test::kNonFinite | test::kOutOfRange | test::kMasked;
      float loss = std::numeric_limits<float>::quiet_NaN();
      std::string wrong = wrong_in(facts, finish, 1 << 20, &loss);
      if (!wrong.empty()) return wrong;
      if (finish != Finish::kArrivals) continue;
      facts.reduction = Reduction::kNone;
      wrong = wrong_in(facts, finish, 1 << 20, &loss);
      if (!wrong.empty()) return wrong;
    }
  }
  return "";
}

// Where no row is ignored, the factor that is left to the backward pass is 1, and the mean is that
// of the row's losses to one unit in the last place. All rows ignored: nothing is divided.
std::string wrong_in_exactness() {
  for (int64_t rows = 1; rows <= 256; rows += rows < 60 ? 1 : 49) {
    for (Finish finish : {Finish::kArrivals, Finish::kCluster, Finish::kPolled}) {
      Case facts;
      facts.rows = rows;
      facts.classes = 9;
      facts.grad_mode = GradMode::kPerRow;
      facts.stored_scale = 1.0 / static_cast<double>(rows);
      facts.unique_index = true;
      Problem problem(facts);
      set_order(kOrders[rows % 6], finish);
      test::run_row_loss(problem.params());
      const std::string what = std::string(name_of(finish)) + ", B=" + std::to_string(rows) + ": ";
      if (problem.grad_scale.get(0) != 1) return what + "grad_scale is not 1";
      const auto loss = static_cast<float>(problem.loss.get(0));
      facts.reduction = Reduction::kNone;
      Problem unreduced(facts);
      set_order(kOrders[0], Finish::kArrivals);
      test::run_row_loss(unreduced.params());
      double sum = 0;
      for (int64_t b = 0; b < rows; ++b) sum += unreduced.row_loss.get(b);
      const auto mean = static_cast<float>(sum / static_cast<double>(rows));
      if (loss != mean && loss != std::nextafter(mean, 2 * loss - mean))
        return what + "the loss is off by more than one unit in the last place";
      if (rows > 20) continue;
      facts.reduction = Reduction::kMean;
      Problem ignored(facts);
      ignored.set_index(std::vector<int64_t>(rows, -1));
      set_order(kOrders[rows % 6], finish);
      test::run_row_loss(ignored.params());
      if (ignored.loss.get(0) != 0 || ignored.grad_scale.get(0) != static_cast<double>(rows))
        return what + "all rows ignored: loss " + std::to_string(ignored.loss.get(0)) +
               ", grad_scale " + std::to_string(ignored.grad_scale.get(0));
    }
  }
  return "";
}

}  // namespace

void test::run_row_loss_float32(const alr_fast::RowLossParams& params,
                                const alr_fast::LaunchPlan& plan, bool is_counted) {
  const auto launch = launcher(params, is_counted);
  if (plan.regime == Regime::kSubWarp) return dispatch_finish<Regime::kSubWarp, 1>(plan, launch);
  if (plan.regime == Regime::kHalfWarp) return dispatch_finish<Regime::kHalfWarp, 4>(plan, launch);
  if (plan.regime == Regime::kTwoWarps) return dispatch_finish<Regime::kTwoWarps, 4>(plan, launch);
  throw std::logic_error("not compiled here");
}

std::string test::first_error() {
  for (const auto& check : {wrong_in_exactness, wrong_in_batches, wrong_in_special_batches}) {
    std::string wrong;
    try {
      wrong = check();
    } catch (const cuda_shim::Error& error) {
      wrong = error.what();
    }
    if (!wrong.empty()) return wrong;
  }
  return "";
}

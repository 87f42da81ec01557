// Tests of the ways to finish a batch: their plans, and that nothing is wrong with
// finish_cases.cpp.
#include <string>

#include "check.h"
#include "cuda/launch_plan.h"
#include "first_error.h"
#include "row_loss_problem.h"

namespace {

using namespace alr_fast;

// Batches and devices that do not allow a way leave the plan as it is.
void check_plans() {
  test::Case facts;
  facts.rows = 256;
  facts.classes = 9;
  facts.unique_index = true;
  test::Problem problem(facts);
  RowLossParams& p = problem.params();
  const LaunchPlan plan = launch_plan(p);
  LaunchPlan cluster = plan;
  CHECK(set_finish(cluster, Finish::kCluster, p));
  CHECK(cluster.cluster_size() == 16 && cluster.partials_at == plan.shared_memory);
  CHECK(cluster.shared_memory == plan.shared_memory + kClusterFinishBytes);
  CHECK(!set_finish(cluster, Finish::kArrivals, p));
  const auto refuses = [](LaunchPlan plan, Finish finish, const RowLossParams& p,
                          DeviceLimits limits = {}) {
    return !set_finish(plan, finish, p, limits) && plan.finish == Finish::kArrivals &&
           plan.partials_at == -1;
  };
  CHECK(plan.cluster_size() == 1);
  CHECK(refuses(plan, Finish::kCluster, p, {8}));
  CHECK(refuses(plan, Finish::kPolled, p));  // no words
  unsigned long long words[1] = {};
  p.polled_words = words;
  CHECK(!refuses(plan, Finish::kPolled, p));
  LaunchPlan large = plan;
  large.blocks = kMaxPolledBlocks + 1;
  CHECK(refuses(large, Finish::kPolled, p));
  large.blocks = 17;
  CHECK(refuses(large, Finish::kCluster, p));
  large.blocks_per_row = 2;
  CHECK(refuses(large, Finish::kPolled, p));
  p.reduction = Reduction::kNone;
  CHECK(refuses(plan, Finish::kCluster, p));
  p.reduction = Reduction::kMean;
  p.stores_groups = true;
  CHECK(refuses(plan, Finish::kCluster, p));
  p.stores_groups = false;
  LaunchPlan extras = plan;
  extras.has_extras = true;
  CHECK(refuses(extras, Finish::kPolled, p));
}

}  // namespace

int main() {
  const std::string wrong = test::first_error();
  CHECK_MESSAGE(wrong.empty(), wrong);
  check_plans();
  return test::finish("finish");
}

// The cases of mutant_kernels.cpp.
#include "mutant_cases.h"

#include <string>
#include <vector>

#include "cuda_backend.h"
#include "cuda_shim_machine.h"
#include "row_loss_problem.h"

namespace {

// The first error found, or nothing.
std::string wrong_in(const test::Case& facts) {
  try {
    test::Problem problem(facts);
    problem.reset_outputs();
    problem.row_loss_is_scratch = facts.reduction != test::Reduction::kNone;
    test::run_row_loss(problem.params());
    if (facts.is_stochastic && problem.rounding_state[1] != 8) return "the random state stays";
    return problem.compare();
  } catch (const cuda_shim::Error& error) {
    return error.what();
  }
}

// Many equal indices, in batches with and without the pre-pass.
std::string wrong_in_many_rows() {
  for (int64_t rows : {200, 2100}) {
    test::Case facts;
    facts.rows = rows;
    facts.classes = 3;
    facts.features = test::kIgnored | test::kNonFinite;
    facts.has_stats = true;
    test::Problem problem(facts);
    // Pairs, among them (5, 6), of which the last is not valid, and (7, 8), of which none is.
    std::vector<int64_t> index = problem.index;
    for (int64_t b = 0; b < rows; ++b)
      if (index[b] >= 0) index[b] = (b + 1) / 2;
    problem.set_index(index);
    problem.reset_outputs();
    problem.row_loss_is_scratch = true;
    test::variation = {false, false, false, 60, 1 << 20, {}};
    int64_t& operations = cuda_shim::Machine::get().memory_operations = 0;
    try {
      test::run_row_loss(problem.params());
    } catch (const cuda_shim::Error& error) {
      return error.what();
    }
    const std::string wrong = problem.compare();
    if (!wrong.empty()) return facts.describe() + ": " + wrong;
    if (operations > 20 * rows) return std::to_string(operations) + " memory operations";
  }
  return "";
}

}  // namespace

std::string test::wrong_in_row_losses() {
  unsigned number = 0;
  // Threads of a warp, of a block, and of a cluster that share a row; the last for a device without
  // clusters. The first has whole vectors and single elements, so that accesses of the wrong width
  // have a kernel.
  for (int64_t classes : {300, 9, 37, 8301, 16401}) {
    ++number;
    for (int misalignment : {0, 1}) {
      test::Case facts;
      facts.classes = misalignment == 0 ? classes : (classes + 3) / 4 * 4;
      facts.rows = classes > 2000 && misalignment != 0 ? 3 : 14;
      facts.features = test::kIgnored | test::kDuplicates | test::kMasked;
      if (number % 2 == 1) facts.features |= test::kLabelled | test::kWrongLabel;
      if (number % 2 == 0) facts.features |= test::kFarApart;
      facts.misalignment = misalignment;
      facts.reduction = misalignment == 0 ? test::Reduction::kMean : test::Reduction::kNone;
      facts.has_weights = facts.has_stats = true;
      facts.is_stochastic = true;  // float32 rows are not rounded, but the state advances
      test::variation = {number % 2 == 0, misalignment == 0, number % 3 == 0, 2, 256, {}};
      if (number > 4) test::variation.limits = {1};
      const std::string wrong = wrong_in(facts);
      if (!wrong.empty()) return facts.describe() + ": " + wrong;
    }
  }
  test::Case lowest;  // logits below what is loaded beyond the end of a row
  lowest.classes = 37;
  lowest.offset = -2e38;
  test::Case far_apart;  // the first and the last logit, in one thread
  far_apart.classes = 257;
  far_apart.features = test::kFarApart;
  for (const test::Case& facts : {lowest, far_apart}) {
    test::variation = {};
    const std::string wrong = wrong_in(facts);
    if (!wrong.empty()) return facts.describe() + ": " + wrong;
  }
  return wrong_in_many_rows();
}

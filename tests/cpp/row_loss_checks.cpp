#include "row_loss_checks.h"

#include <cmath>
#include <string>

#include "check.h"
#include "row_loss_problem.h"
#include "storage.h"

namespace test {
namespace {

constexpr DType kDTypes[] = {DType::kFloat32, DType::kFloat16, DType::kBFloat16};
constexpr unsigned kAllFeatures =
    kIgnored | kDuplicates | kNonFinite | kMasked | kLabelled | kFarApart;

void run(const Backend& backend, Problem& problem) {
  problem.reset_outputs();
  problem.row_loss_is_scratch = backend.is_cuda && problem.params().reduction != Reduction::kNone;
  backend.row_loss(problem.params());
}

void check(const Backend& backend, const Case& facts) {
  Problem problem(facts);
  run(backend, problem);
  const std::string wrong = problem.compare();
  CHECK_MESSAGE(wrong.empty(), std::string(backend.name) + ": " + facts.describe() + ": " + wrong);
}

unsigned features_of(const Backend& backend) {
  return backend.is_cuda ? kAllFeatures | kOutOfRange | kWrongLabel : kAllFeatures;
}

// Options that the loops do not vary are derived from a running number.
Case varied(Case facts, unsigned number) {
  facts.seed = number;
  facts.off_target = 0.2 / static_cast<double>(facts.classes);
  facts.reduction = static_cast<Reduction>(number % 3);
  facts.grad_mode = static_cast<GradMode>(number / 3 % 3);
  facts.stored_scale = number % 2 == 0 ? 1 : 1024;
  facts.has_weights = number / 2 % 2 == 0;
  facts.has_stats = number / 4 % 2 == 0;
  if (number % 3 == 0) facts.features &= ~unsigned{kLabelled | kWrongLabel};
  facts.index_is_int64 = number % 5 != 0;
  facts.logits_padding = number / 8 % 2 == 0 ? 0 : 4;
  facts.table_padding = number / 16 % 2 == 0 ? 0 : 8;
  facts.scale = number % 7 == 0 ? 10 : 2;
  facts.is_stochastic = facts.has_table && number % 4 == 3;
  return facts;
}

}  // namespace

void check_sizes(const Backend& backend) {
  unsigned number = 1;
  for (int64_t classes : backend.classes) {
    for (DType logits : kDTypes) {
      for (int table = 0; table < 4; ++table) {
        Case facts;
        facts.logits = logits;
        facts.has_table = table < 3;
        facts.table = kDTypes[table % 3];
        facts.classes = classes;
        facts.features = features_of(backend);
        // Large rows are slow: fewer of them.
        facts.rows = classes > 65536                     ? 2
                     : classes > 8192                    ? 4
                     : classes > 2048 && number % 3 != 0 ? 7
                                                         : 14;
        check(backend, varied(facts, ++number));
      }
    }
  }
  if (backend.is_cuda) return;
  for (int64_t classes : backend.classes) {
    for (int table = 0; table < 4; ++table) {
      Case facts;
      facts.logits = DType::kFloat64;
      facts.has_table = table < 3;
      facts.table = kDTypes[table % 3];
      facts.classes = classes;
      facts.features = kAllFeatures;
      check(backend, varied(facts, ++number));
    }
  }
}

void check_options(const Backend& backend) {
  const int64_t some_classes[] = {10, 12, 100, 101, 1000, 2052};
  unsigned seed = 1000;
  for (int64_t classes : some_classes) {
    Case base;
    base.classes = classes;
    base.features = features_of(backend);
    base.seed = ++seed;

    for (Reduction reduction : {Reduction::kNone, Reduction::kMean, Reduction::kSum}) {
      for (GradMode mode : {GradMode::kNone, GradMode::kPerRow, GradMode::kFinal}) {
        for (bool has_weights : {false, true}) {
          Case facts = base;
          facts.reduction = reduction;
          facts.grad_mode = mode;
          facts.stored_scale = 256;
          facts.has_weights = has_weights;
          facts.has_stats = has_weights;
          check(backend, facts);
          facts.logits = DType::kFloat16;
          check(backend, facts);
        }
      }
    }
    for (int misalignment :
         {1, 2, 3}) {  // rows with a vector's stride that start off its alignment
      for (DType dtype : kDTypes) {
        Case facts = base;
        facts.misalignment = misalignment;
        facts.logits = facts.table = dtype;
        check(backend, facts);
      }
    }
    for (int padding : {1, 4, 5}) {
      Case facts = base;
      facts.logits_padding = padding;
      facts.table_padding = 5 - padding;
      facts.index_stride = padding;
      facts.index_is_int64 = padding != 4;
      check(backend, facts);
    }
    for (double momentum : {0.0, 0.5, 1.0}) {
      Case facts = base;
      facts.momentum = momentum;
      facts.entropy_weight = momentum;  // 0 and 1 included
      facts.has_stats = true;
      check(backend, facts);
      facts.update = false;
      check(backend, facts);
    }
    for (bool has_index : {false, true}) {
      Case facts = base;
      facts.features &= ~unsigned{kDuplicates};
      if (!has_index) facts.features &= ~unsigned{kIgnored | kOutOfRange};
      facts.has_index = has_index;
      facts.unique_index = true;
      facts.has_stats = true;
      check(backend, facts);
      facts.offset = 1e4;  // costs accuracy only if logits are not taken relative to their maximum
      check(backend, facts);
    }
    for (double off_target : {0.0, -0.05}) {
      Case facts = base;
      facts.has_table = false;
      facts.on_target = 1 - off_target;
      facts.off_target = off_target;
      facts.has_stats = true;
      check(backend, facts);
    }
    for (int64_t rows : {1, 2, 40}) {
      Case facts = base;
      facts.rows = rows;
      check(backend, facts);
    }
    Case ignored = base;  // no valid row: the mean is 0
    ignored.rows = 2;
    for (GradMode mode : {GradMode::kPerRow, GradMode::kFinal}) {
      ignored.grad_mode = mode;
      Problem problem(ignored);
      problem.index = {-1, -5};
      const int64_t index[] = {-1, -5};
      problem.params().index.data = index;
      run(backend, problem);
      CHECK_MESSAGE(problem.compare().empty(), problem.compare());
      CHECK(problem.loss.get(0) == 0 && problem.grad.get(0) == 0);
    }
  }
  // Nothing is left to the backward pass where no row is ignored: 1 exactly, although 1 / rows is
  // rounded.
  for (int64_t rows : {3, 41, 47, 49, 55, 61}) {
    Case facts;
    facts.rows = rows;
    facts.grad_mode = GradMode::kPerRow;
    facts.stored_scale = 1.0 / static_cast<double>(rows);
    Problem problem(facts);
    run(backend, problem);
    CHECK(problem.grad_scale.get(0) == 1);
  }
}

void check_mutants(const Backend& backend) {
  for (int64_t classes : {10, 12, 50, 257, 1000, 3001, 8300}) {
    Case facts;
    facts.classes = classes;
    facts.features = kIgnored;
    facts.has_weights = true;
    const auto fails = [&](Mutant mutant, const char* what) {
      Problem problem(facts);
      run(backend, problem);
      CHECK_MESSAGE(problem.compare().empty(), facts.describe() + ": " + problem.compare());
      CHECK_MESSAGE(!problem.compare(mutant).empty(),
                    facts.describe() + ": the comparison does not see " + what);
    };
    fails(Mutant::kNoMass, "a gradient without the factor sum(t)");
    fails(Mutant::kLostTail, "a lost tail");
    fails(Mutant::kOnlyTarget, "a gradient that is 0 off the target");
    fails(Mutant::kStaleRow, "a stale row");
    fails(Mutant::kNoEntropy, "a gradient without the entropy's part");
    fails(Mutant::kNoWeight, "ignored weights");
    fails(Mutant::kCountsIgnored, "ignored rows that are counted");
    facts.features = kDuplicates;
    fails(Mutant::kFirstOfGroup, "the wrong one of equal indices");
    facts.features = kIgnored;
    facts.table = facts.logits = DType::kBFloat16;
    fails(Mutant::kNoMass, "a gradient without the factor sum(t)");
    fails(Mutant::kStaleRow, "a stale row");
  }
}

void check_rounding(const Backend& backend) {
  constexpr int kCalls = 64;
  for (DType dtype : {DType::kFloat16, DType::kBFloat16}) {
    for (int64_t classes : {12, 50, 300}) {
      Case facts;
      facts.rows = 8;
      facts.classes = classes;
      facts.table = dtype;
      facts.is_stochastic = true;
      facts.grad_mode = GradMode::kNone;
      facts.momentum = 0.99;
      Problem problem(facts);
      const std::vector<char> old = problem.table.bytes();
      const auto restore = [&] {
        std::copy(old.begin(), old.end(), static_cast<char*>(problem.table.data()));
      };
      const auto call = [&](int64_t number) {
        restore();
        problem.rounding_state[1] = number;
        run(backend, problem);
        CHECK(problem.rounding_state[1] == number + 1);
        return problem.table.bytes();
      };
      CHECK(call(3) == call(3));
      CHECK(call(3) != call(4));
      const int64_t seed = problem.rounding_state[0]++;
      const std::vector<char> other_seed = call(3);
      problem.rounding_state[0] = seed;
      CHECK(call(3) != other_seed);

      // The mean over calls, in units of the table's dtype: of each element, and of all.
      std::vector<std::vector<double>> t(facts.rows), sum(facts.rows);
      for (int64_t b = 0; b < facts.rows; ++b) {
        t[b] = problem.new_target(b);
        sum[b].assign(classes, 0);
      }
      for (int n = 0; n < kCalls; ++n) {
        call(100 + n);
        for (int64_t b = 0; b < facts.rows; ++b)
          for (int64_t k = 0; k < classes; ++k)
            sum[b][k] += problem.table.get(problem.index[b] * classes + k);
      }
      double bias = 0, largest = 0;
      for (int64_t b = 0; b < facts.rows; ++b) {
        for (int64_t k = 0; k < classes; ++k) {
          const double error = (sum[b][k] / kCalls - t[b][k]) / unit_at(dtype, t[b][k]);
          bias += error / static_cast<double>(facts.rows * classes);
          largest = std::fmax(largest, std::fabs(error));
        }
      }
      // Standard deviation of one rounding is at most half a unit.
      const double deviation = 0.5 / std::sqrt(static_cast<double>(kCalls));
      CHECK_MESSAGE(largest < 6 * deviation, "largest mean error " + std::to_string(largest));
      CHECK_MESSAGE(std::fabs(bias) < 5 * deviation / std::sqrt(facts.rows * classes),
                    "bias " + std::to_string(bias));
    }
  }

  // Equal elements of a row are rounded independently.
  for (DType dtype : {DType::kFloat16, DType::kBFloat16}) {
    Case facts;
    facts.rows = 8;
    facts.classes = 50;
    facts.scale = 0;
    facts.table = dtype;
    facts.is_stochastic = true;
    facts.momentum = 0.7;
    Problem problem(facts);
    for (int64_t n = 0; n < problem.table.count(); ++n) problem.table.set(n, 0.3);
    problem.keep_table();
    run(backend, problem);
    CHECK_MESSAGE(problem.compare().empty(), problem.compare());
    int mixed = 0;
    for (int64_t b = 0; b < facts.rows; ++b) {
      int equal = 0;
      for (int64_t k = 0; k < facts.classes; ++k)
        equal += problem.table.get(problem.index[b] * facts.classes + k) ==
                 problem.table.get(problem.index[b] * facts.classes);
      mixed += equal < facts.classes;
    }
    CHECK_MESSAGE(mixed > 5, std::to_string(mixed) + " rows have different roundings");
  }

  // A moving average with small steps stalls when rounded to nearest and follows when rounded
  // stochastically.
  double error[2];
  for (bool is_stochastic : {false, true}) {
    Case facts;
    facts.rows = 8;
    facts.classes = 40;
    facts.table = DType::kBFloat16;
    facts.is_stochastic = is_stochastic;
    facts.grad_mode = GradMode::kNone;
    facts.momentum = 0.998;
    Problem problem(facts);
    std::vector<std::vector<double>> exact;
    for (int64_t b = 0; b < facts.rows; ++b) {
      exact.emplace_back(facts.classes);
      for (int64_t k = 0; k < facts.classes; ++k) exact[b][k] = problem.target(b, k);
    }
    for (int n = 0; n < 200; ++n) run(backend, problem);
    double sum = 0, size = 0;
    for (int64_t b = 0; b < facts.rows; ++b) {
      const std::vector<double> t = problem.new_target(b);
      for (int64_t k = 0; k < facts.classes; ++k) {
        const double p = (t[k] - facts.momentum * problem.target(b, k)) / (1 - facts.momentum);
        const double decay = std::pow(facts.momentum, 200);
        const double wanted = decay * exact[b][k] + (1 - decay) * p;
        const double actual = problem.table.get(problem.index[b] * facts.classes + k);
        sum += (actual - wanted) * (actual - wanted);
        size += (exact[b][k] - wanted) * (exact[b][k] - wanted);
      }
    }
    error[is_stochastic] = std::sqrt(sum / size);
  }
  CHECK_MESSAGE(error[0] > 0.3, "to nearest: " + std::to_string(error[0]));
  CHECK_MESSAGE(error[1] < 0.1, "stochastic: " + std::to_string(error[1]));
}

namespace {

struct ScaleCase {
  DType dtype;
  int64_t rows, classes, stride;
  bool has_weights, is_in_place;
  int misalignment;
  unsigned seed;
};

void check(const Backend& backend, const ScaleCase& c) {
  const DType acc = c.dtype == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32;
  const int64_t count = c.rows * c.classes;
  Array grad(c.dtype, count, c.misalignment), out(c.dtype, count, c.misalignment);
  Array scale(acc, 1), incoming(acc, (c.rows - 1) * c.stride + 1), weight(acc, c.rows);
  std::vector<double> old(count);
  for (int64_t n = 0; n < count; ++n) {
    grad.set(n, std::sin(double(n) + c.seed));
    old[n] = grad.get(n);
  }
  scale.set(0, 0.375);
  for (int64_t n = 0; n < incoming.count(); ++n) incoming.set(n, 1.5 - 0.25 * double(n % 9));
  for (int64_t b = 0; b < c.rows; ++b) weight.set(b, 0.5 + double(b % 5));
  const std::vector<char> before = grad.bytes();
  alr_fast::ScaleGradParams params;
  params.grad_rows = grad.data();
  params.out = c.is_in_place ? grad.data() : out.data();
  params.dtype = c.dtype;
  params.rows = c.rows;
  params.classes = c.classes;
  params.grad_scale = scale.data();
  params.grad_output = incoming.data();
  params.grad_output_stride = c.stride;
  params.row_weight = c.has_weights ? weight.data() : nullptr;
  backend.scale_grad(params);
  const Array& found = c.is_in_place ? grad : out;
  double worst = 0;
  for (int64_t n = 0; n < count; ++n) {
    const int64_t b = n / c.classes;
    const double w = c.has_weights ? weight.get(b) : 1;
    const double wanted = old[n] * scale.get(0) * incoming.get(b * c.stride) * w;
    const double unit = 0.51 * unit_at(c.dtype, wanted) + 3 * unit_at(acc, wanted);
    const double error = std::fabs(found.get(n) - wanted) / unit;
    if (!(error <= worst)) worst = error;  // NaN is kept
  }
  CHECK_MESSAGE(worst <= 1, std::string(backend.name) + ": scale_grad " + std::to_string(c.rows) +
                                " x " + std::to_string(c.classes) + " stride " +
                                std::to_string(c.stride) + ": " + std::to_string(worst));
  CHECK(c.is_in_place || before == grad.bytes());
}

// A signalling NaN becomes a quiet one in any arithmetic: its bits show whether it was only moved.
void check_factor_of_1(const Backend& backend) {
  constexpr int64_t kRows = 3, kClasses = 37;
  std::vector<uint32_t> grad(kRows * kClasses, 0x7f800001u);
  const std::vector<uint32_t> before = grad;
  const float ones[kRows] = {1, 1, 1}, half = 0.5f, twos[kRows] = {2, 4, 2};
  alr_fast::ScaleGradParams params;
  params.grad_rows = params.out = grad.data();
  params.rows = kRows;
  params.classes = kClasses;
  params.grad_output = ones;
  backend.scale_grad(params);
  params.grad_output_stride = 1;
  backend.scale_grad(params);
  CHECK(grad == before);
  params.grad_scale = &half;
  params.row_weight = twos;  // the factors are 1, 2, 1
  backend.scale_grad(params);
  for (int64_t n = 0; n < kRows * kClasses; ++n)
    CHECK((grad[n] == before[n]) == (n / kClasses != 1));
}

}  // namespace

void check_scale_grad(const Backend& backend) {
  unsigned number = 0;
  for (DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16, DType::kFloat64}) {
    if (backend.is_cuda && dtype == DType::kFloat64) continue;
    for (bool is_in_place : {false, true}) {
      for (int64_t classes : {1, 3, 8, 14, 33, 100, 1000, 1023, 5000}) {
        for (int stride : {0, 1, 3}) {
          ++number;
          check(backend, {dtype, number % 3 == 0 ? 1 : 7, classes, stride, number % 2 == 0,
                          is_in_place, number % 4 == 1 ? 1 : 0, number});
        }
      }
    }
  }
  // More than the blocks of a launch take at once: rows, and parts of a row.
  check(backend, {DType::kFloat32, 66000, 2, 1, true, true, 0, 1});
  check(backend, {DType::kBFloat16, 600, 1501, 1, true, true, 0, 2});
  check_factor_of_1(backend);
}

}  // namespace test

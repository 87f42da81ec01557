#include <cmath>

#include "row_loss_problem.h"
#include "storage.h"

namespace test {
namespace {

bool is_equal_or_nan(double a, double b) { return a == b || (std::isnan(a) && std::isnan(b)); }

// Equal infinities, equal NaN, or a difference of at most `tolerance`.
bool is_close(double actual, double expected, double tolerance) {
  if (!std::isfinite(expected)) return is_equal_or_nan(actual, expected);
  return std::fabs(actual - expected) <= tolerance;
}

std::string differs(const std::string& what, double actual, double expected, double tolerance) {
  char text[160];
  std::snprintf(text, sizeof(text), " is %.9g, expected %.9g within %.3g", actual, expected,
                tolerance);
  return what + text;
}

std::string at(const char* what, int64_t b) { return what + ("[" + std::to_string(b)) + "]"; }
std::string at(const char* what, int64_t b, int64_t k) {
  return what + ("[" + std::to_string(b)) + ", " + std::to_string(k) + "]";
}

}  // namespace

std::string Problem::compare(Mutant mutant) const {
  std::vector<Row> rows;
  int64_t counted = 0;
  for (int64_t b = 0; b < case_.rows; ++b) {
    rows.push_back(expected_row(b, mutant));
    counted += rows[b].kind != Row::kIgnoredRow;
  }
  if (mutant == Mutant::kCountsIgnored) counted = case_.rows;
  double divisor = 1;
  if (case_.reduction == Reduction::kMean && counted > 0) divisor = static_cast<double>(counted);
  for (int64_t b = 0; b < case_.rows; ++b) {
    const std::string wrong = compare_row(b, rows[b], divisor, mutant);
    if (!wrong.empty()) return wrong;
  }
  std::string wrong = compare_table(rows, mutant);
  if (wrong.empty()) wrong = compare_stats(rows);
  if (wrong.empty()) wrong = compare_batch(rows, divisor);
  return wrong;
}

double Problem::weight_of(int64_t b, Mutant mutant) const {
  return case_.has_weights && mutant != Mutant::kNoWeight ? weights.get(b) : 1;
}

double Problem::weighted_loss(const Row& row, double weight) const {
  return row.loss == 0 || std::isnan(row.loss) ? row.loss : row.loss * weight;
}

std::string Problem::compare_row(int64_t b, const Row& row, double divisor, Mutant mutant) const {
  const double weight = weight_of(b, mutant);
  const double loss = weighted_loss(row, weight);
  const double loss_tolerance = row.loss_tolerance * weight + unit() * std::fabs(loss);
  if (!row_loss_is_scratch && !is_close(row_loss.get(b), loss, loss_tolerance))
    return differs(at("row_loss", b), row_loss.get(b), loss, loss_tolerance);
  if (case_.grad_mode == GradMode::kNone) return "";
  const bool is_plain = case_.logits == DType::kFloat16;
  double factor = weight / divisor;
  if (case_.grad_mode == GradMode::kPerRow)
    factor = is_plain ? params_.stored_scale : weight * params_.stored_scale;
  for (int64_t k = 0; k < case_.classes; ++k) {
    const double expected = row.grad[k] * factor, actual = grad.get(b * case_.classes + k);
    const double tolerance = row.grad_tolerance[k] * factor +
                             (std::isfinite(expected) ? 0.51 * unit_at(case_.logits, expected) : 0);
    if (!is_close(actual, expected, tolerance))
      return differs(at("grad", b, k), actual, expected, tolerance);
  }
  return "";
}

std::string Problem::compare_table(const std::vector<Row>& rows, Mutant mutant) const {
  if (!case_.has_table) return "";
  std::vector<int64_t> stored_row(table_rows, -1);  // batch row that each table row comes from
  for (int64_t b = 0; b < case_.rows && params_.update; ++b) {
    if (rows[b].kind != Row::kOrdinary || !rows[b].is_finite) continue;
    if (mutant == Mutant::kStaleRow && b == 0) continue;
    int64_t& stored = stored_row[index[b]];
    if (mutant != Mutant::kFirstOfGroup || stored < 0) stored = b;
  }
  for (int64_t i = 0; i < table_rows; ++i) {
    for (int64_t k = 0; k < stride_of_table(); ++k) {
      const double actual = table.get(i * stride_of_table() + k);
      if (stored_row[i] < 0 || k >= case_.classes) {
        const double old = old_table_.get(i * stride_of_table() + k);
        if (!is_equal_or_nan(actual, old))
          return differs(at("untouched table", i, k), actual, old, 0);
        continue;
      }
      const Row& row = rows[stored_row[i]];
      const double units = case_.is_stochastic && case_.table != DType::kFloat32 ? 1.01 : 0.51;
      const double tolerance = row.t_tolerance[k] + units * unit_at(case_.table, row.t[k]);
      if (!is_close(actual, row.t[k], tolerance))
        return differs(at("table", i, k), actual, row.t[k], tolerance);
    }
  }
  return "";
}

std::string Problem::compare_stats(const std::vector<Row>& rows) const {
  if (!case_.has_stats) return "";
  const int64_t B = case_.rows, K = case_.classes;
  for (int64_t b = 0; b < B; ++b) {
    const Row& row = rows[b];
    int64_t before = -1, after = -1;
    if (row.kind == Row::kOrdinary || row.kind == Row::kWrong) {
      std::vector<double> old(K), now(K);
      for (int64_t k = 0; k < K; ++k) {
        old[k] = target(b, k);
        now[k] = case_.has_table ? table.get(index[b] * stride_of_table() + k) : old[k];
      }
      before = largest_at(old);
      after = largest_at(now);  // rows with equal indices all report the final table row
    }
    const double confidence = row.is_finite ? row.p[row.predicted] : NAN;
    const double largest = row.is_finite ? row.t[largest_at(row.t)] : NAN;
    // Statistics are float32 whatever the arithmetic.
    const double float_unit = std::ldexp(1, -24);
    const double confidence_tolerance =
        row.is_finite ? (kTolerance * unit() + float_unit) * confidence : 0;
    const double tolerance =
        row.is_finite ? row.t_tolerance[largest_at(row.t)] + float_unit * std::fabs(largest) : 0;
    const double actual_class[] = {double(stats_class[b]), double(stats_class[B + b]),
                                   double(stats_class[2 * B + b])};
    const double expected_class[] = {double(row.predicted), double(before), double(after)};
    const char* const names[] = {"predicted", "class_before", "class_after"};
    for (int n = 0; n < 3; ++n)
      if (actual_class[n] != expected_class[n])
        return differs(at(names[n], b), actual_class[n], expected_class[n], 0);
    if (!is_close(stats_value[b], confidence, confidence_tolerance))
      return differs(at("confidence", b), stats_value[b], confidence, confidence_tolerance);
    if (!is_close(stats_value[B + b], largest, tolerance))
      return differs(at("max_target", b), stats_value[B + b], largest, tolerance);
  }
  return "";
}

std::string Problem::compare_batch(const std::vector<Row>& rows, double divisor) const {
  int64_t not_finite = 0, outside = 0, wrong = 0;
  double sum = 0, tolerance = 0;
  for (int64_t b = 0; b < case_.rows; ++b) {
    const Row& row = rows[b];
    outside += row.kind == Row::kOutside;
    wrong += row.kind == Row::kWrong;
    not_finite += row.kind == Row::kOrdinary && !(row.is_finite && std::isfinite(row.loss));
    const double weight = weight_of(b, Mutant::kNone);
    // The rows have been compared already: only the sum is checked.
    const double loss = row_loss_is_scratch ? weighted_loss(row, weight) : row_loss.get(b);
    sum += loss;
    tolerance += 2 * unit() * std::fabs(loss) + row_loss_is_scratch * row.loss_tolerance * weight;
  }
  if (case_.reduction != Reduction::kNone &&
      !is_close(loss.get(0), sum / divisor, tolerance / divisor + 1e-300))
    return differs("loss", loss.get(0), sum / divisor, tolerance / divisor);
  const double scale = 1 / (divisor * params_.stored_scale);
  if (!is_close(grad_scale.get(0), scale, unit() * scale))
    return differs("grad_scale", grad_scale.get(0), scale, unit() * scale);
  const int64_t expected[] = {not_finite, outside, wrong};
  for (int n = 0; n < alr_fast::kStatusSize; ++n)
    if (status[n] != expected[n])
      return differs("status[" + std::to_string(n) + "]", double(status[n]), double(expected[n]),
                     0);
  return "";
}

}  // namespace test

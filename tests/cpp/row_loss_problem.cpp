#include "row_loss_problem.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <random>

#include "cuda/launch_plan.h"
#include "storage.h"

namespace test {
namespace {

constexpr int64_t kUntouchedRows = 5;  // of the table, beyond those with an index in the batch

// Batch rows with special properties.
constexpr int64_t kIgnoredRows[] = {1, 12};
constexpr int64_t kPair[] = {0, 3};
constexpr int64_t kLatePair[] = {7,
                                 10};  // with kNonFinite the first is, with kMasked the last's loss
constexpr int64_t kTriple[] = {2, 5, 6};  // with kNonFinite the last one is
constexpr int64_t kNaNRow = 6, kInfinityRow = 7, kEmptyRow = 8;
constexpr int64_t kMaskedRow = 9, kMaskedTargetRow = 10;
constexpr int64_t kOutOfRangeRow = 11, kFarRow = 4;
constexpr int64_t kFarApartRow = 13;
constexpr int64_t kWrongRows[] = {kPair[1], kTriple[1]};

const char* name_of(DType dtype) {
  switch (dtype) {
    case DType::kFloat16:
      return "float16";
    case DType::kBFloat16:
      return "bfloat16";
    case DType::kFloat32:
      return "float32";
    default:
      return "float64";
  }
}

}  // namespace

std::string Case::describe() const {
  std::string text = std::string(name_of(logits)) + " x " + (has_table ? name_of(table) : "label") +
                     ", B=" + std::to_string(rows) + ", K=" + std::to_string(classes) +
                     ", features=" + std::to_string(features) + ", seed=" + std::to_string(seed);
  if (misalignment != 0) text += ", misaligned";
  if (!update) text += ", no update";
  if (unique_index) text += ", unique";
  if (is_stochastic) text += ", stochastic";
  return text;
}

Array::Array(DType dtype, int64_t count, int misalignment)
    : dtype_(dtype), count_(count), size_(count * size_of(dtype)) {
  const int64_t skipped = static_cast<int64_t>(misalignment) * size_of(dtype);
  memory_.reset(static_cast<char*>(std::malloc(size_ + skipped)), std::free);
  begin_ = memory_.get() + skipped;
  fill_with_garbage();
}

double Array::get(int64_t at) const { return test::get(dtype_, begin_, at); }
void Array::set(int64_t at, double value) { test::set(dtype_, begin_, at, value); }
void Array::fill_with_garbage() { std::fill(begin_, begin_ + size_, char(0x5a)); }

Problem::Problem(const Case& facts) : case_(facts) {
  const Case& c = case_;
  const int64_t B = c.rows, K = c.classes;
  std::mt19937 random(c.seed);
  std::normal_distribution<double> normal;
  std::uniform_real_distribution<double> uniform;
  const DType acc = is_double() ? DType::kFloat64 : DType::kFloat32;

  table_rows = c.has_table ? B + kUntouchedRows : K;
  const int64_t z_stride = K + c.logits_padding;
  logits = Array(c.logits, B > 0 ? (B - 1) * z_stride + K : 0, c.misalignment);
  for (int64_t b = 0; b < B; ++b)
    for (int64_t k = 0; k < K; ++k)
      logits.set(b * z_stride + k, normal(random) * c.scale + c.offset);
  if (c.has_table) {
    table = Array(c.table, table_rows * stride_of_table(), c.misalignment);
    for (int64_t i = 0; i < table_rows; ++i) {
      std::vector<double> row(K);
      double sum = 0;
      for (double& x : row) sum += x = std::pow(uniform(random), 4);
      const double mass =
          0.7 + 0.6 * uniform(random);  // far from 1, so that a missing factor sum(t) shows
      for (int64_t k = 0; k < K; ++k) table.set(i * stride_of_table() + k, row[k] / sum * mass);
    }
  }
  std::vector<int64_t> order(table_rows);
  for (int64_t i = 0; i < table_rows; ++i) order[i] = i;
  std::shuffle(order.begin(), order.end(), random);
  for (int64_t b = 0; b < B; ++b)
    index.push_back(!c.has_index ? b : c.has_table ? order[b] : static_cast<int64_t>(random() % K));

  const auto has = [&](Features feature, int64_t b) {
    return (c.features & feature) != 0 && b < B;
  };
  if (has(kDuplicates, 3)) index[kPair[1]] = index[kPair[0]];
  if (has(kDuplicates, 10)) index[kLatePair[1]] = index[kLatePair[0]];
  if (has(kDuplicates, 6)) index[kTriple[1]] = index[kTriple[2]] = index[kTriple[0]];
  if (has(kFarApart, kFarApartRow) && !c.has_table) index[kFarApartRow] = 0;
  const bool is_labelled = (c.features & kLabelled) != 0;
  if (has(kIgnored, kIgnoredRows[0])) index[kIgnoredRows[0]] = -1;
  if (has(kIgnored, kIgnoredRows[1])) {
    // By its label, as one of a group, where there is one.
    int64_t& last = index[kIgnoredRows[1]];
    last = !is_labelled ? -100 : has(kDuplicates, 0) ? index[kPair[0]] : last;
  }
  if (has(kOutOfRange, kOutOfRangeRow)) index[kOutOfRangeRow] = table_rows;
  if (has(kOutOfRange, kFarRow)) index[kFarRow] = c.index_is_int64 ? int64_t{1} << 40 : 2147483647;
  if (is_labelled) {
    const int64_t samples = c.has_table ? table_rows : B + kUntouchedRows;
    for (int64_t i = 0; i < samples; ++i)
      given_labels.push_back(static_cast<int32_t>(random() % K));
    for (int64_t b = 0; b < B; ++b) {
      const int64_t i = index[b];
      if (c.has_table) {
        other.push_back(i >= 0 && i < samples ? given_labels[i] : 0);
        if (has(kWrongLabel, b) && (b == kWrongRows[0] || b == kWrongRows[1])) ++other[b];
      } else {
        other.push_back(samples - 1 - b);
        given_labels[other[b]] = static_cast<int32_t>(i);
        if (has(kWrongLabel, b) && (b == kWrongRows[0] || b == kWrongRows[1]))
          ++given_labels[other[b]];
      }
    }
    if (has(kIgnored, kIgnoredRows[1])) other[kIgnoredRows[1]] = -3;
    if (has(kOutOfRange, kOutOfRangeRow) && !c.has_table) {
      index[kOutOfRangeRow] = 0;
      other[kOutOfRangeRow] = samples;
    }
  }
  if (has(kNonFinite, kNaNRow)) logits.set(kNaNRow * z_stride + K - 1, NAN);
  if (has(kNonFinite, kInfinityRow)) logits.set(kInfinityRow * z_stride + K / 2, INFINITY);
  if (has(kNonFinite, kEmptyRow))
    for (int64_t k = 0; k < K; ++k) logits.set(kEmptyRow * z_stride + k, -INFINITY);
  if (has(kMasked, kMaskedRow)) {
    const int64_t k = K / 3;
    logits.set(kMaskedRow * z_stride + k, -INFINITY);
    if (c.has_table && index[kMaskedRow] >= 0 && index[kMaskedRow] < table_rows)
      table.set(index[kMaskedRow] * stride_of_table() + k, 0);
  }
  if (has(kFarApart, kFarApartRow) && K >= 3 && !is_double()) {
    // The first class has all of the probability, the last some of the target.
    const double huge = c.logits == DType::kFloat16 ? 6e4 : 2e38;
    logits.set(kFarApartRow * z_stride, huge);
    for (int64_t k : {K / 2, K - 1}) logits.set(kFarApartRow * z_stride + k, -huge);
    if (c.has_table) {
      table.set(index[kFarApartRow] * stride_of_table() + K / 2, 0);
      table.set(index[kFarApartRow] * stride_of_table() + K - 1, 0.0625);
    }
  }
  if (has(kMasked, kMaskedTargetRow)) logits.set(kMaskedTargetRow * z_stride + K / 2, -INFINITY);

  for (int64_t i : other) {
    for (int64_t n = 0; n < c.index_stride; ++n) {
      other_64_.push_back(n == 0 ? i : -77);
      other_32_.push_back(static_cast<int32_t>(n == 0 ? i : -77));
    }
  }
  loss = Array(acc, 1);
  grad_scale = Array(acc, 1);
  if (c.grad_mode != GradMode::kNone) grad = Array(c.logits, B * K, c.misalignment);
  if (c.has_weights) {
    weights = Array(acc, B);
    for (int64_t b = 0; b < B; ++b) weights.set(b, 0.25 + uniform(random));
  }
  if (c.has_stats) {
    stats_class.resize(3 * B);
    stats_value.resize(2 * B);
  }
  status.assign(alr_fast::kStatusSize, 0);
  if (c.is_stochastic) rounding_state = {1234 + c.seed, 7};

  RowLossParams& p = params_;
  p.logits = logits.data();
  p.logits_stride = z_stride;
  p.logits_dtype = c.logits;
  p.rows = B;
  p.classes = K;
  p.target.table = c.has_table ? table.data() : nullptr;
  p.target.stride = c.has_table ? stride_of_table() : 0;
  p.target.dtype = c.table;
  p.target.size = table_rows;
  p.target.on_target = c.on_target;
  p.target.off_target = c.off_target;
  if (c.has_index) set_index(index);
  if (is_labelled) {
    const bool is_int64 = c.seed % 2 == 0;
    const void* const data =
        is_int64 ? static_cast<const void*>(other_64_.data()) : other_32_.data();
    p.other = {data, is_int64, c.index_stride};
    p.given_labels = given_labels.data();
    p.samples = static_cast<int64_t>(given_labels.size());
  }
  p.unique_index = c.unique_index;
  p.momentum = c.has_table ? c.momentum : 1;
  p.entropy_weight = c.entropy_weight;
  p.update = c.has_table && c.update;
  p.reduction = c.reduction;
  p.row_weight = c.has_weights ? weights.data() : nullptr;
  p.grad_mode = c.grad_mode;
  p.stored_scale = c.stored_scale;
  row_loss = Array(acc, std::max(B, alr_fast::row_loss_size(p)));
  p.row_loss = row_loss.data();
  p.loss = c.reduction == Reduction::kNone ? nullptr : loss.data();
  p.grad_logits = c.grad_mode == GradMode::kNone ? nullptr : grad.data();
  p.grad_scale = grad_scale.data();
  p.stats_class = c.has_stats ? stats_class.data() : nullptr;
  p.stats_value = c.has_stats ? stats_value.data() : nullptr;
  p.status = status.data();
  p.rounding_state = c.is_stochastic ? rounding_state.data() : nullptr;
  keep_table();
}

void Problem::reset_outputs() {
  for (Array* array : {&row_loss, &loss, &grad, &grad_scale}) array->fill_with_garbage();
  std::fill(stats_class.begin(), stats_class.end(), -12345);
  std::fill(status.begin(), status.end(), 0);
}

void Problem::set_index(const std::vector<int64_t>& values) {
  index = values;
  index_64_.assign(index.size() * case_.index_stride, -77);
  for (size_t b = 0; b < index.size(); ++b) index_64_[b * case_.index_stride] = index[b];
  index_32_.assign(index_64_.begin(), index_64_.end());
  const void* const data =
      case_.index_is_int64 ? static_cast<const void*>(index_64_.data()) : index_32_.data();
  params_.index = {data, case_.index_is_int64, case_.index_stride};
}

void Problem::keep_table() {
  if (!case_.has_table) return;
  old_table_ = Array(case_.table, table.count());
  for (int64_t n = 0; n < table.count(); ++n) old_table_.set(n, table.get(n));
}

// Sums of doubles run over fewer lanes, so that more roundings add up.
double Problem::unit() const { return std::ldexp(1, is_double() ? -50 : -23); }

double Problem::target(int64_t b, int64_t k) const {
  const int64_t i = index[b];
  if (case_.has_table) return old_table_.get(i * stride_of_table() + k);
  // As the operation receives them.
  const double value = i == k ? case_.on_target : case_.off_target;
  return is_double() ? value : static_cast<float>(value);
}

std::vector<double> Problem::new_target(int64_t b) const {
  return expected_row(b, Mutant::kNone).t;
}

Problem::Row::Kind Problem::kind_of(int64_t b) const {
  const int64_t i = index[b];
  if (i < 0 || (!other.empty() && other[b] < 0)) return Row::kIgnoredRow;
  if (i >= table_rows) return Row::kOutside;
  if (other.empty()) return Row::kOrdinary;
  const int64_t sample = case_.has_table ? i : other[b], label = case_.has_table ? other[b] : i;
  if (sample >= static_cast<int64_t>(given_labels.size())) return Row::kOutside;
  return given_labels[sample] == label ? Row::kOrdinary : Row::kWrong;
}

// The definition, term by term: t = a T + (1 - a) p; loss = -sum t log p + lambda H;
// dz = sum(t) p - t - lambda p (log p + H).
Problem::Row Problem::expected_row(int64_t b, Mutant mutant) const {
  const int64_t K = case_.classes;
  Row row;
  row.kind = kind_of(b);
  if (row.kind != Row::kOrdinary) {
    row.loss = row.kind == Row::kIgnoredRow ? 0 : NAN;
    row.grad.assign(K, row.loss);
    row.grad_tolerance.assign(K, 0);
    return row;
  }
  const double a = is_double() ? params_.momentum : static_cast<float>(params_.momentum);
  const double lambda =
      is_double() ? case_.entropy_weight : static_cast<float>(case_.entropy_weight);
  std::vector<double> z(K), T(K), log_p(K);
  for (int64_t k = 0; k < K; ++k) {
    const bool is_lost = mutant == Mutant::kLostTail && k == K - 1;
    z[k] = is_lost ? -INFINITY : logits.get(b * params_.logits_stride + k);
    T[k] = is_lost ? 0 : target(b, k);
  }
  const double largest = *std::max_element(z.begin(), z.end());
  double sum = 0;
  for (double x : z) sum += std::exp(x - largest);
  row.is_finite = std::isfinite(sum) && std::isfinite(largest);
  if (!row.is_finite) {
    row.loss = NAN;
    row.grad.assign(K, NAN);
    row.grad_tolerance.assign(K, 0);
    return row;
  }
  row.predicted = largest_at(z);
  double entropy = 0, mass = 0, absolute_mass = 0, cross_entropy = 0, size = 0;
  for (int64_t k = 0; k < K; ++k) {
    log_p[k] = z[k] - largest - std::log(sum);
    row.p.push_back(std::exp(log_p[k]));
    row.t.push_back(a * T[k] + (1 - a) * row.p[k]);
    mass += row.t[k];
    absolute_mass += std::fabs(row.t[k]) + row.p[k];
    if (row.p[k] > 0) entropy -= row.p[k] * log_p[k];
    if (row.t[k] != 0) cross_entropy -= row.t[k] * log_p[k];
    if (std::isfinite(log_p[k]))
      size += (std::fabs(a * T[k]) + row.p[k]) * (1 + std::fabs(log_p[k]));
  }
  row.loss = cross_entropy + lambda * entropy;
  if (!is_double() && std::fabs(row.loss) > std::numeric_limits<float>::max())
    row.loss = std::copysign(INFINITY, row.loss);
  row.loss_tolerance = kTolerance * unit() * (1 + lambda) * size;
  const double S = mutant == Mutant::kNoMass ? 1 : mass;
  const int64_t target_at = largest_at(row.t);
  for (int64_t k = 0; k < K; ++k) {
    const double p = row.p[k], slope = p > 0 ? p * (log_p[k] + entropy) : 0;
    double grad = S * p - row.t[k] - lambda * slope;
    if (mutant == Mutant::kNoEntropy) grad = S * p - row.t[k];
    if (mutant == Mutant::kOnlyTarget && k != target_at) grad = 0;
    const double depth =
        p > 0 ? 1 + std::fabs(log_p[k]) : 0;  // a difference from the maximum is rounded
    row.grad.push_back(grad);
    row.grad_tolerance.push_back(
        kTolerance * unit() *
        (std::fabs(a * T[k]) + p * depth * (absolute_mass + lambda * (depth + entropy))));
    row.t_tolerance.push_back(kTolerance * unit() * (std::fabs(a * T[k]) + p * depth));
  }
  return row;
}

}  // namespace test

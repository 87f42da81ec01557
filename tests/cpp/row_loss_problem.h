// A call of the row operation with its memory, its expected results, and the comparison.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "alr_params.h"

namespace test {

using alr_fast::DType;
using alr_fast::GradMode;
using alr_fast::Reduction;
using alr_fast::RowLossParams;

// Special rows of a problem. Their numbers are in row_loss_problem.cpp.
enum Features : unsigned {
  kPlain = 0,
  kIgnored = 1,     // negative indices
  kDuplicates = 2,  // two equal indices, and three of which the last has no finite row
  kNonFinite = 4,   // NaN, +inf, nothing but -inf
  kMasked = 8,      // -inf with a target of 0, and with a larger one
  kOutOfRange = 16,
  kLabelled = 32,    // given labels; rows are ignored by their label or their sample, too
  kFarApart = 128,   // logits that differ by more than the range of float
  kWrongLabel = 64,  // with kLabelled: two rows, each in a group of equal indices
};

struct Case {
  DType logits = DType::kFloat32;
  bool has_table = true;
  DType table = DType::kFloat32;
  int64_t rows = 14;
  int64_t classes = 10;
  unsigned features = kPlain;
  double scale = 3, offset = 0;  // of the logits
  double momentum = 0.9, entropy_weight = 0.1;
  double on_target = 0.8, off_target = 0.02;
  bool update = true, unique_index = false;
  bool has_index = true, index_is_int64 = true;
  int64_t index_stride = 1;
  int64_t logits_padding = 0, table_padding = 0;  // elements between rows
  int misalignment = 0;                           // elements from an aligned address, everywhere
  Reduction reduction = Reduction::kMean;
  GradMode grad_mode = GradMode::kFinal;
  double stored_scale = 1;
  bool has_weights = false, has_stats = false, is_stochastic = false;
  unsigned seed = 1;

  std::string describe() const;
};

constexpr double kTolerance = 24;  // units in the last place, times the size of the terms

inline int64_t largest_at(const std::vector<double>& row) {
  return std::max_element(row.begin(), row.end()) - row.begin();
}

// Memory on the heap, so that a sanitizer sees its ends; element 0 is `misalignment` elements away
// from a multiple of 16 bytes.
class Array {
 public:
  Array() = default;
  Array(DType dtype, int64_t count, int misalignment = 0);
  void* data() { return begin_; }
  const void* data() const { return begin_; }
  double get(int64_t at) const;
  void set(int64_t at, double value);
  int64_t count() const { return count_; }
  DType dtype() const { return dtype_; }
  const std::vector<char> bytes() const { return {begin_, begin_ + size_}; }
  void fill_with_garbage();

 private:
  DType dtype_ = DType::kFloat32;
  int64_t count_ = 0, size_ = 0;
  std::shared_ptr<char> memory_;
  char* begin_ = nullptr;
};

// Deliberate errors: the comparison must detect each of them.
enum class Mutant {
  kNone,
  kNoMass,         // dz without the factor sum(t)
  kLostTail,       // the last class left out of the sums
  kOnlyTarget,     // dz 0 but at the target's largest class
  kStaleRow,       // one row of the table not updated
  kFirstOfGroup,   // the first of equal indices kept
  kNoEntropy,      // dz without the entropy's part
  kNoWeight,       // row weights ignored
  kCountsIgnored,  // mean over all rows
};

class Problem {
 public:
  explicit Problem(const Case& facts);

  // A backend may add parameters that only it needs.
  RowLossParams& params() { return params_; }
  const Case& facts() const { return case_; }

  // Prepares a second run: fills outputs with garbage, keeps the table.
  void reset_outputs();
  // Replaces the index of every row, in problems with an index.
  void set_index(const std::vector<int64_t>& values);
  // Takes the current table as the old one for `compare`.
  void keep_table();

  // Describes the first error in the outputs; empty if there is none.
  std::string compare(Mutant mutant = Mutant::kNone) const;

  Array logits, table, row_loss, loss, grad, grad_scale, weights;
  std::vector<int64_t> index;  // by row, without strides
  std::vector<int64_t> other;  // with kLabelled: labels for a table, else samples
  std::vector<int32_t> given_labels;
  std::vector<int64_t> stats_class, status, rounding_state;
  std::vector<float> stats_value;
  int64_t table_rows = 0;
  bool row_loss_is_scratch = false;  // a backend may leave anything there

  double target(int64_t b, int64_t k) const;  // old
  // Elements of the new target before rounding; empty for rows without one.
  std::vector<double> new_target(int64_t b) const;

 private:
  struct Row {
    enum Kind { kOrdinary, kIgnoredRow, kOutside, kWrong } kind = kOrdinary;
    bool is_finite = false;
    double loss = 0, loss_tolerance = 0;
    std::vector<double> p, t, t_tolerance, grad, grad_tolerance;
    int64_t predicted = -1;
  };
  Row::Kind kind_of(int64_t b) const;
  Row expected_row(int64_t b, Mutant mutant) const;
  std::string compare_row(int64_t b, const Row& row, double divisor, Mutant mutant) const;
  std::string compare_table(const std::vector<Row>& rows, Mutant mutant) const;
  std::string compare_stats(const std::vector<Row>& rows) const;
  std::string compare_batch(const std::vector<Row>& rows, double divisor) const;
  double weight_of(int64_t b, Mutant mutant) const;
  double weighted_loss(const Row& row, double weight) const;
  int64_t stride_of_table() const { return case_.classes + case_.table_padding; }
  bool is_double() const { return case_.logits == DType::kFloat64; }
  double unit() const;  // of the arithmetic

  Case case_;
  RowLossParams params_;
  Array old_table_;
  std::vector<int64_t> index_64_, other_64_;
  std::vector<int32_t> index_32_, other_32_;
};

}  // namespace test

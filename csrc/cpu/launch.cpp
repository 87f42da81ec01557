// The CPU operation around the kernels: index checks, duplicate indices, reduction of the loss.

#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

#include "cpu_kernels.h"

namespace alr_fast {
namespace {

constexpr int64_t kGrainElements = 8192;  // below this, a second thread costs more than it saves

int64_t grain_rows(int64_t classes) { return (kGrainElements + classes - 1) / classes; }

// Detects duplicate indices: with a bit for each table row if the table is small, else by hashing.
class SeenIndices {
 public:
  SeenIndices(int64_t rows, int64_t size) : direct_(size <= 64 * rows) {
    if (direct_) {
      bits_.assign((size + 63) / 64, 0);
      return;
    }
    while (static_cast<int64_t>(slots_size_) < 2 * rows) slots_size_ *= 2;
    slots_.assign(slots_size_, -1);
  }

  // Adds an index; returns whether it was there already.
  bool insert(int64_t i) {
    if (direct_) {
      const uint64_t bit = uint64_t{1} << (i % 64);
      const bool seen = bits_[i / 64] & bit;
      bits_[i / 64] |= bit;
      return seen;
    }
    uint64_t at = (static_cast<uint64_t>(i) * 0x9e3779b97f4a7c15u >> 20) & (slots_size_ - 1);
    for (; slots_[at] >= 0; at = (at + 1) & (slots_size_ - 1))
      if (slots_[at] == i) return true;
    slots_[at] = i;
    return false;
  }

 private:
  bool direct_;
  std::vector<uint64_t> bits_;
  uint64_t slots_size_ = 64;
  std::vector<int64_t> slots_;
};

bool has_duplicates(const RowLossParams& p) {
  SeenIndices seen(p.rows, p.target.size);
  for (int64_t b = 0; b < p.rows; ++b) {
    const int64_t i = index_at(p, b);
    if (i >= 0 && seen.insert(i)) return true;
  }
  return false;
}

struct Groups {
  std::vector<int32_t> next;
  std::vector<uint8_t> is_first;
};

Groups group_equal_indices(const RowLossParams& p) {
  Groups groups{std::vector<int32_t>(p.rows, -1), std::vector<uint8_t>(p.rows, 1)};
  // Batch rows sorted by index, then by batch order: the rows of a group are consecutive.
  std::vector<int32_t> order(p.rows);
  for (int64_t b = 0; b < p.rows; ++b) order[b] = static_cast<int32_t>(b);
  std::stable_sort(order.begin(), order.end(),
                   [&](int32_t a, int32_t b) { return index_at(p, a) < index_at(p, b); });
  for (int64_t n = 1; n < p.rows; ++n) {
    if (index_at(p, order[n]) != index_at(p, order[n - 1])) continue;
    groups.next[order[n - 1]] = order[n];
    groups.is_first[order[n]] = 0;
  }
  return groups;
}

[[noreturn]] void throw_beyond_targets(const RowLossParams& p, int64_t b, int64_t i) {
  const std::string where = "[" + std::to_string(b) + "] is " + std::to_string(i);
  const std::string size = std::to_string(p.target.size);
  if (p.target.table != nullptr)
    throw std::out_of_range("index" + where + ", but the table has " + size +
                            " rows: index must be the position of the sample in the training set "
                            "that the table was made for, or negative to ignore the row");
  throw std::out_of_range("labels" + where + ", but the logits have " + size +
                          " classes: a label must lie in [0, classes), or be negative to ignore "
                          "the row");
}

// Throws for a sample beyond the given labels, or with another label than the given one.
void check_label(const RowLossParams& p, int64_t b, int64_t i) {
  const auto [sample, label] = labelled_sample(p, b, i);
  if (sample >= p.samples)
    throw std::out_of_range("index[" + std::to_string(b) + "] is " + std::to_string(sample) +
                            ", but there are " + std::to_string(p.samples) +
                            " given labels: index must be the position of the sample in the "
                            "training set, or negative to ignore the row");
  if (label != p.given_labels[sample])
    throw std::invalid_argument(
        "labels[" + std::to_string(b) + "] is " + std::to_string(label) + ", but sample " +
        std::to_string(sample) + " (index[" + std::to_string(b) + "]) has the given label " +
        std::to_string(p.given_labels[sample]) +
        ": is index shifted? Pass each sample's own index. If the label was corrected, call "
        "LabelBank.correct_labels(index, labels) first; check_labels=False turns this check off");
}

// Throws for a row that is out of range or has a wrong label; returns the number of rows that are
// not ignored.
int64_t check_rows(const RowLossParams& p) {
  if (keeps_all_rows(p)) return p.rows;
  int64_t valid_rows = p.rows;
  for (int64_t b = 0; b < p.rows; ++b) {
    const int64_t i = index_at(p, b);
    if (i < 0) {
      --valid_rows;
      continue;
    }
    if (i >= p.target.size) throw_beyond_targets(p, b, i);
    if (p.given_labels != nullptr) check_label(p, b, i);
  }
  return valid_rows;
}

template <class F>
void reduce_loss(const RowLossParams& p, int64_t valid_rows) {
  const double count = valid_rows > 0 ? static_cast<double>(valid_rows) : 1;
  const double divisor = p.reduction == Reduction::kMean ? count : 1;
  if (p.reduction != Reduction::kNone) {
    // Eight sums: one alone would wait for itself at every row.
    double sums[8] = {};
    for (int64_t b = 0; b < p.rows; ++b) sums[b % 8] += static_cast<const F*>(p.row_loss)[b];
    double sum = 0;
    for (double part : sums) sum += part;
    *static_cast<F*>(p.loss) = static_cast<F>(sum / divisor);
  }
  *static_cast<F*>(p.grad_scale) = static_cast<F>(1 / (divisor * p.stored_scale));
}

}  // namespace

void cpu_row_loss(const RowLossParams& unplanned, ParallelFor parallel_for,
                  const CpuKernels& kernels) {
  RowLossParams params = unplanned;
  const int64_t valid_rows = check_rows(params);
  Groups groups;
  if (params.update && !params.unique_index && has_duplicates(params)) {
    groups = group_equal_indices(params);
    params.next_in_group = groups.next.data();
    params.first_in_group = groups.is_first.data();
  }
  if (params.rows > 0) {
    struct Context {
      const RowLossParams& params;
      const CpuKernels& kernels;
      int64_t valid_rows;
    } context{params, kernels, valid_rows};
    parallel_for(
        params.rows, grain_rows(params.classes),
        [](int64_t begin, int64_t end, void* c) {
          const Context& context = *static_cast<Context*>(c);
          context.kernels.row_loss(context.params, context.valid_rows, begin, end);
        },
        &context);
    if (params.rounding_state != nullptr) ++params.rounding_state[1];
  }
  if (params.logits_dtype == DType::kFloat64) {
    reduce_loss<double>(params, valid_rows);
  } else {
    reduce_loss<float>(params, valid_rows);
  }
}

void cpu_scale_grad(const ScaleGradParams& params, ParallelFor parallel_for,
                    const CpuKernels& kernels) {
  if (params.rows == 0) return;
  struct Context {
    const ScaleGradParams& params;
    const CpuKernels& kernels;
  } context{params, kernels};
  parallel_for(
      params.rows, grain_rows(params.classes),
      [](int64_t begin, int64_t end, void* c) {
        const Context& context = *static_cast<Context*>(c);
        context.kernels.scale_grad(context.params, begin, end);
      },
      &context);
}

}  // namespace alr_fast

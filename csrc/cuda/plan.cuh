// How a call is cut into blocks, and its launches.
#pragma once

#include <algorithm>
#include <numeric>

#include "loops.cuh"

namespace crrelu::cuda {
namespace {

/// Blocks for each one that fits at a time: those that end early make room for others.
constexpr int64_t kWaves = 4;
/// One block takes so many tiles of the backward pass alone, and one band so many rows, which saves
/// the second launch: 4 Ki elements of any type and alignment are among them, but for the gated
/// form in double.
constexpr int64_t kTilesOfOneBlock = 5;
constexpr int64_t kRowsOfOneBand = 64;
/// Shorter stretches of one epsilon than this are handled as rows; and if there are so many rows,
/// which pay for a slot of each column, all that would leave a part of a block's tile empty.
constexpr int64_t kShortestRun = 1024, kFewestRows = 64;
/// A row is made as long as a multiple of a warp's packs, if these are no more.
constexpr int64_t kMostTilesOfRow = 8;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

int64_t blocks_for(int resident, int multiprocessors) {
  return kWaves * resident * multiprocessors;
}

/// Elements by which a tensor starts behind a multiple of 16 bytes.
template <class S>
int misaligned_elements(const void* p) {
  return static_cast<int>(reinterpret_cast<uintptr_t>(p) % kPackBytes / sizeof(S));
}

bool in_rows(const Layout& layout, int tile) {
  const int64_t shortest = layout.outer < kFewestRows ? kShortestRun : tile;
  return layout.channels > 1 && layout.inner < shortest;
}

bool has_gaps(const Layout& layout) { return layout.channels == 1 && layout.outer > 1; }

/// Runs, cut into tiles of so many packs; the first starts `misaligned` elements behind a pack's
/// beginning, the others where it comes.
template <class F, class S, int kPacks>
Runs plan_runs(Layout layout, int misaligned, int multiprocessors) {
  Runs runs{};
  runs.misaligned = misaligned;
  if (has_gaps(layout)) {
    runs.packs_of_row = Division::by(static_cast<uint32_t>(layout.inner / kLanesOf<S>));
    layout = {1, 1, layout.outer * layout.inner};
  }
  const int64_t count = layout.outer * layout.channels;
  runs.inner = layout.inner;
  runs.count = static_cast<uint32_t>(count);
  runs.channels = static_cast<uint32_t>(layout.channels);
  const int before = layout.inner % kLanesOf<S> ? kLanesOf<S> - 1 : misaligned;
  const int64_t tiles = ceil_div(layout.inner + before, kTile<S, kPacks>);
  const int64_t parts = ceil_div(blocks_for(kResidentOf<F>, multiprocessors), count);
  runs.tiles = static_cast<uint32_t>(tiles);
  runs.parts =
      count == 1 && tiles <= kTilesOfOneBlock ? 1 : static_cast<uint32_t>(std::min(tiles, parts));
  return runs;
}

/// Rows, in bands whose height is a multiple of `step` rows for each warp.
struct RowsPlan {
  Rows rows;
  uint32_t warps, bands;

  template <class S>
  static RowsPlan of(const Layout& layout, int step, int multiprocessors) {
    constexpr int64_t kLanes = kLanesOf<S>, kTileOfRow = kWarp * kLanes;
    const int64_t period = layout.channels * layout.inner, numel = layout.outer * period;
    const int64_t whole = std::lcm(period, kLanes), full = std::lcm(period, kTileOfRow);
    RowsPlan plan{};
    Rows& rows = plan.rows;
    rows.inner = layout.inner;
    rows.channels = layout.channels;
    rows.numel = numel;
    rows.columns =
        full <= kMostTilesOfRow * kTileOfRow ? full : whole * ceil_div(kTileOfRow, whole);
    const int64_t count = ceil_div(numel + kLanes - 1, rows.columns);
    const int64_t tiles = ceil_div(rows.columns, kTileOfRow);
    rows.tiles = static_cast<uint32_t>(tiles);
    plan.warps = static_cast<uint32_t>(std::min<int64_t>(count, kMostWarps));
    const bool one_band = layout.outer <= kRowsOfOneBand;
    const int64_t blocks = blocks_for(kResidentOfRows, multiprocessors);
    const int64_t bands = one_band ? 1 : std::max<int64_t>(1, blocks / tiles);
    const int64_t multiple = plan.warps * step;
    rows.band = ceil_div(ceil_div(count, bands), multiple) * multiple;
    plan.bands = static_cast<uint32_t>(ceil_div(count, rows.band));
    return plan;
  }
  dim3 grid() const { return dim3(rows.tiles * bands); }
  dim3 block() const { return dim3(kWarp, warps); }
  Layout slots() const {
    const int64_t repeats = rows.columns / (rows.channels * rows.inner);
    return {bands * repeats, rows.channels, rows.inner};
  }
};

/// (outer, channels, inner) for fold.
Layout slots_of(const Runs& runs) {
  return {runs.count / runs.channels, runs.channels, runs.parts};
}

/// One slot for each epsilon needs no slots.
int64_t count(const Layout& slots) {
  return slots.outer * slots.inner == 1 ? 0 : slots.outer * slots.channels * slots.inner;
}

template <class F, class S>
struct Launches {
  static void forward(const Machine& machine, const Operands& operands, void* output) {
    auto* y = static_cast<S*>(output);
    if constexpr (F::kNumbers > 0) {
      if (in_rows(operands.layout, kTile<S, kForwardPacks<F>>)) {
        auto plan = RowsPlan::of<S>(operands.layout, kForwardPacks<F>, machine.multiprocessors);
        plan.rows.misaligned = misaligned_elements<S>(output);
        return launch(forward_rows<F, S>, plan.grid(), plan.block(), machine.stream, operands, y,
                      plan.rows);
      }
    }
    const auto runs = plan_runs<F, S, kForwardPacks<F>>(
        operands.layout, misaligned_elements<S>(output), machine.multiprocessors);
    launch(has_gaps(operands.layout) ? forward_runs<F, S, true> : forward_runs<F, S, false>,
           dim3(runs.count * runs.tiles), dim3(kThreads), machine.stream, operands, y, runs);
  }

  static void backward(const Machine& machine, const Operands& operands, Source grad_output,
                       void* const* grad_inputs, void* grad_epsilon, double* slots) {
    Gradients grads{grad_output, {}};
    const void* anchor = operands.inputs[0].first;
    for (int k = F::kInputs - 1; k >= 0; --k) {
      grads.inputs[k] = grad_inputs[k];
      if (grad_inputs[k]) anchor = grad_inputs[k];
    }
    const EpsilonGradient gradient{grad_epsilon, operands.epsilon_is_float};
    const Sums sums{grad_epsilon ? slots : nullptr, gradient};
    const Layout& layout = operands.layout;
    if constexpr (F::kNumbers > 0) {
      if (in_rows(layout, kTile<S, kBackwardPacks<F>>)) {
        auto plan = RowsPlan::of<S>(layout, kBackwardPacks<F>, machine.multiprocessors);
        plan.rows.misaligned = misaligned_elements<S>(anchor);
        launch(backward_rows<F, S>, plan.grid(), plan.block(), machine.stream, operands, grads,
               sums, plan.rows);
        if (sums.slots) launch_fold(machine, slots, plan.slots(), gradient);
        return;
      }
    }
    const auto runs = plan_runs<F, S, kBackwardPacks<F>>(layout, misaligned_elements<S>(anchor),
                                                         machine.multiprocessors);
    launch(has_gaps(layout) ? backward_runs<F, S, true> : backward_runs<F, S, false>,
           dim3(runs.count * runs.parts), dim3(kThreads), machine.stream, operands, grads, sums,
           runs);
    if (sums.slots) launch_fold(machine, slots, slots_of(runs), gradient);
  }

  /// At the most, wherever the tensors start.
  static int64_t slots(const Layout& layout, int multiprocessors) {
    if (in_rows(layout, kTile<S, kBackwardPacks<F>>))
      return count(RowsPlan::of<S>(layout, kBackwardPacks<F>, multiprocessors).slots());
    const auto runs = plan_runs<F, S, kBackwardPacks<F>>(layout, kLanesOf<S> - 1, multiprocessors);
    return count(slots_of(runs));
  }

 private:
  static void launch_fold(const Machine& machine, const double* slots, const Layout& layout,
                          const EpsilonGradient& gradient) {
    const int64_t each = ceil_div(layout.outer * layout.inner, kWarp) * kWarp;
    launch(fold<S>, dim3(static_cast<uint32_t>(layout.channels)),
           dim3(static_cast<uint32_t>(std::min<int64_t>(each, kMostThreads))), machine.stream,
           slots, layout, gradient);
  }
};

template <class T, class Real>
void launch_prepare_table(const Machine& machine, const void* table, int32_t knots,
                          void* prepared) {
  launch(prepare_table<T, Real>, dim3(1), dim3(kThreads), machine.stream,
         static_cast<const T*>(table), knots, static_cast<Real*>(prepared));
}

}  // namespace
}  // namespace crrelu::cuda

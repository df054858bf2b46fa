// The error of every instruction set's kernels over all inputs: 2^32 of float32, 2^16 of the 16-bit
// types. Prints the largest errors and where they are; exits with 1 if one exceeds what is
// promised.
#include <unistd.h>

#include <array>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <thread>

#include "accuracy.h"
#include "cpu/dispatch.h"

namespace crrelu {
namespace {

constexpr std::array<float, 4> kEpsilons = {0.01f, -0.5f, -1.69f, 1.0f};

/// The errors of each instruction set for each epsilon.
struct Table {
  std::vector<std::array<Errors, kEpsilons.size()>> errors{supported_instruction_sets().size()};

  void update(const Table& other) {
    for (size_t i = 0; i < errors.size(); ++i) {
      for (size_t j = 0; j < kEpsilons.size(); ++j) errors[i][j].update(other.errors[i][j]);
    }
  }

  template <class S>
  void update(const Oracle<S>& oracle) {
    for (size_t i = 0; i < errors.size(); ++i) {
      for (const bool only : {true, false}) {
        const auto kernels = plain_kernels<S>(supported_instruction_sets()[i], only);
        for (size_t j = 0; j < kEpsilons.size(); ++j) {
          errors[i][j].update(kernels, oracle, kEpsilons[j]);
        }
      }
    }
  }

  /// Whether all errors are within the bounds.
  template <class S>
  bool print() const {
    bool passed = true;
    for (size_t i = 0; i < errors.size(); ++i) {
      for (size_t j = 0; j < kEpsilons.size(); ++j) {
        const auto& [value, slope, epsilon_slope] = errors[i][j];
        const bool within = errors[i][j].within_bounds<S>();
        std::printf("%-8s  %-7s  %7g", Stored<S>::kName, supported_instruction_sets()[i].name,
                    kEpsilons[j]);
        for (const auto& worst : {value, slope, epsilon_slope}) {
          std::printf("  %6.3f at %-16.9g", worst.error, worst.x);
        }
        std::printf("%s\n", within ? "" : "  EXCEEDED");
        passed = passed && within;
      }
    }
    return passed;
  }
};

template <class S>
Table all_16_bit_inputs() {
  Table table;
  table.update(Oracle<S>::all());
  return table;
}

/// Blocks of |x| by bit patterns, each taken by one thread for both signs.
constexpr uint32_t kBlock = 1 << 11, kBlocks = (uint32_t{1} << 31) / kBlock;

void work(std::atomic<uint32_t>& next, Table& table) {
  for (uint32_t block; (block = next++) < kBlocks;) {
    Oracle<float> oracle;
    for (uint32_t i = 0; i < kBlock; ++i) {
      const uint32_t bits = block * kBlock + i;
      float x;
      std::memcpy(&x, &bits, sizeof(x));
      oracle.add(x);
    }
    table.update(oracle);
    oracle.reflect();
    table.update(oracle);
  }
}

void show_progress(const std::atomic<uint32_t>& next) {
  using Clock = std::chrono::steady_clock;
  const auto start = Clock::now();
  const bool terminal = isatty(STDERR_FILENO);
  for (uint32_t done; (done = next) < kBlocks;) {
    if (terminal && done > 0) {
      const double passed = std::chrono::duration<double>(Clock::now() - start).count();
      const int left = static_cast<int>(passed / done * (kBlocks - done));
      std::fprintf(stderr, "\rfloat32: %3u %%, %d:%02d minutes left ",
                   static_cast<unsigned>(100.0 * done / kBlocks), left / 60, left % 60);
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(500));
  }
  if (terminal) std::fprintf(stderr, "\r\033[K");
}

Table all_float32_inputs() {
  std::atomic<uint32_t> next{0};
  std::vector<Table> tables(std::max(1u, std::thread::hardware_concurrency()));
  std::vector<std::thread> threads;
  for (auto& table : tables) {
    threads.emplace_back([&next, &table] { work(next, table); });
  }
  show_progress(next);
  for (auto& thread : threads) thread.join();
  for (const auto& table : tables) tables[0].update(table);
  return tables[0];
}

}  // namespace
}  // namespace crrelu

int main() {
  using namespace crrelu;
  std::setvbuf(stdout, nullptr, _IOLBF, BUFSIZ);  // rows appear as they are found
  std::printf(
      "The largest error over all inputs.\n"
      "16-bit types: how many numbers from the correctly rounded one; promised are 1, 1 and 1.\n"
      "float32: in units in the last place of the larger term; promised are 2, 3 and 3.\n\n"
      "type      ISA      epsilon  %-26s  %-26s  %s\n",
      "f", "df/dx", "df/depsilon");
  const bool passed[] = {
      all_16_bit_inputs<BFloat16>().print<BFloat16>(),
      all_16_bit_inputs<Half>().print<Half>(),
      all_float32_inputs().print<float>(),
  };
  return passed[0] && passed[1] && passed[2] ? 0 : 1;
}

#include "simt.h"

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "harness.h"

namespace simt {
namespace {

constexpr size_t kStack = size_t{64} << 10;
constexpr int kWarp = 32;

struct Region {
  uintptr_t begin, end;
  bool writable;
};

std::mt19937_64 random_bits;
std::vector<Region> regions;
std::string problem;
Counts counts;
Settings settings;

void fail(const std::string& what) {
  if (problem.empty()) problem = what;
}

enum class State { kReady, kBarrier, kShuffle, kDone };

struct Fiber {
  jmp_buf context;
  bool started = false;
  State state;
  dim3 index;
  std::unique_ptr<char[]> stack{new char[kStack]};
  int shuffles;
};

/// The fibers live on from block to block. ucontext starts them; from then on they jump, which
/// needs no system call.
std::vector<Fiber> fibers;
int running = 0;
jmp_buf scheduler;
const std::function<void()>* body = nullptr;
/// What each thread handed in, twice: one that runs ahead writes what nobody reads any more.
std::vector<double> handed_in[2];

void give_way(State state) {
  Fiber& fiber = fibers[running];
  fiber.state = state;
  if (_setjmp(fiber.context) == 0) _longjmp(scheduler, 1);
}

/// A thread of each block.
void live() {
  for (;;) {
    (*body)();
    give_way(State::kDone);
  }
}

/// Runs a fiber until it gives way.
void go_on(int number) {
  running = number;
  Fiber& fiber = fibers[number];
  threadIdx = fiber.index;
  if (_setjmp(scheduler) != 0) return;
  if (fiber.started) _longjmp(fiber.context, 1);
  fiber.started = true;
  ucontext_t start;
  getcontext(&start);
  start.uc_stack.ss_sp = fiber.stack.get();
  start.uc_stack.ss_size = kStack;
  makecontext(&start, live, 0);
  setcontext(&start);
}

/// Lets those in [first, last) go on that wait at a `state`, if all of them do.
bool release(int first, int last, State state) {
  const auto waits = [&](const Fiber& fiber) { return fiber.state == state; };
  const auto begin = fibers.begin() + first, end = fibers.begin() + last;
  if (!std::all_of(begin, end, waits)) return false;
  for (auto fiber = begin; fiber != end; ++fiber) fiber->state = State::kReady;
  return true;
}

void run_block(dim3 block) {
  const int threads = static_cast<int>(block.x * block.y * block.z);
  if (static_cast<int>(fibers.size()) < threads) fibers.resize(threads);
  for (auto& values : handed_in) values.assign(fibers.size(), NAN);
  std::vector<int> order(threads);
  std::iota(order.begin(), order.end(), 0);
  for (int k = 0; k < threads; ++k) {
    Fiber& fiber = fibers[k];
    fiber.state = State::kReady;
    fiber.shuffles = 0;
    fiber.index = dim3(k % block.x, k / block.x % block.y, k / (block.x * block.y));
  }
  for (int done = 0; done < threads;) {
    std::shuffle(order.begin(), order.end(), random_bits);
    bool moved = false;
    for (const int k : order) {
      if (fibers[k].state != State::kReady) continue;
      go_on(k);
      done += fibers[k].state == State::kDone;
      moved = true;
    }
    for (int warp = 0; warp < threads; warp += kWarp) {
      moved |= release(warp, std::min(warp + kWarp, threads), State::kShuffle);
    }
    moved |= release(0, threads, State::kBarrier);
    if (!moved) {
      fibers.clear();  // they wait for what will not come
      return fail("a barrier or a shuffle was not reached by all threads");
    }
  }
}

}  // namespace

void synchronize() { give_way(State::kBarrier); }

double shuffle_down(double value, int distance) {
  const int me = running;
  auto& values = handed_in[fibers[me].shuffles++ % 2];
  values[me] = value;
  give_way(State::kShuffle);
  return me % kWarp + distance < kWarp ? values[me + distance] : value;
}

bool access(const void* p, size_t size, size_t alignment, bool writes) {
  const auto address = reinterpret_cast<uintptr_t>(p);
  if (address % alignment) fail("an access is not aligned");
  const bool inside = std::any_of(regions.begin(), regions.end(), [&](const Region& region) {
    return region.begin <= address && address + size <= region.end && (!writes || region.writable);
  });
  if (!inside) fail(writes ? "a store outside the outputs" : "a load outside the tensors");
  (writes ? counts.stored : counts.loaded) += static_cast<int64_t>(size);
  return inside;
}

// Any, but by the argument alone, as a machine would.
int exp2_error(float x) {
  ++counts.exponentials;
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  const int choices = 2 * settings.exp2_error + 1;
  return static_cast<int>((bits * uint32_t{2654435761} >> 8) % choices) - settings.exp2_error;
}

void run(dim3 grid, dim3 block, const std::function<void()>& thread) {
  ++counts.launches;
  if (grid.x == 0 || block.x * block.y * block.z > 1024) return fail("a launch is not possible");
  counts.blocks += grid.x;
  gridDim = grid;
  blockDim = block;
  body = &thread;
  std::vector<uint32_t> blocks;
  if (grid.x <= settings.most_blocks) {
    blocks.resize(grid.x);
    std::iota(blocks.begin(), blocks.end(), 0);
  } else {  // the first, the last, and some between
    std::uniform_int_distribution<uint32_t> any(0, grid.x - 1);
    for (uint32_t k = 0; k < settings.most_blocks; ++k) blocks.push_back(any(random_bits));
    blocks.front() = 0;
    blocks.back() = grid.x - 1;
    std::sort(blocks.begin(), blocks.end());
    blocks.erase(std::unique(blocks.begin(), blocks.end()), blocks.end());
  }
  std::shuffle(blocks.begin(), blocks.end(), random_bits);
  for (const uint32_t k : blocks) {
    blockIdx = dim3(k);
    run_block(block);
    if (!problem.empty()) return;
  }
}

void begin(const Settings& wanted) {
  settings = wanted;
  random_bits.seed(wanted.seed);
  regions.clear();
  problem.clear();
  counts = {};
}

void allow(const void* p, int64_t size, bool writable) {
  const auto address = reinterpret_cast<uintptr_t>(p);
  if (p) regions.push_back({address, address + size, writable});
}

const char* end(Counts* counted) {
  *counted = counts;
  return problem.empty() ? nullptr : problem.c_str();
}

}  // namespace simt

// Work on PyTorch's threads.
//
// at::parallel_for is compiled into its caller: there it runs on one thread, silently, unless the
// compiler is told to use OpenMP, and then on the threads of that compiler's runtime, which need
// not be PyTorch's. So the region is begun by name. GNU's runtime has this entry, and so have
// LLVM's and Intel's; the loader finds that of the runtime which torch was linked with.
#pragma once

#include <ATen/ATen.h>
#include <ATen/Config.h>
#include <ATen/Parallel.h>
#include <ATen/TensorIterator.h>

#include <algorithm>
#include <atomic>

#if AT_PARALLEL_OPENMP && defined(__ELF__)
extern "C" __attribute__((weak)) void GOMP_parallel(void (*body)(void*), void* data,
                                                    unsigned threads, unsigned flags);
#endif

namespace crrelu {

/// f(begin, end), which must not throw, over [0, count): more than `grain` of them are cut into as
/// many shares, one for each thread at the most.
template <class F>
void parallel_for(int64_t count, int64_t grain, const F& f) {
  if (count <= grain) return f(0, count);
#if AT_PARALLEL_OPENMP && defined(__ELF__)
  if (GOMP_parallel) {
    struct Work {
      const F& f;
      const int64_t count, shares;
      std::atomic<int64_t> taken{0};  // by the threads there are, be they fewer than asked for
    } work{f, count, std::min<int64_t>(at::get_num_threads(), (count + grain - 1) / grain)};
    if (work.shares == 1 || at::in_parallel_region()) return f(0, count);
    const auto body = [](void* data) {
      auto& work = *static_cast<Work*>(data);
      for (int64_t share; (share = work.taken++) < work.shares;)
        work.f(work.count * share / work.shares, work.count * (share + 1) / work.shares);
    };
    // All threads, though there may be fewer shares: where the number changes from region to region
    // GNU's runtime ends threads and starts others.
    return GOMP_parallel(body, &work, 0, 0);
  }
#endif
  // Elsewhere for_each calls at::parallel_for inside libtorch, whatever built that.
  static char none;  // where addresses start that are counted by and never touched
  const auto pieces = at::from_blob(&none, {count}, at::kByte);
  const char* first = static_cast<const char*>(pieces.const_data_ptr());
  at::TensorIterator::borrowing_nullary_op(pieces).for_each(
      [&](char** data, const int64_t*, int64_t size, int64_t) {
        f(data[0] - first, data[0] - first + size);
      },
      grain);
}

}  // namespace crrelu

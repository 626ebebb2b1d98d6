// Parallel regions on the thread pool of `threads.cpp`.

#pragma once
#include <cstdint>

class Barrier;

// Runs work(context, rank, barrier) on `threads` threads, ranks 0 to threads - 1. Returns 1 if
// memory or threads ran out, else 0.
int32_t slimscope_run(int32_t threads, void (*work)(void*, int, Barrier&), void* context) noexcept;
// Waits for all threads. The last thread to arrive runs `last` before the others continue.
void slimscope_wait(Barrier& barrier, void (*last)(void*), void* context);

namespace {

template <class Work> int32_t in_team(int threads, Work work) {
  const auto call = [](void* self, int rank, Barrier& barrier) {
    (*static_cast<Work*>(self))(rank, barrier);
  };
  return slimscope_run(threads, call, &work);
}

template <class Work> void wait_for_all(Barrier& barrier, Work last) {
  slimscope_wait(barrier, [](void* self) { (*static_cast<Work*>(self))(); }, &last);
}
inline void wait_for_all(Barrier& barrier) {
  wait_for_all(barrier, [] {});
}

// Range of units [first, last).
struct Share {
  int first, last;
};
// Range of thread `rank` when `units` are split evenly between `size` threads.
inline Share share(int units, int rank, int size) {
  return {(int)((int64_t)units * rank / size), (int)((int64_t)units * (rank + 1) / size)};
}

}  // namespace

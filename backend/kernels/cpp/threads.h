// Work that several threads of the pool in `threads.cpp` do at the same time, each its part.

#pragma once
#include <cstdint>

class Barrier;

// Runs work(context, 0, barrier) to work(context, threads - 1, barrier) at the same time. Returns 1
// if memory or threads ran out, else 0.
int32_t slimscope_run(int32_t threads, void (*work)(void*, int, Barrier&), void* context) noexcept;
// Waits for all threads; the last to come does `last` before they go on.
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

struct Share {
  int first, last;
};
inline Share share(int units, int rank, int size) {
  return {(int)((int64_t)units * rank / size), (int)((int64_t)units * (rank + 1) / size)};
}

}  // namespace

// The threads of this process: they compute the same pass, each its part of every product.

#include "threads.h"

#include <sys/resource.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace {

// Number of a turn that threads wait for. Turns are short, so they look again and again, but soon
// let others use the processor between two looks, which is faster where others want it; then they
// sleep.
class Turn {
 public:
  unsigned now() const { return turn_; }
  void next() {
    turn_++;
    if (!asleep_) return;
    std::lock_guard<std::mutex> lock(mutex_);
    changed_.notify_all();
  }
  // Returns once the turn is no longer `old`.
  void wait(unsigned old) {
    const auto end = std::chrono::steady_clock::now() + AWAKE;
    do {
      for (int looks = 0; looks < 32; looks++) {
        if (turn_.load(std::memory_order_acquire) != old) return;
        pause();
      }
      std::this_thread::yield();
    } while (std::chrono::steady_clock::now() < end);
    std::unique_lock<std::mutex> lock(mutex_);
    asleep_++;
    changed_.wait(lock, [&] { return turn_ != old; });
    asleep_--;
  }

 private:
  static constexpr std::chrono::milliseconds AWAKE{1};
  static void pause() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }

  std::atomic<unsigned> turn_{0}, asleep_{0};
  std::mutex mutex_;
  std::condition_variable changed_;
};

}  // namespace

class Barrier {
 public:
  explicit Barrier(int size) : size_(size) {}
  template <class Work> void wait(Work work) {
    const unsigned turn = turn_.now();  // before: a failure from here on changes it
    if (failed_) throw TeamFailed();
    if (arrived_.fetch_add(1) + 1 < size_) {
      turn_.wait(turn);
      if (failed_) throw TeamFailed();
      return;
    }
    work();
    arrived_ = 0;
    turn_.next();
  }
  // Lets nobody wait for whoever will not come.
  void fail() {
    failed_ = true;
    turn_.next();
  }
  bool failed() const { return failed_; }

 private:
  struct TeamFailed {};
  const int size_;
  std::atomic<bool> failed_{false};
  std::atomic<int> arrived_{0};
  Turn turn_;
};

namespace {

// Threads that wait for passes.
class Team {
 public:
  explicit Team(int threads) {
    try {
      for (int rank = 1; rank < threads; rank++)
        workers_.emplace_back([this, rank] { serve(rank); });
    } catch (...) {
      end();
      throw;
    }
  }
  ~Team() { end(); }

  // True for as many threads of the priority of this one: threads inherit it, and cannot raise it.
  bool suits(int threads) const {
    return (int)workers_.size() == threads - 1 && priority_ == getpriority(PRIO_PROCESS, 0);
  }
  // Runs work(0) to work(threads - 1) at the same time, the first on this thread.
  void run(const std::function<void(int)>& work) {
    work_ = &work, working_ = (int)workers_.size();
    begun_.next();
    work(0);
    for (unsigned turn; turn = ended_.now(), working_ > 0;) ended_.wait(turn);
  }

 private:
  void serve(int rank) {
#if defined(__linux__)
    pthread_setname_np(pthread_self(), "slimscope");
#endif
    for (unsigned turn = 0;; turn++) {
      begun_.wait(turn);
      if (!work_) return;
      (*work_)(rank);
      if (--working_ == 0) ended_.next();
    }
  }
  void end() {
    work_ = nullptr;
    begun_.next();
    for (auto& worker : workers_) worker.join();
  }

  const int priority_ = getpriority(PRIO_PROCESS, 0);
  std::vector<std::thread> workers_;
  const std::function<void(int)>* work_ = nullptr;
  std::atomic<int> working_{0};
  Turn begun_, ended_;
};

// The teams of a process: each pass has one, which is kept for the next pass until no model is
// left.
class ThreadPool {
 public:
  void run(int threads, const std::function<void(int)>& work) {
    std::unique_ptr<Team> team = take(threads);
    team->run(work);
    put(std::move(team));
  }

  static void acquire() { users_++; }
  static void release() {
    if (--users_ > 0) return;
    ThreadPool& pool = current();
    for (auto& place : pool.idle_) std::unique_ptr<Team> team = pool.take(place);
  }

  // A fork has none of the threads of its parent, and begins anew. The old pool is left as it is:
  // its mutexes may be locked for ever.
  static ThreadPool& current() {
    static std::atomic<ThreadPool*> pool{nullptr};
    for (ThreadPool* found = pool;;) {
      if (found && found->process_ == getpid()) return *found;
      auto fresh = std::make_unique<ThreadPool>();
      if (pool.compare_exchange_strong(found, fresh.get())) return *fresh.release();
    }
  }

 private:
  static constexpr int MOST_IDLE = 4;

  std::unique_ptr<Team> take(std::unique_ptr<Team>& place) {
    std::lock_guard<std::mutex> lock(mutex_);
    return std::move(place);
  }
  std::unique_ptr<Team> take(int threads) {
    std::lock_guard<std::mutex> lock(mutex_);
    for (auto& team : idle_)
      if (team && team->suits(threads)) return std::move(team);
    return std::make_unique<Team>(threads);
  }
  // Keeps it for the next pass; where there is no place, another ends.
  void put(std::unique_ptr<Team> team) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (users_ == 0) return;
    for (auto& place : idle_)
      if (!place) return place.swap(team);
    idle_[next_++ % MOST_IDLE].swap(team);
  }

  static inline std::atomic<int> users_{0};
  const pid_t process_ = getpid();
  std::mutex mutex_;
  std::unique_ptr<Team> idle_[MOST_IDLE];
  unsigned next_ = 0;
};

}  // namespace

int32_t slimscope_run(int32_t threads, void (*work)(void*, int, Barrier&), void* context) noexcept
    try {
  Barrier barrier(threads);
  auto safely = [&](int rank) noexcept {
    try {
      work(context, rank, barrier);
    } catch (...) {
      barrier.fail();
    }
  };
  if (threads > 1)
    ThreadPool::current().run(threads, safely);
  else
    safely(0);
  return barrier.failed();
} catch (...) {
  return 1;
}

void slimscope_wait(Barrier& barrier, void (*last)(void*), void* context) {
  barrier.wait([&] { last(context); });
}

extern "C" {

// Counts the models that use the threads of this process, which end with the last.
__attribute__((visibility("default"))) void slimscope_acquire_threads() { ThreadPool::acquire(); }
__attribute__((visibility("default"))) void slimscope_release_threads() try {
  ThreadPool::release();
} catch (...) {  // then they sleep on
}
}

// Thread pool of the process.

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

// Counter that threads wait on. Waits are usually short, so a thread first spins, soon yields the
// processor between polls, which is faster on a busy machine, and finally sleeps.
class Turn {
 public:
  unsigned now() const { return turn_; }
  void next() {
    turn_++;
    if (!asleep_) return;
    std::lock_guard<std::mutex> lock(mutex_);
    changed_.notify_all();
  }
  // Returns once the counter differs from `old`.
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

// Reusable barrier of a team. The last thread to arrive runs the work that is passed to `wait`.
class Barrier {
 public:
  explicit Barrier(int size) : size_(size) {}
  template <class Work> void wait(Work work) {
    const unsigned turn = turn_.now();  // read first, so that a later failure changes it
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
  // Wakes all waiting threads, which fail as well: this thread will not arrive.
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

// Worker threads of one parallel region at a time.
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

  // Returns true if the team has this number of threads and the priority of the calling thread.
  // Threads inherit a priority and cannot raise it.
  bool suits(int threads) const {
    return (int)workers_.size() == threads - 1 && priority_ == getpriority(PRIO_PROCESS, 0);
  }
  // Runs work(0) to work(threads - 1) in parallel, rank 0 on the calling thread.
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

// Idle teams of the process. A parallel region takes a team and returns it for reuse. Teams end
// when the last model is released.
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

  // Returns the pool of this process. A forked process has none of its parent's threads, so it
  // makes a new pool. It leaks the old pool, whose mutexes may be locked forever.
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
  // Keeps a team for reuse; if all slots are taken, it replaces another team, which ends.
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

// Counts the users of the thread pool; its threads end with the last user.
__attribute__((visibility("default"))) void slimscope_acquire_threads() { ThreadPool::acquire(); }
__attribute__((visibility("default"))) void slimscope_release_threads() try {
  ThreadPool::release();
} catch (...) {  // the threads stay asleep
}
}

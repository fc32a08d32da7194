// Worker threads of the process: one static split of the work, a short spin, then sleep.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <type_traits>

namespace flyweight {

// A lock for moments: fork() waits until it is free, so that the child finds it free.
std::mutex& lock_for_forks();

class Pool {
 public:
  // The one pool of this process. After fork() the child gets a new one: threads do not survive a fork.
  static Pool& instance();

  // Calls job(i) for i in [0, n), the first by the caller, the others by workers; returns when all are done. If the
  // pool already works for another caller, this one does everything itself, and where the system gives no more threads,
  // what they would have done: results never depend on who computes.
  // Jobs must not throw.
  template <class Job>
  void run(int n, Job&& job) {
    if (n <= 1 || !busy_.try_lock()) {
      for (int i = 0; i < n; ++i) job(i);
      return;
    }
    const std::lock_guard<std::mutex> lock(busy_, std::adopt_lock);
    using Bare = std::remove_reference_t<Job>;
    dispatch(n, [](void* p, int i) { (*static_cast<Bare*>(p))(i); },
             const_cast<void*>(static_cast<const void*>(&job)));
  }

 private:
  using Call = void (*)(void*, int);
  void dispatch(int n, Call call, void* job);
  void work(int worker, std::uint32_t seen);

  std::mutex busy_;
  Call call_ = nullptr;
  void* job_ = nullptr;
  int n_ = 0;
  alignas(64) std::atomic<std::uint32_t> turn_{0};  // workers wait for it to change
  alignas(64) std::atomic<int> left_{0};            // workers that have not finished this turn
  int workers_ = 0;  // detached threads: the pool lives as long as the process
};

}  // namespace flyweight

#include "engine/pool.h"

#include <exception>

#if defined(__x86_64__) || defined(_M_X64)
#include <xmmintrin.h>
#endif

#if !defined(_WIN32)
#include <pthread.h>
#endif

#include "engine/cpu.h"

namespace flyweight {
namespace {

constexpr int kSpins = 4000;  // about 20 to 100 us: phases of a forward pass follow one another faster than that

inline void breathe() {
#if defined(__x86_64__) || defined(_M_X64)
  _mm_pause();
#elif defined(__aarch64__) && !defined(_MSC_VER)
  __asm__ volatile("yield");
#endif
}

std::atomic<Pool*> current{nullptr};
std::mutex for_forks;

// Once a process, before the first lock or thread that a fork could hurt.
void survive_forks() {
#if !defined(_WIN32)
  static const int registered = pthread_atfork([] { for_forks.lock(); }, [] { for_forks.unlock(); },
                                               [] {
                                                 for_forks.unlock();
                                                 current.store(nullptr);
                                               });
  (void)registered;
#endif
}

}  // namespace

std::mutex& lock_for_forks() {
  survive_forks();
  return for_forks;
}

Pool& Pool::instance() {
  Pool* pool = current.load(std::memory_order_acquire);
  if (pool) return *pool;
  survive_forks();
  auto* made = new Pool;  // never deleted: its threads may outlive static destruction
  if (current.compare_exchange_strong(pool, made)) return *made;
  delete made;
  return *pool;
}

void Pool::dispatch(int n, Call call, void* job) {
  while (workers_ < n - 1) {
    try {
      std::thread([this, worker = workers_ + 1, seen = turn_.load()] { work(worker, seen); }).detach();
    } catch (const std::exception&) {
      break;
    }
    ++workers_;
  }
  call_ = call;
  job_ = job;
  n_ = n;
  left_.store(workers_, std::memory_order_relaxed);
  turn_.fetch_add(1, std::memory_order_release);
  turn_.notify_all();
  call(job, 0);
  for (int i = workers_ + 1; i < n; ++i) call(job, i);
  int spins = 0;
  for (int left; (left = left_.load(std::memory_order_acquire)) != 0;) {
    if (++spins < kSpins) {
      breathe();
    } else {
      left_.wait(left, std::memory_order_acquire);
    }
  }
}

void Pool::work(int worker, std::uint32_t seen) {
  const FloatEnvironment pinned;
  for (;;) {
    int spins = 0;
    while (turn_.load(std::memory_order_acquire) == seen) {
      if (++spins < kSpins) {
        breathe();
      } else {
        turn_.wait(seen, std::memory_order_acquire);
      }
    }
    ++seen;
    if (worker < n_) call_(job_, worker);
    if (left_.fetch_sub(1, std::memory_order_acq_rel) == 1) left_.notify_one();
  }
}

}  // namespace flyweight

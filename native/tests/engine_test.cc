// The engine without Python: equal bits, no allocation, threads, forks, floating-point state.
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <thread>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif
#if defined(__linux__)
#include <sys/wait.h>
#include <unistd.h>
#endif

#include "engine/pool.h"
#include "tests/engine_cases.h"

using namespace cases;

#ifndef _MSC_VER  // which has no aligned_alloc
// Every allocation of this program is counted.
static std::atomic<long> n_allocations{0};

static void* allocate(std::size_t size, std::size_t align) {
  ++n_allocations;
  if (void* p = std::aligned_alloc(align, (size + align - 1) / align * align)) return p;
  throw std::bad_alloc();
}
[[gnu::noinline]] void* operator new(std::size_t size) { return allocate(size ? size : 1, alignof(std::max_align_t)); }
[[gnu::noinline]] void* operator new(std::size_t size, std::align_val_t align) {
  return allocate(size ? size : 1, std::size_t(align));
}
[[gnu::noinline]] void operator delete(void* p) noexcept { std::free(p); }
[[gnu::noinline]] void operator delete(void* p, std::size_t) noexcept { std::free(p); }
[[gnu::noinline]] void operator delete(void* p, std::align_val_t) noexcept { std::free(p); }
[[gnu::noinline]] void operator delete(void* p, std::size_t, std::align_val_t) noexcept { std::free(p); }
#endif

namespace {

Messages ragged(const Config& config) {
  Messages m;
  for (int length : {1, 3, config.max_positions, 17, 2, 16, 1, 33, 5}) m.add(length, config);
  return m;
}

bool finite(const Exact<float>& values) {
  return std::all_of(values.begin(), values.end(), [](float x) { return std::isfinite(x); });
}

#if defined(__linux__)
// The exit status of `child` in a forked process; 255 if it hangs.
template <class Child>
int forked(Child child) {
  const pid_t id = fork();
  if (id == 0) {
    alarm(10);
    _exit(child());
  }
  int status = 0;
  waitpid(id, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 255;
}
#endif

}  // namespace

TEST(engine_levels_batches_and_threads_give_equal_bits) {
  struct Kind {
    Pooling pooling;
    int embedding, n_intents;
  };
  const Kind kinds[] = {{Pooling::mean, 0, 5},     {Pooling::mean, 37, 5},     {Pooling::cls, 64, 0},
                        {Pooling::cls_tanh, 3, 5}, {Pooling::cls_relu, 37, 0}, {Pooling::cls_relu, 0, 5},
                        {Pooling::cls_gelu, 0, 5}};
  for (const char* weights : kWeights)
    for (const auto& [pooling, embedding, n_intents] : kinds) {
      if (pooling != Pooling::mean && weights != std::string("mixed")) continue;
      const Sample sample(weights, pooling, embedding, n_intents);
      const Messages all = ragged(sample.config);
      const Engine plain = sample.engine(scalar_kernels());
      const Exact<float> wanted = logits(plain, all);
      CHECK(finite(wanted));
      for (const Kernels* level : all_levels()) {
        const Engine engine = sample.engine(level);
        for (int threads : {1, 2, 4})
          if (!same(logits(engine, all, threads), wanted))
            check::fail(__FILE__, __LINE__,
                        std::string(level->name) + ", " + weights + ", threads " + std::to_string(threads));
        for (int i = 0; i < all.size(); ++i) {
          Messages one;
          one.add(all, std::size_t(i));
          std::size_t n = 0;
          const float* alone = part(wanted, all, sample.config, i, &n);
          if (!same(logits(engine, one, 1 + i % 3).get(), alone, n))
            check::fail(__FILE__, __LINE__, std::string(level->name) + ", " + weights + ", message " + std::to_string(i));
        }
      }
    }
}

#if defined(__linux__)
TEST(engine_small_work_keeps_to_one_thread) {
  if (emulated()) return;
  const auto n_threads = [] { return std::distance(std::filesystem::directory_iterator("/proc/self/task"), {}); };
  Sample sample("float32");
  Messages one, all;
  one.add(5, sample.config);
  for (int i = 0; i < 5; ++i) all.add(60, sample.config);
  const long before = n_threads();
  CHECK_EQUAL(forked([&] {
    sample.config.worth_a_thread = 700000;  // 300 tokens by 6,360 weights are two of it, 5 tokens none
    const Engine engine = sample.engine(scalar_kernels());
    (void)logits(engine, one, 4);
    if (n_threads() != 1) return 1;
    (void)logits(engine, all, 4);
    return n_threads() == 2 ? 0 : 2;
  }), 0);
  CHECK_EQUAL(n_threads(), before);
}
#endif

TEST(engine_many_groups_over_threads_give_equal_bits) {
  const Sample sample("mixed");
  const Engine engine = sample.engine(all_levels()[0]);
  Messages all;
  for (int i = 0; i < 20; ++i) all.add(random_int(1, 60), sample.config);
  const Exact<float> wanted = logits(engine, all);
  for (int i = rounds(100); i > 0; --i) CHECK(same(logits(engine, all, 2 + i % 3), wanted));
}

TEST(engine_one_message_over_threads_gives_equal_bits) {
  const Sample sample("mixed");
  Messages one;
  one.add(sample.config.max_positions, sample.config);
  for (const Kernels* level : usable_levels()) {
    const Engine engine = sample.engine(level);
    const Exact<float> wanted = logits(engine, one);
    for (int i = rounds(60); i > 0; --i) CHECK(same(logits(engine, one, 2 + i % 3), wanted));
  }
}

TEST(engine_callers_at_once_get_equal_bits) {
  const Sample first("4 bits"), second("int8 with shift");
  const Engine engines[] = {first.engine(all_levels()[0]), second.engine(all_levels()[0])};
  const Messages all = ragged(first.config);
  const Exact<float> wanted[] = {logits(engines[0], all), logits(engines[1], all)};
  std::atomic<int> wrong{0};
  std::vector<std::thread> callers;
  for (int c = 0; c < 6; ++c)
    callers.emplace_back([&, c] {
      for (int i = rounds(10); i > 0; --i) wrong += !same(logits(engines[c % 2], all, 1 + (c / 2 + i) % 3), wanted[c % 2]);
    });
  for (std::thread& caller : callers) caller.join();
  CHECK_EQUAL(wrong.load(), 0);
}

#ifndef _MSC_VER
TEST(engine_second_call_allocates_nothing) {
  const Sample samples[] = {Sample("float32"), Sample("static int8"), Sample("mixed"), Sample("mixed", Pooling::cls_gelu, 37),
                            Sample("int8", Pooling::cls_relu, 3, 0)};
  for (const Sample& sample : samples) {
    const Engine engine = sample.engine(all_levels()[0]);
    const Messages all = ragged(sample.config);
    const Exact<float> intent(all.lengths.size() * 5), tags(all.first.size() * 7);
    const auto call = [&](int n, int threads) {
      engine.logits(all.ids.data(), all.lengths.data(), n, all.first.data(), all.n_words.data(), threads, intent.get(),
                    tags.get());
    };
    call(all.size(), 1);
    long before = n_allocations;
    for (int n = all.size(); n >= 0; --n) call(n, 1);
    CHECK_EQUAL(n_allocations - before, 0);
    // Two needs in turn: the workspace for both is kept.
    call(3, 1);
    call(1, 3);
    call(3, 1);
    before = n_allocations;
    for (int i = 0; i < 4; ++i) call(i % 2 ? 3 : 1, i % 2 ? 1 : 3);
    CHECK_EQUAL(n_allocations - before, 0);
  }
}
#endif

TEST(engine_what_is_not_finite_stays_with_its_message) {
  for (const char* weights : {"float32", "int8", "4 bits", "static int8"}) {
    Sample s(weights);
    MatrixSource& words = s.matrices["embeddings.words"];
    words.values = Values::float32;
    const Span<float> values = s.floats(50 * 20, 0.0f, 1.0f);
    for (int i = 0; i < 20; ++i) const_cast<float*>(values.data)[7 * 20 + i] = 3e38f;  // their sum is infinite
    words.data = {reinterpret_cast<const std::uint8_t*>(values.data), values.size * sizeof(float)};
    words.table = {};
    const Messages all = ragged(s.config);
    Messages clean = all, spoilt = all;
    for (auto& id : clean.ids) id = id == 7 ? 8 : id;
    spoilt.ids = clean.ids;
    spoilt.ids[2] = 7;  // of the second message
    for (const Kernels* level : all_levels()) {
      const Engine engine = s.engine(level);
      const Exact<float> wanted = logits(engine, clean), found = logits(engine, spoilt);
      CHECK(finite(wanted));
      for (int i = 0; i < all.size(); ++i) {
        std::size_t n = 0;
        const float* a = part(found, all, s.config, i, &n);
        if (i == 1) {
          for (std::size_t j = 0; j < n; ++j) CHECK(!std::isfinite(a[j]));
        } else {
          CHECK(same(a, part(wanted, all, s.config, i, &n), n));
        }
      }
      CHECK(same(logits(engine, clean), wanted));  // and leaves nothing behind
    }
  }
}

#if defined(__x86_64__)
TEST(engine_is_pinned_to_its_floating_point_state) {
  constexpr unsigned kFlush = 0x8040, kTowardZero = 0x6000, kInexactSeen = 0x20;
  const unsigned before = _mm_getcsr();
  for (const char* weights : {"float32", "mixed"}) {
    Sample s(weights);
    // Words and places that differ by denormals alone, brought up to usual numbers by the norm's weight and eps.
    for (const char* name : {"embeddings.words", "embeddings.positions"}) {
      MatrixSource& m = s.matrices[name];
      const Span<float> values = s.floats(std::size_t(m.rows * m.columns), 0.0f, 1e-39f);
      m.values = Values::float32;
      m.data = {reinterpret_cast<const std::uint8_t*>(values.data), values.size * sizeof(float)};
    }
    s.vectors["embeddings.norm.weight"] = s.floats(20, 1e36f, 1e35f);
    const Messages all = ragged(s.config);
    const Engine engine = s.engine(all_levels()[0]);
    const Exact<float> wanted = logits(engine, all);
    for (unsigned state : {before | kFlush, before | kTowardZero, before | kFlush | kInexactSeen}) {
      _mm_setcsr(state);
      const Exact<float> made = logits(s.engine(all_levels()[0]), all);
      const Exact<float> one = logits(engine, all), two = logits(engine, all, 2);
      const unsigned after = _mm_getcsr();
      _mm_setcsr(before);
      CHECK_EQUAL(after, state);
      CHECK(same(made, wanted) && same(one, wanted) && same(two, wanted));
    }
    _mm_setcsr(before | kFlush);
    try {
      const std::int32_t none = 0;
      engine.logits(nullptr, &none, 1, nullptr, &none, 1, nullptr, nullptr);
    } catch (const std::invalid_argument&) {
    }
    const unsigned after = _mm_getcsr();
    _mm_setcsr(before);
    CHECK_EQUAL(after, before | kFlush);
  }
}
#endif

TEST(pool_does_every_job_once) {
  for (int n : {0, 1, 2, 3, 7}) {
    std::vector<int> done(std::size_t(n), 0);
    Pool::instance().run(n, [&](int i) { ++done[std::size_t(i)]; });
    CHECK_EQUAL(done, std::vector<int>(std::size_t(n), 1));
  }
  std::atomic<int> wrong{0};
  std::vector<std::thread> callers;
  for (int c = 0; c < 4; ++c)
    callers.emplace_back([&] {
      for (int i = 0; i < 200; ++i) {
        std::atomic<int> sum{0};
        Pool::instance().run(4, [&](int job) { sum += 1 << 8 * job; });
        wrong += sum != 0x01010101;
      }
    });
  for (std::thread& caller : callers) caller.join();
  CHECK_EQUAL(wrong.load(), 0);
}

#if defined(__linux__)
TEST(engine_works_on_after_a_fork) {
  if (emulated()) return;
  const Sample s("mixed");
  const Engine engine = s.engine(all_levels()[0]);
  const Messages all = ragged(s.config);
  const Exact<float> wanted = logits(engine, all, 3);
  const auto compute = [&] { return same(logits(engine, all, 3), wanted) && same(logits(engine, all, 1), wanted) ? 0 : 1; };
  CHECK_EQUAL(forked(compute), 0);
  CHECK_EQUAL(forked([&] { return forked(compute); }), 0);
  CHECK_EQUAL(compute(), 0);
#ifndef __SANITIZE_ADDRESS__  // its own allocator's lock may be held by another thread at the fork, and stays held
  // Others ask the same engine all the time: no lock may be theirs in the child.
  std::atomic<bool> stop{false};
  std::vector<std::thread> callers;
  for (int c = 0; c < 3; ++c)
    callers.emplace_back([&, c] {
      Messages one;
      one.add(all, 0);
      while (!stop) (void)logits(engine, c == 2 ? all : one, c == 2 ? 2 : 1);
    });
  callers.emplace_back([&] {
    while (!stop) const std::lock_guard<std::mutex> often(lock_for_forks());
  });
  for (int i = 0; i < 30; ++i)
    if (const int status = forked(compute)) {
      check::fail(__FILE__, __LINE__, "child " + std::to_string(i) + " ends with " + std::to_string(status));
      break;
    }
  stop = true;
  for (std::thread& caller : callers) caller.join();
#endif
}
#endif

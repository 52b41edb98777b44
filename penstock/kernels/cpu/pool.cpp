#include "pool.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <unistd.h>

#include <chrono>
#include <new>

namespace pk {
namespace {

using Clock = std::chrono::steady_clock;

inline void pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

constexpr int LOOKS = 64;                           // between two looks at the clock
constexpr auto MEET = std::chrono::microseconds(60);   // spinning at a barrier, before giving way
constexpr auto YIELD = std::chrono::microseconds(400);  // giving way, before sleeping
constexpr auto PARK = std::chrono::microseconds(300);  // spinning between steps, before sleeping

// Whether `done` became true while spinning.
template <class Done>
bool spin(Done done, std::chrono::microseconds limit, bool give_way) {
  const auto end = Clock::now() + limit;
  do {
    for (int i = 0; i < LOOKS; i++) {
      if (done()) return true;
      give_way ? (void)sched_yield() : pause();
    }
  } while (Clock::now() < end);
  return false;
}

struct alignas(64) Worker {
  std::atomic<uint32_t> ticket{0};  // one more for each piece of work
  std::atomic<bool> asleep{false};
  Work work = nullptr;
  void *argument = nullptr;
  int thread = 0;
  std::mutex mutex;
  std::condition_variable wake;
};

constexpr int MOST = 256;

struct Pool {
  pid_t process = getpid();
  std::mutex mutex;
  Worker *workers[MOST] = {};
  int started = 1;  // the caller is one
  Barrier barrier;  // of the step
  Barrier end;      // behind it
};

void *live(void *given) {
  auto *own = static_cast<Worker *>(given);
  uint32_t seen = 0;
  for (;;) {
    auto called = [&] { return own->ticket.load(std::memory_order_acquire) != seen; };
    if (!spin(called, PARK, false)) {
      std::unique_lock<std::mutex> lock(own->mutex);
      own->asleep.store(true, std::memory_order_seq_cst);
      own->wake.wait(lock, [&] { return own->ticket.load(std::memory_order_seq_cst) != seen; });
      own->asleep.store(false, std::memory_order_relaxed);
    }
    seen++;
    own->work(own->argument, own->thread);
  }
  return nullptr;
}

std::atomic<Pool *> current{nullptr};

// The pool of this process: a fork has the memory of its parent, but none of its threads.
Pool *pool() {
  Pool *found = current.load(std::memory_order_acquire);
  while (found == nullptr || found->process != getpid()) {
    auto *fresh = new Pool;  // never freed: threads may sleep in it when the process ends
    if (current.compare_exchange_strong(found, fresh)) return fresh;
    delete fresh;
  }
  return found;
}

bool start(Pool *own) {
  auto *worker = new (std::nothrow) Worker;
  if (worker == nullptr) return false;
  worker->thread = own->started;
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
  pthread_t handle;
  sigset_t all, before;  // signals belong to the threads of the program
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  const bool fine = pthread_create(&handle, &attributes, live, worker) == 0;
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  pthread_attr_destroy(&attributes);
  if (!fine) {
    delete worker;
    return false;
  }
  own->workers[own->started++] = worker;
  return true;
}

struct Call {
  Work work;
  void *argument;
  Barrier *end;
};

void serve(void *given, int thread) {
  auto *call = static_cast<Call *>(given);
  Barrier *end = call->end;
  call->work(call->argument, thread);
  end->wait();  // the call lives on the caller's stack until here
}

}  // namespace

void Barrier::wait() {
  if (threads_ == 1) return;
  const uint32_t phase = phase_.load(std::memory_order_acquire);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == threads_) {
    arrived_.store(0, std::memory_order_relaxed);
    phase_.store(phase + 1, std::memory_order_seq_cst);
    if (sleeping_.load(std::memory_order_seq_cst) > 0) {
      std::lock_guard<std::mutex> lock(mutex_);
      wake_.notify_all();
    }
    return;
  }
  auto passed = [&] { return phase_.load(std::memory_order_acquire) != phase; };
  if (spin(passed, MEET, false) || spin(passed, YIELD, true)) return;
  std::unique_lock<std::mutex> lock(mutex_);
  sleeping_.fetch_add(1, std::memory_order_seq_cst);
  wake_.wait(lock, [&] { return phase_.load(std::memory_order_seq_cst) != phase; });
  sleeping_.fetch_sub(1, std::memory_order_seq_cst);
}

Hold::Hold() {
  Pool *own = pool();
  own->mutex.lock();
  pool_ = own;
}

Hold::~Hold() { static_cast<Pool *>(pool_)->mutex.unlock(); }

int prepare_threads(int threads) {
  Pool *own = pool();
  if (threads > MOST) threads = MOST;
  while (own->started < threads && start(own)) {
  }
  return threads < own->started ? (threads < 1 ? 1 : threads) : own->started;
}

Barrier *shared_barrier() { return &pool()->barrier; }

void run_held(int threads, Work work, void *argument) {
  Pool *own = pool();
  Call call{work, argument, &own->end};
  own->barrier.reset(threads);
  own->end.reset(threads);
  for (int i = 1; i < threads; i++) {
    Worker *worker = own->workers[i];
    worker->work = serve;
    worker->argument = &call;
    worker->ticket.fetch_add(1, std::memory_order_seq_cst);
    if (worker->asleep.load(std::memory_order_seq_cst)) {
      std::lock_guard<std::mutex> lock(worker->mutex);
      worker->wake.notify_one();
    }
  }
  serve(&call, 0);
}

}  // namespace pk

// Threads that are parked between steps: they spin for a moment, then sleep.
#pragma once
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>

namespace pk {

// All threads of a step meet here.  Waiting spins, gives way, then sleeps: a thread that lost its core is waited for
// without burning another one.
class Barrier {
 public:
  void reset(int threads) { threads_ = threads; }
  void wait();

 private:
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<uint32_t> phase_{0};
  std::atomic<int> sleeping_{0};
  int threads_ = 1;
  std::mutex mutex_;
  std::condition_variable wake_;
};

using Work = void (*)(void *argument, int thread);


// Hold the pool (for work that also needs what the pool protects).
class Hold {
 public:
  Hold();
  ~Hold();

 private:
  void *pool_;
};

// Threads that a step may use, started if need be; call while holding.
int prepare_threads(int threads);
Barrier *shared_barrier();
void run_held(int threads, Work work, void *argument);

}  // namespace pk

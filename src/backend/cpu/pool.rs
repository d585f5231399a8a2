//! Threads that wait for work: the caller and a fixed number of workers.
//!
//! A thread that waits spins for a short while (work comes every few microseconds while a training runs), then yields
//! its processor, then sleeps: on a busy machine whoever has work gets to do it. Nobody waits for a worker that has not
//! begun: where the system gives it no processor, the others do its tasks, and when it comes the job is closed.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Looks at the flag before the processor is yielded: some twenty microseconds.
const SPINS: u32 = 1000;
/// Yields before going to sleep.
const YIELDS: u32 = 50;
/// How long the caller sleeps at a time while the last workers finish.
const NAP: Duration = Duration::from_micros(50);

/// The part of [`Shared::state`] that counts the workers that are at the job.
const WORKING: u64 = 0xffff;
/// The bit of [`Shared::state`] that says that workers may begin.
const OPEN: u64 = 1 << 16;
/// One job in [`Shared::state`].
const GENERATION: u64 = 1 << 17;

/// The caller's thread and its workers.
#[derive(Debug)]
pub(super) struct Pool {
    shared: Arc<Shared>,
    workers: Vec<std::thread::JoinHandle<()>>,
    /// Held while a job runs: jobs come one at a time.
    busy: Mutex<()>,
    /// The next task of each thread's run.
    next: Vec<Counter>,
}

#[derive(Default)]
struct Shared {
    /// Counts jobs, whether the last is [`OPEN`], and the workers that are at it. A new job is what workers wait for.
    state: AtomicU64,
    /// The job of this generation.
    job: Mutex<Option<Job>>,
    /// Workers that sleep or are about to.
    sleepers: AtomicUsize,
    wake: Condvar,
    stop: AtomicBool,
    panicked: AtomicBool,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("state", &self.state).finish_non_exhaustive()
    }
}

/// What all threads run. The lifetime is a lie that [`Pool::run`] makes good.
#[derive(Clone, Copy)]
struct Job(&'static (dyn Fn(usize) + Sync));

impl Shared {
    fn job(&self) -> MutexGuard<'_, Option<Job>> {
        // Nothing that holds the lock can panic.
        self.job.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the generation is not `seen`; returns it.
    fn next(&self, seen: u64) -> u64 {
        for turn in 0..SPINS + YIELDS {
            let generation = self.state.load(Ordering::Acquire) / GENERATION;
            if generation != seen {
                return generation;
            }
            if turn < SPINS {
                std::hint::spin_loop();
            } else {
                std::thread::yield_now();
            }
        }
        let mut job = self.job();
        // Before the generation is looked at again: either this thread sees the new one, or whoever made it sees
        // that somebody sleeps.
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        loop {
            let generation = self.state.load(Ordering::SeqCst) / GENERATION;
            if generation != seen {
                self.sleepers.fetch_sub(1, Ordering::SeqCst);
                return generation;
            }
            job = self.wake.wait(job).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Whether the job of `generation` is still open; if it is, this worker counts from now on.
    fn begin(&self, generation: u64) -> bool {
        let mut state = self.state.load(Ordering::Acquire);
        while state / GENERATION == generation && state & OPEN != 0 {
            match self.state.compare_exchange_weak(state, state + 1, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return true,
                Err(now) => state = now,
            }
        }
        false
    }

    fn work(&self, thread: usize) {
        let mut seen = 0;
        loop {
            seen = self.next(seen);
            if self.stop.load(Ordering::Acquire) {
                return;
            }
            if !self.begin(seen) {
                continue;
            }
            let job = *self.job();
            if let Some(Job(job)) = job
                && catch_unwind(AssertUnwindSafe(|| job(thread))).is_err()
            {
                self.panicked.store(true, Ordering::Relaxed);
            }
            self.state.fetch_sub(1, Ordering::Release);
        }
    }

    /// Counts a new job; `open` is [`OPEN`] or nothing. Nobody is at the last one.
    fn start_generation(&self, open: u64) {
        self.state.fetch_add(GENERATION | open, Ordering::SeqCst);
        if self.sleepers.load(Ordering::SeqCst) > 0 {
            // Whoever counts itself a sleeper and has not gone to sleep holds the lock until it has.
            drop(self.job());
            self.wake.notify_all();
        }
    }
}

impl Pool {
    /// With `threads − 1` workers.
    pub(super) fn new(threads: usize) -> std::io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let next = (0..threads).map(|_| Counter::default()).collect();
        let mut pool = Self { shared: shared.clone(), workers: Vec::new(), busy: Mutex::new(()), next };
        for index in 1..threads {
            let shared = shared.clone();
            let worker = std::thread::Builder::new()
                .name(format!("recurve-cpu-{index}"))
                .spawn(move || shared.work(index))?;
            pool.workers.push(worker);
        }
        Ok(pool)
    }

    /// Threads that compute.
    pub(super) fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Runs `f` on the calling thread and on those workers that begin before it is done there, with the thread's number;
    /// returns when all are done. What there is to do must be done when the caller's `f` and those that began are.
    fn run(&self, f: &(dyn Fn(usize) + Sync)) {
        let shared = &*self.shared;
        // SAFETY: the workers use the job only while `state` counts them, which they begin only while it is open, and
        // below this closes it and waits for their number to be zero before it returns or unwinds: the borrow outlives
        // every use.
        let job =
            unsafe { std::mem::transmute::<&(dyn Fn(usize) + Sync), &'static (dyn Fn(usize) + Sync)>(f) };
        *shared.job() = Some(Job(job));
        shared.start_generation(OPEN);
        let outcome = catch_unwind(AssertUnwindSafe(|| f(0)));
        shared.state.fetch_and(!OPEN, Ordering::AcqRel);
        let mut turn = 0;
        while shared.state.load(Ordering::Acquire) & WORKING > 0 {
            turn += 1;
            if turn < SPINS {
                std::hint::spin_loop();
            } else if turn < SPINS + YIELDS {
                std::thread::yield_now();
            } else {
                std::thread::sleep(NAP);
            }
        }
        *shared.job() = None;
        if let Err(panic) = outcome {
            resume_unwind(panic);
        }
        assert!(!shared.panicked.swap(false, Ordering::Relaxed), "a worker panicked; see its message above");
    }

    /// Runs `f` on every task, in any order and on any thread. Each thread has a run of tasks that it begins with, the
    /// same for the same number of tasks, so that what a task leaves in a cache is found there the next time; who has
    /// finished its own helps the others.
    pub(super) fn each<T: Send>(&self, tasks: &mut [T], f: impl Fn(&mut T) + Sync) {
        self.each_with(tasks, &mut vec![(); self.threads()], |task, ()| f(task));
    }

    /// The same with scratch of its own for each thread.
    ///
    /// # Panics
    /// If there is less scratch than threads.
    pub(super) fn each_with<T: Send, S: Send>(
        &self,
        tasks: &mut [T],
        scratch: &mut [S],
        f: impl Fn(&mut T, &mut S) + Sync,
    ) {
        assert!(scratch.len() >= self.threads());
        if self.workers.is_empty() || tasks.len() < 2 {
            tasks.iter_mut().for_each(|task| f(task, &mut scratch[0]));
            return;
        }
        let one_at_a_time = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        let (first, count, threads) = (Shareable(tasks.as_mut_ptr()), tasks.len(), self.threads());
        let scratch = Shareable(scratch.as_mut_ptr());
        let start = |thread: usize| count * thread / threads;
        for (thread, next) in self.next.iter().enumerate() {
            next.0.store(start(thread), Ordering::Relaxed);
        }
        self.run(&|thread| {
            let (first, scratch) = (&first, &scratch);
            // SAFETY: there is scratch for every thread, and `run` gives each its own number.
            let scratch = unsafe { &mut *scratch.0.add(thread) };
            for turn in 0..threads {
                let owner = (thread + turn) % threads;
                loop {
                    let index = self.next[owner].0.fetch_add(1, Ordering::Relaxed);
                    if index >= start(owner + 1) {
                        break;
                    }
                    // SAFETY: `index` lies in its owner's run of the slice, the runs do not overlap, and the owner's
                    // counter gives each index out once; the slice is borrowed until `run` returns, when every
                    // thread is done.
                    f(unsafe { &mut *first.0.add(index) }, scratch);
                }
            }
        });
        drop(one_at_a_time);
    }
}

/// A counter in a cache line (and its neighbour, which processors fetch along) of its own.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Counter(AtomicUsize);

/// A pointer to things of which each is given to one thread.
struct Shareable<T>(*mut T);

// SAFETY: the pointer is only used as `Pool::each_with` says; the things themselves are `Send`.
unsafe impl<T: Send> Sync for Shareable<T> {}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.start_generation(0);
        for worker in self.workers.drain(..) {
            // A worker catches its jobs' panics: it can only end well.
            let _ = worker.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_is_done_once_by_any_number_of_threads() {
        for threads in [1, 2, 3, 8] {
            let pool = Pool::new(threads).unwrap();
            for round in 0..200 {
                let mut tasks = vec![0u32; round % 17];
                pool.each(&mut tasks, |task| *task += 1);
                assert!(tasks.iter().all(|&done| done == 1));
                if round % 50 == 0 {
                    // Long enough for all workers to fall asleep.
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_goes_on() {
        let pool = Pool::new(3).unwrap();
        for bad in 0..8 {
            let mut tasks: Vec<usize> = (0..8).collect();
            let outcome = catch_unwind(AssertUnwindSafe(|| {
                pool.each(&mut tasks, |&mut task| assert_ne!(task, bad, "as the test wants it"));
            }));
            assert!(outcome.is_err());
            let mut tasks = vec![0; 8];
            pool.each(&mut tasks, |task| *task = 7);
            assert_eq!(tasks, [7; 8]);
        }
    }
}

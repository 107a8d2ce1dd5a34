//! A thread pool for tasks that block.
//!
//! Threads are started when they are needed, up to a limit, and end when they are idle. Tasks start in order;
//! a panic ends only its task.
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use std::{fmt, io, thread};

use crate::supervisor::affinity::Affinity;

/// A pool thread that is idle for this time exits, and the allocator returns its memory to the system. The
/// allocator delays this for a second, so the time is slightly longer.
const THREAD_IDLE_MAX: Duration = Duration::from_millis(1500);

type Task = Box<dyn FnOnce() + Send>;

/// The pool. When it is dropped, each thread ends after its current task.
#[derive(Debug)]
pub struct Pool {
    shared: Arc<PoolQueue>,
    name: &'static str,
    threads_max: usize,
    affinity: Affinity,
}

#[derive(Debug, Default)]
struct PoolQueue {
    state: Mutex<PoolState>,
    changed: Condvar,
}

#[derive(Default)]
struct PoolState {
    tasks: VecDeque<Task>,
    threads: usize,
    /// Threads that are waiting for a task.
    idle: usize,
    is_closed: bool,
}

impl fmt::Debug for PoolState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} tasks wait, {} of {} threads idle", self.tasks.len(), self.idle, self.threads)
    }
}

impl PoolQueue {
    fn state(&self) -> MutexGuard<'_, PoolState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pool {
    /// A pool without threads; later ones are called `name`.
    pub fn new(name: &'static str, threads_max: usize, affinity: Affinity) -> Self {
        Self { shared: Arc::default(), name, threads_max, affinity }
    }

    /// Queues a task; starts one more thread if all are busy.
    ///
    /// # Errors
    /// The pool has no thread and none can be started.
    pub fn spawn(&self, task: impl FnOnce() + Send + 'static) -> io::Result<()> {
        let mut state = self.shared.state();
        if state.tasks.len() >= state.idle && state.threads < self.threads_max {
            let (shared, affinity) = (Arc::clone(&self.shared), self.affinity.clone());
            let begin = move || {
                affinity.set_priority();
                work(&shared, &affinity);
            };
            match thread::Builder::new().name(self.name.into()).spawn(begin) {
                Ok(_) => state.threads += 1,
                Err(error) if state.threads == 0 => return Err(error),
                Err(_) => {}
            }
        }
        state.tasks.push_back(Box::new(task));
        drop(state);
        self.shared.changed.notify_one();
        Ok(())
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.state().is_closed = true;
        self.shared.changed.notify_all();
    }
}

/// The result of `task`, or `None` if it panicked.
pub fn guarded<T>(task: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(task)).ok()
}

fn work(shared: &PoolQueue, affinity: &Affinity) {
    while let Some(task) = next(shared) {
        affinity.set_affinity();
        // The panic hook has printed a panic already.
        let _ = guarded(task);
    }
}

/// The next task; `None` after `THREAD_IDLE_MAX` without one: the thread is to end. Only then does the
/// allocator return the memory that its tasks freed to the system.
fn next(shared: &PoolQueue) -> Option<Task> {
    let mut state = shared.state();
    if state.tasks.is_empty() && !state.is_closed {
        state.idle += 1;
        let has_none = |state: &mut PoolState| state.tasks.is_empty() && !state.is_closed;
        let waited = shared.changed.wait_timeout_while(state, THREAD_IDLE_MAX, has_none);
        state = waited.unwrap_or_else(PoisonError::into_inner).0;
        state.idle -= 1;
    }
    let task = state.tasks.pop_front();
    if task.is_none() {
        state.threads -= 1;
    }
    task
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc::channel;
    use std::time::{Duration, Instant};

    use super::*;
    use crate::limits;

    const PATIENCE: Duration = Duration::from_secs(10);

    #[test]
    fn runs_tasks_in_parallel_within_the_limit_and_survives_a_panic() {
        let pool = Pool::new("fetch", limits::FETCH_THREADS_MAX, Affinity::anywhere());
        let (ended, results) = channel();
        let running = Arc::new((AtomicUsize::new(0), AtomicUsize::new(0)));
        for number in 0..limits::FETCH_THREADS_MAX * 3 {
            let (ended, running) = (ended.clone(), Arc::clone(&running));
            pool.spawn(move || {
                let now = running.0.fetch_add(1, Ordering::SeqCst) + 1;
                running.1.fetch_max(now, Ordering::SeqCst);
                thread::sleep(Duration::from_millis(20));
                running.0.fetch_sub(1, Ordering::SeqCst);
                ended.send(number).unwrap();
                assert!(number % 7 != 0, "a task that fails on purpose");
            })
            .unwrap();
        }
        let count =
            (0..limits::FETCH_THREADS_MAX * 3).filter_map(|_| results.recv_timeout(PATIENCE).ok()).count();
        assert_eq!(count, limits::FETCH_THREADS_MAX * 3);
        let most = running.1.load(Ordering::SeqCst);
        assert!(most > 1 && most <= limits::FETCH_THREADS_MAX, "{most} at a time");
    }

    #[test]
    fn an_idle_thread_ends_and_the_next_task_starts_another() {
        let pool = Pool::new("fetch", 1, Affinity::anywhere());
        let (ended, results) = channel();
        for round in 0..2 {
            let ended = ended.clone();
            pool.spawn(move || ended.send(round).unwrap()).unwrap();
            assert_eq!(results.recv_timeout(PATIENCE), Ok(round));
            let deadline = Instant::now() + PATIENCE;
            while pool.shared.state().threads > 0 {
                assert!(Instant::now() < deadline, "the thread stays: {:?}", pool.shared.state());
                thread::sleep(Duration::from_millis(20));
            }
        }
    }
}

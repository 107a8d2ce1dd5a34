//! The threads that may wait, for the supervisor must not.
//!
//! In: tasks. Out: whatever a task sends by itself. Invariants: at most as many threads as it was
//! made for, started as they are needed and ended when they are not; a task that panics ends alone.
//! Tasks are begun in order.
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::{fmt, io, thread};

use crate::limits;
use crate::supervisor::affinity::Affinity;

type Task = Box<dyn FnOnce() + Send>;

/// The pool. Its threads end when it is dropped, each after the task it has.
#[derive(Debug)]
pub struct Pool {
    shared: Arc<PoolQueue>,
    name: &'static str,
    threads_max: usize,
    place: Affinity,
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
    /// Threads that wait for a task.
    idle: usize,
    is_over: bool,
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
    /// Its threads are called `name` and run at `place`.
    pub fn new(name: &'static str, threads_max: usize, place: Affinity) -> Self {
        Self { shared: Arc::default(), name, threads_max, place }
    }

    /// Queues a task; starts one more thread if all are busy.
    ///
    /// # Errors
    /// There is no thread to do it and none can be started.
    pub fn give(&self, task: impl FnOnce() + Send + 'static) -> io::Result<()> {
        let mut state = self.shared.state();
        if state.tasks.len() >= state.idle && state.threads < self.threads_max {
            let (shared, place) = (Arc::clone(&self.shared), self.place.clone());
            let begin = move || {
                place.take();
                work(&shared, &place);
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
        self.shared.state().is_over = true;
        self.shared.changed.notify_all();
    }
}

/// What `task` gives, or `None` if it panicked.
pub fn guarded<T>(task: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(task)).ok()
}

fn work(shared: &PoolQueue, place: &Affinity) {
    while let Some(task) = next(shared) {
        place.begin();
        // The task tells of its own end; that it panicked was printed where it did.
        let _ = guarded(task);
    }
}

/// The next task; `None` when there was none for so long that the thread had better end. What its
/// tasks allocated is given back to the system when it does, and not before: the allocator keeps
/// freed memory for a second and then waits for somebody to come by.
fn next(shared: &PoolQueue) -> Option<Task> {
    let mut state = shared.state();
    if state.tasks.is_empty() && !state.is_over {
        state.idle += 1;
        let has_none = |state: &mut PoolState| state.tasks.is_empty() && !state.is_over;
        let waited = shared.changed.wait_timeout_while(state, limits::THREAD_IDLE_MAX, has_none);
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

    const PATIENCE: Duration = Duration::from_secs(10);

    #[test]
    fn tasks_run_side_by_side_within_the_bound_and_survive_a_panic() {
        let pool = Pool::new("fetch", limits::FETCH_THREADS_MAX, Affinity::anywhere());
        let (ended, results) = channel();
        let running = Arc::new((AtomicUsize::new(0), AtomicUsize::new(0)));
        for number in 0..limits::FETCH_THREADS_MAX * 3 {
            let (ended, running) = (ended.clone(), Arc::clone(&running));
            pool.give(move || {
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
    fn a_thread_without_work_ends_and_another_takes_its_place() {
        let pool = Pool::new("fetch", 1, Affinity::anywhere());
        let (ended, results) = channel();
        for round in 0..2 {
            let ended = ended.clone();
            pool.give(move || ended.send(round).unwrap()).unwrap();
            assert_eq!(results.recv_timeout(PATIENCE), Ok(round));
            let deadline = Instant::now() + PATIENCE;
            while pool.shared.state().threads > 0 {
                assert!(Instant::now() < deadline, "the thread stays: {:?}", pool.shared.state());
                thread::sleep(Duration::from_millis(20));
            }
        }
    }
}

//! The threads that may wait, for the supervisor must not.
//!
//! In: tasks. Out: whatever a task sends by itself. Invariants: at most as many threads as it was
//! made for, started as they are needed; a task that panics ends alone. Tasks are taken in order.
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::{io, thread};

type Task = Box<dyn FnOnce() + Send>;

/// The pool. Its threads end when it is dropped, each after the task it has.
#[derive(Debug)]
pub struct Pool {
    tasks: Sender<Task>,
    shared: Arc<Shared>,
    name: &'static str,
    threads: usize,
    threads_max: usize,
}

#[derive(Debug)]
struct Shared {
    tasks: Mutex<Receiver<Task>>,
    /// Tasks given and not yet ended. A hint of when one more thread is worth it, nothing else.
    open: AtomicUsize,
}

impl Pool {
    /// Its threads are called `name` and a number.
    pub fn new(name: &'static str, threads_max: usize) -> Self {
        let (tasks, receiver) = channel();
        let shared = Arc::new(Shared { tasks: Mutex::new(receiver), open: AtomicUsize::new(0) });
        Self { tasks, shared, name, threads: 0, threads_max }
    }

    /// Queues a task; starts one more thread if all may be busy.
    ///
    /// # Errors
    /// There is no thread to do it and none can be started.
    pub fn give(&mut self, task: impl FnOnce() + Send + 'static) -> io::Result<()> {
        let open = self.shared.open.fetch_add(1, Ordering::Relaxed);
        if open >= self.threads && self.threads < self.threads_max {
            let shared = Arc::clone(&self.shared);
            let thread = thread::Builder::new().name(format!("{}-{}", self.name, self.threads));
            match thread.spawn(move || work(&shared)) {
                Ok(_) => self.threads += 1,
                Err(error) if self.threads == 0 => return Err(error),
                Err(_) => {}
            }
        }
        // The receiver lives as long as `shared`, so this cannot fail.
        let _ = self.tasks.send(Box::new(task));
        Ok(())
    }
}

/// What `task` gives, or `None` if it panicked.
pub fn guarded<T>(task: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(task)).ok()
}

fn work(shared: &Shared) {
    loop {
        let task = shared.tasks.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(task) = task else { return };
        // The task tells of its own end; that it panicked was printed where it did.
        let _ = guarded(task);
        shared.open.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::limits;

    #[test]
    fn tasks_run_side_by_side_within_the_bound_and_survive_a_panic() {
        let mut pool = Pool::new("fetch", limits::FETCH_THREADS_MAX);
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
        let count = (0..limits::FETCH_THREADS_MAX * 3)
            .filter_map(|_| results.recv_timeout(Duration::from_secs(10)).ok())
            .count();
        assert_eq!(count, limits::FETCH_THREADS_MAX * 3);
        let most = running.1.load(Ordering::SeqCst);
        assert!(most > 1 && most <= limits::FETCH_THREADS_MAX, "{most} at a time");
    }
}

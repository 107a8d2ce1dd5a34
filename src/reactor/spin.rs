//! Busy polling (`server.spin_microseconds`): for a while after a response, a reactor polls for the next
//! request instead of sleeping. Most of the time of a request on an idle machine is that of waking a CPU.
use std::cell::{Cell, RefCell};
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use crate::reactor::turns::TurnEnd;

/// When a reactor polls. It costs nothing while there are no requests.
#[derive(Debug)]
pub struct Spin {
    /// After the last response.
    time: Duration,
    /// Since it was last examined.
    has_answered: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Spin {
    /// `None` if the time is zero: the reactor sleeps as soon as it has nothing to do.
    pub fn new(time: Duration) -> Option<Self> {
        (!time.is_zero()).then(|| Self { time, has_answered: Cell::new(false), waker: RefCell::default() })
    }

    /// How long it polls after a response.
    pub fn time(&self) -> Duration {
        self.time
    }

    /// Restarts the time.
    #[inline]
    pub fn answered(&self) {
        self.has_answered.set(true);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    async fn first_answer(&self) {
        std::future::poll_fn(|context| {
            if self.has_answered.take() {
                return Poll::Ready(());
            }
            *self.waker.borrow_mut() = Some(context.waker().clone());
            Poll::Pending
        })
        .await;
    }

    /// Polls, turn by turn of the event loop, whenever there were responses.
    pub async fn run(&self, mut end: TurnEnd) {
        loop {
            self.first_answer().await;
            self.poll(&mut end).await;
        }
    }

    /// Polls until the time since the last response is over. Returns the number of turns.
    async fn poll(&self, end: &mut TurnEnd) -> u64 {
        let (mut answered, mut turns) = (Instant::now(), 0);
        while answered.elapsed() < self.time {
            end.wait().await;
            turns += 1;
            if self.has_answered.take() {
                answered = Instant::now();
            }
        }
        turns
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Driver;
    use crate::reactor::driver;

    #[test]
    fn polls_after_responses_and_then_sleeps() {
        assert!(Spin::new(Duration::ZERO).is_none());
        for forced in [None, Some(Driver::Epoll)] {
            let mut built = driver::build(forced).expect("a driver");
            let is_uring = built.uring;
            built.runtime.block_on(async {
                let spin = Spin::new(Duration::from_millis(5)).expect("not zero");
                let mut end = TurnEnd::new(is_uring).expect("a socket pair");
                spin.answered();
                spin.first_answer().await;
                // The thread may not run for a while on a busy machine, but polls at least once.
                assert!(spin.poll(&mut end).await > 0, "{}", built.name);
                assert!(!spin.has_answered.get());
                let mut context = std::task::Context::from_waker(Waker::noop());
                let mut next = std::pin::pin!(spin.first_answer());
                assert!(next.as_mut().poll(&mut context).is_pending(), "sleeps");
                spin.answered();
                assert!(next.as_mut().poll(&mut context).is_ready());
            });
        }
    }
}

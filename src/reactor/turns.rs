//! Fairness among busy connections: a turn of the event loop answers a bounded number of requests.
//!
//! A connection that pipelines, or whose next request has arrived when it is answered, is ready again while
//! others, timers and the inbox wait for the end of the turn; and each answer of a turn takes a buffer until
//! it is sent, which should still be in the cache then. So the connections beyond the bounds wait in a queue,
//! and each turn admits those that have waited longest.
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, Waker};

use monoio::io::AsyncReadRent;

use crate::limits::{TURN_ANSWERS_MAX, TURN_BYTES_MAX};
use crate::metrics::ReactorMetrics;
use crate::reactor::connections::ConnectionState;

/// The answers of the present turn, and the connections that wait for a later one.
#[derive(Debug)]
pub struct Turns {
    answers: Cell<usize>,
    /// Of those answers, except the ones that are already sent.
    bytes: Cell<usize>,
    /// Of the last batch: most clients ask for the same.
    batch_bytes: Cell<usize>,
    waiting: RefCell<VecDeque<Rc<ConnectionState>>>,
    /// Of [`run`].
    waker: RefCell<Option<Waker>>,
    metrics: Arc<ReactorMetrics>,
}

impl Turns {
    pub fn new(metrics: Arc<ReactorMetrics>) -> Self {
        Self {
            answers: Cell::new(0),
            bytes: Cell::new(0),
            batch_bytes: Cell::new(0),
            waiting: RefCell::default(),
            waker: RefCell::default(),
            metrics,
        }
    }

    /// Before requests of this connection are answered: waits for a turn that is not full.
    #[inline]
    pub async fn begin(&self, connection: &Rc<ConnectionState>) {
        if self.is_full() {
            self.metrics.turn_waits.add(1);
            self.waiting.borrow_mut().push_back(connection.clone());
            if let Some(waker) = self.waker.take() {
                waker.wake();
            }
            connection.admitted().await;
        } else {
            self.answers.set(self.answers.get() + 1);
        }
    }

    /// Counts the answers of a batch after its first, which [`begin`](Self::begin) has counted, and the bytes
    /// that were rendered or will be encrypted.
    #[inline]
    pub fn count(&self, requests: u64, bytes: usize) {
        self.bytes.set(self.bytes.get() + bytes);
        self.batch_bytes.set(bytes);
        let more = usize::try_from(requests.saturating_sub(1)).unwrap_or(TURN_ANSWERS_MAX);
        self.answers.set(self.answers.get().saturating_add(more));
    }

    /// The bytes of a batch are sent. They may be those of an earlier turn.
    #[inline]
    pub fn sent(&self, bytes: usize) {
        self.bytes.set(self.bytes.get().saturating_sub(bytes));
    }

    fn is_full(&self) -> bool {
        self.answers.get() >= TURN_ANSWERS_MAX
            || self.bytes.get() >= TURN_BYTES_MAX
            || !self.waiting.borrow().is_empty()
    }

    /// Begins a turn.
    pub fn next(&self) {
        let mut waiting = self.waiting.borrow_mut();
        let most = TURN_BYTES_MAX.div_ceil(self.batch_bytes.get().max(1));
        let admitted = waiting.len().min(most).min(TURN_ANSWERS_MAX);
        self.answers.set(admitted);
        self.bytes.set(0);
        waiting.drain(..admitted).for_each(|connection| connection.admit());
    }

    /// Waits until a connection waits.
    async fn is_needed(&self) {
        std::future::poll_fn(|context| {
            if !self.waiting.borrow().is_empty() {
                return Poll::Ready(());
            }
            *self.waker.borrow_mut() = Some(context.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

/// Begins a new turn whenever connections wait for one.
pub async fn run(turns: Rc<Turns>, mut end: TurnEnd) {
    loop {
        turns.is_needed().await;
        // After the tasks that the last turn admitted.
        yield_now().await;
        end.wait().await;
        turns.next();
    }
}

/// Lets the tasks that are ready run first.
pub async fn yield_now() {
    let mut has_yielded = false;
    std::future::poll_fn(|context| {
        if std::mem::replace(&mut has_yielded, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Waits for the end of a turn, when the event loop has submitted the operations of its tasks and has
/// collected what is complete. A task that wakes itself would keep the loop from both.
pub struct TurnEnd {
    reader: monoio::net::UnixStream,
    writer: UnixStream,
    byte: Vec<u8>,
}

impl TurnEnd {
    /// # Errors
    /// The descriptor limit is reached.
    pub fn new(is_uring: bool) -> io::Result<Self> {
        let (reader, writer) = UnixStream::pair()?;
        reader.set_nonblocking(!is_uring)?;
        writer.set_nonblocking(true)?;
        Ok(Self { reader: monoio::net::UnixStream::from_std(reader)?, writer, byte: vec![0] })
    }

    /// Reads a byte that is written once the read waits, so that it completes in the next turn.
    pub async fn wait(&mut self) {
        let Self { reader, writer, byte } = self;
        let mut read = pin!(reader.read(std::mem::take(byte)));
        let mut is_written = false;
        let (_, buffer) = std::future::poll_fn(|context| {
            let polled = read.as_mut().poll(context);
            if polled.is_pending() && !std::mem::replace(&mut is_written, true) {
                // Fails only if the socket is full, so that there is a byte to read.
                let _ = writer.write(&[0]);
            }
            polled
        })
        .await;
        *byte = buffer;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::Driver;
    use crate::reactor::connections::Connections;
    use crate::reactor::driver;
    use crate::reactor::tests::options_without_listener;

    fn connections() -> Rc<Connections> {
        let (options, _publisher) = options_without_listener();
        Rc::new(Connections::new(options.times, options.metrics, None))
    }

    #[test]
    fn a_turn_admits_those_that_have_waited_longest() {
        let connections = connections();
        let turns = Turns::new(Arc::new(ReactorMetrics::new(0)));
        let guards: Vec<_> = (0..TURN_ANSWERS_MAX * 2 + 1).map(|_| connections.enter()).collect();
        let mut context = std::task::Context::from_waker(Waker::noop());
        let mut begun: Vec<_> = guards.iter().map(|guard| Box::pin(turns.begin(&guard.state))).collect();
        let mut ready: Vec<bool> =
            begun.iter_mut().map(|future| future.as_mut().poll(&mut context).is_ready()).collect();
        let answered = |ready: &[bool]| ready.iter().filter(|ready| **ready).count();
        assert_eq!(answered(&ready), TURN_ANSWERS_MAX);
        assert_eq!(turns.metrics.turn_waits.value() as usize, TURN_ANSWERS_MAX + 1);
        for turn in 2..=3 {
            turns.next();
            for (future, ready) in begun.iter_mut().zip(&mut ready).filter(|(_, ready)| !**ready) {
                *ready = future.as_mut().poll(&mut context).is_ready();
            }
            let expected = guards.len().min(TURN_ANSWERS_MAX * turn);
            assert!(answered(&ready) == expected && ready[..expected].iter().all(|ready| *ready));
        }
        // The last turn is not full, but a batch of many requests fills it.
        turns.count(TURN_ANSWERS_MAX as u64, 0);
        let mut late = pin!(turns.begin(&guards[0].state));
        assert!(late.as_mut().poll(&mut context).is_pending());
        guards[0].state.cancel();
        assert!(late.as_mut().poll(&mut context).is_ready(), "a cancelled connection waits no longer");
    }

    #[test]
    fn a_turn_renders_a_limited_number_of_bytes() {
        const BATCH: usize = TURN_BYTES_MAX / 4;
        let connections = connections();
        let turns = Turns::new(Arc::new(ReactorMetrics::new(0)));
        let guards: Vec<_> = (0..11).map(|_| connections.enter()).collect();
        let mut context = std::task::Context::from_waker(Waker::noop());
        let mut begun: Vec<_> = guards.iter().map(|guard| Box::pin(turns.begin(&guard.state))).collect();
        let mut is_answered = vec![false; begun.len()];
        let mut answer = |turns: &Turns| {
            for (future, is_answered) in begun.iter_mut().zip(&mut is_answered).filter(|(_, done)| !**done) {
                if future.as_mut().poll(&mut context).is_ready() {
                    turns.count(1, BATCH);
                    *is_answered = true;
                }
            }
            is_answered.iter().filter(|done| **done).count()
        };
        assert_eq!(answer(&turns), 4);
        turns.next();
        assert_eq!(answer(&turns), 8);
        // A response larger than a turn does not stop the connections that wait.
        turns.count(1, TURN_BYTES_MAX * 3);
        turns.next();
        assert_eq!(answer(&turns), 9);
        turns.next();
        assert_eq!(answer(&turns), 11);
        assert!(!turns.is_full(), "half of a turn is left");
        turns.count(1, BATCH * 2);
        assert!(turns.is_full());
        turns.sent(BATCH);
        assert!(!turns.is_full(), "what is sent does not count");
        turns.sent(TURN_BYTES_MAX * 2);
        assert_eq!(turns.bytes.get(), 0, "bytes of an earlier turn may be sent in this one");
    }

    /// Tasks that are always ready, as connections are whose clients send immediately: timers must run beside
    /// them, and each gets the same number of answers.
    #[test]
    fn busy_tasks_take_turns_under_each_driver() {
        for forced in [None, Some(Driver::Epoll)] {
            let mut built = driver::build(forced).expect("a driver");
            let connections = connections();
            let turns = Rc::new(Turns::new(Arc::new(ReactorMetrics::new(0))));
            let count = TURN_ANSWERS_MAX * 3 + 5;
            let answers: Rc<Vec<Cell<u32>>> = Rc::new((0..count).map(|_| Cell::new(0)).collect());
            let (end, mut before) = (built.uring, Vec::new());
            built.runtime.block_on(async {
                monoio::spawn(run(turns.clone(), TurnEnd::new(end).expect("a socket pair")));
                for at in 0..count {
                    let (turns, answers, guard) = (turns.clone(), answers.clone(), connections.enter());
                    monoio::spawn(async move {
                        // Some pipeline.
                        let requests = if at % 7 == 0 { 4 } else { 1 };
                        loop {
                            turns.begin(&guard.state).await;
                            turns.count(requests, 0);
                            answers[at].set(answers[at].get() + 1);
                        }
                    });
                }
                // In the first turn no task waits yet.
                let least = || answers.iter().map(Cell::get).min().unwrap_or_default();
                for rounds in [5, 50] {
                    while least() < rounds {
                        monoio::time::sleep(Duration::from_millis(1)).await;
                    }
                    if rounds == 5 {
                        before.extend(answers.iter().map(Cell::get));
                    }
                }
            });
            let gained = || answers.iter().zip(&before).map(|(count, before)| count.get() - before);
            assert!(gained().max().unwrap() - gained().min().unwrap() <= 2, "{:?}", built.name);
        }
    }
}

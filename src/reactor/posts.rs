//! Requests whose events are being written: each waits for its result without a thread.
//!
//! The connection awaits its [`PostTicket`]; the reactor completes it when the writer's acknowledgement
//! arrives. Bounded in bytes and in requests, from the send until the acknowledgement, also if the connection
//! has ended meanwhile. Survives a restart of the reactor, so that a late result meets no other request.
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use crate::channel::{EventPort, EventResult};
use crate::events::{EventPost, EventRefusal};
use crate::limits;

/// The posts of one reactor that are not acknowledged yet.
#[derive(Debug)]
pub struct PendingPosts {
    /// `None` if events are not accepted.
    port: Option<EventPort>,
    posts: RefCell<HashMap<u64, PendingPost>>,
    next_ticket: Cell<u64>,
    bytes: Cell<usize>,
    bytes_max: usize,
}

#[derive(Debug, Default)]
struct PendingPost {
    /// Of its events, until they are acknowledged.
    bytes: usize,
    result: Option<EventResult>,
    waker: Option<Waker>,
    /// The connection has ended.
    is_abandoned: bool,
}

/// A future of the result of one post.
#[derive(Debug)]
pub struct PostTicket {
    posts: Rc<PendingPosts>,
    number: u64,
}

impl PendingPosts {
    /// `reactors`: how many share the limit of bytes.
    pub fn new(port: Option<EventPort>, reactors: usize) -> Self {
        let share = limits::EVENTS_QUEUED_BYTES_MAX / reactors.max(1);
        Self {
            port,
            posts: RefCell::default(),
            next_ticket: Cell::new(1),
            bytes: Cell::new(0),
            bytes_max: share.max(limits::EVENTS_QUEUED_BYTES_REACTOR_MIN),
        }
    }

    /// Sends events to be written.
    ///
    /// # Errors
    /// Too many wait already.
    pub fn send(self: &Rc<Self>, post: EventPost) -> Result<PostTicket, EventRefusal> {
        let bytes = post.bytes();
        let mut posts = self.posts.borrow_mut();
        let is_full =
            posts.len() >= limits::EVENT_POSTS_QUEUED_MAX || self.bytes.get() + bytes > self.bytes_max;
        let Some(port) = self.port.as_ref().filter(|_| !is_full) else { return Err(EventRefusal::QueueFull) };
        let number = self.next_ticket.replace(self.next_ticket.get() + 1);
        port.send(number, post)?;
        self.bytes.set(self.bytes.get() + bytes);
        posts.insert(number, PendingPost { bytes, ..PendingPost::default() });
        Ok(PostTicket { posts: self.clone(), number })
    }

    /// Applies the acknowledgements that have arrived.
    pub fn receive(&self) {
        let Some(port) = &self.port else { return };
        while let Some(ack) = port.next_ack() {
            let mut posts = self.posts.borrow_mut();
            let Some(post) = posts.get_mut(&ack.ticket) else { continue };
            self.bytes.set(self.bytes.get() - std::mem::take(&mut post.bytes));
            if post.is_abandoned {
                posts.remove(&ack.ticket);
                continue;
            }
            post.result = Some(ack.result);
            let waker = post.waker.take();
            drop(posts);
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }
}

impl Future for PostTicket {
    type Output = EventResult;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<EventResult> {
        let mut posts = self.posts.posts.borrow_mut();
        let Some(post) = posts.get_mut(&self.number) else { return Poll::Ready(Err(EventRefusal::Disk)) };
        match post.result {
            Some(result) => Poll::Ready(result),
            None => {
                post.waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl Drop for PostTicket {
    fn drop(&mut self) {
        let mut posts = self.posts.posts.borrow_mut();
        if let Some(post) = posts.get_mut(&self.number) {
            post.is_abandoned = true;
            post.waker = None;
            if post.result.is_some() {
                posts.remove(&self.number);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    use super::*;
    use crate::channel::EventPosts;
    use crate::events::EventPart;

    fn post(bytes: usize) -> EventPost {
        let part = EventPart { count: 1, events: vec![b'x'; bytes] };
        EventPost { parts: vec![part], ..EventPost::default() }
    }

    fn poll(ticket: &mut PostTicket) -> Poll<EventResult> {
        Pin::new(ticket).poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn a_ticket_is_ready_when_its_events_are_acknowledged() {
        let (ours, _wake) = UnixStream::pair().unwrap();
        let mut writer = EventPosts::new(1);
        let posts = Rc::new(PendingPosts::new(Some(writer.connect(&ours).unwrap()), 1));
        let (mut first, second, mut third) =
            (posts.send(post(1)).unwrap(), posts.send(post(2)).unwrap(), posts.send(post(3)).unwrap());
        assert_eq!((poll(&mut first), posts.bytes.get()), (Poll::Pending, 6));
        drop(second);
        assert_eq!(posts.bytes.get(), 6, "its events are on their way");
        let results = [Ok(()), Ok(()), Err(EventRefusal::SpoolFull)];
        writer.acknowledge(writer_group(&writer).into_iter().zip(results));
        posts.receive();
        assert_eq!(poll(&mut first), Poll::Ready(Ok(())));
        assert_eq!(poll(&mut third), Poll::Ready(Err(EventRefusal::SpoolFull)));
        drop((first, third));
        assert!(posts.posts.borrow().is_empty() && posts.bytes.get() == 0);
    }

    fn writer_group(writer: &EventPosts) -> Vec<crate::channel::events::SentPost> {
        writer.next_group(Duration::from_secs(5))
    }

    #[test]
    fn bytes_and_requests_that_wait_are_bounded() {
        let (ours, _wake) = UnixStream::pair().unwrap();
        let mut writer = EventPosts::new(1);
        let posts = Rc::new(PendingPosts::new(Some(writer.connect(&ours).unwrap()), 1));
        let mebibytes: Vec<_> = (0..8).map(|_| posts.send(post(1 << 20)).unwrap()).collect();
        assert_eq!(posts.send(post(1)).unwrap_err(), EventRefusal::QueueFull);
        writer.acknowledge(writer_group(&writer).into_iter().map(|sent| (sent, Ok(()))));
        posts.receive();
        drop(mebibytes);
        let small: Vec<_> =
            (0..limits::EVENT_POSTS_QUEUED_MAX).map(|_| posts.send(post(1)).unwrap()).collect();
        assert_eq!(posts.send(post(1)).unwrap_err(), EventRefusal::QueueFull);
        drop(small);
        let none = Rc::new(PendingPosts::new(None, 1));
        assert_eq!(none.send(post(1)).unwrap_err(), EventRefusal::QueueFull);
    }
}

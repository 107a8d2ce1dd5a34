//! Losses of power and failures of the disk, apart from everything else.
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use edge_proxy::channel::EventPosts;
use edge_proxy::clock;
use edge_proxy::config::EventsFsync;
use edge_proxy::events::{EventPart, EventPost};
use edge_proxy::forwarding::writer::EventWriter;
use edge_proxy::metrics::Metrics;
use edge_proxy::storage::disk::DiskFolder;

use crate::disk::{DiskMode, PlayedDisk};
use crate::process::CACHE_DIR;
use crate::scenario::defaults;
use crate::silent_log;

/// A writer with `events.fsync: second`, and the port of its only reactor.
fn writer(disk: &PlayedDisk) -> (EventWriter, edge_proxy::channel::EventPort) {
    let mut config = defaults();
    config.events.fsync = EventsFsync::Second;
    let mut posts = EventPosts::new(1);
    let (wake, _) = std::os::unix::net::UnixStream::pair().expect("descriptors");
    let port = posts.connect(&wake).expect("descriptors");
    let folder = DiskFolder::new(Arc::new(disk.clone()), Path::new(CACHE_DIR));
    (EventWriter::new(&config, folder, posts, Arc::new(Metrics::new(&[0])), silent_log()), port)
}

fn store(writer: &mut EventWriter, port: &edge_proxy::channel::EventPort, ticket: u64) {
    let part = EventPart { count: 1, events: b"{}".to_vec() };
    port.send(ticket, EventPost { parts: vec![part], ..EventPost::default() }).expect("accepted");
    writer.step(Duration::ZERO);
    assert_eq!(port.next_ack().map(|ack| (ack.ticket, ack.result)), Some((ticket, Ok(()))));
}

/// How many events are found after a loss of power, at least, in many of them.
fn left_after_a_loss_of_power(fails: bool) -> u64 {
    let start = std::time::Instant::now();
    let mut least = u64::MAX;
    for seed in 0..20 {
        let disk = PlayedDisk::new(seed);
        let set_clock = |seconds| clock::fix(start + seconds, std::time::SystemTime::UNIX_EPOCH + seconds, 1);
        set_clock(Duration::ZERO);
        let (mut first, port) = writer(&disk);
        first.step(Duration::ZERO);
        store(&mut first, &port, 1);
        store(&mut first, &port, 2);
        if fails {
            disk.set_mode(DiskMode::Failing);
        }
        for second in 1..10 {
            set_clock(Duration::from_secs(second));
            first.step(Duration::ZERO);
        }
        drop(first);
        disk.set_mode(DiskMode::Well);
        disk.lose_power();
        let (mut second, _port) = writer(&disk);
        set_clock(Duration::from_secs(60));
        second.step(Duration::ZERO);
        let found = second.queue().lock().as_ref().map_or(0, |queue| queue.count());
        least = least.min(found);
    }
    clock::release();
    least
}

#[test]
fn events_of_more_than_a_second_ago_survive_a_loss_of_power() {
    assert_eq!(left_after_a_loss_of_power(false), 2);
}

#[test]
fn a_failed_sync_is_tried_again() {
    assert_eq!(left_after_a_loss_of_power(true), 2);
}

//! Peers other than SDKs: event streams that stay open, and connections that are too slow.
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::documents::ENVIRONMENTS;
use crate::shared::{Shared, add};
use crate::support::{Client, request};

/// The proxy's timeouts in the run, so that many slow peers are cut off in it.
pub const TIMEOUT_SECONDS: u64 = 3;
/// A slow peer is cut off after the timeout, and after this on a loaded machine.
const CUT_OFF_MAX: Duration = Duration::from_secs(TIMEOUT_SECONDS * 10);
const STEP: Duration = Duration::from_millis(100);

/// Keeps one event stream open. Only a takeover (`is_replaced`) may end it.
pub fn subscribe(address: SocketAddr, is_replaced: bool, number: usize, shared: &Shared) {
    let key = ENVIRONMENTS[number % ENVIRONMENTS.len()].0;
    while !shared.is_stopped() {
        if shared.is_paused() {
            std::thread::sleep(STEP);
            continue;
        }
        let Err(error) = follow(address, key, shared) else { continue };
        if !is_replaced {
            shared.error(format!("event stream: {error}"));
        }
        std::thread::sleep(STEP);
    }
}

/// Reads a stream until the run pauses.
fn follow(address: SocketAddr, key: &str, shared: &Shared) -> std::io::Result<()> {
    let mut client = Client::try_connect(address)?;
    // HTTP/1.0 streams are not chunked.
    client.try_send(format!("GET /sse/environments/{key}/stream HTTP/1.0\r\n\r\n"))?;
    let Some((200, _)) = client.head()? else { return Err(ErrorKind::InvalidData.into()) };
    client.stream().set_read_timeout(Some(STEP))?;
    let mut last_line = Instant::now();
    let mut newest = 0.0;
    while !shared.is_over() {
        let line = match client.line() {
            Ok(line) => line,
            // A comment comes every 15 seconds when no document changes.
            Err(error) if error.kind() == ErrorKind::WouldBlock && last_line.elapsed() < CUT_OFF_MAX => {
                continue;
            }
            Err(error) => return Err(error),
        };
        last_line = Instant::now();
        let time = line
            .strip_prefix(r#"data: {"updated_at": "#)
            .and_then(|rest| rest.trim_end_matches('}').parse().ok());
        if let Some(time) = time {
            if time < newest {
                return Err(std::io::Error::other(format!("{time} after {newest}")));
            }
            newest = time;
            add(&shared.counts.stream_events);
        }
    }
    Ok(())
}

/// Plays slow peers, one after the other, until the run stops. Each must be cut off.
pub fn be_slow(address: SocketAddr, first: usize, shared: &Shared) {
    let kinds = [slow_head, slow_body, slow_reader, silent];
    for kind in kinds.iter().cycle().skip(first) {
        while shared.is_paused() && !shared.is_stopped() {
            std::thread::sleep(STEP);
        }
        if shared.is_stopped() {
            return;
        }
        match kind(address, shared) {
            Ok(()) => add(&shared.counts.slow_peers),
            Err(error) => shared.error(format!("slow peer: {error}")),
        }
    }
}

/// Sends a byte of the head every 100 ms.
fn slow_head(address: SocketAddr, shared: &Shared) -> Result<(), String> {
    let bytes = request("GET", "/api/v1/flags/", &[("X-Filler", &"x".repeat(2000))], b"");
    let bytes: Vec<&[u8]> = bytes.chunks(1).collect();
    drip(address, &bytes, shared)
}

/// Sends the head of a POST, then a byte of its body every 100 ms.
fn slow_body(address: SocketAddr, shared: &Shared) -> Result<(), String> {
    let key = [("X-Environment-Key", ENVIRONMENTS[0].0), ("Content-Type", "application/json")];
    let bytes = request("POST", "/api/v1/identities/", &key, &[b' '; 2000]);
    let (head, body) = bytes.split_at(bytes.len() - 2000);
    let mut parts = vec![head];
    parts.extend(body.chunks(1));
    drip(address, &parts, shared)
}

/// Sends parts until the proxy answers 408 or closes.
fn drip(address: SocketAddr, parts: &[&[u8]], shared: &Shared) -> Result<(), String> {
    let mut client = Client::try_connect(address).map_err(|error| error.to_string())?;
    let started = Instant::now();
    client.stream().set_read_timeout(Some(STEP)).map_err(|error| error.to_string())?;
    for part in parts {
        if shared.is_over() {
            return Ok(());
        }
        if client.try_send(part).is_err() {
            return Ok(());
        }
        match client.try_answer("GET") {
            Ok(Some(answer)) if answer.status == 408 => return Ok(()),
            Ok(Some(answer)) => return Err(format!("{} to a part of a request", answer.status)),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Ok(None) | Err(_) => return Ok(()),
        }
        if started.elapsed() > CUT_OFF_MAX {
            break;
        }
    }
    Err("was not cut off while it sent its request".into())
}

/// Requests the document over and over, and reads nothing.
fn slow_reader(address: SocketAddr, shared: &Shared) -> Result<(), String> {
    let mut client = Client::try_connect(address).map_err(|error| error.to_string())?;
    let bytes =
        request("GET", "/api/v1/environment-document/", &[("X-Environment-Key", ENVIRONMENTS[0].1)], b"");
    client.stream().set_write_timeout(Some(STEP)).map_err(|error| error.to_string())?;
    let started = Instant::now();
    while started.elapsed() < CUT_OFF_MAX {
        if shared.is_over() {
            return Ok(());
        }
        match client.try_send(&bytes) {
            Err(error) if error.kind() != ErrorKind::WouldBlock => return Ok(()),
            _ => std::thread::sleep(STEP / 10),
        }
    }
    Err("was not cut off while it read nothing".into())
}

/// Sends nothing.
fn silent(address: SocketAddr, shared: &Shared) -> Result<(), String> {
    let mut client = Client::try_connect(address).map_err(|error| error.to_string())?;
    client.stream().set_read_timeout(Some(STEP)).map_err(|error| error.to_string())?;
    let started = Instant::now();
    while started.elapsed() < CUT_OFF_MAX {
        if shared.is_over() {
            return Ok(());
        }
        match client.try_answer("GET") {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            _ => return Ok(()),
        }
    }
    Err("was not cut off while it was silent".into())
}

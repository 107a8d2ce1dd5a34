//! `server.unix_socket`: beside TCP or instead of it, its file, and takeover.
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use serde_json::Value;

use crate::support::{PATIENCE, Proxy, Scratch, Start, Upstream, eventually};
use crate::surface::{CLIENT, SERVER, document};

fn prepare(socket: &Path) -> Start {
    let start = Start::serve().cores(2).set("server.unix_socket", socket.to_str());
    let path = start.scratch().write("document.json", document(0).to_string());
    start.document(CLIENT, SERVER, path)
}

/// One exchange on a new connection; returns the response.
fn ask(socket: &Path) -> std::io::Result<String> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(
        stream,
        "GET /api/v1/flags/ HTTP/1.1\r\nHost: a\r\nX-Environment-Key: {SERVER}\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

fn is_served(socket: &Path) -> bool {
    ask(socket).is_ok_and(|answer| answer.starts_with("HTTP/1.1 200 OK") && answer.contains("banner"))
}

/// Waits until both reactors serve: any of them may accept the next connection.
fn wait_until_served(proxy: &mut Proxy, socket: &Path) {
    let is_always_served = || (0..20).all(|_| is_served(socket));
    proxy.until("flags come over the socket", || is_always_served().then_some(()));
}

/// The revision of the served document.
fn revision(socket: &Path) -> Option<u64> {
    let answer = ask(socket).ok()?;
    let (_, body) = answer.split_once("\r\n\r\n")?;
    let body: Value = serde_json::from_str(body).ok()?;
    body.as_array()?.iter().find(|flag| flag["feature"]["name"] == "count")?["feature_state_value"].as_u64()
}

#[test]
fn serves_beside_tcp_and_removes_the_file_at_exit() {
    let folder = Scratch::new();
    let socket = folder.path().join("edge.sock");
    let mut proxy = prepare(&socket).ready();
    assert!(is_served(&socket));
    assert_eq!(proxy.get("/api/v1/flags/", CLIENT).status, 200);
    let line = proxy.log().lines().filter(|line| line.contains("listening")).count();
    assert_eq!(line, 2, "{}", proxy.log());
    let file = std::fs::symlink_metadata(&socket).expect("it is there");
    let folder_owner = std::fs::metadata(folder.path()).expect("scratch space").uid();
    assert!(file.file_type().is_socket() && file.uid() == folder_owner);
    proxy.signal("TERM");
    assert!(proxy.wait().success());
    let left: Vec<_> = std::fs::read_dir(folder.path()).expect("scratch space").flatten().collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn serves_without_tcp_and_health_uses_the_socket() {
    let folder = Scratch::new();
    let socket = folder.path().join("edge.sock");
    let start = prepare(&socket).set("server.tcp", false).set("server.unix_socket_mode", "0600");
    let (address, config) = (start.address(), start.scratch().path().join("config.json"));
    let mut proxy = start.spawn();
    wait_until_served(&mut proxy, &socket);
    assert!(TcpStream::connect(address).is_err(), "no listener on {address}");
    let mode = std::fs::symlink_metadata(&socket).expect("it is there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let config = config.to_str().expect("a plain path");
    let (code, text) = Start::command(&["health", "--ready", "--config", config]).run();
    assert_eq!(code, Some(0), "{text}");
    proxy.signal("TERM");
    assert!(proxy.wait().success());
    assert!(!socket.exists());
    let (code, text) = Start::serve().set("server.tcp", false).run();
    assert_eq!(code, Some(64), "{text}");
    assert!(text.contains("server.tcp") && text.contains("server.unix_socket is not set"), "{text}");
}

#[test]
fn replaces_stale_socket_but_no_other_file() {
    let folder = Scratch::new();
    let socket = folder.path().join("edge.sock");
    let mut killed = prepare(&socket).ready();
    killed.signal("KILL");
    killed.wait();
    assert!(socket.exists(), "the file of the killed process is left");
    let next = prepare(&socket).ready();
    assert!(is_served(&socket));
    drop(next);
    let file = folder.write("precious.txt", "kept");
    let (code, text) = prepare(&file).run();
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("precious.txt") && text.contains("not a socket"), "{text}");
    assert_eq!(std::fs::read_to_string(&file).expect("it is there"), "kept");
    let (code, text) = prepare(Path::new("/no/such/folder/edge.sock")).run();
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("server.unix_socket /no/such/folder/edge.sock"), "{text}");
}

#[test]
fn unlinks_only_sockets() {
    let folder = Scratch::new();
    let precious = folder.write("precious.txt", "kept");
    let directory = folder.path().join("directory");
    std::fs::create_dir(&directory).expect("scratch space");
    let link = folder.path().join("link.sock");
    std::os::unix::fs::symlink(&precious, &link).expect("scratch space");
    let dangling = folder.path().join("dangling.sock");
    std::os::unix::fs::symlink("nothing", &dangling).expect("scratch space");
    let fifo = folder.path().join("fifo.sock");
    let made = std::process::Command::new("mkfifo").arg(&fifo).status();
    assert!(made.expect("mkfifo is there").success());
    for path in [&precious, &directory, &link, &dangling, &fifo] {
        let before = std::fs::symlink_metadata(path).expect("it is there").ino();
        let (code, text) = prepare(path).run();
        assert_eq!(code, Some(1), "{text}");
        assert!(text.contains("is not a socket"), "{text}");
        assert_eq!(std::fs::symlink_metadata(path).expect("it is there").ino(), before);
    }
    assert_eq!(std::fs::read_to_string(&precious).expect("it is there"), "kept");
}

#[test]
fn keeps_a_file_that_replaced_the_socket() {
    let folder = Scratch::new();
    let socket = folder.path().join("edge.sock");
    let mut proxy = prepare(&socket).ready();
    std::fs::remove_file(&socket).expect("scratch space");
    std::fs::write(&socket, "kept").expect("scratch space");
    proxy.signal("TERM");
    assert!(proxy.wait().success());
    assert_eq!(std::fs::read_to_string(&socket).expect("it is there"), "kept");
}

#[test]
fn takeover_waits_for_documents_and_fails_no_request() {
    let folder = Scratch::new();
    let socket = folder.path().join("edge.sock");
    let mut old = prepare(&socket).set("server.tcp", false).spawn();
    wait_until_served(&mut old, &socket);
    let (stop, answered) = (AtomicBool::new(false), AtomicU64::new(0));
    let go_on = |count: u64| {
        let goal = answered.load(Ordering::Relaxed) + count;
        eventually("requests are answered", || (answered.load(Ordering::Relaxed) >= goal).then_some(()));
    };
    std::thread::scope(|scope| {
        let call = || {
            let mut wrong = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                match ask(&socket) {
                    Ok(answer) if answer.starts_with("HTTP/1.1 200 OK") => {}
                    other => wrong.push(format!("{other:?}")),
                }
                answered.fetch_add(1, Ordering::Relaxed);
            }
            wrong
        };
        let callers: Vec<_> = (0..4).map(|_| scope.spawn(call)).collect();
        go_on(50);
        let upstream = Upstream::start();
        let start = Start::serve().environment(CLIENT, SERVER).set("api_url", upstream.api_url());
        let start = start.set("api_poll_frequency_seconds", "100ms");
        let start = start.set("server.tcp", false).set("server.unix_socket", socket.to_str());
        let mut new = start.spawn();
        new.wait_for_log("reactor_started");
        // Less than `TAKE_OVER_TIMEOUT`, after which it would serve without a document.
        go_on(5);
        assert_eq!(revision(&socket), Some(0), "the old process serves until the new one has a document");
        upstream.document(SERVER, document(7).to_string());
        new.until("it has the path", || (revision(&socket) == Some(7)).then_some(()));
        go_on(50);
        old.signal("TERM");
        assert!(old.wait().success(), "{}", old.log());
        go_on(50);
        assert!(socket.exists(), "the socket belongs to the new process");
        stop.store(true, Ordering::Relaxed);
        let wrong: Vec<String> =
            callers.into_iter().flat_map(|caller| caller.join().expect("a caller")).collect();
        assert!(wrong.is_empty(), "{wrong:?}\n{}\n{}", old.log(), new.log());
        new.signal("TERM");
        assert!(new.wait().success());
        assert!(!socket.exists());
    });
}

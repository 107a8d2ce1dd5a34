//! Starts with limited resources: the messages, and whether the process serves.
//!
//! The limits are set by programs of every Linux (`prlimit`, `taskset`, `unshare`).
use std::process::{Command, Stdio};

use serde_json::json;

use crate::support::{Port, Proxy, Start, executable, fixture};
use crate::surface::{CLIENT, SERVER};

fn is_root() -> bool {
    std::fs::read_to_string("/proc/self/status").is_ok_and(|status| status.contains("\nUid:\t0\t"))
}

/// Runs a shell line to its end; `$PROXY` is the executable.
fn shell(line: &str) -> (Option<i32>, String) {
    let mut command = Command::new("bash");
    command.args(["-c", line]).env("PROXY", executable()).stdin(Stdio::null());
    let output = command.env_remove("CONFIG_PATH").output().expect("bash is there");
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&text).into_owned())
}

/// Checks that it serves.
fn serves(proxy: &mut Proxy) {
    assert_eq!(proxy.get("/api/v1/flags/", CLIENT).status, 200);
    proxy.signal("TERM");
    assert_eq!(proxy.wait().code(), Some(0));
}

fn start() -> Start {
    Start::serve().document(CLIENT, SERVER, fixture::path("environments/Main.json"))
}

#[test]
fn fails_with_too_few_descriptors_before_starting() {
    let (code, text) = shell("ulimit -n 30; exec $PROXY demo --port 0 --cores 1");
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("the limit of file descriptors is 30") && text.contains("LimitNOFILE="), "{text}");
    assert!(!text.contains("reactor_started"), "{text}");
}

/// Starts the demo with `prefix` in a shell, waits until it is healthy, and stops it.
fn demo(prefix: &str, args: &str) -> (Option<i32>, String) {
    let port = Port::free().number();
    shell(&format!(
        "{prefix} $PROXY demo --port {port} {args} & for n in $(seq 200); do \
         $PROXY health --ready --host 127.0.0.1 --port {port} && break; sleep 0.1; done; kill $!; wait $!"
    ))
}

#[test]
fn serves_with_few_descriptors() {
    let (code, text) = demo("ulimit -n 64;", "--cores 1");
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("low_fd_limit") && text.contains("limit_count=64"), "{text}");
    assert!(text.contains("\"status\":\"ok\""), "{text}");
}

#[test]
fn unreadable_configuration_is_explained() {
    let (code, text) = shell("$PROXY serve --config /does-not-exist/config.json");
    assert_eq!(code, Some(64), "{text}");
    assert!(text.contains("config file /does-not-exist/config.json: expected an existing file"), "{text}");
    let (code, text) = shell("$PROXY serve --config /");
    assert_eq!(code, Some(64), "{text}");
    assert!(text.contains("config file /: expected a readable JSON file"), "{text}");
    if !is_root() {
        return;
    }
    let scratch = Start::serve();
    let path = scratch.scratch().write("secret.json", "{}");
    let (code, text) = shell(&format!(
        "chmod 755 {0}; chmod 000 {1}; exec setpriv --reuid 65534 --regid 65534 --clear-groups $PROXY serve --config {1}",
        scratch.scratch().path().display(),
        path.display()
    ));
    // Skipped if that user cannot execute the executable.
    assert!(
        text.contains("a file that this user may read") && code == Some(64)
            || code == Some(126)
            || code == Some(127),
        "{text}"
    );
}

#[test]
fn rejects_configuration_without_environment() {
    let (code, text) = shell("cd / && exec env -i $PROXY serve");
    assert_eq!(code, Some(64), "{text}");
    assert!(text.contains("environment_key_pairs") && text.contains("render-config"), "{text}");
}

#[test]
fn names_files_of_invalid_certificates() {
    for (cert, part) in [("/does-not-exist.pem", "No such file"), ("/etc/passwd", "contains no certificate")]
    {
        let (code, text) = start().set("server.tls", json!({"cert": cert, "key": cert})).run();
        assert_eq!(code, Some(64), "{text}");
        assert!(text.contains("server.tls.cert") && text.contains(cert) && text.contains(part), "{text}");
    }
}

#[test]
fn serves_without_writable_cache_dir() {
    let mut proxy = start().set("cache_dir", "/proc/does-not-exist").ready();
    assert!(proxy.wait_for_log("cache_dir_unusable").contains("/proc/does-not-exist"));
    serves(&mut proxy);
}

#[test]
fn warns_of_too_many_cores_and_rejects_unavailable_ones() {
    let mut proxy = start().cores(4096).ready();
    assert!(proxy.wait_for_log("fewer_cpus_than_requested").contains("affinity"));
    serves(&mut proxy);
    let (code, text) = shell("exec $PROXY demo --port 0 --cores 8000,");
    assert_eq!(code, Some(64), "{text}");
    assert!(text.contains("CPUs of those this process may use"), "{text}");
}

#[test]
fn starts_one_reactor_per_cpu_of_the_affinity() {
    let (code, text) =
        demo("cpu=$(taskset -cp $$ | grep -oE '[0-9]+' | tail -1); taskset -c $cpu", "--cores 4");
    assert_eq!(code, Some(0), "{text}");
    assert_eq!(text.matches("reactor_started").count(), 1, "{text}");
}

#[test]
fn serves_without_locked_memory() {
    let (code, text) = demo("ulimit -l 1;", "--cores 1");
    assert_eq!(code, Some(0), "{text}");
    let line = text.lines().find(|line| line.contains("reactor_started")).unwrap_or_else(|| panic!("{text}"));
    assert!(line.contains("io_uring: "), "the driver and why: {line}");
}

#[test]
fn serves_without_proc() {
    if !is_root() || shell("unshare -m true").0 != Some(0) {
        println!("skipped: needs root and mount namespaces");
        return;
    }
    let (port, admin) = (Port::free().number(), Port::free().number());
    let (code, text) = shell(&format!(
        "unshare -m bash -c 'mount -t tmpfs none /proc; $PROXY demo --port {port} --admin-port {admin} --cores 1 & \
         for n in $(seq 200); do $PROXY health --ready --host 127.0.0.1 --port {port} && break; sleep 0.1; done; \
         exec 3<>/dev/tcp/127.0.0.1/{admin}; printf \"GET /metrics HTTP/1.1\\r\\nHost: localhost\\r\\n\\r\\n\" >&3; cat <&3; kill $!; wait $!'"
    ));
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("edge_proxy_ready 1") && text.contains("\"status\":\"ok\""), "{text}");
}

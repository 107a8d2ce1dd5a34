//! The integration tests: they run the executable and talk to it over real sockets.
//!
//! One module per subject. Ports come from `support` and are never fixed; tests wait with a deadline and never
//! sleep; requests are raw bytes where the bytes matter. A regression test is named after the behaviour that
//! was wrong.

mod support;

/// What abusers cost, in bytes, counters and memory; the short form of `make abuse`.
mod abuse;
/// The admin listener: idle connections, slow heads, foreign hosts.
mod admin;
/// Answers depend neither on the architecture nor on the driver.
mod architectures;
/// Request bodies that are expensive to process.
mod bodies;
/// The step budgets of a request.
mod budget;
/// The Helm chart, and a configuration that is mounted.
mod chart;
/// Configuration, check, health, metrics and log of the running executable.
mod cli;
/// Man pages, completions, `render-config --all` and `--schema`, secrets in files.
mod command_line;
/// Compressed answers: each decodes to the plain one, and is cached for its own document, key and coding.
mod compression;
/// Public conformance suites, and comparison with other parsers.
mod conformance;
/// Counts of SDKs, through restarts.
mod counts;
/// Deltas of documents between proxies.
mod deltas;
/// The number and licences of dependencies.
mod dependencies;
/// Upstream faults in the log, the health response and the status page.
mod diagnostics;
/// Random documents and identities: the engine agrees with the reference model.
mod differential;
/// Discovery of environments, usage upload, and streams whose key is removed.
mod discovery;
/// Documentation: links, citations, tables and commands are true.
mod docs;
/// Graceful shutdown and takeover under load.
mod drain;
/// Fallback from io_uring to epoll.
mod driver;
/// Experiment events: their statuses, and their delivery through outages, kills and full disks.
mod events;
/// Metadata of experiments, variants chosen for one identity, transient identities.
mod experiments;
/// `edge-proxy explain` and its HTTP form.
mod explain;
/// Upstream failures: what is served meanwhile, and the time to recovery.
mod faults;
/// Invalid files in `cache_dir`, and files written by earlier releases.
mod files;
/// A fleet of proxies, simulated; a real tree that checks the model.
mod fleet;
/// Floods of analytics counts, in memory and in upload.
mod floods;
/// A short run of the fuzz targets.
mod fuzzing;
/// Behind gateways: path prefix, address lists, fields for the API, access log.
mod gateways;
/// The test harness itself.
mod harness;
/// `edge-proxy health` against every kind of listener.
mod health;
/// HTTP semantics: targets, conditional requests, caching, CORS of error responses, limits of a head.
mod http;
/// HTTP/2: answers, conformance, real clients, floods.
mod http2;
/// HTTP/2: events, address lists, transports, drain, takeover, memory.
mod http2_operation;
/// Malformed requests.
mod http_malformed;
/// Invariants over many requests: isolation of keys, one document revision per response.
mod invariants;
/// Keys, host names, file paths and control characters do not leak into responses and logs.
mod leaks;
/// The limits of `docs/limits.md`.
mod limits;
/// The log, including a reader that does not read it.
mod logging;
/// The memory of connections at every moment.
mod memory;
/// Metric names, and the dashboards, alerts and docs that use them.
mod metrics;
/// Outbound proxies, redirects, foreign environment variables, shared ports.
mod networks;
/// OpenFeature Remote Evaluation Protocol (OFREP).
mod ofrep;
/// Readiness during outages, edits hidden by a 304, sources that were never loaded.
mod outages;
/// Files that other programs read: compose files, the Dockerfile, workflows.
mod packaging;
/// Polling: schedules, conditional requests, pagination, cache files, reloads.
mod polling;
/// Single values (numbers, versions, patterns, lists, paths) against Python itself.
mod python_compat;
/// The PyPI SDK against the running executable: remote and local evaluation agree.
mod python_sdk;
/// Runs every command of the README and compares its output.
mod readme;
/// Event streams from upstream, and trees of proxies.
mod realtime;
/// Requests recorded against the Python proxy: the same response, or a documented difference.
mod replay;
/// curl, nginx and HAProxy as clients.
mod reverse_proxies;
/// Requests of SDKs that are not run here, and what they require of responses.
mod sdk_requests;
/// Notifications to the service manager.
mod service;
/// Slow clients, too many clients, and the descriptor limit.
mod slow;
/// Connections spread over the reactors (`server.spread`).
mod spread;
/// Startup failures and their messages.
mod startup;
/// Event streams to clients.
mod streams;
/// Endpoints other than flags and identities, and invalid input.
mod surface;
/// Large documents under load; `make bench-swap` prints the numbers.
mod swap;
/// OpenTelemetry: metrics and spans as a collector gets them, and collectors that fail.
mod telemetry;
/// TLS for clients.
mod tls;
/// Kept traits that are sent upstream.
mod trait_forwarding;
/// Kept traits in Redis, which several proxies share.
mod trait_redis;
/// Kept traits: semantics of core, limits, erasure, restarts.
mod traits;
/// Unix sockets: with TCP, without it, and in a takeover.
mod unix;
/// TLS to upstream: private authorities and client certificates.
mod upstream_tls;
/// Requests at the limits of the syntax, byte by byte.
mod wire;

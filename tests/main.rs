//! The one integration binary. It drives the real executable over real sockets.
//!
//! Each module is one subject; what belongs to none of them wants a module of its own.
//! Rules: a free port from `support`, never a fixed one; a deadline, never a sleep; raw bytes
//! where the bytes matter. A test of a defect is named for the behaviour that was wrong.

mod support;

/// What abusers cost, in bytes, counters and memory; the short form of `make abuse`.
mod abuse;
/// The admin listener: idle connections, slow heads, foreign hosts.
mod admin;
/// Bodies that cost more than they take to send.
mod bodies;
/// The step budgets of a request.
mod budget;
/// Configuration, check, health, metrics and log of the running executable.
mod cli;
/// Public conformance data, and other parsers beside ours.
mod conformance;
/// Counts of SDKs, through restarts.
mod counts;
/// How much of others' code is linked in.
mod dependencies;
/// Faults of upstream, as the log, the health answer and the status page tell them.
mod diagnostics;
/// Random documents and requests: the engine answers as the model does.
mod differential;
/// Discovery with wrong keys or none, and streams whose key goes away.
mod discovery;
/// Documentation: links, citations, tables and commands are true.
mod docs;
/// Stopping and taking over under load.
mod drain;
/// io_uring refused step by step, down to epoll.
mod driver;
/// Metadata of experiments, variants chosen for one identity, transient identities.
mod experiments;
/// `edge-proxy explain` and its HTTP form.
mod explain;
/// Upstream fails in every way: what is served then, and how soon it is over.
mod faults;
/// Files in unexpected shapes, and those that an earlier release wrote.
mod files;
/// Floods of counts, in memory and on their way up.
mod floods;
/// Event streams, trees of proxies, discovery, counts going up, TLS and outgoing proxies.
mod following;
/// The fuzz targets, for a short while.
mod fuzzing;
/// The harness itself: a client that misreads answers would make every other test worthless.
mod harness;
/// `edge-proxy health` by every door a proxy can have.
mod health;
/// HTTP semantics: targets, conditions, caching, CORS of refusals, limits of a head.
mod http;
/// Awkward bytes over real sockets.
mod http_malformed;
/// What holds over many requests: the boundary of a key, one revision for each answer.
mod invariants;
/// Keys, host names, file paths and control characters stay where they belong.
mod leaks;
/// `docs/limits.md`, and each bound on it that can be tried.
mod limits;
/// The log, read and unread.
mod logging;
/// The metrics: their names, and everything that names them.
mod metrics;
/// Outgoing proxies, redirects, variables of others, names of the executable, shared ports.
mod networks;
/// OpenFeature's Remote Evaluation Protocol.
mod ofrep;
/// Outages against readiness, edits that a 304 hides, sources that were never read.
mod outages;
/// Schedules, conditions, pages, the disk, files and new configurations.
mod polling;
/// Single values (numbers, versions, patterns, lists, paths) against Python itself.
mod python_compat;
/// The PyPI SDK against the running executable: remote and local evaluation agree.
mod python_sdk;
/// Every command in the README is run, and its output compared with what stands there.
mod readme;
/// The recorded requests to the Python proxy, answered as recorded or as a named difference.
mod replay;
/// Real programs in front: curl, nginx, HAProxy.
mod reverse_proxies;
/// The requests of the SDKs that are not run here, and what they need in the answers.
mod sdk_requests;
/// What a service manager is told.
mod service;
/// Peers that are slow on purpose, too many, or at the descriptor limit.
mod slow;
/// Every way in which a start can fail, and what is said then.
mod startup;
/// Event streams downstream.
mod streams;
/// Endpoints beside flags and identities, and input that is not right.
mod surface;
/// Big documents under load; `make bench-swap` prints the numbers.
mod swap;
/// TLS for callers.
mod tls;
/// Unix sockets: beside TCP, instead of it, and taken over.
mod unix;
/// Requests at the edge of what is allowed, byte by byte.
mod wire;

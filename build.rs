//! Sets `EDGE_PROXY_GIT_SHA`, `EDGE_PROXY_COMMIT_DATE` and `EDGE_PROXY_TARGET` for the build.
//!
//! The commit is the environment variable of that name, else that of the checkout, else `unknown`. The date
//! is that of `SOURCE_DATE_EPOCH` (https://reproducible-builds.org/specs/source-date-epoch/), else that of
//! the commit of the checkout, else `unknown`.
//!
//! Debug builds do not run git, because every commit would cause a rebuild. The values depend only on the
//! commit, so that builds are reproducible.
use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=EDGE_PROXY_GIT_SHA");
    println!("cargo:rerun-if-env-changed=SOURCE_DATE_EPOCH");
    let variable = |name| {
        let value = std::env::var(name).ok().map(|value: String| value.trim().to_owned());
        value.filter(|value| !value.is_empty())
    };
    let is_release = variable("PROFILE").is_some_and(|profile| profile == "release");
    let checkout = if is_release { of_checkout() } else { None };
    let (sha, seconds) = checkout.unzip();
    let sha = variable("EDGE_PROXY_GIT_SHA").or(sha);
    let seconds = variable("SOURCE_DATE_EPOCH").or(seconds).and_then(|seconds| seconds.parse().ok());
    let unknown = || "unknown".to_owned();
    println!("cargo:rustc-env=EDGE_PROXY_GIT_SHA={}", sha.unwrap_or_else(unknown));
    println!("cargo:rustc-env=EDGE_PROXY_COMMIT_DATE={}", seconds.map_or_else(unknown, date));
    println!("cargo:rustc-env=EDGE_PROXY_TARGET={}", variable("TARGET").unwrap_or_else(unknown));
}

/// The commit of the checkout and its Unix time. `None` without git, or if the sources are inside the
/// checkout of another project.
fn of_checkout() -> Option<(String, String)> {
    let top = git(&["rev-parse", "--show-toplevel"])?;
    let manifest = std::env::var("CARGO_MANIFEST_DIR").ok()?;
    if Path::new(&top).canonicalize().ok()? != Path::new(&manifest).canonicalize().ok()? {
        return None;
    }
    // A commit writes the branch, a checkout HEAD. Cargo considers a path that does not exist changed, so it
    // would rebuild each time.
    let branch = git(&["symbolic-ref", "--quiet", "HEAD"]);
    for name in ["HEAD", "packed-refs"].into_iter().chain(branch.as_deref()) {
        let path = git(&["rev-parse", "--git-path", name])?;
        if Path::new(&path).exists() {
            println!("cargo:rerun-if-changed={path}");
        }
    }
    Some((git(&["rev-parse", "--short=12", "HEAD"])?, git(&["log", "-1", "--format=%ct"])?))
}

/// The day of a Unix time in the Gregorian calendar, UTC. Without a crate, because the script is one file
/// that the tests compile by themselves.
fn date(seconds: u64) -> String {
    let (mut year, mut day) = (1970, seconds / 86_400);
    let is_leap =
        |year: u64| (year.is_multiple_of(4) && !year.is_multiple_of(100)) || year.is_multiple_of(400);
    while day >= 365 + u64::from(is_leap(year)) {
        day -= 365 + u64::from(is_leap(year));
        year += 1;
    }
    let february = 28 + u64::from(is_leap(year));
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if day < length {
            break;
        }
        day -= length;
        month += 1;
    }
    format!("{year}-{month:02}-{:02}", day + 1)
}

fn git(args: &[&str]) -> Option<String> {
    let output = Command::new("git").args(args).output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
}

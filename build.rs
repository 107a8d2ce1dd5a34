//! Sets `EDGE_PROXY_GIT_SHA` for the build: the environment variable of that name, else the commit of the
//! checkout, else `unknown`.
//!
//! Debug builds do not run git, because every commit would cause a rebuild. The value depends only on the
//! commit, so that builds are reproducible.
use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=EDGE_PROXY_GIT_SHA");
    let variable = |name| std::env::var(name).ok().filter(|value: &String| !value.trim().is_empty());
    let is_release = variable("PROFILE").is_some_and(|profile| profile == "release");
    let given = variable("EDGE_PROXY_GIT_SHA").map(|sha| sha.trim().to_owned());
    let sha = given.or_else(|| if is_release { of_checkout() } else { None });
    println!("cargo:rustc-env=EDGE_PROXY_GIT_SHA={}", sha.as_deref().unwrap_or("unknown"));
}

/// `None` without git, or if the sources are inside the checkout of another project.
fn of_checkout() -> Option<String> {
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
    git(&["rev-parse", "--short=12", "HEAD"])
}

fn git(args: &[&str]) -> Option<String> {
    let output = Command::new("git").args(args).output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
}

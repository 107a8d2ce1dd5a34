//! Files that other programs read: compose files, the Dockerfile, workflows, issue forms. Judged by the
//! published schemas and linters of PyPI (`tests/requirements.txt`); what no schema holds is asserted here.
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::support::{fixture, python};

fn page(path: &str) -> String {
    std::fs::read_to_string(fixture::root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Runs a program of the scratch Python.
fn tool(name: &str, args: &[&str]) -> Output {
    let program = python::interpreter().with_file_name(name);
    Command::new(program).args(args).current_dir(fixture::root()).output().expect("installed")
}

fn assert_passes(name: &str, args: &[&str]) {
    let output = tool(name, args);
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{name} {args:?}:\n{out}{err}");
}

/// A schema that accepts everything would judge nothing.
fn assert_refuses(schema: &str, text: &str) {
    let scratch = crate::support::Scratch::new();
    let path = scratch.write("file.yaml", text);
    let output = tool("check-jsonschema", &["--builtin-schema", schema, path.to_str().expect("UTF-8")]);
    assert_eq!(output.status.code(), Some(1), "{schema} accepts {text}");
}

const COMPOSE: &str = "vendor.compose-spec";

#[test]
fn the_compose_file_is_valid_and_its_files_exist() {
    assert_passes("check-jsonschema", &["--builtin-schema", COMPOSE, "examples/compose.yaml"]);
    assert_refuses(COMPOSE, "services: {proxy: {image: x, prots: [8000]}}");
    let script = "import json, sys; from ruamel.yaml import YAML; \
                  print(json.dumps(YAML(typ='safe').load(open(sys.argv[1]))))";
    let path = fixture::root().join("examples/compose.yaml");
    let output = Command::new(python::interpreter()).args(["-c", script]).arg(path).output().expect("Python");
    let compose: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let services = compose["services"].as_object().expect("services");
    let volumes = compose["volumes"].as_object().expect("volumes");
    let root = fixture::root().join("examples");
    let mut mounted = 0;
    for (name, service) in services {
        assert_eq!(service["profiles"].as_array().map(Vec::len), Some(1), "{name}: one profile");
        for volume in service["volumes"].as_array().into_iter().flatten() {
            let source = volume.as_str().and_then(|volume| volume.split(':').next()).expect("a source");
            assert!(volumes.contains_key(source) || root.join(source).exists(), "{name}: {source}");
            mounted += 1;
        }
        for port in service["ports"].as_array().into_iter().flatten() {
            assert!(port.as_str().is_some_and(|port| port.starts_with("127.0.0.1:")), "{name}: {port}");
        }
        // What it waits for is started with it.
        for (other, _) in service["depends_on"].as_object().into_iter().flatten() {
            assert_eq!(services[other]["profiles"], service["profiles"], "{name} waits for {other}");
        }
        for (variable, value) in service["environment"].as_object().into_iter().flatten() {
            assert!(value.is_string(), "{name}: {variable} is text");
        }
    }
    assert!(mounted >= 7, "{mounted}");
    assert_eq!(services.len(), 7);
}

/// Settings of the proxies in the compose file, as the executable reads them.
#[test]
fn the_proxies_of_the_compose_file_have_valid_configurations() {
    let compose = page("examples/compose.yaml");
    let variable = |name: &str| {
        let line = compose.lines().find_map(|line| line.trim().strip_prefix(&format!("{name}: ")));
        line.unwrap_or_else(|| panic!("{name}")).trim_matches('\'').to_owned()
    };
    let document = fixture::root().join("src/demo/environment.json");
    let documents =
        variable("EDGE_PROXY_DOCUMENTS").replace("/app/environment.json", document.to_str().expect("UTF-8"));
    let (code, text) = crate::support::Start::command(&["check"])
        .env("EDGE_PROXY_DOCUMENTS", &documents)
        .env("EDGE_PROXY_ADMIN", &variable("EDGE_PROXY_ADMIN"))
        .run();
    assert_eq!(code, Some(0), "{text}");
    let path = fixture::root().join("examples/flagsmith/config.json");
    let (code, text) =
        crate::support::Start::command(&["check", "--config", path.to_str().expect("UTF-8")]).run();
    assert_eq!(code, Some(0), "{text}");
    assert!(!text.contains("unknown_setting"), "{text}");
    let schema = "docs/config.schema.json";
    assert_passes("check-jsonschema", &["--schemafile", schema, "examples/flagsmith/config.json"]);
}

fn files_below(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("readable").path();
        if path.is_dir() { files.extend(files_below(&path)) } else { files.push(path) }
    }
    files.sort();
    files
}

#[test]
fn the_dockerfile_is_linted_and_has_what_an_image_needs() {
    assert_passes("hadolint", &["Dockerfile"]);
    let scratch = crate::support::Scratch::new();
    let wrong = scratch.write("Dockerfile", "FROM debian\nRUN cd /x && apt-get install y\n");
    let output = tool("hadolint", &[wrong.to_str().expect("UTF-8")]);
    assert_eq!(output.status.code(), Some(1), "hadolint finds nothing in a wrong file");
    let text = page("Dockerfile");
    let version = concat!("ARG EDGE_PROXY_VERSION=", env!("CARGO_PKG_VERSION"), "\n");
    assert!(text.contains(version), "the version of Cargo.toml");
    let last = text.rsplit("\nFROM ").next().expect("a stage");
    assert!(last.starts_with("scratch "), "the last stage is the one that is released");
    // Both images are started in the same way.
    let settings = |stage: &str| -> Vec<String> {
        let words = ["WORKDIR", "USER", "EXPOSE", "STOPSIGNAL", "HEALTHCHECK", "ENTRYPOINT"];
        let is_setting = |line: &&str| words.iter().any(|word| line.starts_with(word));
        stage.lines().filter(is_setting).map(str::to_owned).collect()
    };
    let debug = text.rsplit("\nFROM ").nth(1).expect("the stage before");
    assert!(
        debug.starts_with("busybox:") && debug.lines().next().is_some_and(|line| line.ends_with(" AS debug"))
    );
    assert_eq!(settings(debug), settings(last));
    assert_eq!(settings(last).len(), 6);
    // Every image is pinned, if only by its version: digests cannot be verified without a registry.
    for line in text.lines().filter(|line| line.starts_with("FROM ")) {
        let image = line.split(' ').nth(1).expect("an image");
        assert!(image == "scratch" || image.contains(|c: char| c.is_ascii_digit()), "{image}");
    }
}

#[test]
fn workflows_and_issue_forms_are_valid_and_actions_are_pinned() {
    let github = fixture::root().join(".github");
    let workflows = files_below(&github.join("workflows"));
    assert!(!workflows.is_empty());
    for path in &workflows {
        let path = path.to_str().expect("UTF-8");
        assert_passes("check-jsonschema", &["--builtin-schema", "vendor.github-workflows", path]);
        let text = std::fs::read_to_string(path).expect("readable");
        for line in
            text.lines().filter_map(|line| line.trim().trim_start_matches("- ").strip_prefix("uses: "))
        {
            let (digest, version) =
                line.split_once('@').and_then(|(_, rest)| rest.split_once(" # v")).expect(line);
            assert!(digest.len() == 40 && digest.bytes().all(|byte| byte.is_ascii_hexdigit()), "{line}");
            assert!(version.split('.').count() == 3, "{line}");
        }
    }
    assert_refuses("vendor.github-workflows", "on: push\njobs: {a: {runs: x}}");
    for path in files_below(&github.join("ISSUE_TEMPLATE")) {
        let is_config = path.ends_with("config.yml");
        let schema = if is_config { "vendor.github-issue-config" } else { "vendor.github-issue-forms" };
        assert_passes("check-jsonschema", &["--builtin-schema", schema, path.to_str().expect("UTF-8")]);
    }
    assert_refuses("vendor.github-issue-forms", "name: x\ndescription: y\nbody: [{type: nothing}]");
    let compiler = page("Dockerfile");
    let rust = page(".github/workflows/release.yml");
    let rust = rust.lines().find_map(|line| line.trim().strip_prefix("RUST: ")).expect("a version");
    assert!(compiler.contains(&format!("FROM rust:{rust}-")), "image and packages have one compiler");
}

/// Files that packages are made of exist, and both kinds of packages contain the same.
#[test]
fn both_packages_contain_the_same_files() {
    let manifest = page("Cargo.toml");
    let section = |name: &str| {
        let (_, rest) = manifest.split_once(&format!("[package.metadata.{name}]")).expect("a section");
        rest.split("\n[").next().unwrap_or_default().to_owned()
    };
    let sources = |text: &str| -> std::collections::BTreeSet<String> {
        let quoted = text.split('"').skip(1).step_by(2);
        quoted
            .filter(|text| ["target/package/", "deploy/", "src/"].iter().any(|start| text.starts_with(start)))
            .map(str::to_owned)
            .collect()
    };
    let (deb, rpm) = (sources(&section("deb")), sources(&section("generate-rpm")));
    for source in deb.union(&rpm).filter(|source| !source.starts_with("target/")) {
        assert!(fixture::root().join(source).exists(), "{source}");
    }
    let staged = |found: &std::collections::BTreeSet<String>| -> Vec<String> {
        // The .rpm makes its links itself, and only Debian has changelogs and lintian.
        let own = ["edge-proxy-serve", "edge-proxy-render-config", "changelog"];
        let is_common =
            |source: &&String| source.starts_with("target/") && !own.iter().any(|end| source.ends_with(end));
        found.iter().filter(is_common).cloned().collect()
    };
    assert_eq!(staged(&deb), staged(&rpm));
    let dist = page("scripts/dist");
    let names =
        ["man", "completions", "config.schema.json", "sbom.cdx.json", "THIRD-PARTY-LICENCES", "changelog"];
    for name in names {
        assert!(
            dist.contains(&format!("$stage/{name}"))
                || dist.contains(&format!("{{{name}"))
                || dist.contains(name),
            "{name}"
        );
    }
    // cargo-about judges by the same list as cargo-deny.
    let accepted = |path: &str, member: &str| -> Vec<String> {
        let text = page(path);
        let (_, list) = text.split_once(&format!("\n{member} = [")).expect("a list");
        let list = list.split(']').next().unwrap_or_default();
        let mut names: Vec<String> = list.split('"').skip(1).step_by(2).map(str::to_owned).collect();
        names.sort();
        names
    };
    assert_eq!(accepted("about.toml", "accepted"), accepted("deny.toml", "allow"));
}

//! Documentation: links, anchors, citations, tables and commands are true.
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::support::{executable, fixture};

/// Every page of the project: its path from the root, and its text.
fn pages() -> Vec<(PathBuf, String)> {
    let root = fixture::root();
    let mut paths: Vec<PathBuf> = ["README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"]
        .into_iter()
        .chain(["deploy/README.md", "bench/README.md"])
        .map(PathBuf::from)
        .collect();
    for entry in std::fs::read_dir(root.join("docs")).expect("docs") {
        let name = entry.expect("readable").file_name().into_string().expect("UTF-8");
        if name.ends_with(".md") {
            paths.push(Path::new("docs").join(name));
        }
    }
    paths.sort();
    let read = |path: PathBuf| {
        let text = std::fs::read_to_string(root.join(&path)).expect("a page");
        (path, text)
    };
    paths.into_iter().map(read).collect()
}

/// The text without fenced blocks, line for line.
fn prose(text: &str) -> String {
    let mut is_code = false;
    let mut out = String::new();
    for line in text.lines() {
        let is_fence = line.trim_start().starts_with("```");
        is_code ^= is_fence;
        if !is_code && !is_fence {
            out.push_str(line);
        }
        out.push('\n');
    }
    out
}

/// The anchor that GitHub makes of a heading.
fn slug(heading: &str) -> String {
    let text = heading.trim_start_matches('#').trim().to_lowercase();
    text.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c)).collect::<String>().replace(' ', "-")
}

fn anchors(text: &str) -> BTreeSet<String> {
    prose(text).lines().filter(|line| line.starts_with('#')).map(slug).collect()
}

#[test]
fn every_link_resolves() {
    let (root, pages) = (fixture::root(), pages());
    let (mut dead, mut followed) = (Vec::new(), 0);
    for (path, text) in &pages {
        let text = prose(text);
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if link.starts_with("https://") || link.starts_with("http://") {
                continue;
            }
            followed += 1;
            let (target, anchor) =
                link.split_once('#').map_or((link, None), |(to, anchor)| (to, Some(anchor)));
            let target = match target {
                "" => path.clone(),
                target => path.parent().unwrap_or(Path::new("")).join(target),
            };
            let is_there = match anchor {
                None => root.join(&target).exists(),
                Some(anchor) => std::fs::read_to_string(root.join(&target))
                    .is_ok_and(|text| anchors(&text).contains(anchor)),
            };
            if !is_there {
                dead.push(format!("{}: {link}", path.display()));
            }
        }
    }
    assert!(dead.is_empty(), "dead links:\n{}", dead.join("\n"));
    assert!(followed > 60, "{followed} links were followed");
}

/// Every source file and page that may cite a section.
fn citing_files(directory: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("readable").path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() {
            if !["node_modules", "fixtures", "target", "corpus"].contains(&&*name) {
                citing_files(&path, files);
            }
        } else if [".rs", ".md", ".py"].iter().any(|end| name.ends_with(end)) {
            files.push(path);
        }
    }
}

/// The numbers that follow a page's name, such as the `5.6` and `5.7` of `compatibility.md 5.6 and 5.7`.
fn cited<'t>(text: &'t str, page: &str) -> Vec<&'t str> {
    let mut numbers = Vec::new();
    for (at, _) in text.match_indices(page) {
        let mut rest = text[at + page.len()..].trim_start_matches([')', ']', '`', ',']).trim_start();
        loop {
            let length = rest.bytes().take_while(|byte| byte.is_ascii_digit() || *byte == b'.').count();
            let number = rest[..length].trim_end_matches('.');
            if number.is_empty() {
                break;
            }
            numbers.push(number);
            let after = &rest[number.len()..];
            let next = [" and ", ", ", " to ", " or "].iter().find_map(|joint| after.strip_prefix(joint));
            match next {
                Some(next) => rest = next,
                None => break,
            }
        }
    }
    numbers
}

#[test]
fn every_citation_resolves() {
    let root = fixture::root();
    let read = |path: &str| std::fs::read_to_string(root.join(path)).expect("a page");
    let compatibility = read("docs/compatibility.md");
    let sections: BTreeSet<&str> = compatibility
        .lines()
        .filter_map(|line| line.strip_prefix('#'))
        .filter_map(|line| line.trim_start_matches('#').split_whitespace().next())
        .map(|number| number.trim_end_matches('.'))
        .collect();
    let differences = read("docs/differences.md");
    let rows: BTreeSet<&str> =
        differences.lines().filter_map(|line| line.strip_prefix("| ")?.split(' ').next()).collect();
    let mut files = Vec::new();
    for directory in ["src", "tests", "docs", "deploy", "bench", "scripts"] {
        citing_files(&root.join(directory), &mut files);
    }
    files.extend(["README.md", "CONTRIBUTING.md"].map(|name| root.join(name)));
    let (mut unknown, mut found) = (Vec::new(), 0);
    for path in files {
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        // A citation may go on in the next line of a comment.
        let text =
            text.replace("\n    ", "\n").replace("\n/// ", " ").replace("\n//! ", " ").replace("\n// ", " ");
        for (page, known) in [("compatibility.md", &sections), ("differences.md", &rows)] {
            for number in cited(&text, page) {
                found += 1;
                if !known.contains(number) {
                    unknown.push(format!("{}: {page} {number}", path.display()));
                }
            }
        }
    }
    assert!(unknown.is_empty(), "citations of sections that do not exist:\n{}", unknown.join("\n"));
    assert!(found > 100, "{found} citations were found");
}

#[test]
fn every_row_has_the_columns_of_its_table() {
    let columns = |row: &str| row.replace("\\|", "").matches('|').count();
    for (path, text) in pages() {
        let mut head: Option<String> = None;
        for line in prose(&text).lines() {
            if !line.starts_with('|') {
                head = None;
                continue;
            }
            let expected = columns(head.get_or_insert_with(|| line.to_owned()));
            assert_eq!(columns(line), expected, "{}: a row of another shape: {line}", path.display());
        }
    }
}

/// Commands in backquotes: `make` targets exist, and the program accepts every flag that a page shows.
#[test]
fn every_command_exists() {
    let root = fixture::root();
    let makefile = std::fs::read_to_string(root.join("Makefile")).expect("Makefile");
    let help = |subcommand: Option<&str>| {
        let output = std::process::Command::new(executable())
            .args(subcommand)
            .arg("--help")
            .output()
            .expect("the executable");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let subcommands = ["serve", "check", "health", "explain", "demo", "render-config"];
    let helps: Vec<(Option<&str>, String)> =
        std::iter::once(None).chain(subcommands.map(Some)).map(|name| (name, help(name))).collect();
    let (mut unknown, mut seen) = (Vec::new(), 0);
    for (path, text) in pages() {
        let quoted = text.split('`').skip(1).step_by(2);
        let lines = text.lines().map(|line| line.trim_start().trim_start_matches("$ "));
        for command in quoted.chain(lines) {
            let mut words = command.split_whitespace();
            let is_known = match words.next() {
                Some("make") => {
                    // Prose may begin a line with the word.
                    let Some(target) = words.next().filter(|word| makefile.contains(&format!("\n{word}:")))
                    else {
                        if command.starts_with("make ") && command.split_whitespace().count() == 2 {
                            unknown.push(format!("{}: {command}", path.display()));
                        }
                        continue;
                    };
                    !target.is_empty()
                }
                Some("edge-proxy") => {
                    let rest: Vec<&str> = words.collect();
                    let subcommand = rest.first().copied().filter(|word| subcommands.contains(word));
                    let help = &helps.iter().find(|(name, _)| *name == subcommand).expect("listed").1;
                    let main = &helps[0].1;
                    rest.iter()
                        .filter(|word| word.starts_with("--"))
                        .map(|flag| flag.split('=').next().unwrap_or(flag).trim_end_matches([',', '.', ')']))
                        .all(|flag| help.contains(flag) || (subcommand.is_none() && main.contains(flag)))
                }
                _ => continue,
            };
            seen += 1;
            if !is_known {
                unknown.push(format!("{}: {command}", path.display()));
            }
        }
    }
    assert!(unknown.is_empty(), "commands that do not exist:\n{}", unknown.join("\n"));
    assert!(seen > 40, "{seen} commands were checked");
}

/// A block of shell commands has `make` targets only (see `every_command_exists`), succeeds here, or the paragraph
/// before it says that it is not run. `console` blocks are replayed with their output.
#[test]
fn every_shell_block_is_run_or_says_that_it_is_not() {
    let (mut wrong, mut seen) = (Vec::new(), 0);
    for (path, text) in pages() {
        for (at, _) in text.match_indices("\n```sh\n") {
            let block = text[at + "\n```sh\n".len()..].split("\n```").next().unwrap_or_default();
            let paragraph = text[..at].trim_end().rsplit("\n\n").next().unwrap_or_default().to_lowercase();
            seen += 1;
            if paragraph.contains("not run by a test") || block.lines().all(|line| line.starts_with("make "))
            {
                continue;
            }
            let mut bash = std::process::Command::new("bash");
            let run = bash.args(["-euo", "pipefail", "-c", block]).current_dir(fixture::root()).output();
            let output = run.expect("bash is there");
            if !output.status.success() {
                let errors = String::from_utf8_lossy(&output.stderr).into_owned();
                wrong.push(format!("{}: {block}\n{errors}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(seen >= 4, "{seen} blocks");
}

/// Paths in the backquotes of CONTRIBUTING.md exist.
#[test]
fn every_path_in_contributing_exists() {
    let root = fixture::root();
    let text = std::fs::read_to_string(root.join("CONTRIBUTING.md")).expect("CONTRIBUTING.md");
    let paths: Vec<&str> = text
        .split('`')
        .skip(1)
        .step_by(2)
        .filter(|path| path.starts_with("src/") || path.starts_with("tests/"))
        .collect();
    let missing: Vec<&&str> = paths.iter().filter(|path| !root.join(path).exists()).collect();
    assert!(missing.is_empty(), "{missing:?}");
    assert!(paths.len() > 20, "{} paths", paths.len());
}

/// The log events that operations.md lists are those of the code.
#[test]
fn every_log_event_exists() {
    let root = fixture::root();
    let page = std::fs::read_to_string(root.join("docs/operations.md")).expect("docs/operations.md");
    let table = page.split("| event | level |").nth(1).expect("the table of events");
    let rows = table.lines().skip(2).take_while(|line| line.starts_with('|'));
    let names: Vec<&str> = rows
        .filter_map(|row| row.split(" | ").next())
        .flat_map(|cell| cell.split('`').skip(1).step_by(2))
        .collect();
    let mut files = Vec::new();
    citing_files(&root.join("src"), &mut files);
    files.retain(|path| !path.ends_with("tests.rs") && path.extension().is_some_and(|end| end == "rs"));
    let code: String = files.iter().map(|path| std::fs::read_to_string(path).unwrap_or_default()).collect();
    let missing: Vec<&&str> = names.iter().filter(|name| !code.contains(&format!("\"{name}\""))).collect();
    assert!(missing.is_empty(), "{missing:?}");
    assert!(names.len() > 15, "{names:?}");
}

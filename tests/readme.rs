//! Runs the commands in the fenced blocks of the README and compares their output.
use edge_proxy::config::Config;
use edge_proxy::config::Inputs;
use edge_proxy::config::settings::SETTINGS;
use serde_json::{Value, json};

use crate::support::{Proxy, Scratch, Start, executable, fixture};

/// One fenced block: its language and its text.
struct Block {
    kind: String,
    text: String,
    line: usize,
}

fn blocks(markdown: &str) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    let mut open = false;
    for (number, line) in markdown.lines().enumerate() {
        match line.strip_prefix("```") {
            Some(_) if open => open = false,
            Some(kind) => {
                open = true;
                blocks.push(Block { kind: kind.to_owned(), text: String::new(), line: number + 1 });
            }
            None if open => {
                let block = blocks.last_mut().expect("opened before");
                block.text.push_str(line);
                block.text.push('\n');
            }
            None => {}
        }
    }
    blocks
}

/// The commands of a `console` block with their output: `$ ` starts a command.
fn sessions(text: &str) -> Vec<(String, String)> {
    let mut sessions: Vec<(String, String)> = Vec::new();
    for line in text.lines() {
        if let Some(command) = line.strip_prefix("$ ") {
            sessions.push((command.to_owned(), String::new()));
        } else if let Some((command, output)) = sessions.last_mut() {
            // A backslash continues a command in the next line.
            if let Some(start) = command.strip_suffix('\\') {
                *command = format!("{start}{}", line.trim_start());
            } else {
                output.push_str(line);
                output.push('\n');
            }
        }
    }
    sessions
}

#[test]
fn parses_blocks_and_sessions() {
    let blocks = blocks("a\n```console\n$ x \\\n    y\none\n```\nb\n```sh\nz\n```\n");
    let seen: Vec<_> =
        blocks.iter().map(|block| (block.kind.as_str(), block.text.as_str(), block.line)).collect();
    assert_eq!(seen, [("console", "$ x \\\n    y\none\n", 2), ("sh", "z\n", 8)]);
    assert_eq!(sessions(seen[0].1), [("x y".to_owned(), "one\n".to_owned())]);
}

/// Replays one command of the README against `demo`, whose port takes the place of 8000.
fn replay(command: &str, demo: &Proxy) -> String {
    let command = command.replace("127.0.0.1:8000", &demo.address().to_string());
    let directory = std::path::Path::new(executable()).parent().expect("in a directory");
    let path = format!("{}:{}", directory.display(), std::env::var("PATH").unwrap_or_default());
    let output = std::process::Command::new("bash")
        .args(["-c", &command])
        .env("PATH", path)
        .current_dir(fixture::root())
        .output()
        .expect("bash is there");
    // curl shows its progress on stderr when it does not write to a terminal.
    let complaint = if output.status.success() { &[][..] } else { &output.stderr };
    String::from_utf8_lossy(&[&output.stdout, complaint].concat()).into_owned()
}

#[test]
fn console_blocks_print_the_documented_output() {
    let readme = readme();
    let demo = Start::demo().ready();
    let mut wrong = Vec::new();
    let mut replayed = 0;
    for block in blocks(&readme).iter().filter(|block| block.kind == "console") {
        for (command, expected) in sessions(&block.text) {
            // The demo itself is already running for the other commands.
            if command == "make run" {
                continue;
            }
            let printed = replay(&command, &demo);
            replayed += 1;
            if printed.trim_end() != expected.trim_end() {
                wrong.push(format!(
                    "README.md:{}\n$ {command}\nstands there:\n{expected}\nprinted:\n{printed}",
                    block.line
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
    assert!(replayed >= 3, "the README's curl lines were found: {replayed}");
    // The commands that the demo suggests are in the README.
    let tried: Vec<_> = demo
        .log()
        .lines()
        .filter_map(|line| line.trim_start().strip_prefix("curl ").map(str::to_owned))
        .collect();
    assert!(!tried.is_empty(), "the demo suggests commands:\n{}", demo.log());
    for line in tried {
        let line = line.replace(&demo.address().to_string(), "127.0.0.1:8000");
        assert!(readme.contains(&line), "the demo's `curl {line}` is not in the README");
    }
}

fn readme() -> String {
    page("README.md")
}

fn page(path: &str) -> String {
    std::fs::read_to_string(fixture::root().join(path)).expect(path)
}

/// Texts between backquotes.
fn quoted(markdown: &str) -> Vec<&str> {
    markdown.split('`').skip(1).step_by(2).collect()
}

#[test]
fn every_setting_and_alias_is_in_the_table() {
    let page = page("docs/configuration.md");
    let quoted = quoted(&page);
    let names = edge_proxy::config::settings::SETTINGS.iter().flat_map(|setting| {
        let plain = [setting.path].into_iter();
        plain.chain(setting.aliases.iter().copied()).chain(setting.variables.iter().copied())
    });
    let missing: Vec<_> = names.filter(|name| !quoted.contains(name)).collect();
    assert!(missing.is_empty(), "not in the tables of docs/configuration.md: {missing:?}");
}

#[test]
fn named_paths_and_targets_exist() {
    let readme = readme();
    let makefile = std::fs::read_to_string(fixture::root().join("Makefile")).expect("Makefile");
    for target in quoted(&readme).iter().filter_map(|text| text.strip_prefix("make ")) {
        let target = target.split(' ').next().unwrap_or(target);
        assert!(makefile.contains(&format!("\n{target}:")), "make {target} is not in the Makefile");
    }
}

/// The settings named in the README's short table exist, with the defaults of the long one.
#[test]
fn the_readme_names_settings_that_exist() {
    let readme = readme();
    let table = readme.split("| setting | default | meaning |").nth(1).expect("the table of settings");
    let rows = table.lines().skip(2).take_while(|line| line.starts_with('|'));
    let names: Vec<&str> = rows.flat_map(|row| quoted(row.split(" | ").next().unwrap_or_default())).collect();
    assert!(names.len() >= 12, "{names:?}");
    for name in names {
        assert!(SETTINGS.iter().any(|setting| setting.path == name), "{name} is not a setting");
    }
}

/// The rows of every table of settings, cell by cell.
fn settings(readme: &str) -> Vec<Vec<&str>> {
    let tables = readme.split("| setting | variable | default | meaning |").skip(1);
    let rows = tables.flat_map(|table| table.lines().skip(2).take_while(|line| line.starts_with('|')));
    rows.map(|row| row.trim_matches('|').split(" | ").map(str::trim).collect()).collect()
}

/// The resulting configuration if this setting has this value, or none.
fn configuration_with(path: &str, value: Option<&Value>) -> String {
    let scratch = Scratch::new();
    let mut file = json!({"documents": ["document.json"]});
    if let Some(value) = value {
        let place = path.split('.').fold(&mut file, |place, name| &mut place[name]);
        *place = value.clone();
    }
    let path = scratch.write("config.json", file.to_string());
    let inputs = Inputs { config_path: Some(path), ..Inputs::default() };
    let (config, _) = edge_proxy::config::load(&inputs).expect("valid");
    format!("{:?}", Config { path: None, ..config })
}

/// The value of a cell; `None` for a description.
fn value(default: &str) -> Option<Value> {
    match default.trim_matches('`') {
        "" | "none" | "loopback" => None,
        text if text.starts_with("null") => Some(Value::Null),
        text if text.contains(' ') => None,
        text => Some(serde_json::from_str(text).unwrap_or_else(|_| Value::from(text))),
    }
}

/// A documented default, given as a value, changes nothing; and the variable belongs to the path.
#[test]
fn the_table_of_settings_has_the_defaults_and_variables_of_the_code() {
    let page = page("docs/configuration.md");
    let mut compared = 0;
    for row in settings(&page) {
        let (variables, mut defaults) = (quoted(row[1]), row[2].split(", "));
        for name in quoted(row[0]) {
            let Some(setting) = SETTINGS.iter().find(|setting| setting.path == name) else { continue };
            let own = name.to_uppercase().replace('.', "_");
            for variable in setting.variables.iter().copied().chain([own.as_str()]) {
                assert!(variables.contains(&variable), "{variable} in {row:?}");
            }
            let Some(default) = defaults.next().and_then(value) else { continue };
            assert_eq!(
                configuration_with(name, Some(&default)),
                configuration_with(name, None),
                "{name} is not {default} by itself"
            );
            compared += 1;
        }
    }
    assert!(compared > 25, "{compared} defaults were compared");
}

#[test]
fn documents_what_ci_runs() {
    let readme = readme();
    let makefile = std::fs::read_to_string(fixture::root().join("Makefile")).expect("Makefile");
    let runs = makefile.lines().find_map(|line| line.strip_prefix("ci: ")?.split(" ##").next());
    let sentence =
        readme.split("`make ci` is what must pass: ").nth(1).and_then(|rest| rest.split(". ").next());
    let named: Vec<&str> =
        quoted(sentence.expect("a sentence on `make ci`")).iter().map(|text| &text[5..]).collect();
    assert_eq!(named, runs.expect("a target ci").split(' ').collect::<Vec<_>>());
    let started = std::fs::read_to_string(fixture::root().join(".ci/run")).expect(".ci/run");
    assert!(started.ends_with("\nexec make ci\n"), "CI runs only `make ci`");
}

#[test]
fn numbers_are_from_the_newest_run() {
    let root = fixture::root();
    let runs = std::fs::read_dir(root.join("bench/runs")).expect("bench/runs").count();
    assert!(runs > 0, "bench/runs contains a run");
    let python = std::env::var("PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let checked = std::process::Command::new(python)
        .args(["bench/report.py", "--check"])
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .current_dir(root)
        .output()
        .expect("Python is there");
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
}

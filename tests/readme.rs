//! The README says nothing that was not run: its fenced blocks are taken out and replayed.
use crate::support::{Proxy, Start, fixture};

/// One fenced block: the word after the fence, and what is in it.
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

/// What a `console` block says: `$ ` starts a command, the lines after it are its output.
fn sessions(text: &str) -> Vec<(String, String)> {
    let mut sessions: Vec<(String, String)> = Vec::new();
    for line in text.lines() {
        if let Some(command) = line.strip_prefix("$ ") {
            sessions.push((command.to_owned(), String::new()));
        } else if let Some((command, output)) = sessions.last_mut() {
            // A command goes on in the next line after a backslash.
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
fn blocks_and_sessions_are_told_apart() {
    let blocks = blocks("a\n```console\n$ x \\\n    y\none\n```\nb\n```sh\nz\n```\n");
    let seen: Vec<_> =
        blocks.iter().map(|block| (block.kind.as_str(), block.text.as_str(), block.line)).collect();
    assert_eq!(seen, [("console", "$ x \\\n    y\none\n", 2), ("sh", "z\n", 8)]);
    assert_eq!(sessions(seen[0].1), [("x y".to_owned(), "one\n".to_owned())]);
}

/// Replays one command of the README against `demo`, whose port takes the place of 8000.
fn replay(command: &str, demo: &Proxy) -> String {
    let command = command.replace("localhost:8000", &demo.address().to_string());
    let directory = std::path::Path::new(env!("CARGO_BIN_EXE_edge-proxy")).parent().expect("in a directory");
    let path = format!("{}:{}", directory.display(), std::env::var("PATH").unwrap_or_default());
    let output = std::process::Command::new("bash")
        .args(["-c", &command])
        .env("PATH", path)
        .current_dir(fixture::root())
        .output()
        .expect("bash is there");
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn every_console_block_of_the_readme_prints_what_stands_there() {
    let readme = std::fs::read_to_string(fixture::root().join("README.md")).expect("README.md");
    let demo = Start::demo().ready();
    let mut wrong = Vec::new();
    let mut replayed = 0;
    for block in blocks(&readme).iter().filter(|block| block.kind == "console") {
        for (command, expected) in sessions(&block.text) {
            // The demo itself is running already; it is what the other commands talk to.
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
}

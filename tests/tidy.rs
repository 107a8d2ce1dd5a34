//! The rules of the source tree, as tests that read it. Each check has a test with an offence that it must
//! find.
//!
//! The exceptions of a rule are in a table beside it, with their reasons. A check reports all its offences, as
//! `file:line: what`.
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

const FUNCTION_LINES_MAX: usize = 70;
const FILE_LINES_MAX: usize = 500;
const COMMENT_COLUMNS_MAX: usize = 110;
const HEADER_LINES: std::ops::RangeInclusive<usize> = 1..=12;

/// Which crate may be named where. A crate that is not listed is free.
const CRATE_PLACES: &[(&str, &[&str])] = &[
    ("crossbeam_channel", &["src/channel.rs", "src/channel/"]),
    ("ureq", &["src/upstream/"]),
    ("monoio_http", &["src/http/request/"]),
    ("monoio_codec", &["src/http/request/"]),
    ("monoio", &["src/reactor/"]),
    ("io_uring", &["src/reactor/"]),
    ("core_affinity", &["src/reactor/", "src/config/cores.rs"]),
    ("clap", &["src/cli.rs", "src/commands/"]),
    ("clap_complete", &["src/commands/"]),
    ("clap_mangen", &["src/commands/"]),
    ("zstd", &["src/delta.rs"]),
    // The messages of OTLP: everything else has its own spans and metrics, so that another protocol, or another
    // version of these crates, concerns one module.
    ("opentelemetry_proto", &["src/telemetry/"]),
    ("prost", &["src/telemetry/"]),
    ("regex_automata", &["src/python/regex/", "src/engine/jsonpath/iregexp.rs"]),
    ("redb", &["src/traits/disk/"]),
    ("redis", &["src/traits/redis/"]),
    ("regex_syntax", &["src/python/regex/"]),
];

/// Allowed dependencies: which top-level modules a module may import. The table has no cycle, and every
/// entry is used; a new module needs a row.
const ALLOWED_DEPENDENCIES: &[(&str, &[&str])] = &[
    // Leaves.
    ("clock", &[]),
    ("limits", &[]),
    ("json", &[]),
    ("yielding", &[]),
    ("delta", &["limits", "yielding"]),
    ("schedule", &["clock", "limits"]),
    ("counts", &["limits"]),
    ("events", &[]),
    ("files", &[]),
    ("work", &[]),
    ("step_budget", &["limits", "work"]),
    ("terminal", &[]),
    ("timestamp", &[]),
    ("validators", &["clock"]),
    ("version", &[]),
    // Python's semantics, and the engine that follows them.
    ("python", &["json", "limits", "step_budget", "work"]),
    ("engine", &["json", "limits", "python", "step_budget", "timestamp", "work", "yielding"]),
    ("snapshot", &["clock", "delta", "engine", "json", "limits", "yielding"]),
    // Configuration and what every plane uses.
    ("config", &["files", "limits", "terminal"]),
    ("demo", &["config"]),
    ("log", &["config", "limits", "terminal", "timestamp"]),
    ("tls", &["config", "files", "limits"]),
    // Data plane.
    ("http", &["limits", "timestamp", "work"]),
    ("metrics", &["events", "http", "limits"]),
    ("spans", &["clock", "config", "limits", "metrics"]),
    ("trait_table", &["engine"]),
    ("channel", &["clock", "config", "counts", "events", "limits", "snapshot", "trait_table"]),
    ("identity", &["engine", "http", "json", "limits", "python", "work"]),
    (
        "handlers",
        &[
            "config",
            "counts",
            "demo",
            "engine",
            "events",
            "http",
            "identity",
            "json",
            "limits",
            "python",
            "snapshot",
            "timestamp",
            "trait_table",
        ],
    ),
    (
        "reactor",
        &[
            "channel",
            "config",
            "events",
            "handlers",
            "http",
            "limits",
            "log",
            "metrics",
            "snapshot",
            "spans",
            "trait_table",
        ],
    ),
    // Control plane.
    ("systemd", &["metrics"]),
    (
        "upstream",
        &[
            "clock",
            "config",
            "delta",
            "files",
            "json",
            "limits",
            "spans",
            "timestamp",
            "validators",
            "yielding",
        ],
    ),
    ("storage", &["clock", "config", "files", "json", "limits", "log", "validators"]),
    ("analytics", &["clock", "counts", "json", "limits", "schedule", "storage", "upstream"]),
    (
        "forwarding",
        &["channel", "clock", "config", "events", "json", "limits", "log", "metrics", "storage", "upstream"],
    ),
    (
        "trait_forwarding",
        &[
            "channel", "clock", "config", "engine", "json", "limits", "log", "metrics", "schedule",
            "snapshot", "spans", "storage", "upstream",
        ],
    ),
    (
        "traits",
        &[
            "channel",
            "clock",
            "config",
            "engine",
            "files",
            "limits",
            "log",
            "metrics",
            "schedule",
            "storage",
            "trait_forwarding",
            "trait_table",
        ],
    ),
    (
        "supervisor",
        &[
            "analytics",
            "channel",
            "clock",
            "config",
            "counts",
            "delta",
            "engine",
            "files",
            "forwarding",
            "limits",
            "log",
            "metrics",
            "schedule",
            "snapshot",
            "spans",
            "storage",
            "systemd",
            "timestamp",
            "tls",
            "upstream",
            "validators",
            "yielding",
        ],
    ),
    (
        "admin",
        &[
            "channel", "config", "events", "handlers", "http", "limits", "log", "metrics", "snapshot",
            "terminal", "version",
        ],
    ),
    (
        "telemetry",
        &["admin", "clock", "config", "limits", "log", "metrics", "schedule", "spans", "upstream", "version"],
    ),
    // Command line.
    (
        "commands",
        &[
            "config",
            "demo",
            "engine",
            "files",
            "limits",
            "snapshot",
            "storage",
            "supervisor",
            "terminal",
            "timestamp",
            "tls",
            "traits",
            "upstream",
            "version",
        ],
    ),
    ("cli", &["commands", "terminal", "version"]),
    (
        "serve",
        &[
            "admin",
            "channel",
            "config",
            "demo",
            "limits",
            "log",
            "metrics",
            "reactor",
            "spans",
            "supervisor",
            "systemd",
            "telemetry",
            "tls",
            "trait_forwarding",
            "traits",
            "version",
        ],
    ),
    ("lib", &[]),
    ("main", &[]),
];

/// Modules that import an item of their parent, and how many of them do so today. No number may grow, and
/// a module that no longer does is removed from this table.
const PARENT_IMPORTS: &[(&str, usize)] = &[];

/// Groups of sibling modules that import each other in a cycle: the parent, and the members of the cycle.
const SIBLING_CYCLES: &[(&str, &[&str])] = &[];

/// Type names that are defined more than once: in `engine::document` as read, in `engine::program` as
/// compiled.
const SHARED_TYPE_NAMES: &[&str] = &["Condition", "Feature", "FeatureState", "Segment"];

/// Words that this code does not use, because a standard term exists. Names are split at `_` and at capitals.
/// `place`, `mark` and `turn` are left to the reviewer: all three have senses that are standard terms.
const RETIRED_WORDS: &[&str] = &[
    "room",
    "rooms",
    "door",
    "doors",
    "desk",
    "desks",
    "spine",
    "told",
    "tell",
    "tells",
    "nobody",
    "somebody",
    "whoever",
    "whatever",
    "nowhere",
    "is no",
    "are no",
    "not understood",
    "would not work",
    "what is meant",
    "stands",
    "of its own",
    "as it is meant",
    "gives way",
    "held",
    "wanted",
    "gone",
    "hand on",
    "hands on",
    "knows",
    "asks",
    "asked",
    "sees",
    "learns",
    "twin",
    "twins",
    "kept apart",
    "much as",
    "alone",
    "at once",
    "for good",
    "but for",
    "farewell",
    "nudge",
    "mistakes",
];

/// Code between the read and the write of a request neither waits, locks, nor reads the clock.
const SYNCHRONOUS_FILES: &[&str] =
    &["src/handlers/", "src/http/route.rs", "src/identity/", "src/engine/", "src/python/", "src/json/"];
const SYNCHRONOUS_FORBIDS: &[&str] =
    &[".await", "async fn", "Mutex", "RwLock", "::now()", "println!", "thread::sleep"];

/// `unwrap`, `expect` and `panic!` that are left, with the reason why they cannot be met.
const PANICS: &[(&str, &str, &str)] =
    &[("src/channel.rs", "expect(\"taken only by drop\")", "the value is there until drop")];

/// A file whose header has a reason to be longer.
const LONG_HEADERS: &[(&str, &str)] = &[("src/lib.rs", "the module plan of the crate")];

/// Names that say nothing (`Manager`, ...) and prefixes that Rust does without.
const NAMES_WITHOUT_MEANING: &[&str] = &["Manager", "Helper", "Util", "Utils", "Impl"];

/// Words that must not be left behind.
const LEFT_BEHIND: &[&str] = &["FIXME", "XXX", "todo!", "unimplemented!", "dbg!", "#[ignore"];

// --- reading the tree ---

struct File {
    /// From the repository's root, such as `src/http/mod.rs`.
    path: String,
    text: String,
    /// The text with comments, strings and characters blanked, line for line.
    code: String,
    /// The code with tests blanked as well.
    product: String,
}

impl File {
    fn new(path: &str, text: &str) -> Self {
        let code = blank_text(text);
        let product = blank_tests(&code);
        Self { path: path.to_owned(), text: text.to_owned(), code, product }
    }

    /// Only tests: `foo/tests.rs` and what is below `foo/tests/`.
    fn is_tests(&self) -> bool {
        self.path.ends_with("/tests.rs") || self.path.contains("/tests/")
    }

    /// `src/http/mod.rs` is in `http`, `src/channel.rs` in `channel`.
    fn top_level(&self) -> &str {
        let inside = self.path.strip_prefix("src/").unwrap_or(&self.path);
        inside.split('/').next().unwrap_or(inside).trim_end_matches(".rs")
    }

    /// The module path, such as `["http", "request"]`.
    fn module(&self) -> Vec<&str> {
        let inside = self.path.trim_start_matches("src/").trim_end_matches(".rs");
        inside.split('/').filter(|part| !["mod", "lib", "main"].contains(part)).collect()
    }
}

fn tree() -> Vec<File> {
    files_below("src")
}

/// The Rust files below a directory of the repository.
fn files_below(directory: &str) -> Vec<File> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut paths = Vec::new();
    walk(&root.join(directory), &mut paths);
    paths.sort();
    let file = |path: &PathBuf| {
        let name = path.strip_prefix(root).expect("below the root").to_string_lossy().into_owned();
        File::new(&name, &std::fs::read_to_string(path).expect("UTF-8"))
    };
    paths.iter().map(file).collect()
}

fn walk(directory: &Path, paths: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).expect("src is there") {
        let path = entry.expect("readable").path();
        if path.is_dir() {
            walk(&path, paths);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            paths.push(path);
        }
    }
}

/// Blanks comments, strings and characters, and keeps every line break.
fn blank_text(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let end = match bytes[at] {
            b'/' if bytes[at..].starts_with(b"//") => find(bytes, at, b"\n").unwrap_or(bytes.len()),
            b'/' if bytes[at..].starts_with(b"/*") => {
                find(bytes, at + 2, b"*/").map_or(bytes.len(), |end| end + 2)
            }
            b'"' => quoted_end(bytes, at),
            b'r' | b'b' if at == 0 || !is_word(bytes[at - 1]) => raw_end(bytes, at),
            b'\'' => character_end(bytes, at),
            _ => at,
        };
        if end == at {
            out.push(bytes[at]);
            at += 1;
        } else {
            out.extend(bytes[at..end].iter().map(|&byte| if byte == b'\n' { b'\n' } else { b' ' }));
            at = end;
        }
    }
    String::from_utf8(out).expect("blanking keeps UTF-8 whole")
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

fn find(bytes: &[u8], from: usize, what: &[u8]) -> Option<usize> {
    bytes[from..].windows(what.len()).position(|window| window == what).map(|at| from + at)
}

/// Past the closing quote of the string that opens at `at`.
fn quoted_end(bytes: &[u8], at: usize) -> usize {
    let mut end = at + 1;
    while end < bytes.len() && bytes[end] != b'"' {
        end += if bytes[end] == b'\\' { 2 } else { 1 };
    }
    (end + 1).min(bytes.len())
}

/// Past a raw or byte string at `at`; `at` itself if there is none.
fn raw_end(bytes: &[u8], at: usize) -> usize {
    let prefix = bytes[at..].iter().take_while(|byte| b"br".contains(byte)).count();
    let hashes = bytes[at + prefix..].iter().take_while(|&&byte| byte == b'#').count();
    let quote = at + prefix + hashes;
    if prefix > 2 || bytes.get(quote) != Some(&b'"') {
        return at;
    }
    if !bytes[at..at + prefix].contains(&b'r') {
        return if hashes == 0 { quoted_end(bytes, quote) } else { at };
    }
    let close = [b"\"".as_slice(), &b"#".repeat(hashes)].concat();
    find(bytes, quote + 1, &close).map_or(bytes.len(), |end| end + close.len())
}

/// Past a character at `at`; `at` itself if this is a lifetime.
fn character_end(bytes: &[u8], at: usize) -> usize {
    if bytes.get(at + 1) == Some(&b'\\') {
        return find(bytes, at + 3, b"'").map_or(bytes.len(), |end| end + 1);
    }
    // A character is closed after one code point, of at most four bytes; a lifetime is not.
    let code_point = std::str::from_utf8(&bytes[at + 1..]).ok().and_then(|rest| rest.chars().next());
    let end = at + 1 + code_point.map_or(1, char::len_utf8);
    if bytes.get(end) == Some(&b'\'') { end + 1 } else { at }
}

/// Blanks every item behind `#[cfg(test)]`.
fn blank_tests(code: &str) -> String {
    let mut out = code.to_owned();
    while let Some(start) = out.find("#[cfg(test)]") {
        let item_end = start + item_length(&out[start..]);
        let end = match out.as_bytes().get(item_end) {
            Some(&b'{') => brace_end(&out, item_end),
            // The last field of a literal: the brace belongs to the literal.
            Some(&b'}') => item_end,
            _ => item_end + 1,
        };
        let end = end.min(out.len());
        let blank: String =
            out[start..end].chars().map(|char| if char == '\n' { '\n' } else { ' ' }).collect();
        out.replace_range(start..end, &blank);
    }
    out
}

/// Up to what ends an item, or opens its body: an item, a statement, or a field of a literal.
fn item_length(code: &str) -> usize {
    let mut depth = 0_usize;
    for (at, byte) in code.bytes().enumerate().skip("#[cfg(test)]".len()) {
        match byte {
            b'(' | b'[' => depth += 1,
            b')' | b']' => depth = depth.saturating_sub(1),
            b'{' | b'}' | b';' | b',' if depth == 0 => return at,
            _ => {}
        }
    }
    code.len()
}

/// Past the brace that closes the one at `open`.
fn brace_end(code: &str, open: usize) -> usize {
    let mut depth = 0_usize;
    for (at, byte) in code.bytes().enumerate().skip(open) {
        match byte {
            b'{' => depth += 1,
            b'}' => {
                depth -= 1;
                if depth == 0 {
                    return at + 1;
                }
            }
            _ => {}
        }
    }
    code.len()
}

fn line_of(code: &str, at: usize) -> usize {
    code[..at].bytes().filter(|&byte| byte == b'\n').count() + 1
}

/// Where `word` stands as a whole word.
fn words<'a>(code: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    let bytes = code.as_bytes();
    code.match_indices(word).map(|(at, _)| at).filter(move |&at| {
        let after = bytes.get(at + word.len()).copied().unwrap_or(b' ');
        (at == 0 || !is_word(bytes[at - 1])) && !is_word(after)
    })
}

// --- the checks ---

fn crates_out_of_place(file: &File) -> Vec<String> {
    let mut offences = Vec::new();
    for (name, places) in CRATE_PLACES {
        if places.iter().any(|place| file.path.starts_with(place)) {
            continue;
        }
        for at in words(&file.product, name) {
            // Only as a path: `monoio::time`, `use monoio;`. A field may have the name.
            let rest = &file.product[at + name.len()..];
            let is_path = rest.starts_with("::") && !file.product[..at].ends_with("::");
            if is_path || file.product[..at].ends_with("use ") {
                offences.push(format!(
                    "{}:{}: {name} may be named only in {places:?}",
                    file.path,
                    line_of(&file.code, at)
                ));
            }
        }
    }
    offences
}

/// Every path of this crate that a file names, in `use` or in code, with its offset: absolute, without
/// `crate`.
fn crate_paths(file: &File, modules: &BTreeSet<Vec<String>>) -> Vec<(usize, Vec<String>)> {
    let code = &file.product;
    let mut paths = Vec::new();
    for at in words(code, "use") {
        let end = code[at..].find(';').map_or(code.len(), |length| at + length);
        expand_use(&code[at + 3..end], &[], &mut |path| {
            if let Some(path) = absolute(&file.module(), path, modules) {
                paths.push((at, path));
            }
        });
    }
    let uses: Vec<(usize, usize)> = words(code, "use")
        .map(|at| (at, code[at..].find(';').map_or(code.len(), |length| at + length)))
        .collect();
    for start in ["crate", "super"] {
        for at in words(code, start) {
            let is_path = code[at + start.len()..].starts_with("::") && !code[..at].ends_with("::");
            if !is_path || uses.iter().any(|(from, to)| (from..to).contains(&&at)) {
                continue;
            }
            let text: String = code[at..]
                .chars()
                .take_while(|char| char.is_alphanumeric() || "_:".contains(*char))
                .collect();
            let path: Vec<&str> = text.split("::").filter(|part| !part.is_empty()).collect();
            paths.extend(absolute(&file.module(), &path, modules).map(|path| (at, path)));
        }
    }
    paths
}

/// Calls `each` with every path of a `use` tree.
fn expand_use<'a>(tree: &'a str, prefix: &[&'a str], each: &mut impl FnMut(&[&'a str])) {
    let tree = tree.trim();
    let Some(open) = tree.find('{') else {
        let path = tree.split(" as ").next().unwrap_or(tree).trim();
        let mut whole = prefix.to_vec();
        whole.extend(path.split("::").map(str::trim).filter(|part| !part.is_empty() && *part != "self"));
        return each(&whole);
    };
    let mut whole = prefix.to_vec();
    whole.extend(tree[..open].split("::").map(str::trim).filter(|part| !part.is_empty()));
    let inside = &tree[open + 1..brace_end(tree, open) - 1];
    let (mut depth, mut from) = (0, 0);
    for (at, char) in inside.char_indices() {
        match char {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                expand_use(&inside[from..at], &whole, each);
                from = at + 1;
            }
            _ => {}
        }
    }
    if !inside[from..].trim().is_empty() {
        expand_use(&inside[from..], &whole, each);
    }
}

/// The path as seen from the crate's root; `None` if it is another crate's.
fn absolute(module: &[&str], path: &[&str], modules: &BTreeSet<Vec<String>>) -> Option<Vec<String>> {
    let own = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<String>>();
    match *path.first()? {
        "crate" => Some(own(&path[1..])),
        "super" => {
            let up = path.iter().take_while(|name| **name == "super").count();
            let base = module.len().checked_sub(up)?;
            Some(own(&[&module[..base], &path[up..]].concat()))
        }
        first => {
            let child = own(&[module, &[first]].concat());
            modules.contains(&child).then(|| own(&[module, path].concat()))
        }
    }
}

/// The module that an item's path leads into.
fn owner(path: &[String], modules: &BTreeSet<Vec<String>>) -> Vec<String> {
    (0..=path.len())
        .rev()
        .map(|end| path[..end].to_vec())
        .find(|path| modules.contains(path))
        .unwrap_or_default()
}

fn module_set(files: &[File]) -> BTreeSet<Vec<String>> {
    let own = |file: &File| file.module().iter().map(|name| (*name).to_owned()).collect();
    files.iter().map(own).collect()
}

fn forbidden_dependencies(file: &File, modules: &BTreeSet<Vec<String>>) -> Vec<String> {
    // A test may set up what its module is given.
    if file.is_tests() || file.path == "src/lib.rs" {
        return Vec::new();
    }
    let Some((_, allowed)) = ALLOWED_DEPENDENCIES.iter().find(|(name, _)| *name == file.top_level()) else {
        return vec![format!("{}:1: `{}` has no row in ALLOWED_DEPENDENCIES", file.path, file.top_level())];
    };
    let named = crate_paths(file, modules);
    let named = named.iter().filter_map(|(at, path)| Some((at, path.first()?)));
    let named = named.filter(|(_, top)| !allowed.contains(&top.as_str()) && *top != file.top_level());
    named
        .map(|(at, top)| {
            format!(
                "{}:{}: `{}` may not import `{top}`",
                file.path,
                line_of(&file.code, *at),
                file.top_level()
            )
        })
        .collect()
}

/// Rows of the table that nothing needs, and cycles in it.
fn dependency_table_offences(files: &[File]) -> Vec<String> {
    let modules = module_set(files);
    let mut used = BTreeSet::new();
    for file in files.iter().filter(|file| !file.is_tests()) {
        for (_, path) in crate_paths(file, &modules) {
            used.extend(path.into_iter().next().map(|top| (file.top_level().to_owned(), top)));
        }
    }
    let mut offences = Vec::new();
    for (place, (name, allowed)) in ALLOWED_DEPENDENCIES.iter().enumerate() {
        for dependency in *allowed {
            if !used.contains(&((*name).to_owned(), (*dependency).to_owned())) {
                offences.push(format!("`{name}` does not import `{dependency}` any more"));
            }
            // Rows are in topological order, which no cycle has.
            if !ALLOWED_DEPENDENCIES[..place].iter().any(|(before, _)| before == dependency) {
                offences.push(format!("`{name}` stands before `{dependency}`, which it imports"));
            }
        }
    }
    offences
}

/// How many different items of an ancestor module each file imports.
fn parent_imports(files: &[File]) -> Vec<(String, usize)> {
    let modules = module_set(files);
    let mut found = Vec::new();
    for file in files.iter().filter(|file| !file.is_tests()) {
        let module: Vec<String> = file.module().iter().map(|name| (*name).to_owned()).collect();
        let imported: BTreeSet<Vec<String>> = crate_paths(file, &modules)
            .into_iter()
            .map(|(_, path)| path)
            .filter(|path| {
                let owner = owner(path, &modules);
                !owner.is_empty() && owner != module && module.starts_with(&owner)
            })
            .collect();
        if !imported.is_empty() {
            found.push((file.path.clone(), imported.len()));
        }
    }
    found
}

/// The cycles among the children of each module: the parent's path, and the members in order.
fn sibling_cycles(files: &[File]) -> Vec<(String, Vec<String>)> {
    let modules = module_set(files);
    let mut imports: BTreeMap<Vec<String>, BTreeMap<String, BTreeSet<String>>> = BTreeMap::new();
    for file in files.iter().filter(|file| !file.is_tests()) {
        let module: Vec<String> = file.module().iter().map(|name| (*name).to_owned()).collect();
        for (_, path) in crate_paths(file, &modules) {
            let owner = owner(&path, &modules);
            let common = module.iter().zip(&owner).take_while(|(a, b)| a == b).count();
            if common < module.len() && common < owner.len() {
                let siblings = imports.entry(module[..common].to_vec()).or_default();
                siblings.entry(module[common].clone()).or_default().insert(owner[common].clone());
            }
        }
    }
    let mut cycles = Vec::new();
    for (parent, graph) in imports {
        let in_cycle = |name: &String| reachable(&graph, name).contains(name);
        let mut left: BTreeSet<&String> = graph.keys().filter(|name| in_cycle(name)).collect();
        while let Some(first) = left.pop_first() {
            let forward = reachable(&graph, first);
            let mut members = vec![first.clone()];
            let others: Vec<&String> = left
                .iter()
                .copied()
                .filter(|name| forward.contains(*name) && reachable(&graph, name).contains(first))
                .collect();
            for other in others {
                left.remove(other);
                members.push(other.clone());
            }
            cycles.push((parent.join("::"), members));
        }
    }
    cycles
}

fn reachable(graph: &BTreeMap<String, BTreeSet<String>>, from: &String) -> BTreeSet<String> {
    let mut seen = BTreeSet::new();
    let mut open = vec![from];
    while let Some(name) = open.pop() {
        for next in graph.get(name).into_iter().flatten() {
            if seen.insert(next.clone()) {
                open.push(next);
            }
        }
    }
    seen
}

/// Types that two files define under one name.
fn repeated_type_names(files: &[File]) -> Vec<String> {
    let mut defined: BTreeMap<String, BTreeSet<&str>> = BTreeMap::new();
    for file in files.iter().filter(|file| !file.is_tests()) {
        for line in file.product.lines() {
            let mut line = line.trim_start();
            if let Some(rest) = line.strip_prefix("pub") {
                line = rest
                    .strip_prefix('(')
                    .and_then(|rest| rest.split_once(')'))
                    .map_or(rest, |(_, rest)| rest)
                    .trim_start();
            }
            let keyword =
                ["struct ", "enum ", "trait ", "union "].into_iter().find_map(|word| line.strip_prefix(word));
            let name: String = keyword
                .unwrap_or_default()
                .chars()
                .take_while(|char| char.is_alphanumeric() || *char == '_')
                .collect();
            if !name.is_empty() && !SHARED_TYPE_NAMES.contains(&name.as_str()) {
                defined.entry(name).or_default().insert(&file.path);
            }
        }
    }
    let repeated = defined.into_iter().filter(|(_, files)| files.len() > 1);
    repeated
        .map(|(name, files)| format!("{name}: {}", files.into_iter().collect::<Vec<_>>().join(", ")))
        .collect()
}

fn asynchronous_code(file: &File) -> Vec<String> {
    if !SYNCHRONOUS_FILES.iter().any(|place| file.path.starts_with(place)) {
        return Vec::new();
    }
    let found = SYNCHRONOUS_FORBIDS.iter().flat_map(|absent| file.product.match_indices(absent));
    found
        .map(|(at, what)| {
            format!("{}:{}: request handling must not use `{what}`", file.path, line_of(&file.code, at))
        })
        .collect()
}

/// Each function's name, first line and length in lines, from `fn` to its closing brace.
fn functions(code: &str) -> Vec<(String, usize, usize)> {
    let mut functions = Vec::new();
    for at in words(code, "fn") {
        let name: String =
            code[at + 2..].trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        // A body's brace or the end of a declaration, outside the brackets of an array type.
        let mut depth = 0;
        let body = code[at..].char_indices().find(|(_, char)| {
            depth += match char {
                '[' | '(' => 1,
                ']' | ')' => -1,
                _ => 0,
            };
            depth == 0 && ['{', ';'].contains(char)
        });
        if let Some((offset, '{')) = body.filter(|_| !name.is_empty()) {
            let (first, last) = (line_of(code, at), line_of(code, brace_end(code, at + offset) - 1));
            functions.push((name, first, last - first + 1));
        }
    }
    functions
}

fn long_functions(file: &File) -> Vec<String> {
    let long = functions(&file.product).into_iter().filter(|(_, _, lines)| *lines > FUNCTION_LINES_MAX);
    long.map(|(name, line, lines)| {
        format!("{}:{line}: {name} has {lines} lines, over {FUNCTION_LINES_MAX}", file.path)
    })
    .collect()
}

fn long_file(file: &File) -> Vec<String> {
    // Tests at the bottom do not count.
    let lines = file.product.trim_end().lines().count();
    if file.is_tests() || lines <= FILE_LINES_MAX {
        return Vec::new();
    }
    vec![format!("{}:1: {lines} lines without tests, over {FILE_LINES_MAX}", file.path)]
}

/// What the formatter leaves as it is.
fn wide_comments(file: &File) -> Vec<String> {
    let is_wide =
        |line: &str| line.trim_start().starts_with("//") && line.chars().count() > COMMENT_COLUMNS_MAX;
    let lines = file.text.lines().enumerate().filter(|(_, line)| is_wide(line));
    lines
        .map(|(at, _)| format!("{}:{}: a comment wider than {COMMENT_COLUMNS_MAX}", file.path, at + 1))
        .collect()
}

/// arm64 and the compiler reorder what x86-64 does not, and emulated tests hardly do: the reason is written.
fn unexplained_atomics(file: &File) -> Vec<String> {
    let orderings = ["Relaxed", "Acquire", "Release", "AcqRel", "SeqCst"];
    let used = orderings.iter().find_map(|name| file.product.find(&format!("Ordering::{name}")));
    match used {
        Some(at) if !file.is_tests() && !file.text.to_lowercase().contains("memory ordering:") => {
            vec![format!(
                "{}:{}: no comment `Memory ordering: ...` says why it is enough",
                file.path,
                line_of(&file.product, at)
            )]
        }
        _ => Vec::new(),
    }
}

fn header_offences(file: &File) -> Vec<String> {
    let lines = file.text.lines().take_while(|line| line.starts_with("//!")).count();
    let excused = LONG_HEADERS.iter().any(|(path, _)| *path == file.path) && lines > *HEADER_LINES.end();
    if file.is_tests() || excused || HEADER_LINES.contains(&lines) {
        return Vec::new();
    }
    vec![format!("{}:1: the header has {lines} lines, not {HEADER_LINES:?}", file.path)]
}

fn panics(file: &File) -> Vec<String> {
    if file.is_tests() {
        return Vec::new();
    }
    let mut offences = Vec::new();
    for what in [".unwrap()", ".expect(", ".unwrap_err()", "panic!(", "unreachable!(", "process::exit("] {
        for (at, _) in file.product.match_indices(what) {
            let line = line_of(&file.product, at);
            let shown = file.text.lines().nth(line - 1).unwrap_or("").trim();
            if !PANICS.iter().any(|(path, part, _)| *path == file.path && shown.contains(part)) {
                offences.push(format!("{}:{line}: {shown}", file.path));
            }
        }
    }
    offences
}

/// `Result<_, String>`: callers cannot tell such errors apart.
fn text_errors(file: &File) -> Vec<String> {
    let is_text = |at: &usize| {
        let arguments = &file.product[at + "Result<".len()..];
        let (mut depth, mut last_comma) = (1, None);
        for (offset, char) in arguments.char_indices() {
            match char {
                '<' | '(' | '[' => depth += 1,
                ')' | ']' => depth -= 1,
                '>' if !arguments[..offset].ends_with(['-', '=']) => depth -= 1,
                ',' if depth == 1 => last_comma = Some(offset + 1),
                _ => {}
            }
            if depth == 0 {
                return last_comma.is_some_and(|from| arguments[from..offset].trim() == "String");
            }
        }
        false
    };
    let found = file.product.match_indices("Result<").map(|(at, _)| at).filter(is_text);
    found
        .map(|at| format!("{}:{}: an error that is a String", file.path, line_of(&file.product, at)))
        .collect()
}

fn unspecific_names(file: &File) -> Vec<String> {
    let mut offences = Vec::new();
    for keyword in ["struct", "enum", "trait", "type", "mod", "fn"] {
        for at in words(&file.product, keyword) {
            let rest = file.product[at + keyword.len()..].trim_start();
            let name: String =
                rest.chars().take_while(|char| char.is_alphanumeric() || *char == '_').collect();
            let camel =
                NAMES_WITHOUT_MEANING.iter().any(|empty| name.ends_with(empty) || name.starts_with(empty));
            let snake = name
                .split('_')
                .any(|part| NAMES_WITHOUT_MEANING.iter().any(|empty| part == empty.to_lowercase()));
            if camel || snake || (keyword == "fn" && name.starts_with("get_")) {
                offences.push(format!(
                    "{}:{}: a name that says nothing: {name}",
                    file.path,
                    line_of(&file.code, at)
                ));
            }
        }
    }
    offences
}

fn unfinished_work(file: &File) -> Vec<String> {
    let bytes = file.text.as_bytes();
    // A word inside another (`\\uXXXX`) is that other word.
    let is_inside = |at: usize, end: usize| {
        (at > 0 && is_word(bytes[at - 1])) || bytes.get(end).is_some_and(|&byte| is_word(byte))
    };
    let found = LEFT_BEHIND.iter().flat_map(|word| file.text.match_indices(word));
    let found = found.filter(|(at, what)| !is_inside(*at, at + what.len()));
    found.map(|(at, what)| format!("{}:{}: `{what}` is left", file.path, line_of(&file.text, at))).collect()
}

fn unsafe_code(file: &File) -> Vec<String> {
    words(&file.code, "unsafe")
        .map(|at| format!("{}:{}: unsafe", file.path, line_of(&file.code, at)))
        .collect()
}

/// The words of a text in lower case, with the line of each. `HeldBack` and `held_back` are two words.
fn plain_words(text: &str) -> Vec<(String, usize)> {
    let mut words: Vec<(String, usize)> = Vec::new();
    for (at, line) in text.lines().enumerate() {
        let mut word = String::new();
        let mut was_lower = false;
        for char in line.chars().chain(" ".chars()) {
            let starts_word = !char.is_ascii_alphabetic() || (was_lower && char.is_ascii_uppercase());
            if starts_word && !word.is_empty() {
                words.push((std::mem::take(&mut word), at + 1));
            }
            if char.is_ascii_alphabetic() {
                word.push(char.to_ascii_lowercase());
            }
            was_lower = char.is_ascii_lowercase();
        }
    }
    words
}

/// Retired words in comments, strings and identifiers.
fn retired_words(file: &File) -> Vec<String> {
    let words = plain_words(&file.text);
    let mut offences = Vec::new();
    for (at, (first, line)) in words.iter().enumerate() {
        let matches = |phrase: &str| {
            let mut following = words[at..].iter();
            phrase.split(' ').all(|part| following.next().is_some_and(|(word, _)| word == part))
        };
        // `there is no` and `is no longer` are plain English; `this is no number` is not.
        let is_plain = at > 0 && words[at - 1].0 == "there"
            || words.get(at + 2).is_some_and(|(word, _)| word == "longer");
        for phrase in RETIRED_WORDS.iter().filter(|phrase| phrase.starts_with(&**first) && matches(phrase)) {
            if !(is_plain && phrase.ends_with(" no")) {
                offences.push(format!("{}:{line}: `{phrase}` is retired", file.path));
            }
        }
    }
    offences
}

/// Files that no `mod` names are not compiled, and nothing else would say so.
fn orphans(files: &[File]) -> Vec<String> {
    let mut declared = BTreeSet::new();
    for file in files {
        for at in words(&file.code, "mod") {
            let rest = file.code[at + 3..].trim_start();
            let name: String =
                rest.chars().take_while(|char| char.is_alphanumeric() || *char == '_').collect();
            if rest[name.len()..].trim_start().starts_with(';') {
                declared.insert([file.module().join("/"), name].join("/").trim_start_matches('/').to_owned());
            }
        }
    }
    let lost = files.iter().filter(|file| {
        let module = file.module().join("/");
        !module.is_empty() && !declared.contains(&module)
    });
    lost.map(|file| format!("{}:1: no `mod` declares this file", file.path)).collect()
}

fn assert_none(rule: &str, offences: impl IntoIterator<Item = String>) {
    let offences: Vec<String> = offences.into_iter().collect();
    assert!(offences.is_empty(), "{rule} ({} offences):\n{}", offences.len(), offences.join("\n"));
}

fn check(rule: &str, each: impl Fn(&File) -> Vec<String>) {
    assert_none(rule, tree().iter().flat_map(each));
}

// --- the tree is kept so ---

#[test]
fn crates_stay_in_their_place() {
    check("crates stay in their place", crates_out_of_place);
}

#[test]
fn modules_import_only_allowed_dependencies() {
    let files = tree();
    let modules = module_set(&files);
    let forbidden = files.iter().flat_map(|file| forbidden_dependencies(file, &modules));
    assert_none("allowed dependencies", forbidden);
    assert_none("the table of allowed dependencies", dependency_table_offences(&files));
}

#[test]
fn children_do_not_import_their_parents() {
    let found = parent_imports(&tree());
    let known = |path: &str| PARENT_IMPORTS.iter().find(|(known, _)| *known == path).map(|(_, count)| *count);
    let grown = found.iter().filter(|(path, count)| known(path) != Some(*count));
    let gone = PARENT_IMPORTS.iter().filter(|(path, _)| !found.iter().any(|(found, _)| found == path));
    assert_none(
        "imports of a parent's items (PARENT_IMPORTS must be exact)",
        grown
            .map(|(path, count)| format!("{path}: {count}, in the table {:?}", known(path)))
            .chain(gone.map(|(path, _)| format!("{path}: none, still in the table"))),
    );
}

#[test]
fn siblings_do_not_import_each_other_in_a_cycle() {
    let found = sibling_cycles(&tree());
    let known: Vec<(String, Vec<String>)> = SIBLING_CYCLES
        .iter()
        .map(|(parent, members)| {
            ((*parent).to_owned(), members.iter().map(|name| (*name).to_owned()).collect())
        })
        .collect();
    assert_eq!(found, known, "SIBLING_CYCLES must be exact");
}

#[test]
fn type_names_are_unique() {
    assert_none("type names are unique", repeated_type_names(&tree()));
}

#[test]
fn request_handling_is_synchronous() {
    check("request handling neither waits, locks, nor reads the clock", asynchronous_code);
}

#[test]
fn functions_fit_a_screen() {
    check("functions fit a screen", long_functions);
}

#[test]
fn files_stay_small() {
    check("files stay small", long_file);
}

#[test]
fn comments_stay_narrow() {
    check("comments stay narrow", wide_comments);
}

#[test]
fn memory_orderings_have_a_reason() {
    check("atomics say why their memory ordering is enough", unexplained_atomics);
}

#[test]
fn every_module_has_a_header() {
    check("every module says what it is", header_offences);
}

#[test]
fn no_panics_in_src() {
    check("nothing panics on purpose; a reason goes into PANICS", panics);
    let files = tree();
    let stale = PANICS
        .iter()
        .filter(|(path, part, _)| !files.iter().any(|f| f.path == *path && f.text.contains(part)));
    assert_none(
        "exceptions that are not needed any more",
        stale.map(|(path, part, _)| format!("{path}: {part}")),
    );
}

#[test]
fn errors_are_types() {
    check("errors are types", text_errors);
}

#[test]
fn an_error_that_is_text_is_found() {
    let text = "fn a() -> Result<Vec<(u8, String)>, String> {}\nfn b() -> Result<String, E> {}\nfn c() -> Result<fn(A) -> String, E> {}";
    assert_eq!(text_errors(&File::new("src/a.rs", text)), ["src/a.rs:1: an error that is a String"]);
}

#[test]
fn names_are_specific() {
    check("names mean something", unspecific_names);
}

#[test]
fn no_unfinished_work() {
    check("nothing is left behind", unfinished_work);
}

#[test]
fn no_unsafe_code() {
    let files = tree();
    let lib = files.iter().find(|file| file.path == "src/lib.rs").expect("src/lib.rs");
    assert!(lib.code.contains("#![forbid(unsafe_code)]"), "src/lib.rs forbids unsafe code");
    check("no unsafe code (the word `unsafe_code` of the lint is another word)", unsafe_code);
}

#[test]
fn standard_terms_are_used() {
    check("retired words", retired_words);
    // This file names the words.
    let tests = files_below("tests").into_iter().filter(|file| file.path != "tests/tidy.rs");
    assert_none("retired words", tests.flat_map(|file| retired_words(&file)));
}

#[test]
fn every_file_is_compiled() {
    assert_none("every file is compiled", orphans(&tree()));
}

#[test]
fn make_help_lists_every_target() {
    let makefile = Path::new(env!("CARGO_MANIFEST_DIR")).join("Makefile");
    let makefile = std::fs::read_to_string(makefile).expect("Makefile");
    let silent = makefile.lines().filter(|line| is_undocumented_target(line));
    assert_none("a target without `## what it does`", silent.map(str::to_owned));
}

/// A rule of the Makefile that a person may ask for and `make help` would not show.
fn is_undocumented_target(line: &str) -> bool {
    let Some((name, rest)) = line.split_once(':') else { return false };
    let is_name = !name.is_empty()
        && name.chars().all(|char| char.is_ascii_lowercase() || "-_0123456789".contains(char));
    is_name && !rest.starts_with('=') && !rest.contains("## ")
}

// --- the checks are able to find ---

#[test]
fn blanking_keeps_lines_and_removes_text() {
    let code =
        blank_text("a \"x{\\\"\" // {\nb r#\"{\"\n\"# c '{' '\\'' 'a: &'a str /* {\n */ b\"{\" br\"{\" d");
    assert_eq!(code.lines().count(), 4);
    assert!(!code.contains('{') && !code.contains('"'), "{code}");
    for kept in ["a ", "b ", " c ", "'a: &'a str", " d"] {
        assert!(code.contains(kept), "{kept:?} is kept in {code}");
    }
}

#[test]
fn test_code_is_excluded() {
    let file =
        File::new("src/a.rs", "fn a() {}\n#[cfg(test)]\nmod tests {\n fn b() { x.unwrap() }\n}\nfn c() {}\n");
    assert_eq!(panics(&file), [""; 0]);
    assert!(file.product.contains("fn c()") && !file.product.contains("fn b()"));
    assert_eq!(long_file(&File::new("src/a.rs", &("x\n".repeat(FILE_LINES_MAX + 1)))).len(), 1);
    let tested = "x\n".repeat(400) + "#[cfg(test)]\nmod tests {\n" + &"y\n".repeat(200) + "}\n";
    assert_eq!(long_file(&File::new("src/a.rs", &tested)), [""; 0]);
}

#[test]
fn a_crate_out_of_place_is_found() {
    let text = "use monoio::net;\nfn a() { ::ureq::get(); x.monoio(); } // ureq::get\n";
    let found = crates_out_of_place(&File::new("src/http/mod.rs", text));
    assert_eq!(found.len(), 1, "{found:?}");
    let found = crates_out_of_place(&File::new(
        "src/handlers/mod.rs",
        "fn a() { ureq::get(); }\nuse monoio_http as m;\n",
    ));
    assert_eq!(found.len(), 2, "{found:?}");
    assert_eq!(crates_out_of_place(&File::new("src/reactor/mod.rs", text)), [""; 0]);
}

#[test]
fn a_forbidden_dependency_is_found() {
    let modules: BTreeSet<Vec<String>> = [vec!["http"], vec!["engine"], vec!["engine", "evaluate"]]
        .map(|path| path.into_iter().map(str::to_owned).collect())
        .into();
    let forbidden = |path: &str, text: &str| forbidden_dependencies(&File::new(path, text), &modules).len();
    assert_eq!(forbidden("src/engine/mod.rs", "use crate::http::Request;"), 1);
    assert_eq!(forbidden("src/engine/mod.rs", "use crate::{json::hex, http::{Request, ParseError}};"), 2);
    assert_eq!(forbidden("src/engine/evaluate.rs", "use super::super::http;"), 1);
    assert_eq!(forbidden("src/engine/evaluate.rs", "use super::Program; use crate::json::hex;"), 0);
    assert_eq!(forbidden("src/http/request/", "fn a(x: crate::snapshot::Snapshot) {}"), 1);
    assert_eq!(forbidden("src/a_new_module.rs", ""), 1);
}

#[test]
fn an_import_of_the_parent_is_found() {
    let files = [
        File::new("src/a/mod.rs", "mod b; mod c; use b::B;"),
        File::new("src/a/b.rs", "use super::A; use super::c::C;"),
        File::new("src/a/c.rs", "fn c(x: crate::a::A, y: crate::a::b::B) {}"),
    ];
    assert_eq!(parent_imports(&files), [("src/a/b.rs".to_owned(), 1), ("src/a/c.rs".to_owned(), 1)]);
    let cycle = ["b".to_owned(), "c".to_owned()].to_vec();
    assert_eq!(sibling_cycles(&files), [("a".to_owned(), cycle)]);
}

#[test]
fn a_repeated_type_name_is_found() {
    let files = [
        File::new("src/a.rs", "pub(crate) struct Reader {}\nenum Other {}"),
        File::new("src/b.rs", "struct Reader;\n#[cfg(test)]\nmod tests {\nstruct Other;\n}"),
    ];
    assert_eq!(repeated_type_names(&files), ["Reader: src/a.rs, src/b.rs"]);
}

#[test]
fn asynchronous_code_is_found() {
    assert_eq!(asynchronous_code(&File::new("src/handlers/mod.rs", "x.await; SystemTime::now();")).len(), 2);
    assert_eq!(asynchronous_code(&File::new("src/reactor/mod.rs", "x.await;")), [""; 0]);
}

#[test]
fn function_lengths_are_measured() {
    let code = "fn a(x: [u8; 2])\n-> u8 {\n{ }\n}\ntrait T { fn b(); }\nfn c() { }\n";
    assert_eq!(functions(code), [("a".to_owned(), 1, 4), ("c".to_owned(), 6, 1)]);
    let long = format!("fn long() {{\n{}}}\n", "x;\n".repeat(69));
    assert_eq!(long_functions(&File::new("src/a.rs", &long)).len(), 1);
}

#[test]
fn a_wide_comment_is_found() {
    let wide = format!("fn a() {{}}\n    /// {}\nfn b() {{}}\n", "x".repeat(COMMENT_COLUMNS_MAX));
    assert_eq!(wide_comments(&File::new("src/a.rs", &wide)).len(), 1);
    assert_eq!(wide_comments(&File::new("src/a.rs", "// short\n")), [""; 0]);
}

#[test]
fn a_missing_header_is_found() {
    assert_eq!(header_offences(&File::new("src/a.rs", "fn a() {}\n")).len(), 1);
    assert_eq!(header_offences(&File::new("src/a.rs", &"//! x\n".repeat(4))), [""; 0]);
    assert_eq!(header_offences(&File::new("src/a.rs", &"//! x\n".repeat(13))).len(), 1);
}

#[test]
fn an_unexplained_atomic_is_found() {
    let text = "fn a() { x.load(Ordering::Relaxed); }\n";
    assert_eq!(unexplained_atomics(&File::new("src/a.rs", text)).len(), 1);
    let explained = format!("/// Memory ordering: relaxed, because y.\n{text}");
    assert_eq!(unexplained_atomics(&File::new("src/a.rs", &explained)), [""; 0]);
    assert_eq!(unexplained_atomics(&File::new("src/a.rs", "x.cmp(y) == Ordering::Less")), [""; 0]);
}

#[test]
fn a_panic_is_found() {
    let text = "fn a() { x.unwrap(); y.expect(\"z\"); unreachable!() } // .unwrap()\n";
    assert_eq!(panics(&File::new("src/a.rs", text)).len(), 3);
    assert_eq!(panics(&File::new("src/a/tests.rs", text)), [""; 0]);
}

#[test]
fn an_unspecific_name_is_found() {
    let text = "struct PollManager; mod utils; fn get_key() {} struct Utility; fn budget() {}";
    let found = unspecific_names(&File::new("src/a.rs", text));
    assert_eq!(found.len(), 4, "{found:?}");
}

#[test]
fn unfinished_work_is_found() {
    let text = format!("// {}: later\nfn a() {{ {}() }}\n", "FIXME", "todo!");
    assert_eq!(unfinished_work(&File::new("src/a.rs", &text)).len(), 2);
    assert_eq!(unfinished_work(&File::new("src/a.rs", "// \\uXXXX\n")), [""; 0]);
    assert_eq!(unsafe_code(&File::new("src/a.rs", "#![forbid(unsafe_code)]\nunsafe { x }\n")).len(), 1);
}

#[test]
fn a_retired_word_is_found() {
    let text = "// The value is no\n// number.\nfn held_back() { HeldBack; \"at once\"; upheld(); }\n// is no longer; there are no more\n";
    let found = retired_words(&File::new("src/a.rs", text));
    let words: Vec<&str> = found.iter().filter_map(|offence| offence.split('`').nth(1)).collect();
    assert_eq!(words, ["is no", "held", "held", "at once"]);
}

#[test]
fn an_orphan_is_found() {
    let files = [
        File::new("src/lib.rs", "pub mod a;\n"),
        File::new("src/a/mod.rs", "mod b;\n"),
        File::new("src/a/c.rs", ""),
    ];
    assert_eq!(orphans(&files), ["src/a/c.rs:1: no `mod` declares this file"]);
}

#[test]
fn an_undocumented_target_is_found() {
    assert!(is_undocumented_target("test: build"));
    assert!(
        !is_undocumented_target("test: build ## Runs all tests")
            && !is_undocumented_target("VAR := x")
            && !is_undocumented_target("\techo a: b")
    );
}

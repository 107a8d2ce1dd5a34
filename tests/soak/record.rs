//! What a run measured, minute by minute, and its verdict.
use std::fmt::Write as _;
use std::path::Path;

use crate::shared::median;

/// A length of time with its load. Memory and descriptors are medians of one sample a second.
#[derive(Clone, Debug, Default)]
pub struct Minute {
    pub answers: u64,
    pub errors: u64,
    pub memory_mib: f64,
    pub replaced_memory_mib: f64,
    pub descriptors: f64,
    pub p50_us: u32,
    pub p99_us: u32,
    pub p999_us: u32,
    pub floor_p50_us: u32,
    pub floor_p99_us: u32,
    pub floor_p999_us: u32,
    /// Processes of the machine that ran or waited for a CPU, on average (/proc/loadavg).
    pub machine_load: f64,
    /// Events of the run up to its end.
    pub swaps: u64,
    pub faults: u64,
    pub reloads: u64,
    pub takeovers: u64,
}

impl Minute {
    /// The p99.9 latency of the proxy, divided by that of the floor.
    pub fn ratio(&self) -> Option<f64> {
        (self.floor_p999_us > 0).then(|| f64::from(self.p999_us) / f64::from(self.floor_p999_us))
    }

    fn cells(&self) -> [String; 16] {
        [
            self.answers.to_string(),
            self.errors.to_string(),
            format!("{:.2}", self.memory_mib),
            format!("{:.2}", self.replaced_memory_mib),
            format!("{:.0}", self.descriptors),
            self.p50_us.to_string(),
            self.p99_us.to_string(),
            self.p999_us.to_string(),
            self.floor_p50_us.to_string(),
            self.floor_p99_us.to_string(),
            self.floor_p999_us.to_string(),
            format!("{:.2}", self.machine_load),
            self.swaps.to_string(),
            self.faults.to_string(),
            self.reloads.to_string(),
            self.takeovers.to_string(),
        ]
    }
}

const COLUMNS: &str = "minute,answers,errors,memory_mib,replaced_memory_mib,descriptors,p50_us,p99_us,p999_us,\
    floor_p50_us,floor_p99_us,floor_p999_us,machine_load,swaps,faults,reloads,takeovers";

/// Writes `minutes.csv` into a directory.
pub fn write_csv(directory: &Path, minutes: &[Minute]) {
    let mut text = format!("{COLUMNS}\n");
    for (number, minute) in (1..).zip(minutes) {
        writeln!(text, "{number},{}", minute.cells().join(",")).expect("in memory");
    }
    std::fs::create_dir_all(directory).expect("the directory of the record");
    std::fs::write(directory.join("minutes.csv"), text).expect("the record is written");
}

/// One sample each second, in bytes; `None` while there were two processes.
pub type Samples = Vec<Option<u64>>;

/// Medians of the second and the last fifth.
pub fn fifths(samples: &Samples) -> (f64, f64) {
    let bytes: Vec<f64> = samples.iter().flatten().map(|bytes| *bytes as f64).collect();
    let fifth = bytes.len() / 5;
    (median(bytes[fifth..fifth * 2].to_vec()), median(bytes[bytes.len() - fifth..].to_vec()))
}

/// A promise and whether the run kept it.
pub struct Judged {
    pub name: &'static str,
    pub measured: String,
    pub bound: String,
    pub holds: bool,
}

pub fn mib(bytes: f64) -> f64 {
    bytes / f64::from(1 << 20)
}

/// Memory: the medians of the second and the last fifth differ by at most `slack_mib` and 2 %.
pub fn judge_memory(name: &'static str, samples: &Samples, slack_mib: f64) -> Judged {
    let (second, last) = fifths(samples);
    let bound = slack_mib + mib(second) * 0.02;
    Judged {
        name,
        measured: format!("{:.2} MiB, then {:.2} MiB", mib(second), mib(last)),
        bound: format!("differ by at most {bound:.2} MiB"),
        holds: second > 0.0 && mib((last - second).abs()) <= bound,
    }
}

/// The rows of a Markdown table.
pub fn table(judged: &[Judged]) -> String {
    let mut text = String::from("| what | measured | bound | |\n|---|---|---|---|\n");
    for row in judged {
        let verdict = if row.holds { "holds" } else { "**does not hold**" };
        writeln!(text, "| {} | {} | {} | {verdict} |", row.name, row.measured, row.bound).expect("in memory");
    }
    text
}

/// Replaces what is between the marks `soak` of a page.
pub fn write_block(page: &Path, block: &str) {
    let text = std::fs::read_to_string(page).expect("the page");
    let (open, close) = ("<!-- soak -->\n", "<!-- /soak -->");
    let (head, rest) = text.split_once(open).expect("the first mark");
    let (_, tail) = rest.split_once(close).expect("the second mark");
    std::fs::write(page, format!("{head}{open}{block}{close}{tail}")).expect("the page is written");
}

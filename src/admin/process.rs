//! Memory, CPU time and descriptors of this process, from `/proc/self`.
use std::fs;

/// `None` for what the kernel does not report.
#[derive(Clone, Copy, Debug, Default)]
pub struct Process {
    pub resident_bytes: Option<u64>,
    pub cpu_seconds: Option<f64>,
    pub open_fds: Option<u64>,
    pub max_fds: Option<u64>,
    pub threads: Option<u64>,
}

impl Process {
    pub fn read() -> Self {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
        let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
        let number = |text: &str, name: &str| -> Option<u64> {
            let line = text.lines().find(|line| line.starts_with(name))?;
            line.strip_prefix(name)?.split_whitespace().next()?.parse().ok()
        };
        Self {
            resident_bytes: number(&status, "VmRSS:").map(|kib| kib * 1024),
            cpu_seconds: cpu_seconds(&stat),
            // One of them is the directory being read.
            open_fds: fs::read_dir("/proc/self/fd").ok().map(|fds| (fds.count() as u64).saturating_sub(1)),
            max_fds: number(&limits, "Max open files"),
            threads: number(&status, "Threads:"),
        }
    }
}

/// CPU time of each reactor's thread, which has its name; `None` for one that is not running.
pub fn reactor_cpu_seconds(reactors: usize) -> Vec<Option<f64>> {
    let mut seconds = vec![None; reactors];
    let tasks = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    for task in tasks {
        let name = fs::read_to_string(task.path().join("comm")).unwrap_or_default();
        let index = name.trim_end().strip_prefix("reactor-").and_then(|index| index.parse::<usize>().ok());
        if let Some(own) = index.and_then(|index| seconds.get_mut(index)) {
            *own = fs::read_to_string(task.path().join("stat")).ok().and_then(|stat| cpu_seconds(&stat));
        }
    }
    seconds
}

/// Fields 14 and 15 of `stat` (user and system time), in hundredths of a second: `USER_HZ` is 100
/// on all supported architectures. The name in field 2 may contain spaces, so fields are counted after it.
fn cpu_seconds(stat: &str) -> Option<f64> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace().skip(11);
    let user: f64 = fields.next()?.parse().ok()?;
    let system: f64 = fields.next()?.parse().ok()?;
    Some((user + system) / 100.0)
}

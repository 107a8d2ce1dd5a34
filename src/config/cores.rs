//! The setting `cores`: selects the CPUs of the reactors from those that the CPU affinity and the cgroup
//! quota of the process allow. At least one, and none twice.
use std::fmt;

use serde_json::Value;

use crate::config::parse::Expected;

const EXPECTED: Expected = "a number of at least 1, or a list of CPUs such as \"0,2-5\"";

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cores {
    /// As many as the affinity and the quota allow.
    Available,
    Count(usize),
    List(Vec<usize>),
}

/// The CPUs that the process may use.
#[derive(Clone, Debug)]
pub struct Available {
    /// CPU ids of the affinity mask, ascending.
    pub cpus: Vec<usize>,
    /// CPU time per period that the cgroup allows, in CPUs.
    pub quota: Option<f64>,
}

/// A listed CPU is not one that the process may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuUnavailable {
    available: Vec<usize>,
}

impl fmt::Display for CpuUnavailable {
    /// Completes the sentence "expected ...".
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CPUs of those this process may use: {:?}", self.available)
    }
}

impl std::error::Error for CpuUnavailable {}

impl Cores {
    /// Parses `4`, `"4"` or `"0,2-5"`. A single number is a count; `"3,"` is CPU 3.
    pub fn parse(value: &Value) -> Result<Self, Expected> {
        let text = match value {
            Value::Null => return Ok(Self::Available),
            Value::Number(number) => number.to_string(),
            Value::String(text) => text.trim().to_owned(),
            _ => return Err(EXPECTED),
        };
        if text == "all" {
            return Ok(Self::Available);
        }
        if let Ok(count) = text.parse::<usize>() {
            return if count > 0 { Ok(Self::Count(count)) } else { Err(EXPECTED) };
        }
        let mut cpus = Vec::new();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let range = (first.trim().parse::<usize>(), last.trim().parse::<usize>());
            let (Ok(first), Ok(last)) = range else { return Err(EXPECTED) };
            if first > last || last >= CPUS_MAX {
                return Err(EXPECTED);
            }
            cpus.extend(first..=last);
        }
        cpus.sort_unstable();
        cpus.dedup();
        if cpus.is_empty() { Err(EXPECTED) } else { Ok(Self::List(cpus)) }
    }

    /// The CPUs to use, and whether they are fewer than requested.
    ///
    /// # Errors
    /// A listed CPU is not available.
    pub fn resolve(&self, available: &Available) -> Result<(Vec<usize>, bool), CpuUnavailable> {
        let count = match self {
            Self::Available => {
                let quota = available.quota.map_or(usize::MAX, |quota| quota.ceil().max(1.0) as usize);
                quota.min(available.cpus.len())
            }
            Self::Count(count) => *count,
            Self::List(cpus) => {
                return if cpus.iter().all(|cpu| available.cpus.contains(cpu)) {
                    Ok((cpus.clone(), false))
                } else {
                    Err(CpuUnavailable { available: available.cpus.clone() })
                };
            }
        };
        let cpus: Vec<usize> = available.cpus.iter().copied().take(count).collect();
        let is_fewer = cpus.len() < count;
        Ok((cpus, is_fewer))
    }
}

/// The highest `CONFIG_NR_CPUS` of Linux. Bounds the memory for a list such as `0-99999999999`.
const CPUS_MAX: usize = 8192;

impl Available {
    /// The affinity and the cgroup quota of this process.
    pub fn of_process() -> Self {
        let mut cpus: Vec<usize> =
            core_affinity::get_core_ids().unwrap_or_default().into_iter().map(|core| core.id).collect();
        if cpus.is_empty() {
            cpus.push(0);
        }
        cpus.sort_unstable();
        Self { cpus, quota: cgroup_quota() }
    }
}

/// The smallest quota of this process's cgroup and its ancestors.
fn cgroup_quota() -> Option<f64> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let mut smallest: Option<f64> = None;
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        let root = match controllers {
            "" => "/sys/fs/cgroup",
            _ if controllers.split(',').any(|name| name == "cpu") => "/sys/fs/cgroup/cpu",
            _ => continue,
        };
        for ancestor in std::path::Path::new(path).ancestors() {
            let directory = format!("{root}{}", ancestor.display());
            let quota = quota_v2(&directory).or_else(|| quota_v1(&directory));
            smallest = match (smallest, quota) {
                (Some(smallest), Some(quota)) => Some(smallest.min(quota)),
                (smallest, quota) => smallest.or(quota),
            };
        }
    }
    smallest
}

/// `cpu.max` contains `150000 100000` or `max 100000`.
fn quota_v2(directory: &str) -> Option<f64> {
    let text = std::fs::read_to_string(format!("{directory}/cpu.max")).ok()?;
    let (quota, period) = text.trim().split_once(' ')?;
    ratio(quota, period)
}

fn quota_v1(directory: &str) -> Option<f64> {
    let read = |name: &str| std::fs::read_to_string(format!("{directory}/{name}")).ok();
    ratio(read("cpu.cfs_quota_us")?.trim(), read("cpu.cfs_period_us")?.trim())
}

fn ratio(quota: &str, period: &str) -> Option<f64> {
    let (quota, period) = (quota.parse::<f64>().ok()?, period.parse::<f64>().ok()?);
    (quota > 0.0 && period > 0.0).then(|| quota / period)
}

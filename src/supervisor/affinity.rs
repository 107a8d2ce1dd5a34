//! The CPU affinity and the priority of the pool threads.
//!
//! Threads for large documents run on the CPUs that no reactor is pinned to, if there are any, at a lower
//! priority, and yield often (`crate::yielding`). A thread that gets no time there may run on all CPUs, so
//! that a document is compiled within seconds even beside busy reactors.
use rustix::process::nice;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::yielding;

/// Niceness of that thread relative to the reactors: it gets at most a third of a contended CPU.
const NICE: i32 = 3;

/// Where the threads of a pool run, and at which priority.
#[derive(Clone, Debug)]
pub struct Affinity {
    nice: i32,
    /// The CPUs of the process. `None`: unknown, or left to the scheduler.
    all: Option<CpuSet>,
    /// The CPUs without a reactor; all, if each has one.
    others: Option<CpuSet>,
}

impl Affinity {
    /// On all CPUs, at the normal priority.
    pub fn anywhere() -> Self {
        Self { nice: 0, all: None, others: None }
    }

    /// Not on the CPUs of these reactors, at a lower priority.
    pub fn beside(reactors: &[usize]) -> Self {
        let all = sched_getaffinity(None).ok();
        let mut others = all;
        if let Some(cpus) = &mut others {
            reactors.iter().filter(|cpu| **cpu < CpuSet::MAX_CPU).for_each(|cpu| cpus.unset(*cpu));
        }
        Self { nice: NICE, all, others: others.filter(|cpus| cpus.count() > 0).or(all) }
    }

    /// Sets the priority of the calling thread.
    pub fn set_priority(&self) {
        // On Linux this changes only the calling thread. Without the permission, tasks run at the normal
        // priority; the same holds for the affinity below.
        let _ = nice(self.nice);
    }

    /// Sets the affinity of the calling thread. To be called before each task.
    pub fn set_affinity(&self) {
        if self.others != self.all {
            move_to(self.others);
        }
        let all = self.all;
        yielding::enable(move || move_to(all));
    }
}

fn move_to(cpus: Option<CpuSet>) {
    if let Some(cpus) = cpus {
        let _ = sched_setaffinity(None, &cpus);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_leave_the_cpus_of_the_reactors_if_there_are_others() {
        let all = sched_getaffinity(None).unwrap();
        let every: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|cpu| all.is_set(*cpu)).collect();
        let placed = |reactors: Vec<usize>| {
            std::thread::spawn(move || {
                let (before, affinity) = (nice(0).unwrap(), Affinity::beside(&reactors));
                affinity.set_priority();
                affinity.set_affinity();
                (sched_getaffinity(None).unwrap(), before, nice(0).unwrap())
            })
            .join()
            .unwrap()
        };
        let (cpus, before, after) = placed(every.clone());
        // 19 is the most that there is.
        assert_eq!((cpus, after), (all, (before + NICE).min(19)), "no other CPU is left");
        let (cpus, ..) = placed(every[..1].to_vec());
        assert!(every.len() == 1 || !cpus.is_set(every[0]));
    }
}

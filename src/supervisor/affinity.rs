//! Where and how eagerly the control plane works: after the reactors.
//!
//! In: the CPUs that reactors are pinned to. Out: threads that give way often (`crate::yielding`); those for
//! what is large run on the other CPUs as well, if there are any, and at a lower priority: what is
//! small is done at once, and it must be served within milliseconds. Invariant: lower is never idle:
//! work that gets no turn on the other CPUs may run on all, and beside reactors that are never done
//! a document is still compiled in seconds.
use rustix::process::nice;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::limits::NICE;
use crate::yielding;

/// The place of the pools' threads.
#[derive(Clone, Debug)]
pub struct Affinity {
    nice: i32,
    /// Where the process may run. `None`: the system does not say, or it is left to it.
    all: Option<CpuSet>,
    /// Those without a reactor; all, if each has one.
    others: Option<CpuSet>,
}

impl Affinity {
    /// Wherever there is room, as soon as may be.
    pub fn anywhere() -> Self {
        Self { nice: 0, all: None, others: None }
    }

    /// Beside reactors on these CPUs, and after them.
    pub fn beside(reactors: &[usize]) -> Self {
        let all = sched_getaffinity(None).ok();
        let mut others = all;
        if let Some(cpus) = &mut others {
            reactors.iter().filter(|cpu| **cpu < CpuSet::MAX_CPU).for_each(|cpu| cpus.unset(*cpu));
        }
        Self { nice: NICE, all, others: others.filter(|cpus| cpus.count() > 0).or(all) }
    }

    /// Gives the calling thread its priority.
    pub fn take(&self) {
        // On Linux this is of the calling thread alone. Where it is refused, the work is done all the
        // same, only less politely; so below.
        let _ = nice(self.nice);
    }

    /// Begins a task on the calling thread.
    pub fn begin(&self) {
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
    fn threads_leave_the_reactors_cpus_if_they_can() {
        let all = sched_getaffinity(None).unwrap();
        let every: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|cpu| all.is_set(*cpu)).collect();
        let placed = |reactors: Vec<usize>| {
            std::thread::spawn(move || {
                let (before, place) = (nice(0).unwrap(), Affinity::beside(&reactors));
                place.take();
                place.begin();
                (sched_getaffinity(None).unwrap(), nice(0).unwrap() - before)
            })
            .join()
            .unwrap()
        };
        let (cpus, lower) = placed(every.clone());
        assert_eq!((cpus, lower), (all, NICE), "no other CPU is left");
        let (cpus, _) = placed(every[..1].to_vec());
        assert!(every.len() == 1 || !cpus.is_set(every[0]));
    }
}

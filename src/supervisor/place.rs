//! Where and how eagerly the control plane works: after the reactors.
//!
//! In: the CPUs that reactors are pinned to. Out: threads that run on the other CPUs if there are any,
//! at a lower priority and giving way often (`crate::pace`) if there are none. Invariant: lower is
//! never idle: beside a reactor that is never done, a document is still compiled in seconds.
use rustix::process::nice;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::limits::NICE;
use crate::pace;

/// The place of the pools' threads.
#[derive(Clone, Debug)]
pub struct Place {
    /// `None`: wherever the process may run.
    cpus: Option<CpuSet>,
}

impl Place {
    /// Beside reactors on these CPUs.
    pub fn beside(reactors: &[usize]) -> Self {
        let mut cpus = sched_getaffinity(None).ok();
        if let Some(cpus) = &mut cpus {
            reactors.iter().filter(|cpu| **cpu < CpuSet::MAX_CPU).for_each(|cpu| cpus.unset(*cpu));
        }
        Self { cpus: cpus.filter(|cpus| cpus.count() > 0) }
    }

    /// Puts the calling thread there. What the system refuses is left as it is: the work is done all
    /// the same, only less politely.
    pub fn take(&self) {
        if let Some(cpus) = &self.cpus {
            let _ = sched_setaffinity(None, cpus);
        }
        // On Linux this is of the calling thread alone.
        let _ = nice(NICE);
        pace::give_way();
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
                let before = nice(0).unwrap();
                Place::beside(&reactors).take();
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

//! The clocks and the random numbers of the control plane.
//!
//! A thread may be given a time and a seed instead of those of the system: then everything that it does is
//! the same each time. `tests/simulation` plays hours of outages so; the program never sets them.
use std::cell::Cell;
use std::time::{Duration, Instant, SystemTime};

/// What a thread takes for the time and for random.
#[derive(Clone, Copy, Debug)]
struct Fixed {
    instant: Instant,
    wall: SystemTime,
    random: u64,
}

thread_local! {
    static FIXED: Cell<Option<Fixed>> = const { Cell::new(None) };
}

/// The monotonic time: for schedules and deadlines.
pub fn instant() -> Instant {
    FIXED.get().map_or_else(Instant::now, |fixed| fixed.instant)
}

/// The wall clock: for people, expiry dates and files.
pub fn wall() -> SystemTime {
    FIXED.get().map_or_else(SystemTime::now, |fixed| fixed.wall)
}

/// The time since `earlier`.
pub fn elapsed(earlier: Instant) -> Duration {
    instant().saturating_duration_since(earlier)
}

/// 64 random bits.
///
/// # Errors
/// The system's random generator failed.
pub fn random() -> Result<u64, getrandom::Error> {
    let Some(mut fixed) = FIXED.get() else { return getrandom::u64() };
    // SplitMix64 (Steele, Lea, Flood 2014).
    fixed.random = fixed.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
    FIXED.set(Some(fixed));
    let mut mixed = fixed.random;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    Ok(mixed ^ (mixed >> 31))
}

/// 128 random bits, as bytes.
///
/// # Errors
/// As [`random`].
pub fn random_bytes() -> Result<[u8; 16], getrandom::Error> {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&random()?.to_le_bytes());
    bytes[8..].copy_from_slice(&random()?.to_le_bytes());
    Ok(bytes)
}

/// Gives this thread a time. `seed` begins the random numbers, unless they have begun.
pub fn fix(instant: Instant, wall: SystemTime, seed: u64) {
    let random = FIXED.get().map_or(seed, |fixed| fixed.random);
    FIXED.set(Some(Fixed { instant, wall, random }));
}

/// Gives this thread the time and the random numbers of the system.
pub fn release() {
    FIXED.set(None);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_with_a_fixed_time_repeats_itself() {
        let (start, epoch) = (Instant::now(), SystemTime::UNIX_EPOCH);
        let play = || {
            fix(start, epoch, 7);
            let first = random_bytes().unwrap();
            fix(start + Duration::from_secs(3), epoch, 7);
            let played = (first, random().unwrap(), elapsed(start), wall());
            release();
            played
        };
        let first = play();
        assert_eq!(first, play());
        assert_eq!(first.2, Duration::from_secs(3));
        assert_ne!(first.0[..8], first.1.to_le_bytes(), "the numbers go on");
        assert!(instant() >= start && wall() > epoch, "released");
        assert_ne!(random().unwrap(), random().unwrap());
    }
}

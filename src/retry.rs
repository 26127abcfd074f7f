//! Whether a failure may pass if the same is tried again, and how long to wait before.

use std::time::Duration;

/// What to do after an error; a property of the error, not of who meets it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Retry {
    /// The same again fails the same way.
    Never,
    /// Wait, then the same again, on a new connection where the old one is gone.
    Backoff,
}

/// SQLSTATEs outside the classes below that pass with time.
const TRANSIENT: [&str; 11] = [
    "25006", // read_only_sql_transaction: the server became a standby; the host must be resolved anew
    "25P03", // idle_in_transaction_session_timeout
    "25P04", // transaction_timeout
    "55006", // object_in_use: a slot that another session still holds
    "55P03", // lock_not_available
    "57014", // query_canceled: by a timeout or by a person
    "57P01", // admin_shutdown
    "57P02", // crash_shutdown
    "57P03", // cannot_connect_now
    "57P05", // idle_session_timeout
    "58030", // io_error
];

/// Classes that pass with time: connection, transaction rollback (deadlock, serialization), insufficient resources.
const TRANSIENT_CLASSES: [&str; 3] = ["08", "40", "53"];

/// Postgres docs, "PostgreSQL Error Codes". What is not known to pass does not.
pub fn by_sqlstate(sqlstate: &str) -> Retry {
    // A protocol violation is a mistake of the two programs, not of the line between them.
    let class_passes = TRANSIENT_CLASSES.iter().any(|class| sqlstate.starts_with(class)) && sqlstate != "08P01";
    // The constraint failed at commit, inside class 40; the same rows fail again.
    let constraint = sqlstate == "40002";
    if (class_passes && !constraint) || TRANSIENT.contains(&sqlstate) { Retry::Backoff } else { Retry::Never }
}

/// Waits between tries, with full jitter so that many daemons do not come back at once: each is drawn evenly between
/// 0.2 s and a ceiling that doubles from 0.4 s to 30 s. It never ends.
#[derive(Clone, Debug)]
pub struct Backoff {
    state: u64,
    ceiling: Duration,
}

impl Backoff {
    pub const SHORTEST: Duration = Duration::from_millis(200);
    pub const LONGEST: Duration = Duration::from_secs(30);

    /// The same seed draws the same waits.
    pub fn new(seed: u64) -> Self {
        Backoff { state: seed, ceiling: Self::SHORTEST }
    }

    /// After a success: the next wait is a short one again.
    pub fn reset(&mut self) {
        self.ceiling = Self::SHORTEST;
    }

    /// SplitMix64: 64 well-mixed bits from a counter.
    fn draw(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut bits = self.state;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        bits ^ (bits >> 31)
    }
}

impl Iterator for Backoff {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        self.ceiling = (self.ceiling * 2).min(Self::LONGEST);
        let span = (self.ceiling - Self::SHORTEST).as_millis() as u64 + 1;
        Some(Self::SHORTEST + Duration::from_millis(self.draw() % span))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn h77_sqlstates_are_classified() {
        let cases = [
            ("08000", Retry::Backoff),
            ("08006", Retry::Backoff),
            ("08P01", Retry::Never),
            ("21000", Retry::Never),
            ("22001", Retry::Never),
            ("22P02", Retry::Never),
            ("23503", Retry::Never),
            ("23505", Retry::Never),
            ("25006", Retry::Backoff),
            ("25P02", Retry::Never),
            ("25P03", Retry::Backoff),
            ("25P04", Retry::Backoff),
            ("28000", Retry::Never),
            ("28P01", Retry::Never),
            ("3D000", Retry::Never),
            ("40001", Retry::Backoff),
            ("40002", Retry::Never),
            ("40P01", Retry::Backoff),
            ("42501", Retry::Never),
            ("42703", Retry::Never),
            ("42P01", Retry::Never),
            ("53100", Retry::Backoff),
            ("53200", Retry::Backoff),
            ("53300", Retry::Backoff),
            ("54000", Retry::Never),
            ("55000", Retry::Never),
            ("55006", Retry::Backoff),
            ("55P03", Retry::Backoff),
            ("57014", Retry::Backoff),
            ("57P01", Retry::Backoff),
            ("57P02", Retry::Backoff),
            ("57P03", Retry::Backoff),
            ("57P04", Retry::Never),
            ("57P05", Retry::Backoff),
            ("58030", Retry::Backoff),
            ("P0001", Retry::Never),
            ("XX000", Retry::Never),
            ("", Retry::Never),
        ];
        for (sqlstate, expected) in cases {
            assert_eq!(by_sqlstate(sqlstate), expected, "{sqlstate}");
        }
    }

    #[test]
    fn waits_stay_in_bounds_grow_and_repeat_by_seed() {
        for seed in 0..200 {
            let mut ceiling = Backoff::SHORTEST;
            for wait in Backoff::new(seed).take(12) {
                ceiling = (ceiling * 2).min(Backoff::LONGEST);
                assert!((Backoff::SHORTEST..=ceiling).contains(&wait), "seed {seed}: {wait:?}");
            }
            assert!(Backoff::new(seed).take(12).eq(Backoff::new(seed).take(12)));
        }
        let late: Vec<_> = (0..200).filter_map(|seed| Backoff::new(seed).nth(20)).collect();
        assert!(late.iter().any(|wait| *wait > Duration::from_secs(20)));
        assert!(late.iter().any(|wait| *wait < Duration::from_secs(10)));
    }

    #[test]
    fn success_makes_the_next_wait_short() {
        let mut backoff = Backoff::new(1);
        for _ in backoff.by_ref().take(20) {}
        backoff.reset();
        assert!(backoff.next().expect("endless") <= 2 * Backoff::SHORTEST);
    }
}

//! Random numbers that a printed seed brings back.

use std::time::{SystemTime, UNIX_EPOCH};

/// SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).
#[derive(Clone)]
pub struct Random {
    state: u64,
}

impl Random {
    pub fn new(seed: u64) -> Random {
        Random { state: seed }
    }

    /// The seed in `TAILWATER_SEED`, or one from the clock.
    pub fn seed_from_environment() -> u64 {
        if let Some(seed) = std::env::var("TAILWATER_SEED").ok().and_then(|text| text.parse().ok()) {
            return seed;
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::from(now.subsec_nanos()) ^ now.as_secs().rotate_left(20)
    }

    /// One of its own for a part of the test, so that the parts' pace does not change each other's numbers.
    pub fn fork(&mut self) -> Random {
        Random::new(self.number())
    }

    pub fn number(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// From 0 to `bound` - 1.
    pub fn below(&mut self, bound: u64) -> u64 {
        assert!(bound > 0, "nothing is below zero");
        self.number() % bound
    }

    /// A key column's value from 1 to `bound`.
    pub fn id(&mut self, bound: u32) -> i32 {
        i32::try_from(self.below(u64::from(bound)) + 1).expect("tests' keys are small")
    }

    /// True once in `times`.
    pub fn one_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }
}

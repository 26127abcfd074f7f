//! Which partition a key belongs to: as Kafka's own Java client decides by default, so that its consumers, joins and
//! producers agree with us.

const SEED: u32 = 0x9747_b28c;
const MULTIPLIER: u32 = 0x5bd1_e995;
const SHIFT: u32 = 24;

/// The partition of a key, of so many. There is no partition of no key: where it went would not be known.
///
/// # Panics
/// If `partition_count` is not positive; no topic has fewer than one.
pub fn partition_of(key: &[u8], partition_count: i32) -> i32 {
    assert!(partition_count > 0, "a topic has at least one partition");
    // Without the sign bit both fit an `i32`.
    (murmur2(key) & 0x7fff_ffff).cast_signed() % partition_count
}

/// MurmurHash2, 32 bits, little-endian, with the seed that Kafka's Java client gives it.
fn murmur2(bytes: &[u8]) -> u32 {
    // Java counts in an `int`; a key is far from its end.
    let length = bytes.len() as u32;
    let (words, rest) = bytes.as_chunks::<4>();
    let mut hash = SEED ^ length;
    for word in words {
        let mut word = u32::from_le_bytes(*word).wrapping_mul(MULTIPLIER);
        word ^= word >> SHIFT;
        hash = hash.wrapping_mul(MULTIPLIER) ^ word.wrapping_mul(MULTIPLIER);
    }
    if !rest.is_empty() {
        let last = rest.iter().rev().fold(0u32, |word, byte| word << 8 | u32::from(*byte));
        hash = (hash ^ last).wrapping_mul(MULTIPLIER);
    }
    hash = (hash ^ hash >> 13).wrapping_mul(MULTIPLIER);
    hash ^ hash >> 15
}

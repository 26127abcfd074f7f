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

#[cfg(test)]
mod tests {
    use super::*;

    /// What `org.apache.kafka.common.utils.Utils.murmur2` answers.
    #[test]
    fn hash_is_that_of_kafkas_java_client() {
        let answers: [(&str, i32); 6] = [
            ("21", -973_932_308),
            ("foobar", -790_332_482),
            ("a-little-bit-long-string", -985_981_536),
            ("a-little-bit-longer-string", -1_486_304_829),
            ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
            ("abc", 479_470_107),
        ];
        for (key, answer) in answers {
            assert_eq!(murmur2(key.as_bytes()).cast_signed(), answer, "{key}");
        }
    }

    #[test]
    fn every_partition_is_one_of_the_topics() {
        for length in 0..100u8 {
            let key: Vec<u8> = (0..length).map(|byte| byte.wrapping_mul(73)).collect();
            for count in [1, 2, 3, 7, 12, i32::MAX] {
                assert!((0..count).contains(&partition_of(&key, count)), "{length} bytes, {count} partitions");
            }
        }
    }
}

//! A position in Postgres's write-ahead log.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A byte position in the write-ahead log, shown as Postgres shows it: `16/B374D848`.
///
/// Postgres docs, "pg_lsn Type": two hexadecimal numbers of up to eight digits, the high and the low half.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Lsn(pub u64);

impl Lsn {
    /// Postgres's `InvalidXLogRecPtr`: no position.
    pub const ZERO: Lsn = Lsn(0);

    /// Bytes of WAL from `earlier` to `self`, zero if `earlier` is the later one.
    pub fn bytes_since(self, earlier: Lsn) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

impl fmt::Debug for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is neither `X/Y` in hexadecimal nor a decimal number.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("\"{0}\" is not an LSN")]
pub struct LsnError(String);

impl FromStr for Lsn {
    type Err = LsnError;

    /// Reads `16/B374D848`, or the same position as one decimal number, as some tools print it.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || LsnError(text.to_owned());
        let half = |part: &str| {
            let digits = !part.is_empty() && part.len() <= 8 && part.bytes().all(|byte| byte.is_ascii_hexdigit());
            if digits { u64::from_str_radix(part, 16).ok() } else { None }
        };
        match text.split_once('/') {
            Some((high, low)) => Ok(Lsn(half(high).ok_or_else(bad)? << 32 | half(low).ok_or_else(bad)?)),
            None if text.bytes().all(|byte| byte.is_ascii_digit()) => text.parse().map(Lsn).map_err(|_| bad()),
            None => Err(bad()),
        }
    }
}

impl Serialize for Lsn {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Lsn {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn text_form_round_trips(position: u64) {
            prop_assert_eq!(Lsn(position).to_string().parse(), Ok(Lsn(position)));
            prop_assert_eq!(position.to_string().parse(), Ok(Lsn(position)));
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["", "/", "1/", "/1", "x/1", "1/123456789", "0x10", "-1", "+1/1", "1/2/3"] {
            assert!(text.parse::<Lsn>().is_err(), "{text} was taken");
        }
    }
}

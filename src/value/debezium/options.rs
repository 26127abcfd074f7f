//! How values are written: Debezium's connector properties under the names that its users know, dots and dashes as
//! underscores (`decimal.handling.mode` is `decimal_handling_mode`), values and defaults the same.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `decimal.handling.mode`
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(rename = "DecimalHandlingMode")]
pub enum DecimalMode {
    /// Connect's `Decimal`: the unscaled number in two's complement. Every digit is kept; `NaN` and infinities have no form.
    #[default]
    Precise,
    /// A floating-point number; may lose digits.
    Double,
    /// Decimal digits as text.
    String,
}

/// `time.precision.mode`. Debezium's newest, `structured`, is not offered.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "TimePrecisionMode")]
pub enum TimePrecision {
    /// Milliseconds where the column has three digits of a second or fewer, microseconds elsewhere.
    #[default]
    Adaptive,
    /// As `adaptive`, but `time` is always in microseconds.
    AdaptiveTimeMicroseconds,
    /// Kafka Connect's own types: milliseconds.
    Connect,
    /// Text in ISO 8601, in UTC.
    Isostring,
    Microseconds,
    /// From 1677 to 2262.
    Nanoseconds,
}

/// `interval.handling.mode`
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(rename = "IntervalHandlingMode")]
pub enum IntervalMode {
    /// Microseconds, a month being 365.25 / 12 days.
    #[default]
    Numeric,
    /// `P1Y2M3DT4H5M6.78S`
    String,
}

/// `hstore.handling.mode`
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(rename = "HstoreHandlingMode")]
pub enum HstoreMode {
    /// A JSON object as text.
    #[default]
    Json,
    Map,
}

/// `binary.handling.mode`
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[schemars(rename = "BinaryHandlingMode")]
pub enum BinaryMode {
    /// Connect's `BYTES`: base64 in JSON, the bytes themselves in Avro.
    #[default]
    Bytes,
    Base64,
    Base64UrlSafe,
    Hex,
}

/// What stands for a value that the source did not send.
pub const PLACEHOLDER: &str = "__debezium_unavailable_value";

/// How the values of a table become values of an event.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "DebeziumOptions")]
pub struct Options {
    /// `numeric` and `money`.
    pub decimal_handling_mode: DecimalMode,
    /// `date`, `time` and `timestamp`. Those with a time zone are always text in UTC.
    pub time_precision_mode: TimePrecision,
    pub interval_handling_mode: IntervalMode,
    pub hstore_handling_mode: HstoreMode,
    /// `bytea`.
    pub binary_handling_mode: BinaryMode,
    /// Digits after the point of the server's currency (`lc_monetary`).
    pub money_fraction_digits: u8,
    /// Columns of types that Debezium does not know are written as the bytes of their text, instead of left out.
    pub include_unknown_datatypes: bool,
    /// Stands for a value stored out of line that an UPDATE left as it was and the source did not send.
    pub unavailable_value_placeholder: String,
    /// JSON comes with Kafka Connect's schema: `{"schema":…,"payload":…}`.
    pub schemas: bool,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            decimal_handling_mode: DecimalMode::default(),
            time_precision_mode: TimePrecision::default(),
            interval_handling_mode: IntervalMode::default(),
            hstore_handling_mode: HstoreMode::default(),
            binary_handling_mode: BinaryMode::default(),
            money_fraction_digits: 2,
            include_unknown_datatypes: false,
            unavailable_value_placeholder: PLACEHOLDER.to_owned(),
            schemas: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_option_has_debezium_s_name_and_values() {
        let read: Options = serde_json::from_value(serde_json::json!({
            "decimal_handling_mode": "string",
            "time_precision_mode": "adaptive_time_microseconds",
            "interval_handling_mode": "string",
            "hstore_handling_mode": "map",
            "binary_handling_mode": "base64-url-safe",
            "money_fraction_digits": 0,
            "include_unknown_datatypes": true,
            "unavailable_value_placeholder": "?",
            "schemas": true,
        }))
        .expect("all known");
        let expected = Options {
            decimal_handling_mode: DecimalMode::String,
            time_precision_mode: TimePrecision::AdaptiveTimeMicroseconds,
            interval_handling_mode: IntervalMode::String,
            hstore_handling_mode: HstoreMode::Map,
            binary_handling_mode: BinaryMode::Base64UrlSafe,
            money_fraction_digits: 0,
            include_unknown_datatypes: true,
            unavailable_value_placeholder: "?".to_owned(),
            schemas: true,
        };
        assert_eq!(read, expected);
        assert_eq!(serde_json::from_str::<Options>("{}").expect("all have defaults"), Options::default());
        assert!(serde_json::from_str::<Options>(r#"{"decimal.handling.mode":"string"}"#).is_err());
        for mode in ["adaptive", "connect", "isostring", "microseconds", "nanoseconds"] {
            let text = format!(r#"{{"time_precision_mode":"{mode}"}}"#);
            assert!(serde_json::from_str::<Options>(&text).is_ok(), "{mode}");
        }
    }
}

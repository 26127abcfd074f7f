//! What stands for a value that is stored out of line, was not changed, and so was not sent.
//!
//! Text is the placeholder itself; what else there is was made of it by Debezium so that it fits the type. Where the type
//! has no such value (a number, an array of dates), there is none here either, and the change is an error instead: NULL,
//! which Debezium writes then, would say something else of the row.

use md5::{Digest as _, Md5};

use super::ValueError;
use super::bytes::write_raw_bytes;
use super::options::{BinaryMode, HstoreMode};
use super::out::Out;
use super::value::{ArrayKind, Common, Kind, Placeholder};

impl Kind {
    /// Writes the placeholder.
    ///
    /// # Errors
    /// [`ValueError::Unsent`] if the type has none.
    pub fn write_placeholder<O: Out>(&self, out: &mut O, common: &Common) -> Result<(), ValueError> {
        let text = common.placeholder.as_bytes();
        match self {
            Kind::Text
            | Kind::Versioned
            | Kind::Printed(_)
            | Kind::TextOnly
            | Kind::DecimalText
            | Kind::Bytes(BinaryMode::Base64 | BinaryMode::Base64UrlSafe | BinaryMode::Hex) => out.text(text),
            Kind::Bytes(BinaryMode::Bytes) => out.bytes(text),
            Kind::Opaque(mode) => write_raw_bytes(out, *mode, text)?,
            Kind::Hstore(HstoreMode::Map) => write_pair(out, text),
            Kind::Hstore(HstoreMode::Json) => out.composed_text(|buffer| {
                write_pair(&mut super::json::Json::<false> { out: buffer }, text);
                Ok(())
            })?,
            Kind::Array(array) => write_array(out, array, common)?,
            Kind::Bool
            | Kind::Int(_)
            | Kind::Float32
            | Kind::Float64
            | Kind::Uuid
            | Kind::Bit
            | Kind::Bits
            | Kind::Date(_)
            | Kind::Time(_)
            | Kind::TimeTz
            | Kind::Timestamp(_)
            | Kind::TimestampTz(_)
            | Kind::Interval(_)
            | Kind::Decimal { .. }
            | Kind::VariableDecimal
            | Kind::DecimalDouble
            | Kind::Money { .. }
            | Kind::Point => return Err(ValueError::Unsent),
        }
        Ok(())
    }
}

fn write_pair<O: Out>(out: &mut O, text: &[u8]) {
    out.begin_map();
    out.key(text);
    out.some();
    out.text(text);
    out.end_map();
}

fn write_array<O: Out>(out: &mut O, array: &ArrayKind, common: &Common) -> Result<(), ValueError> {
    let item = |out: &mut O| {
        out.item();
        if array.nullable {
            out.some();
        }
    };
    match array.placeholder {
        Placeholder::Numbers => {
            out.begin_array(Some(common.placeholder.len()));
            for byte in common.placeholder.bytes() {
                item(out);
                // Java's bytes have a sign.
                out.int(byte.cast_signed().into());
            }
        }
        Placeholder::Uuid => {
            out.begin_array(Some(1));
            item(out);
            out.text(common.placeholder_uuid.as_bytes());
        }
        Placeholder::OneElement => {
            out.begin_array(Some(1));
            item(out);
            array.element.write_placeholder(out, common)?;
        }
    }
    out.end_array();
    Ok(())
}

/// The UUID of version 3 of a text without a name space: Java's `UUID.nameUUIDFromBytes`.
pub(super) fn uuid(text: &str) -> String {
    let mut bytes: [u8; 16] = Md5::digest(text.as_bytes()).into();
    bytes[6] = bytes[6] & 0x0F | 0x30;
    bytes[8] = bytes[8] & 0x3F | 0x80;
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

//! Types as SQL text: without modifier, and which built-in one may be assigned to which.

/// The type's text without length or precision, in a form that does not bring a length back in.
///
/// `character` alone means `character(1)` and `bit` alone `bit(1)`, so these are named by what has no length.
pub(super) fn without_modifier(type_name: &str) -> String {
    let (element, brackets) = match type_name.strip_suffix("[]") {
        Some(element) => (element, "[]"),
        None => (type_name, ""),
    };
    let mut plain = String::with_capacity(element.len());
    let (mut quoted, mut depth) = (false, 0usize);
    for letter in element.chars() {
        match letter {
            '"' => quoted = !quoted,
            '(' if !quoted => depth += 1,
            ')' if !quoted => {
                depth = depth.saturating_sub(1);
                continue;
            }
            _ => {}
        }
        if depth == 0 {
            plain.push(letter);
        }
    }
    let plain = plain.split(' ').filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ");
    let plain = match plain.to_ascii_lowercase().as_str() {
        "character varying" | "varchar" => "varchar".to_owned(),
        "character" | "char" | "bpchar" => "bpchar".to_owned(),
        "bit varying" | "varbit" => "varbit".to_owned(),
        "bit" | "\"bit\"" => "\"bit\"".to_owned(),
        "int" | "int4" => "integer".to_owned(),
        "int2" => "smallint".to_owned(),
        "int8" => "bigint".to_owned(),
        "bool" => "boolean".to_owned(),
        "float4" => "real".to_owned(),
        "float8" | "float" => "double precision".to_owned(),
        "decimal" => "numeric".to_owned(),
        "timestamp" => "timestamp without time zone".to_owned(),
        "timestamptz" => "timestamp with time zone".to_owned(),
        "time" => "time without time zone".to_owned(),
        "timetz" => "time with time zone".to_owned(),
        _ => plain,
    };
    plain + brackets
}

/// Types among which Postgres assigns alike.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Family {
    Boolean,
    Number,
    Money,
    Text,
    Date,
    Timestamp,
    TimestampTz,
    Time,
    TimeTz,
    Interval,
    Json,
    Uuid,
    Bytes,
    Bits,
    Network,
    Mac,
    Xml,
    Lsn,
}

fn family(plain: &str) -> Option<Family> {
    Some(match plain {
        "boolean" => Family::Boolean,
        "smallint" | "integer" | "bigint" | "numeric" | "real" | "double precision" => Family::Number,
        "money" => Family::Money,
        "text" | "varchar" | "bpchar" | "name" | "\"char\"" => Family::Text,
        "date" => Family::Date,
        "timestamp without time zone" => Family::Timestamp,
        "timestamp with time zone" => Family::TimestampTz,
        "time without time zone" => Family::Time,
        "time with time zone" => Family::TimeTz,
        "interval" => Family::Interval,
        "json" | "jsonb" => Family::Json,
        "uuid" => Family::Uuid,
        "bytea" => Family::Bytes,
        "\"bit\"" | "varbit" => Family::Bits,
        "inet" | "cidr" => Family::Network,
        "macaddr" | "macaddr8" => Family::Mac,
        "xml" => Family::Xml,
        "pg_lsn" => Family::Lsn,
        _ => return None,
    })
}

/// Can a value of `from` be assigned to a column of `to`? Types without modifier; `true` where this table does not know,
/// as the sink says so when it prepares the statement.
///
/// Postgres's `pg_cast` entries with context `a` or `i`, and its rule that anything may be assigned to a string type.
pub(super) fn assignable(from: &str, to: &str) -> bool {
    use Family::{Date, Interval, Money, Number, Text, Time, TimeTz, Timestamp, TimestampTz};
    if from == to {
        return true;
    }
    let (Some(from), Some(to)) = (family(from), family(to)) else { return true };
    from == to
        || to == Text
        || matches!(
            (from, to),
            (Number, Money)
                | (Money, Number)
                | (Date, Timestamp | TimestampTz)
                | (Timestamp, Date | Time | TimestampTz)
                | (TimestampTz, Date | Time | TimeTz | Timestamp)
                | (Time, Interval | TimeTz)
                | (TimeTz, Time)
                | (Interval, Time)
        )
}

/// What became of a column's type.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TypeChange {
    Same,
    /// Every old value is a new one and looks the same on the wire, and a target that is too narrow for a new one refuses it.
    Wider,
    Different,
}

/// Compares a column's type and modifier before and after a change.
pub fn type_change(old: (u32, i32), new: (u32, i32)) -> TypeChange {
    const TEXT: u32 = 25;
    const VARCHAR: u32 = 1043;
    const NUMERIC: u32 = 1700;
    const VARBIT: u32 = 1562;
    if old == new {
        return TypeChange::Same;
    }
    let is_longer = new.1 == -1 || (old.1 != -1 && new.1 >= old.1);
    // The modifier of numeric holds the precision above the scale.
    let scale = |modifier: i32| (modifier - 4) & 0x7ff;
    let is_wider = match (old.0, new.0) {
        (VARCHAR, TEXT) => true,
        (TEXT, VARCHAR) => new.1 == -1,
        (VARCHAR, VARCHAR) | (VARBIT, VARBIT) => is_longer,
        (NUMERIC, NUMERIC) => old.1 != -1 && new.1 >= old.1 && scale(old.1) == scale(new.1),
        _ => false,
    };
    if is_wider { TypeChange::Wider } else { TypeChange::Different }
}

/// A type of Postgres's own by its OID, as a person knows it.
pub fn type_name(oid: u32) -> String {
    match postgres_types::Type::from_oid(oid) {
        Some(known) => match known.name().strip_prefix('_') {
            Some(element) => without_modifier(&format!("{element}[]")),
            None => without_modifier(known.name()),
        },
        None => format!("type {oid}"),
    }
}

/// Equal floats need not look equal (`-0`, `0`) nor be found again after rounding: no type for a key.
pub(super) fn is_float(plain: &str) -> bool {
    matches!(plain, "real" | "double precision")
}

/// Does assigning drop a part of the value, so that two keys may become one?
pub(super) fn drops_a_part(from: &str, to: &str) -> bool {
    let is_whole = |plain: &str| matches!(plain, "smallint" | "integer" | "bigint");
    let is_part = |plain: &str| matches!(family(plain), Some(Family::Date | Family::Time | Family::TimeTz));
    match family(from) {
        Some(Family::Number) => !is_whole(from) && is_whole(to),
        Some(Family::Timestamp | Family::TimestampTz) => is_part(to),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modifiers_go_and_no_length_comes_back() {
        let cases = [
            ("numeric(19,5)", "numeric"),
            ("character varying(255)", "varchar"),
            ("character(3)", "bpchar"),
            ("bit(8)", "\"bit\""),
            ("timestamp(0) without time zone", "timestamp without time zone"),
            ("character varying(5)[]", "varchar[]"),
            ("public.\"odd (type)\"", "public.\"odd (type)\""),
            ("int4", "integer"),
        ];
        for (text, expected) in cases {
            assert_eq!(without_modifier(text), expected);
            assert_eq!(without_modifier(expected), expected, "a second time");
        }
    }

    #[test]
    fn only_widening_is_harmless() {
        let numeric = |precision: i32, scale: i32| (1700, (precision << 16 | scale) + 4);
        let cases = [
            ((1043, 14), (1043, 24), TypeChange::Wider),
            ((1043, 24), (1043, 14), TypeChange::Different),
            ((1043, 24), (1043, -1), TypeChange::Wider),
            ((1043, 14), (25, -1), TypeChange::Wider),
            ((25, -1), (1043, 14), TypeChange::Different),
            ((25, -1), (1043, -1), TypeChange::Wider),
            (numeric(10, 2), numeric(12, 2), TypeChange::Wider),
            (numeric(10, 2), numeric(12, 3), TypeChange::Different),
            // The target would round what comes.
            (numeric(10, 2), (1700, -1), TypeChange::Different),
            ((1114, 3), (1114, -1), TypeChange::Different),
            ((23, -1), (20, -1), TypeChange::Different),
            ((23, -1), (23, -1), TypeChange::Same),
        ];
        for (old, new, expected) in cases {
            assert_eq!(type_change(old, new), expected, "{old:?} to {new:?}");
        }
        assert_eq!((type_name(20), type_name(1185), type_name(99_999)), {
            ("bigint".to_owned(), "timestamp with time zone[]".to_owned(), "type 99999".to_owned())
        });
    }

    #[test]
    fn dropped_parts_are_known() {
        assert!(drops_a_part("numeric", "bigint") && drops_a_part("timestamp with time zone", "date"));
        assert!(!drops_a_part("integer", "numeric") && !drops_a_part("bigint", "integer"), "overflow is an error");
        assert!(!drops_a_part("date", "timestamp with time zone") && !drops_a_part("uuid", "text"));
    }

    #[test]
    fn assignment_follows_postgres() {
        for (from, to) in [
            ("integer", "bigint"),
            ("double precision", "numeric"),
            ("date", "timestamp with time zone"),
            ("uuid", "text"),
            ("boolean", "varchar"),
            ("json", "jsonb"),
            ("public.mood", "integer"),
        ] {
            assert!(assignable(from, to), "{from} to {to} was refused");
        }
        for (from, to) in [
            ("text", "integer"),
            ("timestamp without time zone", "boolean"),
            ("boolean", "integer"),
            ("text", "jsonb"),
            ("jsonb", "numeric"),
            ("interval", "date"),
            ("pg_lsn", "bigint"),
        ] {
            assert!(!assignable(from, to), "{from} to {to} was taken");
        }
    }
}

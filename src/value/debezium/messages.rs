//! Messages that are of no row: where transactions begin and end, and heartbeats.

use std::io::Write as _;

use super::out::quote;
use super::schema::{Schema, Shape};
use super::shape::wrapper;
use crate::checkpoint::UnixMicros;
use crate::lsn::Lsn;

/// One of a transaction's two boundaries. Its id is the transaction's and the boundary's position.
#[derive(Clone, Copy, Debug)]
pub enum Boundary<'a> {
    Begin,
    /// How many events the transaction had in each table (`schema.table`).
    End {
        tables: &'a [(String, u64)],
    },
}

/// Messages of a source, without or with Connect's schemas.
pub struct Messages {
    schemas: Option<Schemas>,
}

struct Schemas {
    transaction_key: Vec<u8>,
    transaction_value: Vec<u8>,
    heartbeat_key: Vec<u8>,
    heartbeat_value: Vec<u8>,
}

impl Messages {
    pub fn new(schemas: bool) -> Messages {
        Messages {
            schemas: schemas.then(|| Schemas {
                transaction_key: wrapper(&transaction_key_schema()),
                transaction_value: wrapper(&transaction_value_schema()),
                heartbeat_key: wrapper(&heartbeat_key_schema()),
                heartbeat_value: wrapper(&heartbeat_value_schema()),
            }),
        }
    }

    /// Appends the key of a boundary's message.
    pub fn transaction_key(&self, out: &mut Vec<u8>, xid: u32, lsn: Lsn) {
        self.wrapped(
            out,
            |schemas| &schemas.transaction_key,
            |out| push(out, format_args!(r#"{{"id":"{xid}:{}"}}"#, lsn.0)),
        );
    }

    /// Appends the value of a boundary's message; `lsn` is the boundary's own.
    pub fn transaction_value(&self, out: &mut Vec<u8>, xid: u32, lsn: Lsn, at: UnixMicros, boundary: &Boundary<'_>) {
        self.wrapped(
            out,
            |schemas| &schemas.transaction_value,
            |out| {
                let status = match boundary {
                    Boundary::Begin => "BEGIN",
                    Boundary::End { .. } => "END",
                };
                push(out, format_args!(r#"{{"status":"{status}","id":"{xid}:{}","event_count":"#, lsn.0));
                match boundary {
                    Boundary::Begin => push(out, format_args!(r#"null,"data_collections":null"#)),
                    Boundary::End { tables } => {
                        let count: u64 = tables.iter().map(|(_, count)| count).sum();
                        push(out, format_args!(r#"{count},"data_collections":["#));
                        for (place, (table, count)) in tables.iter().enumerate() {
                            out.extend_from_slice(if place == 0 { b"{" } else { b",{" });
                            out.extend_from_slice(b"\"data_collection\":");
                            quote(out, table.as_bytes());
                            push(out, format_args!(r#","event_count":{count}}}"#));
                        }
                        out.push(b']');
                    }
                }
                push(out, format_args!(r#","ts_ms":{}}}"#, at.0.div_euclid(1_000)));
            },
        );
    }

    /// Appends the key of a heartbeat: the source's logical name.
    pub fn heartbeat_key(&self, out: &mut Vec<u8>, name: &str) {
        self.wrapped(
            out,
            |schemas| &schemas.heartbeat_key,
            |out| {
                out.extend_from_slice(b"{\"serverName\":");
                quote(out, name.as_bytes());
                out.push(b'}');
            },
        );
    }

    /// Appends the value of a heartbeat.
    pub fn heartbeat_value(&self, out: &mut Vec<u8>, now: UnixMicros) {
        let millis = now.0.div_euclid(1_000);
        self.wrapped(out, |schemas| &schemas.heartbeat_value, |out| push(out, format_args!(r#"{{"ts_ms":{millis}}}"#)));
    }

    fn wrapped(&self, out: &mut Vec<u8>, schema: impl FnOnce(&Schemas) -> &Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
        match &self.schemas {
            None => write(out),
            Some(schemas) => {
                out.extend_from_slice(schema(schemas));
                write(out);
                out.push(b'}');
            }
        }
    }
}

fn push(out: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    out.write_fmt(text).expect("writing to memory cannot fail");
}

fn common(name: &str, fields: impl IntoIterator<Item = (&'static str, Schema)>) -> Schema {
    Schema { name: Some(format!("io.debezium.connector.common.{name}")), ..Schema::structure(fields).version(1) }
}

pub(super) fn transaction_key_schema() -> Schema {
    common("TransactionMetadataKey", [("id", Schema::from(Shape::String))])
}

pub(super) fn transaction_value_schema() -> Schema {
    let int64 = || Schema::from(Shape::Int64);
    let text = || Schema::from(Shape::String);
    let table = Schema {
        name: Some("event.collection".to_owned()),
        ..Schema::structure([("data_collection", text()), ("event_count", int64())]).version(1)
    };
    let fields = [
        ("status", text()),
        ("id", text()),
        ("event_count", int64().optional()),
        ("data_collections", Schema::array(table.optional()).optional()),
        ("ts_ms", int64()),
    ];
    common("TransactionMetadataValue", fields)
}

pub(super) fn heartbeat_key_schema() -> Schema {
    common("ServerNameKey", [("serverName", Schema::from(Shape::String))])
}

pub(super) fn heartbeat_value_schema() -> Schema {
    common("Heartbeat", [("ts_ms", Schema::from(Shape::Int64))])
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn written(schemas: bool, write: impl FnOnce(&Messages, &mut Vec<u8>)) -> Value {
        let mut out = Vec::new();
        write(&Messages::new(schemas), &mut out);
        serde_json::from_slice(&out).expect("JSON")
    }

    #[test]
    fn boundaries_are_those_of_the_documentation() {
        let at = UnixMicros(1_486_500_577_691_123);
        let key = written(false, |messages, out| messages.transaction_key(out, 571, Lsn(53_195_832)));
        assert_eq!(key, json!({"id": "571:53195832"}));
        let begin = written(false, |messages, out| {
            messages.transaction_value(out, 571, Lsn(53_195_829), at, &Boundary::Begin);
        });
        let expected = json!({
            "status": "BEGIN",
            "id": "571:53195829",
            "ts_ms": 1_486_500_577_691_i64,
            "event_count": null,
            "data_collections": null,
        });
        assert_eq!(begin, expected);
        let tables = [("s1.a".to_owned(), 1), ("s2.a".to_owned(), 1)];
        let end = written(false, |messages, out| {
            messages.transaction_value(out, 571, Lsn(53_195_832), at, &Boundary::End { tables: &tables });
        });
        let expected = json!({
            "status": "END",
            "id": "571:53195832",
            "ts_ms": 1_486_500_577_691_i64,
            "event_count": 2,
            "data_collections": [
                {"data_collection": "s1.a", "event_count": 1},
                {"data_collection": "s2.a", "event_count": 1},
            ],
        });
        assert_eq!(end, expected);
    }

    #[test]
    fn heartbeats_name_the_source_and_the_time() {
        let key = written(false, |messages, out| messages.heartbeat_key(out, "fulfillment"));
        assert_eq!(key, json!({"serverName": "fulfillment"}));
        let value = written(false, |messages, out| messages.heartbeat_value(out, UnixMicros(1_999)));
        assert_eq!(value, json!({"ts_ms": 1}));
    }

    #[test]
    fn schemas_come_first_where_they_are_sent() {
        let value = written(true, |messages, out| messages.heartbeat_value(out, UnixMicros(1_999)));
        let schema = json!({
            "type": "struct",
            "fields": [{"type": "int64", "optional": false, "field": "ts_ms"}],
            "optional": false,
            "name": "io.debezium.connector.common.Heartbeat",
            "version": 1,
        });
        assert_eq!(value, json!({"schema": schema, "payload": {"ts_ms": 1}}));
        let end = written(true, |messages, out| {
            let boundary = Boundary::End { tables: &[] };
            messages.transaction_value(out, 1, Lsn(2), UnixMicros(3), &boundary);
        });
        assert_eq!(end["schema"]["fields"][3]["items"]["name"], "event.collection");
        assert_eq!(end["payload"]["data_collections"], json!([]));
    }
}

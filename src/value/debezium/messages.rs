//! Messages that are of no row: where transactions begin and end, and heartbeats.

use super::EncodeError;
use super::envelope::transaction_id_text;
use super::form::{Form, Payload};
use super::out::{Label, Out};
use super::schema::{Schema, Shape};
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

/// How messages are encoded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Encoding {
    /// `schemas` as in [`Options`](super::Options).
    Json { schemas: bool },
    /// The datum alone, as of [`AvroShape`](super::AvroShape).
    Avro,
}

/// One of the four messages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Message {
    TransactionKey,
    TransactionValue,
    HeartbeatKey,
    HeartbeatValue,
}

impl Message {
    fn schema(self) -> Schema {
        match self {
            Message::TransactionKey => common("TransactionMetadataKey", [("id", Schema::from(Shape::String))]),
            Message::TransactionValue => transaction_value_schema(),
            Message::HeartbeatKey => common("ServerNameKey", [("serverName", Schema::from(Shape::String))]),
            Message::HeartbeatValue => common("Heartbeat", [("ts_ms", Schema::from(Shape::Int64))]),
        }
    }
}

/// Writes the messages of a source.
pub struct Messages {
    /// By [`Message`].
    forms: [Form; 4],
    labels: Labels,
}

struct Labels {
    status: Label,
    id: Label,
    event_count: Label,
    data_collections: Label,
    data_collection: Label,
    ts_ms: Label,
    server_name: Label,
}

impl Messages {
    pub fn new(encoding: Encoding) -> Messages {
        let all = [Message::TransactionKey, Message::TransactionValue, Message::HeartbeatKey, Message::HeartbeatValue];
        let form = |message: Message| match encoding {
            Encoding::Json { schemas: true } => Form::json_with_schema(&message.schema()),
            Encoding::Json { schemas: false } => Form::Json,
            Encoding::Avro => Form::Avro,
        };
        let labels = Labels {
            status: Label::new("status"),
            id: Label::new("id"),
            event_count: Label::new("event_count"),
            data_collections: Label::new("data_collections"),
            data_collection: Label::new("data_collection"),
            ts_ms: Label::new("ts_ms"),
            server_name: Label::new("serverName"),
        };
        Messages { forms: all.map(form), labels }
    }

    /// The schema to register for a message in Avro.
    pub fn avro_schema(message: Message) -> String {
        super::avro::schema::text(&message.schema())
    }

    /// Appends the key of a boundary's message.
    pub fn transaction_key(&self, out: &mut Vec<u8>, xid: u32, lsn: Lsn) {
        self.put(out, Fields { xid, lsn, ..self.fields(Message::TransactionKey) });
    }

    /// Appends the value of a boundary's message; `lsn` is the boundary's own.
    pub fn transaction_value(&self, out: &mut Vec<u8>, xid: u32, lsn: Lsn, at: UnixMicros, boundary: &Boundary<'_>) {
        self.put(out, Fields { xid, lsn, at, boundary: *boundary, ..self.fields(Message::TransactionValue) });
    }

    /// Appends the key of a heartbeat: the source's logical name.
    pub fn heartbeat_key(&self, out: &mut Vec<u8>, name: &str) {
        self.put(out, Fields { name, ..self.fields(Message::HeartbeatKey) });
    }

    /// Appends the value of a heartbeat.
    pub fn heartbeat_value(&self, out: &mut Vec<u8>, now: UnixMicros) {
        self.put(out, Fields { at: now, ..self.fields(Message::HeartbeatValue) });
    }

    fn fields(&self, message: Message) -> Fields<'_> {
        let labels = &self.labels;
        Fields { message, labels, xid: 0, lsn: Lsn::ZERO, at: UnixMicros(0), boundary: Boundary::Begin, name: "" }
    }

    fn put(&self, out: &mut Vec<u8>, fields: Fields<'_>) {
        let put = self.forms[fields.message as usize].put(out, fields);
        put.expect("only a value of a row may have no form");
    }
}

/// What a message says; of each, only some.
struct Fields<'a> {
    message: Message,
    labels: &'a Labels,
    xid: u32,
    lsn: Lsn,
    at: UnixMicros,
    boundary: Boundary<'a>,
    name: &'a str,
}

impl Payload for Fields<'_> {
    fn write<O: Out>(self, out: &mut O) -> Result<(), EncodeError> {
        out.begin_struct();
        match self.message {
            Message::TransactionKey => self.write_id(out),
            Message::TransactionValue => self.write_boundary(out),
            Message::HeartbeatKey => {
                out.field(&self.labels.server_name);
                out.text(self.name.as_bytes());
            }
            Message::HeartbeatValue => self.write_time(out),
        }
        out.end_struct();
        Ok(())
    }
}

impl Fields<'_> {
    fn write_id<O: Out>(&self, out: &mut O) {
        out.field(&self.labels.id);
        transaction_id_text(out, self.xid, self.lsn);
    }

    fn write_time<O: Out>(&self, out: &mut O) {
        out.field(&self.labels.ts_ms);
        out.int(self.at.0.div_euclid(1_000));
    }

    fn write_boundary<O: Out>(&self, out: &mut O) {
        out.field(&self.labels.status);
        out.text(match self.boundary {
            Boundary::Begin => b"BEGIN",
            Boundary::End { .. } => b"END",
        });
        self.write_id(out);
        match self.boundary {
            Boundary::Begin => {
                out.field(&self.labels.event_count);
                out.null();
                out.field(&self.labels.data_collections);
                out.null();
            }
            Boundary::End { tables } => {
                let count: u64 = tables.iter().map(|(_, count)| count).sum();
                out.field(&self.labels.event_count);
                out.some();
                out.int(count.cast_signed());
                out.field(&self.labels.data_collections);
                out.some();
                out.begin_array(Some(tables.len()));
                for (table, count) in tables {
                    out.item();
                    out.some();
                    out.begin_struct();
                    out.field(&self.labels.data_collection);
                    out.text(table.as_bytes());
                    out.field(&self.labels.event_count);
                    out.int(count.cast_signed());
                    out.end_struct();
                }
                out.end_array();
            }
        }
        self.write_time(out);
    }
}

fn common(name: &str, fields: impl IntoIterator<Item = (&'static str, Schema)>) -> Schema {
    Schema { name: Some(format!("io.debezium.connector.common.{name}")), ..Schema::structure(fields).version(1) }
}

fn transaction_value_schema() -> Schema {
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

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn written(schemas: bool, write: impl FnOnce(&Messages, &mut Vec<u8>)) -> Value {
        let mut out = Vec::new();
        write(&Messages::new(Encoding::Json { schemas }), &mut out);
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
    fn avro_has_its_schema_beside_it() {
        let messages = Messages::new(Encoding::Avro);
        let mut out = Vec::new();
        messages.heartbeat_key(&mut out, "ab");
        assert_eq!(out, b"\x04ab");
        let schema = concat!(
            r#"{"type":"record","name":"ServerNameKey","namespace":"io.debezium.connector.common","#,
            r#""fields":[{"name":"serverName","type":"string"}],"connect.version":1,"#,
            r#""connect.name":"io.debezium.connector.common.ServerNameKey"}"#,
        );
        assert_eq!(Messages::avro_schema(Message::HeartbeatKey), schema);
        out.clear();
        let tables = [("s.a".to_owned(), 1)];
        messages.transaction_value(&mut out, 7, Lsn(8), UnixMicros(1_000), &Boundary::End { tables: &tables });
        // Text; optional: a count, and an array of one optional pair; the time.
        assert_eq!(out, b"\x06END\x067:8\x02\x02\x02\x02\x02\x06s.a\x02\x00\x02");
        assert!(Messages::avro_schema(Message::TransactionValue).contains(r#""items":["null",{"type":"record""#));
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

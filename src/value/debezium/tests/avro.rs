//! Avro: schemas as Confluent registers them, and data read back by nothing but its schema.

use std::collections::HashMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::*;

/// Reads Avro's binary encoding under a schema, without a word of the code that wrote it.
struct Reader<'a> {
    rest: &'a [u8],
    records: HashMap<String, Value>,
}

impl Reader<'_> {
    fn long(&mut self) -> i64 {
        let mut number = 0_u64;
        for place in 0.. {
            let byte = self.take(1)[0];
            number |= u64::from(byte & 0x7F) << (7 * place);
            if byte < 0x80 {
                break;
            }
        }
        (number >> 1).cast_signed() ^ -(number & 1).cast_signed()
    }

    fn take(&mut self, length: usize) -> &[u8] {
        let (head, tail) = self.rest.split_at(length);
        self.rest = tail;
        head
    }

    fn sized(&mut self) -> Vec<u8> {
        let length = usize::try_from(self.long()).expect("a length");
        self.take(length).to_vec()
    }

    fn read(&mut self, schema: &Value, namespace: &str) -> Value {
        match schema {
            Value::Array(union) => {
                let branch = usize::try_from(self.long()).expect("a branch");
                self.read(&union[branch], namespace)
            }
            Value::Object(object) => match object["type"].as_str() {
                Some("record") => {
                    let namespace = object.get("namespace").and_then(Value::as_str).unwrap_or(namespace);
                    let full_name = format!("{namespace}.{}", object["name"].as_str().expect("a name"));
                    self.records.insert(full_name, schema.clone());
                    let fields = object["fields"].as_array().expect("fields");
                    let read = |field: &Value| {
                        (field["name"].as_str().expect("a name").to_owned(), self.read(&field["type"], namespace))
                    };
                    fields.iter().map(read).collect::<serde_json::Map<_, _>>().into()
                }
                Some("array") => self.blocks(|reader| reader.read(&object["items"], namespace)).into(),
                Some("map") => {
                    let pair = |reader: &mut Self| {
                        let key = String::from_utf8(reader.sized()).expect("text");
                        (key, reader.read(&object["values"], namespace))
                    };
                    self.blocks(pair).into_iter().collect::<serde_json::Map<_, _>>().into()
                }
                _ => self.read(&object["type"], namespace),
            },
            Value::String(name) => self.named(name, namespace),
            other => panic!("{other} is no schema"),
        }
    }

    fn named(&mut self, name: &str, namespace: &str) -> Value {
        match name {
            "null" => Value::Null,
            "boolean" => json!(self.take(1)[0] == 1),
            "int" | "long" => json!(self.long()),
            "float" => json!(f32::from_le_bytes(self.take(4).try_into().expect("four bytes"))),
            "double" => json!(f64::from_le_bytes(self.take(8).try_into().expect("eight bytes"))),
            "bytes" => json!(STANDARD.encode(self.sized())),
            "string" => json!(String::from_utf8(self.sized()).expect("text")),
            name => {
                let full_name = if name.contains('.') { name.to_owned() } else { format!("{namespace}.{name}") };
                let schema = self.records.get(&full_name).unwrap_or_else(|| panic!("{full_name} is not known")).clone();
                let namespace = full_name.rsplit_once('.').map_or("", |(namespace, _)| namespace);
                self.read(&schema, namespace)
            }
        }
    }

    fn blocks<T>(&mut self, mut read: impl FnMut(&mut Self) -> T) -> Vec<T> {
        let mut all = Vec::new();
        loop {
            match self.long() {
                0 => return all,
                count => all.extend((0..count).map(|_| read(self))),
            }
        }
    }
}

fn decoded(schema: &str, bytes: &[u8]) -> Value {
    let schema: Value = serde_json::from_str(schema).expect("a schema is JSON");
    let mut reader = Reader { rest: bytes, records: HashMap::new() };
    // A record named before it is reached was defined in a branch that was not taken.
    define(&mut reader.records, &schema, "");
    let value = reader.read(&schema, "");
    assert!(reader.rest.is_empty(), "{} bytes are left", reader.rest.len());
    value
}

fn define(records: &mut HashMap<String, Value>, schema: &Value, namespace: &str) {
    match schema {
        Value::Array(union) => union.iter().for_each(|branch| define(records, branch, namespace)),
        Value::Object(object) if object["type"] == "record" => {
            let namespace = object.get("namespace").and_then(Value::as_str).unwrap_or(namespace);
            let full_name = format!("{namespace}.{}", object["name"].as_str().expect("a name"));
            assert!(records.insert(full_name.clone(), schema.clone()).is_none(), "{full_name} is defined twice");
            for field in object["fields"].as_array().expect("fields") {
                define(records, &field["type"], namespace);
            }
        }
        Value::Object(object) => {
            for inner in ["items", "values"] {
                object.get(inner).into_iter().for_each(|inner| define(records, inner, namespace));
            }
        }
        _ => {}
    }
}

fn avro(columns: &[Column], options: &Options) -> AvroShape {
    AvroShape::new(&ORIGIN, &TableName::new("public", "customers"), columns, &["id".to_owned()], options)
        .expect("a shape")
}

fn all_types() -> Vec<(Column, &'static [u8])> {
    let of = |name: &str, ty: Type, modifier, text: &'static str| (column(name, &ty, modifier, true), text.as_bytes());
    let named = |name: &str, type_name: &str, labels: &[&str], text: &'static str| {
        let column = Column {
            source: SourceType { oid: 17_000, modifier: -1, form: Form::Unknown },
            type_name: type_name.to_owned(),
            labels: labels.iter().map(|label| (*label).to_owned()).collect(),
            ..column(name, &Type::TEXT, -1, true)
        };
        (column, text.as_bytes())
    };
    vec![
        (column("id", &Type::INT4, -1, false), b"1"),
        of("si", Type::INT2, -1, "-2"),
        of("bi", Type::INT8, -1, "-9223372036854775808"),
        of("r", Type::FLOAT4, -1, "1.5"),
        of("db", Type::FLOAT8, -1, "-2.25"),
        of("b", Type::BOOL, -1, "t"),
        of("n", Type::NUMERIC, (5 << 16 | 2) + 4, "-1.28"),
        of("vs", Type::NUMERIC, -1, "10.10"),
        of("m", Type::MONEY, -1, "$1,234.11"),
        of("t", Type::TEXT, -1, "a text of more than sixty-three bytes, so that its length takes two bytes itself"),
        of("ba", Type::BYTEA, -1, "\\x010203"),
        of("bits", Type::VARBIT, 24, "101"),
        of("d", Type::DATE, -1, "2016-11-04"),
        of("ts", Type::TIMESTAMP, -1, "2016-11-04 13:51:30.123456"),
        of("tz", Type::TIMESTAMPTZ, -1, "2016-11-04 13:51:30.123456+02"),
        of("it", Type::INTERVAL, -1, "00:00:01"),
        of("p", Type::POINT, -1, "(1,2)"),
        of("p2", Type::POINT, -1, "(3,4)"),
        of("ia", Type::INT4_ARRAY, -1, "{1,NULL,3}"),
        of("ea", Type::TEXT_ARRAY, -1, "{}"),
        of("u", Type::UUID, -1, "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"),
        named("mood", "mood", &["sad", "ok"], "ok"),
        named("moods", "mood[]", &["sad", "ok"], "{ok,sad}"),
        named("h", "hstore", &[], "\"a\"=>\"1\", \"b\"=>NULL"),
    ]
}

#[test]
fn every_type_is_read_back_by_its_schema() {
    let map = Options { hstore_handling_mode: HstoreMode::Map, ..Options::default() };
    for options in [
        Options::default(),
        Options {
            decimal_handling_mode: DecimalMode::String,
            time_precision_mode: TimePrecision::Isostring,
            ..map.clone()
        },
        Options { decimal_handling_mode: DecimalMode::Double, time_precision_mode: TimePrecision::Connect, ..map },
    ] {
        let (columns, texts): (Vec<_>, Vec<_>) = all_types().into_iter().unzip();
        let cells: Vec<Cell<'_>> = texts.iter().map(|text| Cell::Text(text)).collect();
        let shape = avro(&columns, &options);
        let change = Change::Update { before: Some(Old::Full(cells.iter().copied())), after: cells.iter().copied() };
        let order = Some(Order { total: 2, in_table: 1 });
        let (mut bytes, mut json) = (Vec::new(), Vec::new());
        shape.value(&mut bytes, &change, &info(), order, NOW).expect("it has a form");
        let in_json = TableShape::new(&ORIGIN, &TableName::new("public", "customers"), &columns, &[], &options);
        in_json.expect("a shape").value(&mut json, &change, &info(), order, NOW).expect("it has a form");
        // Both formats write the same values; only this one has to say which.
        assert_eq!(decoded(shape.value_schema(), &bytes), read(&json));
        let mut key = Vec::new();
        shape.key(&mut key, cells.iter().copied()).expect("a key");
        assert_eq!(decoded(shape.key_schema().expect("a key"), &key), json!({"id": 1}));
    }
}

#[test]
fn what_is_missing_is_null_or_zero() {
    let columns: Vec<Column> =
        all_types().into_iter().map(|(column, _)| Column { nullable: false, ..column }).collect();
    let shape = avro(&columns, &Options::default());
    let mut cells = vec![Cell::Null; columns.len()];
    cells[0] = Cell::Text(b"7");
    let mut bytes = Vec::new();
    let change = Change::Delete { before: Some(Old::Key(cells.iter().copied())) };
    shape.value(&mut bytes, &change, &info(), None, NOW).expect("it has a form");
    let value = decoded(shape.value_schema(), &bytes);
    assert_eq!(value["before"]["id"], 7);
    assert_eq!(value["before"]["vs"], json!({"scale": 0, "value": "AA=="}));
    assert_eq!(value["before"]["ia"], json!([]));
    assert_eq!((&value["after"], &value["transaction"]), (&Value::Null, &Value::Null));
    let create = Change::Create { after: cells.iter().copied() };
    let result = shape.value(&mut bytes, &create, &info(), None, NOW);
    assert_eq!(result, Err(EncodeError::Value { column: "si".to_owned(), error: ValueError::Null }));
}

#[test]
fn the_schema_is_the_text_that_confluent_registers() {
    let columns = [
        column("id", &Type::INT4, -1, false),
        column("first_name", &Type::VARCHAR, 259, true),
        column("n", &Type::NUMERIC, (5 << 16 | 2) + 4, false),
        column("si", &Type::INT2, -1, true),
        column("d", &Type::DATE, -1, false),
    ];
    let options = Options { time_precision_mode: TimePrecision::Connect, ..Options::default() };
    let shape = avro(&columns, &options);
    let expected = concat!(
        r#"{"type":"record","name":"Envelope","namespace":"PostgreSQL_server.public.customers","fields":["#,
        r#"{"name":"before","type":["null",{"type":"record","name":"Value","fields":["#,
        r#"{"name":"id","type":"int"},{"name":"first_name","type":["null","string"],"default":null},"#,
        r#"{"name":"n","type":{"type":"bytes","scale":2,"precision":5,"connect.version":1,"#,
        r#""connect.parameters":{"scale":"2","connect.decimal.precision":"5"},"#,
        r#""connect.name":"org.apache.kafka.connect.data.Decimal","logicalType":"decimal"}},"#,
        r#"{"name":"si","type":["null",{"type":"int","connect.type":"int16"}],"default":null},"#,
        r#"{"name":"d","type":{"type":"int","connect.version":1,"#,
        r#""connect.name":"org.apache.kafka.connect.data.Date","logicalType":"date"}}],"#,
        r#""connect.name":"PostgreSQL_server.public.customers.Value"}],"default":null},"#,
        r#"{"name":"after","type":["null","Value"],"default":null},"#,
        r#"{"name":"source","type":{"type":"record","name":"Source","namespace":"io.debezium.connector.postgresql","#,
        r#""fields":[{"name":"version","type":"string"},{"name":"connector","type":"string"},"#,
        r#"{"name":"name","type":"string"},{"name":"ts_ms","type":"long"},"#,
        r#"{"name":"snapshot","type":[{"type":"string","connect.version":1,"connect.parameters":{"allowed":"#,
        r#""true,first,first_in_data_collection,last_in_data_collection,last,false,incremental"},"#,
        r#""connect.default":"false","connect.name":"io.debezium.data.Enum"},"null"],"default":"false"},"#,
        r#"{"name":"db","type":"string"},{"name":"sequence","type":["null","string"],"default":null},"#,
        r#"{"name":"ts_us","type":["null","long"],"default":null},{"name":"ts_ns","type":["null","long"],"default":null},"#,
        r#"{"name":"schema","type":"string"},{"name":"table","type":"string"},"#,
        r#"{"name":"txId","type":["null","long"],"default":null},{"name":"lsn","type":["null","long"],"default":null},"#,
        r#"{"name":"xmin","type":["null","long"],"default":null},{"name":"origin","type":["null","string"],"default":null},"#,
        r#"{"name":"origin_lsn","type":["null","long"],"default":null}],"connect.version":1,"#,
        r#""connect.name":"io.debezium.connector.postgresql.Source"}},"#,
        r#"{"name":"transaction","type":["null",{"type":"record","name":"block","namespace":"event","fields":["#,
        r#"{"name":"id","type":"string"},{"name":"total_order","type":"long"},"#,
        r#"{"name":"data_collection_order","type":"long"}],"connect.version":1,"connect.name":"event.block"}],"#,
        r#""default":null},{"name":"op","type":"string"},{"name":"ts_ms","type":["null","long"],"default":null},"#,
        r#"{"name":"ts_us","type":["null","long"],"default":null},{"name":"ts_ns","type":["null","long"],"default":null}],"#,
        r#""connect.version":2,"connect.name":"PostgreSQL_server.public.customers.Envelope"}"#,
    );
    assert_eq!(shape.value_schema(), expected);
    let key = concat!(
        r#"{"type":"record","name":"Key","namespace":"PostgreSQL_server.public.customers","#,
        r#""fields":[{"name":"id","type":"int"}],"connect.name":"PostgreSQL_server.public.customers.Key"}"#,
    );
    assert_eq!(shape.key_schema(), Some(key));
}

#[test]
fn names_are_such_as_avro_takes() {
    let columns = [column("Quoted_\" . Text_Column", &Type::TEXT, -1, true), column("2nd", &Type::INT4, -1, true)];
    let name = TableName::new("my schema", "t-1");
    let shape = AvroShape::new(&ORIGIN, &name, &columns, &[], &Options::default()).expect("a shape");
    let schema: Value = serde_json::from_str(shape.value_schema()).expect("JSON");
    assert_eq!(schema["namespace"], "PostgreSQL_server.my_schema.t_1");
    let row = &schema["fields"][0]["type"][1];
    assert_eq!(row["fields"][0]["name"], "Quoted_____Text_Column");
    assert_eq!(row["fields"][1]["name"], "_2nd");
    assert_eq!(shape.key_schema(), None);
    let same = [column("a b", &Type::TEXT, -1, true), column("a_b", &Type::TEXT, -1, true)];
    let result = AvroShape::new(&ORIGIN, &name, &same, &[], &Options::default()).err();
    assert_eq!(result, Some(ShapeError::SameField("a_b".to_owned())));
}

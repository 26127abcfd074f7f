//! Connect's schemas as `JsonConverter` writes them.

use super::*;

fn schemas() -> Options {
    Options { schemas: true, ..Options::default() }
}

/// The schema that a column has in its row.
fn field_of(column: Column, options: &Options) -> Value {
    let options = Options { schemas: true, ..options.clone() };
    let shape = shape_of("t", &[column], &[], &options);
    let value = value_of(&shape, &Change::Truncate);
    value["schema"]["fields"][0]["fields"][0].clone()
}

fn plain(ty: &str, field: &str) -> Value {
    json!({"type": ty, "optional": false, "field": field})
}

fn maybe(ty: &str, field: &str) -> Value {
    json!({"type": ty, "optional": true, "field": field})
}

#[test]
fn the_envelope_s_schema_is_that_of_the_documentation() {
    let columns = [
        column("id", &Type::INT4, -1, false),
        column("first_name", &Type::VARCHAR, 259, false),
        column("email", &Type::VARCHAR, 259, true),
    ];
    let shape = shape_of("customers", &columns, &["id"], &schemas());
    let cells = [Cell::Text(b"1"), Cell::Text(b"Anne"), Cell::Null];
    let value = value_of(&shape, &Change::Create { after: cells.iter().copied() });
    let row = |field: &str| {
        json!({
            "type": "struct",
            "fields": [plain("int32", "id"), plain("string", "first_name"), maybe("string", "email")],
            "optional": true,
            "name": "PostgreSQL_server.public.customers.Value",
            "field": field,
        })
    };
    let snapshot = json!({
        "type": "string",
        "optional": true,
        "name": "io.debezium.data.Enum",
        "version": 1,
        "parameters": {
            "allowed": "true,first,first_in_data_collection,last_in_data_collection,last,false,incremental",
        },
        "default": "false",
        "field": "snapshot",
    });
    let source = json!({
        "type": "struct",
        "fields": [
            plain("string", "version"), plain("string", "connector"), plain("string", "name"), plain("int64", "ts_ms"),
            snapshot, plain("string", "db"), maybe("string", "sequence"), maybe("int64", "ts_us"),
            maybe("int64", "ts_ns"), plain("string", "schema"), plain("string", "table"), maybe("int64", "txId"),
            maybe("int64", "lsn"), maybe("int64", "xmin"), maybe("string", "origin"), maybe("int64", "origin_lsn"),
        ],
        "optional": false,
        "name": "io.debezium.connector.postgresql.Source",
        "version": 1,
        "field": "source",
    });
    let transaction = json!({
        "type": "struct",
        "fields": [plain("string", "id"), plain("int64", "total_order"), plain("int64", "data_collection_order")],
        "optional": true,
        "name": "event.block",
        "version": 1,
        "field": "transaction",
    });
    let expected = json!({
        "type": "struct",
        "fields": [
            row("before"), row("after"), source, transaction, plain("string", "op"), maybe("int64", "ts_ms"),
            maybe("int64", "ts_us"), maybe("int64", "ts_ns"),
        ],
        "optional": false,
        "name": "PostgreSQL_server.public.customers.Envelope",
        "version": 2,
    });
    assert_eq!(value["schema"], expected);
    assert_eq!(value["payload"]["after"], json!({"id": 1, "first_name": "Anne", "email": null}));
}

#[test]
fn the_key_has_a_schema_of_its_own() {
    let columns = [column("id", &Type::INT4, -1, false), column("name", &Type::TEXT, -1, true)];
    let shape = shape_of("customers", &columns, &["id"], &schemas());
    let mut out = Vec::new();
    let cells = [Cell::Text(b"1"), Cell::Null];
    shape.key(&mut out, cells.iter().copied()).expect("a key");
    let schema = json!({
        "type": "struct",
        "fields": [plain("int32", "id")],
        "optional": false,
        "name": "PostgreSQL_server.public.customers.Key",
    });
    assert_eq!(read(&out), json!({"schema": schema, "payload": {"id": 1}}));
}

#[test]
fn plain_types_have_their_literal_type() {
    for (ty, expected) in [
        (Type::BOOL, "boolean"),
        (Type::INT2, "int16"),
        (Type::INT4, "int32"),
        (Type::INT8, "int64"),
        (Type::OID, "int64"),
        (Type::FLOAT4, "float"),
        (Type::FLOAT8, "double"),
        (Type::BPCHAR, "string"),
        (Type::INET, "string"),
        (Type::INT4_RANGE, "string"),
        (Type::BYTEA, "bytes"),
    ] {
        assert_eq!(field_of(column("v", &ty, -1, true), &Options::default()), maybe(expected, "v"), "{ty}");
    }
    assert_eq!(field_of(column("v", &Type::BIT, 1, false), &Options::default()), plain("boolean", "v"));
    let hex = Options { binary_handling_mode: BinaryMode::Hex, ..Options::default() };
    assert_eq!(field_of(column("v", &Type::BYTEA, -1, true), &hex), maybe("string", "v"));
}

#[test]
fn semantic_types_have_their_names() {
    use TimePrecision::{Adaptive, Connect, Isostring, Microseconds, Nanoseconds};
    for (ty, modifier, mode, literal, name) in [
        (Type::JSONB, -1, Adaptive, "string", "io.debezium.data.Json"),
        (Type::XML, -1, Adaptive, "string", "io.debezium.data.Xml"),
        (Type::UUID, -1, Adaptive, "string", "io.debezium.data.Uuid"),
        (Type::TS_VECTOR, -1, Adaptive, "string", "io.debezium.data.Tsvector"),
        (Type::TIMETZ, -1, Connect, "string", "io.debezium.time.ZonedTime"),
        (Type::TIMESTAMPTZ, -1, Nanoseconds, "string", "io.debezium.time.ZonedTimestamp"),
        (Type::INTERVAL, -1, Adaptive, "int64", "io.debezium.time.MicroDuration"),
        (Type::DATE, -1, Adaptive, "int32", "io.debezium.time.Date"),
        (Type::DATE, -1, Connect, "int32", "org.apache.kafka.connect.data.Date"),
        (Type::DATE, -1, Isostring, "string", "io.debezium.time.IsoDate"),
        (Type::TIME, 3, Adaptive, "int32", "io.debezium.time.Time"),
        (Type::TIME, -1, Adaptive, "int64", "io.debezium.time.MicroTime"),
        (Type::TIME, 3, TimePrecision::AdaptiveTimeMicroseconds, "int64", "io.debezium.time.MicroTime"),
        (Type::TIME, -1, Nanoseconds, "int64", "io.debezium.time.NanoTime"),
        (Type::TIME, -1, Connect, "int32", "org.apache.kafka.connect.data.Time"),
        (Type::TIME, -1, Isostring, "string", "io.debezium.time.IsoTime"),
        (Type::TIMESTAMP, 3, Adaptive, "int64", "io.debezium.time.Timestamp"),
        (Type::TIMESTAMP, -1, Adaptive, "int64", "io.debezium.time.MicroTimestamp"),
        (Type::TIMESTAMP, 3, Microseconds, "int64", "io.debezium.time.MicroTimestamp"),
        (Type::TIMESTAMP, 3, Nanoseconds, "int64", "io.debezium.time.NanoTimestamp"),
        (Type::TIMESTAMP, 3, Connect, "int64", "org.apache.kafka.connect.data.Timestamp"),
        (Type::TIMESTAMP, 3, Isostring, "string", "io.debezium.time.IsoTimestamp"),
    ] {
        let options = Options { time_precision_mode: mode, ..Options::default() };
        let expected = json!({"type": literal, "optional": true, "name": name, "version": 1, "field": "v"});
        assert_eq!(field_of(column("v", &ty, modifier, true), &options), expected, "{ty} {mode:?}");
    }
    let string = Options { interval_handling_mode: IntervalMode::String, ..Options::default() };
    assert_eq!(field_of(column("v", &Type::INTERVAL, -1, true), &string)["name"], "io.debezium.time.Interval");
}

#[test]
fn decimals_say_scale_and_precision() {
    let of = |ty: &Type, modifier| field_of(column("v", ty, modifier, true), &Options::default());
    let decimal = |parameters: Value| {
        json!({
            "type": "bytes",
            "optional": true,
            "name": "org.apache.kafka.connect.data.Decimal",
            "version": 1,
            "parameters": parameters,
            "field": "v",
        })
    };
    let fixed = decimal(json!({"scale": "2", "connect.decimal.precision": "3"}));
    assert_eq!(of(&Type::NUMERIC, (3 << 16 | 2) + 4), fixed);
    // numeric(3,-2): two more digits before the point.
    let rounded = decimal(json!({"scale": "0", "connect.decimal.precision": "5"}));
    assert_eq!(of(&Type::NUMERIC, (3 << 16 | (-2 & 0x7FF)) + 4), rounded);
    assert_eq!(of(&Type::MONEY, -1), decimal(json!({"scale": "2"})));
    let variable = json!({
        "type": "struct",
        "fields": [plain("int32", "scale"), plain("bytes", "value")],
        "optional": true,
        "name": "io.debezium.data.VariableScaleDecimal",
        "version": 1,
        "doc": "Variable scaled decimal",
        "field": "v",
    });
    assert_eq!(of(&Type::NUMERIC, -1), variable);
    let double = Options { decimal_handling_mode: DecimalMode::Double, ..Options::default() };
    assert_eq!(field_of(column("v", &Type::NUMERIC, -1, true), &double), maybe("double", "v"));
}

#[test]
fn composed_types_say_what_they_are_made_of() {
    let default = Options::default();
    let bits = json!({
        "type": "bytes",
        "optional": true,
        "name": "io.debezium.data.Bits",
        "version": 1,
        "parameters": {"length": "2147483647"},
        "field": "v",
    });
    assert_eq!(field_of(column("v", &Type::VARBIT, -1, true), &default), bits);
    let ints = json!({"type": "array", "items": {"type": "int32", "optional": true}, "optional": true, "field": "v"});
    assert_eq!(field_of(column("v", &Type::INT4_ARRAY, -1, true), &default), ints);
    let point = field_of(column("v", &Type::POINT, -1, false), &default);
    assert_eq!(point["name"], "io.debezium.data.geometry.Point");
    assert_eq!(
        point["fields"],
        json!([plain("double", "x"), plain("double", "y"), maybe("bytes", "wkb"), maybe("int32", "srid")])
    );
    let mood = |type_name: &str, form| Column {
        source: SourceType { oid: 17_000, modifier: -1, form },
        type_name: type_name.to_owned(),
        labels: vec!["sad".to_owned(), "ok".to_owned()],
        ..column("v", &Type::TEXT, -1, true)
    };
    let label = |field: &str, optional: bool| {
        let mut schema = json!({
            "type": "string",
            "optional": optional,
            "name": "io.debezium.data.Enum",
            "version": 1,
            "parameters": {"allowed": "sad,ok"},
        });
        if !field.is_empty() {
            schema["field"] = field.into();
        }
        schema
    };
    assert_eq!(field_of(mood("mood", Form::Enum), &default), label("v", true));
    let moods = field_of(mood("mood[]", Form::Unknown), &default);
    assert_eq!(moods["items"], label("", false));
    let map = Options { hstore_handling_mode: HstoreMode::Map, ..default };
    let hstore = Column { labels: Vec::new(), ..mood("hstore", Form::Unknown) };
    let expected = json!({
        "type": "map",
        "keys": {"type": "string", "optional": false},
        "values": {"type": "string", "optional": true},
        "optional": true,
        "field": "v",
    });
    assert_eq!(field_of(hstore, &map), expected);
}

#[test]
fn schema_names_are_whole_and_the_envelope_s_is_its_topic_s() {
    let name = TableName::new("Quoted_\" . Schema", "Quoted_\" . Table");
    let shape = TableShape::new(&ORIGIN, &name, &[column("id", &Type::INT4, -1, false)], &[], &schemas());
    let value = value_of(&shape.expect("a shape"), &Change::Truncate);
    assert_eq!(value["schema"]["name"], "PostgreSQL_server.Quoted___._Schema.Quoted___._Table.Envelope");
    let row = "PostgreSQL_server.Quoted_\" . Schema.Quoted_\" . Table.Value";
    assert_eq!(value["schema"]["fields"][0]["name"], row);
}

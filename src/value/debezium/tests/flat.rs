//! Rows without an envelope, as `ExtractNewRecordState` makes them.

use super::*;

fn shape(options: &Options, flat: &FlatOptions) -> FlatShape {
    let columns = [column("id", &Type::INT4, -1, false), column("name", &Type::TEXT, -1, true)];
    FlatShape::new(&ORIGIN, &TableName::new("public", "t"), &columns, &["id".to_owned()], options, flat)
        .expect("a shape")
}

fn adding(handling: DeleteHandling, fields: &[&str]) -> FlatOptions {
    FlatOptions {
        delete_tombstone_handling_mode: handling,
        add_fields: fields.iter().map(|field| (*field).to_owned()).collect(),
        ..FlatOptions::default()
    }
}

const ROW: [Cell<'_>; 2] = [Cell::Text(b"1"), Cell::Text(b"Anne")];
const KEY: [Cell<'_>; 2] = [Cell::Text(b"1"), Cell::Null];

fn deleted() -> Change<Row<'static>> {
    Change::Delete { before: Some(Old::Key(KEY.iter().copied())) }
}

fn sent(shape: &FlatShape, change: &Change<Row<'_>>) -> (Flat, Value) {
    let mut out = Vec::new();
    let order = Some(Order { total: 2, in_table: 1 });
    let sent = shape.value(&mut out, change, &info(), order, NOW).expect("it has a form");
    (sent, if out.is_empty() { Value::Null } else { read(&out) })
}

#[test]
fn the_row_is_the_message() {
    let shape = shape(&Options::default(), &FlatOptions::default());
    let create = Change::Create { after: ROW.iter().copied() };
    assert_eq!(sent(&shape, &create), (Flat::Value, json!({"id": 1, "name": "Anne"})));
    assert_eq!(sent(&shape, &deleted()), (Flat::Tombstone, Value::Null));
    assert_eq!(sent(&shape, &Change::Truncate), (Flat::Nothing, Value::Null));
    assert_eq!(sent(&shape, &Change::Delete { before: None }), (Flat::Nothing, Value::Null));
    let mut key = Vec::new();
    shape.key(&mut key, ROW.iter().copied()).expect("a key");
    assert_eq!(key, br#"{"id":1}"#);
}

#[test]
fn a_delete_is_what_the_mode_says() {
    let after = Change::Update { before: None, after: ROW.iter().copied() };
    for (handling, on_delete, on_update) in [
        (DeleteHandling::Drop, (Flat::Nothing, Value::Null), json!({"id": 1, "name": "Anne"})),
        (DeleteHandling::DeleteToTombstone, (Flat::Tombstone, Value::Null), json!({"id": 1, "name": "Anne"})),
        (
            DeleteHandling::Rewrite,
            (Flat::Value, json!({"id": 1, "name": null, "__deleted": "true"})),
            json!({"id": 1, "name": "Anne", "__deleted": "false"}),
        ),
        (
            DeleteHandling::RewriteWithTombstone,
            (Flat::ValueThenTombstone, json!({"id": 1, "name": null, "__deleted": "true"})),
            json!({"id": 1, "name": "Anne", "__deleted": "false"}),
        ),
    ] {
        let shape = shape(&Options::default(), &adding(handling, &[]));
        assert_eq!(sent(&shape, &deleted()), on_delete, "{handling:?}");
        assert_eq!(sent(&shape, &after), (Flat::Value, on_update), "{handling:?}");
    }
}

#[test]
fn added_fields_are_named_after_their_place() {
    let fields = [
        "op",
        "table",
        "schema",
        "db",
        "lsn",
        "source.ts_ms",
        "source.ts_ns",
        "ts_ms",
        "txId",
        "snapshot",
        "sequence",
        "transaction.id",
        "total_order",
    ];
    let shape = shape(&Options::default(), &adding(DeleteHandling::Rewrite, &fields));
    let expected = json!({
        "id": 1,
        "name": "Anne",
        "__deleted": "false",
        "__op": "c",
        "__table": "t",
        "__schema": "public",
        "__db": "postgres",
        "__lsn": 24_023_128,
        "__source_ts_ms": 1_559_033_904_863_i64,
        "__source_ts_ns": 1_559_033_904_863_123_000_i64,
        "__ts_ms": 1_559_033_904_863_i64,
        "__txId": 555,
        "__snapshot": "false",
        "__sequence": "[\"24023119\",\"24023128\"]",
        "__transaction_id": "555:24023128",
        "__total_order": 2,
    });
    assert_eq!(sent(&shape, &Change::Create { after: ROW.iter().copied() }), (Flat::Value, expected));
    let unknown = adding(DeleteHandling::Drop, &["source.nope"]);
    let result = FlatShape::new(&ORIGIN, &TableName::new("s", "t"), &[], &[], &Options::default(), &unknown).err();
    assert_eq!(result, Some(ShapeError::NoField("source.nope".to_owned())));
}

#[test]
fn the_schema_has_the_added_fields_too() {
    let options = Options { schemas: true, ..Options::default() };
    let shape = shape(&options, &adding(DeleteHandling::Rewrite, &["op", "lsn"]));
    let (_, value) = sent(&shape, &Change::Create { after: ROW.iter().copied() });
    let fields = json!([
        {"type": "int32", "optional": false, "field": "id"},
        {"type": "string", "optional": true, "field": "name"},
        {"type": "string", "optional": true, "field": "__deleted"},
        {"type": "string", "optional": true, "field": "__op"},
        {"type": "int64", "optional": true, "field": "__lsn"},
    ]);
    assert_eq!(value["schema"]["fields"], fields);
    assert_eq!(value["schema"]["name"], "PostgreSQL_server.public.t.Value");
    let payload = json!({"id": 1, "name": "Anne", "__deleted": "false", "__op": "c", "__lsn": 24_023_128});
    assert_eq!(value["payload"], payload);
}

#[test]
fn the_modes_have_debezium_s_names() {
    for mode in ["drop", "tombstone", "rewrite", "rewrite-with-tombstone", "delete-to-tombstone"] {
        let text = format!(r#"{{"delete_tombstone_handling_mode":"{mode}","add_fields":["op"]}}"#);
        assert!(serde_json::from_str::<FlatOptions>(&text).is_ok(), "{mode}");
    }
}

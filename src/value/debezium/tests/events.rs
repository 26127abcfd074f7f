//! The documentation's table `customers` and its events.

use super::*;

fn customers(options: &Options) -> TableShape {
    let columns = [
        column("id", &Type::INT4, -1, false),
        column("first_name", &Type::VARCHAR, 259, false),
        column("last_name", &Type::VARCHAR, 259, false),
        column("email", &Type::VARCHAR, 259, false),
    ];
    shape_of("customers", &columns, &["id"], options)
}

const ANNE: [Cell<'_>; 4] =
    [Cell::Text(b"1"), Cell::Text(b"Anne"), Cell::Text(b"Kretchmar"), Cell::Text(b"annek@noanswer.org")];
const ANNE_MARIE: [Cell<'_>; 4] = [
    Cell::Binary(&[0, 0, 0, 1]),
    Cell::Binary(b"Anne Marie"),
    Cell::Binary(b"Kretchmar"),
    Cell::Binary(b"annek@noanswer.org"),
];
const KEY: [Cell<'_>; 4] = [Cell::Text(b"1"), Cell::Null, Cell::Null, Cell::Null];

fn row<'a>(cells: &'a [Cell<'a>]) -> Row<'a> {
    cells.iter().copied()
}

fn source() -> Value {
    json!({
        "version": "3.6.0",
        "connector": "postgresql",
        "name": "PostgreSQL_server",
        "ts_ms": 1_559_033_904_863_i64,
        "snapshot": "false",
        "db": "postgres",
        "sequence": "[\"24023119\",\"24023128\"]",
        "ts_us": 1_559_033_904_863_123_i64,
        "ts_ns": 1_559_033_904_863_123_000_i64,
        "schema": "public",
        "table": "customers",
        "txId": 555,
        "lsn": 24_023_128,
        "xmin": null,
        "origin": null,
        "origin_lsn": null,
    })
}

fn event(op: &str, before: Value, after: Value) -> Value {
    json!({
        "before": before,
        "after": after,
        "source": source(),
        "transaction": null,
        "op": op,
        "ts_ms": 1_559_033_904_863_i64,
        "ts_us": 1_559_033_904_863_841_i64,
        "ts_ns": 1_559_033_904_863_841_000_i64,
    })
}

#[test]
fn a_create_has_the_row_after() {
    let anne = json!({"id": 1, "first_name": "Anne", "last_name": "Kretchmar", "email": "annek@noanswer.org"});
    let shape = customers(&Options::default());
    assert_eq!(value_of(&shape, &Change::Create { after: row(&ANNE) }), event("c", Value::Null, anne.clone()));
    assert_eq!(value_of(&shape, &Change::Read { after: row(&ANNE) }), event("r", Value::Null, anne));
}

#[test]
fn fields_stand_in_debezium_s_order() {
    let mut out = Vec::new();
    let change = Change::Create { after: row(&ANNE) };
    customers(&Options::default()).value(&mut out, &change, &info(), None, NOW).expect("it has a form");
    let expected = concat!(
        r#"{"before":null,"after":{"id":1,"first_name":"Anne","last_name":"Kretchmar","email":"annek@noanswer.org"},"#,
        r#""source":{"version":"3.6.0","connector":"postgresql","name":"PostgreSQL_server","ts_ms":1559033904863,"#,
        r#""snapshot":"false","db":"postgres","sequence":"[\"24023119\",\"24023128\"]","ts_us":1559033904863123,"#,
        r#""ts_ns":1559033904863123000,"schema":"public","table":"customers","txId":555,"lsn":24023128,"xmin":null,"#,
        r#""origin":null,"origin_lsn":null},"transaction":null,"op":"c","ts_ms":1559033904863,"#,
        r#""ts_us":1559033904863841,"ts_ns":1559033904863841000}"#,
    );
    assert_eq!(String::from_utf8(out).expect("UTF-8"), expected);
}

#[test]
fn an_update_has_the_old_row_only_if_it_was_sent() {
    let anne = json!({"id": 1, "first_name": "Anne", "last_name": "Kretchmar", "email": "annek@noanswer.org"});
    let anne_marie =
        json!({"id": 1, "first_name": "Anne Marie", "last_name": "Kretchmar", "email": "annek@noanswer.org"});
    let shape = customers(&Options::default());
    let change = Change::Update { before: None, after: row(&ANNE_MARIE) };
    assert_eq!(value_of(&shape, &change), event("u", Value::Null, anne_marie.clone()));
    let change = Change::Update { before: Some(Old::Full(row(&ANNE))), after: row(&ANNE_MARIE) };
    assert_eq!(value_of(&shape, &change), event("u", anne, anne_marie));
}

#[test]
fn a_delete_by_key_has_zeros_where_null_has_no_place() {
    let shape = customers(&Options::default());
    let before = json!({"id": 1, "first_name": "", "last_name": "", "email": ""});
    let change = Change::Delete { before: Some(Old::Key(row(&KEY))) };
    assert_eq!(value_of(&shape, &change), event("d", before, Value::Null));
    assert_eq!(value_of(&shape, &Change::Truncate), event("t", Value::Null, Value::Null));
}

#[test]
fn a_new_key_is_told_and_both_keys_have_their_bytes() {
    let shape = customers(&Options::default());
    let other: [Cell<'_>; 4] = [Cell::Text(b"2"), ANNE[1], ANNE[2], ANNE[3]];
    assert!(shape.key_changes(&Old::Key(row(&KEY)), row(&other)));
    assert!(shape.key_changes(&Old::Full(row(&ANNE)), row(&other)));
    assert!(!shape.key_changes(&Old::Key(row(&KEY)), row(&ANNE)));
    let not_of_the_identity = [Cell::Null, ANNE[1], Cell::Null, Cell::Null];
    assert!(!shape.key_changes(&Old::Key(row(&not_of_the_identity)), row(&other)));
    let mut key = Vec::new();
    shape.key(&mut key, row(&other)).expect("a key");
    assert_eq!(key, br#"{"id":2}"#);
}

#[test]
fn a_transaction_is_told_by_its_id_and_orders() {
    let mut out = Vec::new();
    let order = Some(Order { total: 7, in_table: 3 });
    let change = Change::Create { after: row(&ANNE) };
    customers(&Options::default()).value(&mut out, &change, &info(), order, NOW).expect("it has a form");
    let expected = json!({"id": "555:24023128", "total_order": 7, "data_collection_order": 3});
    assert_eq!(read(&out)["transaction"], expected);
}

#[test]
fn a_copied_row_says_where_in_the_copy_it_stands() {
    let mut out = Vec::new();
    let shape = customers(&Options::default());
    let copied = SourceInfo { snapshot: Snapshot::FirstInDataCollection, last_commit_lsn: None, xid: None, ..info() };
    shape.value(&mut out, &Change::Read { after: row(&ANNE) }, &copied, None, NOW).expect("it has a form");
    let source = &read(&out)["source"];
    assert_eq!(source["snapshot"], "first_in_data_collection");
    assert_eq!(source["sequence"], "[null,\"24023128\"]");
    assert_eq!(source["txId"], Value::Null);
}

#[test]
fn names_are_escaped_and_excluded_columns_left_out() {
    let mut hidden = column("secret", &Type::TEXT, -1, false);
    hidden.excluded = true;
    let columns = [column("Quoted_\" . Text_Column", &Type::TEXT, -1, true), hidden];
    let shape = shape_of("t", &columns, &["secret"], &Options::default());
    let cells = [Cell::Text(b"some text"), Cell::Text(b"s")];
    let value = value_of(&shape, &Change::Create { after: row(&cells) });
    assert_eq!(value["after"], json!({"Quoted_\" . Text_Column": "some text"}));
    let mut key = Vec::new();
    shape.key(&mut key, row(&cells)).expect("a key");
    assert_eq!(key, br#"{"secret":"s"}"#, "a key column is always in the key");
}

#[test]
fn a_key_has_its_own_order_and_may_be_missing() {
    let columns = [column("a", &Type::INT4, -1, false), column("b", &Type::INT8, -1, false)];
    let cells = [Cell::Text(b"1"), Cell::Text(b"2")];
    let mut key = Vec::new();
    shape_of("t", &columns, &["b", "a"], &Options::default()).key(&mut key, row(&cells)).expect("a key");
    assert_eq!(key, br#"{"b":2,"a":1}"#);
    let without = shape_of("t", &columns, &[], &Options::default());
    key.clear();
    without.key(&mut key, row(&cells)).expect("no key");
    assert!(key.is_empty() && !without.has_key());
}

#[test]
fn a_row_that_does_not_fit_leaves_nothing_behind() {
    let shape = customers(&Options::default());
    let mut out = b"before".to_vec();
    for cells in [&ANNE[..3], &[ANNE[0]; 5]] {
        let result = shape.value(&mut out, &Change::Create { after: row(cells) }, &info(), None, NOW);
        assert_eq!(result, Err(EncodeError::Layout));
    }
    let wrong: [Cell<'_>; 4] = [Cell::Text(b"x"), ANNE[1], ANNE[2], ANNE[3]];
    let result = shape.value(&mut out, &Change::Create { after: row(&wrong) }, &info(), None, NOW);
    let error = EncodeError::Value { column: "id".to_owned(), error: ValueError::Malformed };
    assert_eq!(result, Err(error.clone()));
    assert_eq!(shape.key(&mut out, row(&wrong)), Err(error));
    assert_eq!(out, b"before");
}

#[test]
fn null_stays_null_although_the_column_was_not_nullable() {
    let shape = customers(&Options::default());
    let cells: [Cell<'_>; 4] = [ANNE[0], Cell::Null, ANNE[2], ANNE[3]];
    assert_eq!(value_of(&shape, &Change::Create { after: row(&cells) })["after"]["first_name"], Value::Null);
    let strict = customers(&Options { schemas: true, ..Options::default() });
    let result = strict.value(&mut Vec::new(), &Change::Create { after: row(&cells) }, &info(), None, NOW);
    assert_eq!(result, Err(EncodeError::Value { column: "first_name".to_owned(), error: ValueError::Null }));
}

#[test]
fn keys_of_no_column_or_no_type_have_no_shape() {
    let columns = [column("q", &Type::TSQUERY, -1, false)];
    let shape = |key: &str| {
        TableShape::new(&ORIGIN, &TableName::new("s", "t"), &columns, &[key.to_owned()], &Options::default()).err()
    };
    assert_eq!(shape("p"), Some(ShapeError::NoColumn("p".to_owned())));
    assert_eq!(shape("q"), Some(ShapeError::KeyType("q".to_owned())));
}

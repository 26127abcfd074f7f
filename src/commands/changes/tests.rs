//! Changes as they are printed.

use serde_json::{Value, json};

use super::*;
use crate::checkpoint::UnixMicros;
use crate::frame::Boundary;
use crate::journal::Block;

/// `public.t (id int4 in the identity, body text)` of OID 7.
const RELATION: &[u8] =
    b"R\0\0\0\x07public\0t\0d\0\x02\x01id\0\0\0\0\x17\xff\xff\xff\xff\0body\0\0\0\0\x19\xff\xff\xff\xff";
const INSERT: &[u8] = b"I\0\0\0\x07N\0\x02b\0\0\0\x04\0\0\0\x05t\0\0\0\x02a\"";
const MOVE: &[u8] = b"U\0\0\0\x07K\0\x02b\0\0\0\x04\0\0\0\x05nN\0\x02b\0\0\0\x04\0\0\0\x06u";
const DELETE: &[u8] = b"D\0\0\0\x07K\0\x02b\0\0\0\x04\0\0\0\x06n";
const TRUNCATE: &[u8] = b"T\0\0\0\x01\0\0\0\0\x07";

fn begin(lsn: u64) -> Vec<u8> {
    [b"B".as_slice(), &lsn.to_be_bytes(), &[0; 8], &[0, 0, 0, 9]].concat()
}

fn commit(lsn: u64) -> Vec<u8> {
    [b"C\0".as_slice(), &lsn.to_be_bytes(), &(lsn + 8).to_be_bytes(), &[0; 8]].concat()
}

fn block(messages: &[&[u8]]) -> Item {
    let mut bytes = Vec::new();
    messages.iter().for_each(|message| frame::write_message(&mut bytes, message));
    let boundary = Boundary::new(Lsn(1));
    let (start, end) = (boundary, boundary);
    Item::Block(Block { bytes: bytes.into(), start, end, has_relation: false, received_at: UnixMicros(0) })
}

fn everything() -> Range {
    Range { from: Lsn::ZERO, to: Lsn(u64::MAX), tables: None }
}

fn walked(range: Range, items: &[Item], line: impl Fn(&Seen<'_>) -> String) -> Vec<String> {
    let mut walk = Walk::new(range);
    let mut lines = Vec::new();
    items.iter().for_each(|item| walk.take(item, |seen| lines.push(line(seen))).expect("well formed"));
    lines
}

fn one_of_each() -> Item {
    block(&[&begin(100), RELATION, INSERT, MOVE, DELETE, TRUNCATE, &commit(100)])
}

#[test]
fn people_see_position_kind_table_and_key() {
    let lines = walked(everything(), &[one_of_each()], |seen| seen.human());
    assert_eq!(
        lines,
        [
            "0/64 insert   public.t id=5",
            "0/64 update   public.t id=6",
            "0/64 delete   public.t id=6",
            "0/64 truncate public.t",
        ]
    );
}

#[test]
fn scripts_see_everything() {
    let lines: Vec<Value> = walked(everything(), &[one_of_each()], |seen| seen.json())
        .iter()
        .map(|line| serde_json::from_str(line).expect("one object a line"))
        .collect();
    let common = |ordinal: u64, op: &str| {
        json!({ "lsn": "0/64", "commit_ts": "2000-01-01T00:00:00Z", "xid": 9, "ordinal": ordinal, "op": op,
                "schema": "public", "table": "t", "key": null, "old": null, "new": null })
    };
    let expected = |ordinal: u64, op: &str, parts: Value| {
        let mut line = common(ordinal, op);
        for (name, value) in parts.as_object().expect("parts") {
            line[name] = value.clone();
        }
        line
    };
    assert_eq!(
        lines,
        [
            expected(1, "insert", json!({ "key": { "id": 5 }, "new": { "id": 5, "body": "a\"" } })),
            expected(
                2,
                "update",
                json!({ "key": { "id": 5 }, "old": { "id": 5 }, "new": { "id": 6, "body": { "unchanged": true } } })
            ),
            expected(3, "delete", json!({ "key": { "id": 6 }, "old": { "id": 6 } })),
            expected(4, "truncate", json!({})),
        ]
    );
}

#[test]
fn a_transaction_that_comes_again_is_shown_once() {
    let items = [
        block(&[RELATION, &begin(100), INSERT]),
        Item::Restarted,
        block(&[&begin(100), RELATION, INSERT, DELETE, &commit(100), &begin(200), INSERT, &commit(200)]),
    ];
    let ops = walked(everything(), &items, |seen| format!("{} {}", seen.begin.commit_lsn, seen.op()));
    assert_eq!(ops, ["0/64 insert", "0/64 delete", "0/C8 insert"]);
}

#[test]
fn range_and_tables_bound_what_is_shown() {
    let transactions: Vec<Vec<u8>> = [100, 200, 300].into_iter().map(begin).collect();
    let item = block(&[
        RELATION,
        &transactions[0],
        INSERT,
        &commit(100),
        &transactions[1],
        INSERT,
        &commit(200),
        &transactions[2],
        INSERT,
        &commit(300),
    ]);
    let shown = |range: Range| walked(range, std::slice::from_ref(&item), |seen| seen.begin.commit_lsn.0.to_string());
    assert_eq!(shown(Range { from: Lsn(200), to: Lsn(300), ..everything() }), ["200"]);
    let other = TableName::new("public", "other");
    assert!(shown(Range { tables: Some(vec![other]), ..everything() }).is_empty());
}

#[test]
fn changes_are_counted_by_table_and_kind() {
    let mut tally = Tally::default();
    let mut walk = Walk::new(everything());
    walk.take(&one_of_each(), |seen| tally.add(seen)).expect("well formed");
    assert_eq!(tally.tables[&TableName::new("public", "t")], [1, 1, 1, 1]);
    assert_eq!(tally.transactions, 1);
}

#[test]
fn nonsense_is_an_error() {
    let mut walk = Walk::new(everything());
    assert!(walk.take(&block(&[INSERT]), |_| {}).is_err());
}

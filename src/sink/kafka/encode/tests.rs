//! What is sent of each change, message by message.

use serde_json::{Value, json};

use super::*;
use crate::catalog::TableName;
use crate::mapping::kafka::Skipped;
use crate::mapping::plan::{Input, Mode, TopicOptions};
use crate::mapping::sample;
use crate::value::clickhouse::types::SourceType;
use crate::value::debezium::{Column, Options};

fn plan(skipped: Skipped, format: TopicFormat) -> Plan {
    let types = [("id", 23), ("body", 25)];
    let input = |(name, oid): (&str, u32)| Input {
        toastable: oid == 25,
        source_type: Some(SourceType::built_in(oid, -1)),
        ..sample::input(name, "text", oid)
    };
    let column = |(name, oid): (&str, u32)| Column {
        name: name.to_owned(),
        source: SourceType::built_in(oid, -1),
        type_name: if oid == 25 { "text" } else { "int4" }.to_owned(),
        labels: Vec::new(),
        nullable: oid == 25,
        excluded: false,
    };
    let topic = Topic {
        name: "fulfillment.public.orders".to_owned(),
        prefix: "fulfillment".to_owned(),
        format,
        options: TopicOptions { tombstones: true, skipped, values: Options::default() },
        partitions: 5,
        ..sample::topic(&types.map(column))
    };
    Plan {
        source: "fulfillment".to_owned(),
        from: TableName::new("public", "orders"),
        target: TableName::new("fulfillment.public", "orders"),
        mode: Mode::Append,
        source_columns: types.map(|(name, _)| name.to_owned()).to_vec(),
        topic: Some(topic),
        ..sample::plan(types.map(input).to_vec())
    }
}

/// A message as its reader has it: key, operation or tombstone, place in the transaction, headers beyond the usual.
type Seen = (Option<Value>, String, Option<[u64; 2]>, Vec<(String, Value)>);

fn seen(message: &Message<'_>) -> Seen {
    let json = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).expect("JSON");
    let value = message.value.map(json);
    let op = match &value {
        None => "tombstone",
        Some(value) => value["op"].as_str().unwrap_or("row"),
    };
    let order = value.as_ref().map(|value| &value["transaction"]).filter(|block| !block.is_null());
    let order =
        order.map(|block| ["total_order", "data_collection_order"].map(|name| block[name].as_u64().unwrap_or(0)));
    let [Some((LSN_HEADER, b"0/1F4")), Some((ORDINAL_HEADER, b"9")), other] = message.headers else {
        panic!("{:?}", message.headers)
    };
    let other = other.map(|(name, value)| (name.to_owned(), json(value)));
    (message.key.map(json), op.to_owned(), order, other.into_iter().collect())
}

fn sent(plan: &Plan, images: Images<'_, '_>) -> (u64, Vec<Seen>) {
    let mut messages = Messages::new(plan, "postgres", None).expect("a shape");
    let begin = Begin { commit_lsn: Lsn(500), commit_ts: UnixMicros(7), xid: 571 };
    let order = Some(Order { total: 4, in_table: 2 });
    let at = At { begin: &begin, last_commit: Lsn(400), lsn: Lsn(450), ordinal: 9, order, now: UnixMicros(8) };
    let sent = messages.change(images, &at).expect("it has a form");
    let (events, messages): (_, Vec<Message<'_>>) = (sent.events(), messages.messages(sent, at.now).collect());
    assert!(messages.iter().all(|message| match message.key {
        Some(key) => message.partition == partition_of(key, 5),
        None => message.partition == 0,
    }));
    (events, messages.iter().map(seen).collect())
}

const OLD: [Cell<'_>; 2] = [Cell::Text(b"1"), Cell::Null];
const NEW: [Cell<'_>; 2] = [Cell::Text(b"2"), Cell::Text(b"b")];
const FIRST: Option<[u64; 2]> = Some([4, 2]);
const SECOND: Option<[u64; 2]> = Some([5, 3]);

fn of(key: u64, op: &str, order: Option<[u64; 2]>, header: &[(&str, u64)]) -> Seen {
    let header = header.iter().map(|(name, key)| ((*name).to_owned(), json!({ "id": key })));
    (Some(json!({ "id": key })), op.to_owned(), order, header.collect())
}

fn moved() -> Images<'static, 'static> {
    Images::Update(Some(Old::Key(&OLD)), &NEW)
}

#[test]
fn a_key_change_is_a_delete_a_tombstone_and_a_create() {
    let expected = vec![
        of(1, "d", FIRST, &[(NEW_KEY_HEADER, 2)]),
        of(1, "tombstone", None, &[]),
        of(2, "c", SECOND, &[(OLD_KEY_HEADER, 1)]),
    ];
    assert_eq!(sent(&plan(Skipped::NONE, TopicFormat::DebeziumJson), moved()), (2, expected));
}

#[test]
fn what_is_skipped_has_no_message_and_no_place() {
    let of_moved = |skipped: Skipped| sent(&plan(skipped, TopicFormat::DebeziumJson), moved());
    let deletes = Skipped { deletes: true, ..Skipped::NONE };
    assert_eq!(of_moved(deletes), (1, vec![of(2, "c", FIRST, &[(OLD_KEY_HEADER, 1)])]), "the create moves up");
    let creates = Skipped { creates: true, ..Skipped::NONE };
    let kept = vec![of(1, "d", FIRST, &[(NEW_KEY_HEADER, 2)]), of(1, "tombstone", None, &[])];
    assert_eq!(of_moved(creates), (1, kept));
    let updates = Skipped { updates: true, ..Skipped::NONE };
    assert_eq!(of_moved(updates).0, 2, "Debezium takes a key change for the two that it becomes");

    let all = Skipped { creates: true, updates: true, deletes: true, truncates: true };
    for images in [Images::Insert(&NEW), Images::Update(None, &NEW), Images::Delete(Old::Key(&OLD)), Images::Truncate] {
        assert_eq!(sent(&plan(all, TopicFormat::DebeziumJson), images), (0, Vec::new()));
    }
    let default = plan(Skipped::default(), TopicFormat::DebeziumJson);
    assert_eq!(sent(&default, Images::Truncate), (0, Vec::new()));
    assert_eq!(sent(&default, Images::Insert(&NEW)), (1, vec![of(2, "c", FIRST, &[])]));
    let gone = vec![of(1, "d", FIRST, &[]), of(1, "tombstone", None, &[])];
    assert_eq!(sent(&default, Images::Delete(Old::Key(&OLD))), (1, gone));
}

#[test]
fn a_truncate_has_no_key_and_no_form_without_an_envelope() {
    let told = (None, "t".to_owned(), FIRST, Vec::new());
    assert_eq!(sent(&plan(Skipped::NONE, TopicFormat::DebeziumJson), Images::Truncate), (1, vec![told]));
    assert_eq!(sent(&plan(Skipped::NONE, TopicFormat::Json), Images::Truncate), (0, Vec::new()));
}

#[test]
fn without_an_envelope_a_delete_is_a_tombstone_that_counts() {
    let flat = plan(Skipped::NONE, TopicFormat::Json);
    assert_eq!(sent(&flat, Images::Delete(Old::Key(&OLD))), (1, vec![of(1, "tombstone", None, &[])]));
    assert_eq!(sent(&flat, moved()).0, 2);
}

#[test]
fn headers_tell_each_change_its_own_place() {
    let mut messages = Messages::new(&plan(Skipped::NONE, TopicFormat::Json), "postgres", None).expect("a shape");
    for (commit_lsn, ordinal, text) in
        [(500, 9, "0/1F4"), (500, 10, "0/1F4"), (1 << 32 | 7, 1, "1/7"), (500, 1, "0/1F4")]
    {
        let begin = Begin { commit_lsn: Lsn(commit_lsn), commit_ts: UnixMicros(7), xid: 571 };
        let (last_commit, lsn) = (Lsn(400), Lsn(450));
        let at = At { begin: &begin, last_commit, lsn, ordinal, order: None, now: UnixMicros(8) };
        let sent = messages.change(Images::Insert(&NEW), &at).expect("it has a form");
        let headers: Vec<_> = messages.messages(sent, at.now).map(|message| message.headers).collect();
        let ordinal = ordinal.to_string();
        assert_eq!(headers, [[Some((LSN_HEADER, text.as_bytes())), Some((ORDINAL_HEADER, ordinal.as_bytes())), None]]);
    }
    let copied = messages.read(&NEW, Lsn(8), UnixMicros(8)).expect("it has a form").headers;
    assert_eq!(copied, [Some((LSN_HEADER, &b"0/8"[..])), Some((ORDINAL_HEADER, b"0")), None]);
}

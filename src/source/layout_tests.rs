//! What two looks at a table tell.

use super::*;

fn column(number: i16, name: &str, type_oid: u32, changed: &str) -> LayoutColumn {
    LayoutColumn {
        number,
        name: name.to_owned(),
        type_oid,
        type_modifier: -1,
        type_name: format!("type {type_oid}"),
        changed: changed.to_owned(),
        generated: false,
        missing: Vec::new(),
        added: false,
    }
}

fn storage(oid: u32, file: u32, attached: Option<&str>) -> Storage {
    Storage {
        oid,
        schema: "public".to_owned(),
        name: format!("t{oid}"),
        file,
        changed: "700".to_owned(),
        created: "700".to_owned(),
        attached: attached.map(str::to_owned),
    }
}

fn table() -> Layout {
    Layout {
        oid: 1,
        columns: vec![column(1, "id", 23, "700"), column(2, "x", 23, "700")],
        storage: vec![storage(1, 10, None)],
    }
}

fn since(change: impl FnOnce(&mut Layout)) -> Vec<Change> {
    let mut now = table();
    change(&mut now);
    now.since(&table())
}

#[test]
fn value_of_old_rows_is_known_unless_all_were_written_anew() {
    let with = |missing: &[&str], file: u32| {
        let added = LayoutColumn {
            missing: missing.iter().map(|value| (*value).to_owned()).collect(),
            ..column(3, "y", 23, "800")
        };
        let changes = since(|now| {
            now.columns.push(added);
            now.storage[0].file = file;
        });
        let [Change::Added { before, .. }] = changes.as_slice() else { panic!("{changes:?}") };
        before.clone()
    };
    assert_eq!(with(&["7"], 10), Some(Some("7".to_owned())));
    assert_eq!(with(&[], 10), Some(None));
    assert_eq!(with(&[], 11), None, "a volatile default");
    assert_eq!(with(&["7", "8"], 10), None, "partitions differ");
}

#[test]
fn rewrite_that_keeps_the_type_is_told_from_truncate_and_vacuum() {
    assert_eq!(since(|now| now.storage[0].file = 11), [], "TRUNCATE is sent, VACUUM FULL changes nothing");
    assert_eq!(since(|now| now.columns[1].changed = "800".to_owned()), [], "SET NOT NULL, SET STATISTICS");
    let rewritten = since(|now| {
        now.storage[0].file = 11;
        now.columns[1].changed = "800".to_owned();
    });
    assert_eq!(rewritten, [Change::Rewritten { column: "x".to_owned() }]);
}

#[test]
fn columns_are_followed_by_their_numbers() {
    let renamed = since(|now| now.columns[1].name = "z".to_owned());
    assert_eq!(renamed, [Change::Renamed { old: "x".to_owned(), new: "z".to_owned() }]);
    let again = since(|now| now.columns[1] = column(3, "x", 23, "800"));
    let [Change::Dropped { column: dropped }, Change::Added { column: added, .. }] = again.as_slice() else {
        panic!("{again:?}")
    };
    assert_eq!((dropped.as_str(), added.name.as_str()), ("x", "x"));
}

#[test]
fn type_that_is_only_wider_is_harmless_unless_rows_were_written_anew() {
    let varchar = |file: u32| {
        let mut old = table();
        old.columns[1] = LayoutColumn { type_modifier: 14, ..column(2, "x", 1043, "700") };
        let mut now = old.clone();
        now.columns[1].type_oid = 25;
        now.columns[1].type_modifier = -1;
        now.storage[0].file = file;
        match now.since(&old).as_slice() {
            [Change::Type { change, .. }] => *change,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!((varchar(10), varchar(11)), (TypeChange::Wider, TypeChange::Different));
}

#[test]
fn partition_is_new_attached_gone_or_refiled() {
    let mut old = table();
    old.storage = vec![storage(2, 20, Some("700")), storage(3, 30, Some("700"))];
    let mut now = old.clone();
    now.storage = vec![storage(2, 21, Some("700")), storage(4, 40, Some("700")), storage(5, 50, Some("900"))];
    let told: Vec<_> = now
        .since(&old)
        .into_iter()
        .map(|change| match change {
            Change::Refiled(storage) => ("refiled", storage.oid),
            Change::NewPartition(storage) => ("new", storage.oid),
            Change::Attached(storage) => ("attached", storage.oid),
            Change::Gone(storage) => ("gone", storage.oid),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(told, [("refiled", 2), ("new", 4), ("attached", 5), ("gone", 3)]);
}

#[test]
fn other_table_of_the_same_name_is_seen() {
    assert_eq!(since(|now| now.oid = 9), [Change::OtherTable { old: 1, new: 9 }]);
}

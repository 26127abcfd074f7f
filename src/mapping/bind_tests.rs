//! Layouts older and newer than a plan, and what is made of them.

use super::*;
use crate::mapping::plan::Expected;
use crate::mapping::sample;
use crate::tuple::{Cell, Tuple};

const SETTLED: Lsn = Lsn(1000);
const BEFORE: Lsn = Lsn(900);
const AFTER: Lsn = Lsn(1100);

const INT4: u32 = 23;

fn column(name: &str, type_oid: u32, added: Option<BeforeAdded>) -> ExpectedColumn {
    ExpectedColumn { name: name.to_owned(), type_oid, type_modifier: -1, type_name: type_name(type_oid), added }
}

/// A plan for all columns of a table whose first is the key.
fn plan(columns: Vec<ExpectedColumn>) -> Arc<Plan> {
    let input = |column: &ExpectedColumn| sample::input(&column.name, &column.type_name, column.type_oid);
    Arc::new(Plan {
        follows_columns: true,
        expected: Expected { oid: 7, settled: SETTLED, columns: columns.clone(), awaited: Vec::new() },
        ..sample::plan(columns.iter().map(input).collect())
    })
}

fn relation(columns: &[(&str, u32)]) -> Relation {
    let columns = columns.iter().enumerate().map(|(index, (name, type_oid))| RelationColumn {
        name: (*name).to_owned(),
        type_oid: *type_oid,
        type_modifier: -1,
        is_identity: index == 0,
    });
    Relation {
        oid: 7,
        name: TableName::new("public", "t"),
        replica_identity: ReplicaIdentity::Default,
        columns: columns.collect(),
    }
}

fn mismatch(plan: &Arc<Plan>, relation: &Relation, at: Lsn) -> (Mismatch, bool) {
    let error = Binding::new(plan, relation, at).expect_err("it does not fit");
    (error.mismatch, error.is_news)
}

#[test]
fn column_that_was_added_is_filled_into_older_rows() {
    let added = Some(BeforeAdded::Binary(vec![0, 0, 0, 5]));
    let plan =
        plan(vec![column("id", INT4, None), column("x", INT4, added), column("y", INT4, Some(BeforeAdded::Null))]);
    let binding = Binding::new(&plan, &relation(&[("id", INT4)]), BEFORE).expect("older than the catalog");
    let row = b"\x00\x01b\x00\x00\x00\x04\x00\x00\x00\x09";
    let wide = binding.widened(row);
    let (tuple, length) = Tuple::parse(&wide).expect("a row");
    assert_eq!(length, wide.len());
    let cells: Vec<_> = tuple.cells().collect();
    assert_eq!(cells, [Cell::Binary(&[0, 0, 0, 9]), Cell::Binary(&[0, 0, 0, 5]), Cell::Null]);
    assert_eq!(
        (&binding.columns[..], &binding.identity[..]),
        (&[Some(0), Some(1), Some(2)][..], &[true, false, false][..])
    );
    // After the catalog was read it cannot be missing unless it went.
    let missing = Mismatch::Missing { column: "x".to_owned() };
    assert_eq!(mismatch(&plan, &relation(&[("id", INT4)]), AFTER), (missing, true));
}

#[test]
fn unknown_column_is_news_only_if_it_is_newer_than_the_catalog() {
    let plan = plan(vec![column("id", INT4, None)]);
    let wider = relation(&[("id", INT4), ("x", INT4)]);
    assert!(Binding::new(&plan, &wider, BEFORE).is_ok_and(|binding| binding.columns == [Some(0)]), "dropped since");
    assert_eq!(mismatch(&plan, &wider, AFTER), (Mismatch::Added { column: "x".to_owned() }, true));
}

#[test]
fn another_type_is_never_taken_for_the_planned_one() {
    let plan = plan(vec![column("id", INT4, None), column("x", INT4, None)]);
    let (int, bigint) = ("integer".to_owned(), "bigint".to_owned());
    let changed =
        |old: &String, new: &String| Mismatch::Type { column: "x".to_owned(), old: old.clone(), new: new.clone() };
    let wide = relation(&[("id", INT4), ("x", 20)]);
    assert_eq!(mismatch(&plan, &wide, AFTER), (changed(&int, &bigint), false));
    assert_eq!(mismatch(&plan, &wide, BEFORE), (changed(&bigint, &int), false));
}

#[test]
fn another_table_or_name_is_never_taken_for_the_mapped_one() {
    let plan = plan(vec![column("id", INT4, None)]);
    let other = Relation { oid: 8, ..relation(&[("id", INT4)]) };
    assert_eq!(mismatch(&plan, &other, AFTER), (Mismatch::OtherTable { old: 7, new: 8 }, false));
    let name = TableName::new("public", "t_old");
    let renamed = Relation { name: name.clone(), ..relation(&[("id", INT4)]) };
    assert_eq!(mismatch(&plan, &renamed, AFTER), (Mismatch::Renamed { new: name }, false));
}

#[test]
fn key_outside_the_replica_identity_is_refused() {
    let plan = plan(vec![column("id", INT4, None), column("x", INT4, None)]);
    let mut changed = relation(&[("id", INT4), ("x", INT4)]);
    changed.columns[0].is_identity = false;
    changed.columns[1].is_identity = true;
    assert_eq!(mismatch(&plan, &changed, AFTER), (Mismatch::Identity { column: "id".to_owned() }, true));
}

//! Layouts older and newer than the catalog that a topic's plan was made from.

use std::collections::BTreeMap;

use super::*;
use crate::catalog::{TableName, UserType};
use crate::mapping::kafka::Pattern;
use crate::mapping::plan::{Expected, ExpectedColumn, Mode};
use crate::mapping::sample;

const SETTLED: Lsn = Lsn(1000);
const BEFORE: Lsn = Lsn(900);
const AFTER: Lsn = Lsn(1100);
const INT4: u32 = 23;
const TEXT: u32 = 25;
const MOOD: u32 = 16_400;
const FORMER_MOOD: u32 = 16_300;

fn described(name: &str, oid: u32) -> debezium::Column {
    let (form, labels) = if oid == MOOD { (Form::Enum, vec!["good".to_owned()]) } else { (Form::BuiltIn, Vec::new()) };
    let source = SourceType { oid, modifier: -1, form };
    let type_name = if oid == MOOD { "mood".to_owned() } else { type_name(oid) };
    debezium::Column { name: name.to_owned(), source, type_name, labels, nullable: name != "id", excluded: false }
}

/// A plan for `id int PRIMARY KEY, n int, m mood`, of which columns called `secret…` stay.
fn plan() -> Arc<Plan> {
    let columns = [described("id", INT4), described("n", INT4), described("m", MOOD)];
    let known = |column: &debezium::Column| ExpectedColumn {
        name: column.name.clone(),
        type_oid: column.source.oid,
        type_modifier: -1,
        type_name: column.type_name.clone(),
        added: None,
    };
    let mood = UserType {
        wire_type: "public.mood".to_owned(),
        wire_oid: MOOD,
        wire_modifier: -1,
        kind: TypeKind::Enum,
        has_binary: true,
        labels: vec!["good".to_owned()],
    };
    Arc::new(Plan {
        target: TableName::new("s.public", "t"),
        outputs: columns.iter().enumerate().map(output).collect(),
        mode: Mode::Append,
        follows_columns: true,
        expected: Expected {
            oid: 7,
            settled: SETTLED,
            columns: columns.iter().map(known).collect(),
            ..Expected::default()
        },
        topic: Some(Topic {
            exclude: vec![Pattern::new("public.*.secret*")],
            types: Arc::new(BTreeMap::from([(MOOD, mood)])),
            ..sample::topic(&columns)
        }),
        ..sample::plan(columns.iter().map(input).collect())
    })
}

/// Columns whose names begin with `*` are of the replica identity.
fn relation(columns: &[(&str, u32)]) -> Relation {
    let columns = columns.iter().map(|(name, type_oid)| RelationColumn {
        name: name.trim_start_matches('*').to_owned(),
        type_oid: *type_oid,
        type_modifier: -1,
        is_identity: name.starts_with('*'),
    });
    Relation {
        oid: 7,
        name: TableName::new("public", "t"),
        replica_identity: ReplicaIdentity::Default,
        columns: columns.collect(),
    }
}

fn names(binding: &Binding) -> Vec<&str> {
    binding.plan.inputs.iter().map(|input| input.name.as_str()).collect()
}

/// What is made of a layout before and after the last look at the catalog.
fn both(columns: &[(&str, u32)]) -> (Result<Binding, BindError>, Result<Binding, BindError>) {
    let (plan, relation) = (plan(), relation(columns));
    (Binding::new(&plan, &relation, BEFORE), Binding::new(&plan, &relation, AFTER))
}

#[test]
fn layout_of_the_catalog_is_the_plan_itself() {
    let plan = plan();
    for at in [BEFORE, AFTER] {
        let same = relation(&[("*id", INT4), ("n", INT4), ("m", MOOD)]);
        let binding = Binding::new(&plan, &same, at).expect("it fits");
        assert!(Arc::ptr_eq(&binding.plan, &plan) && binding.is_straight);
    }
}

#[test]
fn excluded_columns_stay_whenever_they_were_added() {
    let (older, newer) = both(&[("secret", TEXT), ("*id", INT4), ("secret_2", TEXT), ("n", INT4), ("m", MOOD)]);
    for binding in [older.expect("older"), newer.expect("newer")] {
        assert_eq!(names(&binding), ["id", "n", "m"]);
        assert_eq!(binding.columns, [Some(1), Some(3), Some(4)]);
        assert_eq!(binding.key_columns, [1]);
    }
}

#[test]
fn dropped_columns_are_left_out_at_once() {
    let (older, newer) = both(&[("*id", INT4), ("m", MOOD)]);
    for binding in [older.expect("older"), newer.expect("newer")] {
        assert_eq!(names(&binding), ["id", "m"]);
        assert_eq!(binding.plan.key_inputs, [0]);
    }
}

#[test]
fn what_the_catalog_was_not_asked_about_is_news_and_of_older_layouts_is_taken_as_sent() {
    let (older, newer) = both(&[("*id", INT4), ("n", TEXT), ("added", MOOD)]);
    let news = newer.expect_err("the type of \"n\"");
    assert_eq!((news.mismatch, news.is_news), (Mismatch::Retyped { column: "n".to_owned() }, true));
    let older = older.expect("as sent");
    let topic = older.plan.topic.as_ref().expect("a topic");
    assert_eq!(topic.columns[1].source, SourceType::built_in(TEXT, -1));
    assert_eq!((topic.columns[2].source.form, topic.columns[2].labels.len()), (Form::Enum, 1));
    let (_, newer) = both(&[("*id", INT4), ("added", INT4)]);
    assert_eq!(newer.expect_err("news").mismatch, Mismatch::Added { column: "added".to_owned() });
}

#[test]
fn enum_that_lost_a_label_is_still_one() {
    let (older, _) = both(&[("*id", INT4), ("n", INT4), ("m", FORMER_MOOD), ("other", FORMER_MOOD)]);
    let older = older.expect("as sent");
    let topic = older.plan.topic.as_ref().expect("a topic");
    assert_eq!(topic.columns[2].source.form, Form::Enum);
    assert_eq!(topic.gone().collect::<Vec<_>>(), ["other"], "nothing is known of it");
}

#[test]
fn primary_key_of_the_time_is_the_key() {
    let (older, newer) = both(&[("id", INT4), ("*n", INT4), ("*m", MOOD)]);
    let news = newer.expect_err("another key");
    assert_eq!((news.mismatch, news.is_news), (Mismatch::OtherKey { columns: "n, m".to_owned() }, true));
    assert_eq!(older.expect("as sent").plan.key_inputs, [1, 2]);
    // Without one no row is changed or deleted; rows that are new have the columns of the key to come.
    let (older, newer) = both(&[("id", INT4), ("n", INT4), ("m", MOOD)]);
    assert_eq!(newer.expect_err("no key").mismatch, Mismatch::NoKey);
    assert_eq!(older.expect("inserts").plan.key_inputs, [0]);
    let (older, _) = both(&[("n", INT4), ("m", MOOD)]);
    let lost = older.expect_err("no key at all");
    assert_eq!((lost.mismatch, lost.is_news), (Mismatch::Missing { column: "id".to_owned() }, false));
}

#[test]
fn another_table_of_the_name_is_news_and_another_name_ends_it() {
    let plan = plan();
    let same = relation(&[("*id", INT4), ("n", INT4), ("m", MOOD)]);
    let other = Relation { oid: 8, ..same.clone() };
    assert!(Binding::new(&plan, &other, BEFORE).is_ok());
    assert!(Binding::new(&plan, &other, AFTER).expect_err("another table").is_news);
    let renamed = Relation { name: TableName::new("public", "moved"), ..same };
    assert!(!Binding::new(&plan, &renamed, BEFORE).expect_err("its rows are another topic's").is_news);
    assert!(Binding::new(&plan, &renamed, AFTER).expect_err("renamed").is_news);
}

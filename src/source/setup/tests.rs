//! Claims about what setup would run, without a server.

use super::*;
use crate::catalog::TableName;
use crate::lsn::Lsn;
use crate::source::probe::{PublicationRow, PublicationTable, SlotRow};

fn published(name: &str, columns: &[&str]) -> Published {
    let columns = columns.iter().map(|column| (*column).to_owned()).collect::<Vec<_>>();
    Published { table: TableName::new("public", name), columns: Some(columns).filter(|list| !list.is_empty()) }
}

fn source(major: u32) -> SourceProbe {
    SourceProbe {
        server: ServerFacts {
            version_num: major * 10_000 + 3,
            database: "lms".into(),
            role: "tail".into(),
            wal_level: "logical".into(),
            max_slot_wal_keep_size: None,
            idle_replication_slot_timeout: None,
            wal_sender_timeout: None,
            max_replication_slots: 10,
            replication_slots: 0,
            server_encoding: "UTF8".into(),
            system_identifier: 7,
            timeline: 1,
            current_flush_lsn: Lsn(100),
            in_recovery: false,
            is_superuser: false,
            can_replicate: true,
        },
        slot_name: "tail".into(),
        slot: None,
        publication_name: "pub".into(),
        publication: None,
    }
}

fn slot() -> SlotRow {
    SlotRow {
        confirmed_flush: Some(Lsn(50)),
        restart_lsn: Some(Lsn(40)),
        active: false,
        active_pid: None,
        wal_status: Some("reserved".into()),
        invalidation_reason: None,
        plugin: Some(PLUGIN.into()),
        database: Some("lms".into()),
        temporary: false,
        failover: false,
        safe_wal_size: None,
        retained_bytes: 60,
        catalog_xmin_age: None,
    }
}

fn publication(tables: &[Published]) -> PublicationRow {
    let table = |published: &Published| PublicationTable {
        name: published.table.clone(),
        columns: published.columns.clone(),
        filtered: false,
    };
    PublicationRow {
        all_tables: false,
        schemas: false,
        all_operations: true,
        via_root: true,
        tables: tables.iter().map(table).collect(),
    }
}

fn codes(plan: &SetupPlan) -> Vec<&'static str> {
    plan.findings.0.iter().map(|finding| finding.code).collect()
}

#[test]
fn h28_publication_comes_before_the_slot() {
    let tables = [published("course", &["id", "we\"ird"]), published("stream", &[])];
    let plan = SetupPlan::make(&tables, &source(15));
    assert_eq!(
        plan.script(),
        "-- publish the mapped tables; must exist before the slot\n\
         CREATE PUBLICATION \"pub\" FOR TABLE ONLY \"public\".\"course\" (\"id\", \"we\"\"ird\"), ONLY \"public\".\"stream\" \
         WITH (publish = 'insert, update, delete, truncate', publish_via_partition_root = true);\n\n\
         -- keep the changes from here on; waits for transactions that write now\n\
         SELECT pg_catalog.pg_create_logical_replication_slot('tail', 'pgoutput', false, false);\n"
    );
    assert!(plan.findings.0.is_empty());
}

#[test]
fn newer_servers_copy_the_slot_to_standbys() {
    let plan = SetupPlan::make(&[published("course", &[])], &source(17));
    assert!(plan.steps[1].sql.ends_with("false, false, failover => true)"), "{}", plan.steps[1].sql);
}

#[test]
fn older_server_publishes_whole_tables_and_says_so() {
    let plan = SetupPlan::make(&[published("course", &["id"])], &source(14));
    assert!(plan.steps[0].sql.contains("\"course\" WITH"), "{}", plan.steps[0].sql);
    assert_eq!(codes(&plan), ["column-list"]);
    assert!(!plan.findings.has_errors());
}

#[test]
fn second_run_has_nothing_to_do() {
    let tables = [published("course", &["id", "title"]), published("stream", &[])];
    let given = [published("stream", &[]), published("course", &["title", "id"])];
    let source = SourceProbe { slot: Some(slot()), publication: Some(publication(&given)), ..source(15) };
    assert_eq!(SetupPlan::make(&tables, &source).steps, []);
}

#[test]
fn h31_publication_that_differs_is_corrected() {
    let tables = [published("course", &["id"])];
    let right = publication(&tables);
    let mut filtered = right.clone();
    filtered.tables[0].filtered = true;
    let cases = [
        (PublicationRow { tables: Vec::new(), ..right.clone() }, "SET TABLE ONLY \"public\".\"course\" (\"id\")"),
        (publication(&[published("course", &["id", "title"])]), "SET TABLE"),
        (publication(&[published("course", &[])]), "SET TABLE"),
        (filtered, "SET TABLE"),
        (PublicationRow { schemas: true, ..right.clone() }, "SET TABLE"),
        (
            PublicationRow { all_operations: false, ..right.clone() },
            "SET (publish = 'insert, update, delete, truncate'",
        ),
        (PublicationRow { via_root: false, ..right.clone() }, "publish_via_partition_root = true)"),
    ];
    for (there, expected) in cases {
        let source = SourceProbe { slot: Some(slot()), publication: Some(there), ..source(15) };
        let plan = SetupPlan::make(&tables, &source);
        assert_eq!(plan.steps.len(), 1, "{expected}");
        assert!(plan.steps[0].sql.contains(expected), "{}", plan.steps[0].sql);
    }
}

#[test]
fn everything_against_it_is_found_at_once() {
    let mut source = source(13);
    source.server.wal_level = "replica".into();
    source.server.can_replicate = false;
    source.server.in_recovery = true;
    source.server.replication_slots = 10;
    source.server.server_encoding = "SQL_ASCII".into();
    source.server.idle_replication_slot_timeout = Some(Duration::from_secs(60));
    source.slot_name = "Tail-1".into();
    source.publication_name = String::new();
    let plan = SetupPlan::make(&[], &source);
    assert_eq!(
        codes(&plan),
        [
            "slot-name",
            "publication-name",
            "server-too-old",
            "source-is-standby",
            "wal-level",
            "no-replication-right",
            "idle-slot-timeout",
            "server-encoding",
            "nothing-published",
            "no-free-slot",
        ]
    );
    assert!(plan.findings.0.iter().all(|finding| finding.hint.is_some()));
}

#[test]
fn slot_that_cannot_be_used_is_refused() {
    let tables = [published("course", &[])];
    let cases = [
        (SlotRow { invalidation_reason: Some("idle_timeout".into()), ..slot() }, "idle_timeout"),
        (SlotRow { wal_status: Some("lost".into()), ..slot() }, "wal_removed"),
        (SlotRow { plugin: None, database: None, ..slot() }, "it is a physical slot"),
        (SlotRow { plugin: Some("test_decoding".into()), ..slot() }, "its plugin is \"test_decoding\", not pgoutput"),
        (SlotRow { database: Some("hr".into()), ..slot() }, "it belongs to database \"hr\""),
    ];
    for (row, reason) in cases {
        let source = SourceProbe { slot: Some(row), publication: Some(publication(&tables)), ..source(18) };
        let plan = SetupPlan::make(&tables, &source);
        assert_eq!(codes(&plan), ["slot-unusable"], "{reason}");
        assert!(plan.findings.0[0].message.ends_with(reason), "{}", plan.findings.0[0].message);
    }
}

#[test]
fn h28_slot_older_than_its_publication_is_refused() {
    let source = SourceProbe { slot: Some(slot()), ..source(15) };
    assert_eq!(codes(&SetupPlan::make(&[published("course", &[])], &source)), ["slot-before-publication"]);
}

#[test]
fn h30_publication_of_all_tables_is_left_alone() {
    let there = PublicationRow { all_tables: true, ..publication(&[]) };
    let source = SourceProbe { publication: Some(there), ..source(15) };
    let plan = SetupPlan::make(&[published("course", &[])], &source);
    assert_eq!(codes(&plan), ["publication-all-tables"]);
    assert!(plan.steps.iter().all(|step| step.target == Target::Slot));
}

#[test]
fn blockers_are_named_without_their_queries() {
    let session =
        Blocker { pid: Some(42), gid: None, state: Some("idle in transaction".into()), age_seconds: Some(61.7) };
    let prepared = Blocker { pid: None, gid: Some("two\nphase".into()), state: None, age_seconds: None };
    let finding = blocked(vec![session, prepared]);
    assert_eq!(
        finding.message,
        "the slot was not made in time, it waits for: pid 42, idle in transaction, for 62 s; \
         prepared transaction \"two\\nphase\""
    );
}

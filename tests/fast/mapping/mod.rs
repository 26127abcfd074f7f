//! The mapping language: from a file's text to plans, against catalogs made by hand.

use std::collections::BTreeMap;
use std::path::Path;

use tailwater::catalog::{Catalog, Column, ReplicaIdentity, Table, TableKind, TypeKind};
use tailwater::config::Config;
use tailwater::diagnostic::{Findings, SourceFile};
use tailwater::mapping::MappingFile;
use tailwater::mapping::resolve::{Live, LiveSink, LiveSource, Resolved, resolve};

mod bad_files;
mod bad_resolves;
mod clickhouse;
mod desired;
mod lessons;
mod plans;
mod publications;
mod schema;
mod topics;

/// A configuration with sources `lms` and `other` and sinks `warehouse` and `second`, and `events`, which is Kafka.
fn config() -> Config {
    let text = r#"
        mappings = ["m.toml"]
        mask_salt = "pepper"
        [source.lms]
        url = "postgres://u@h/d"
        [source.other]
        url = "postgres://u@h/d"
        [sink.warehouse]
        kind = "postgres"
        url = "postgres://u@h/d"
        [sink.second]
        kind = "postgres"
        url = "postgres://u@h/d"
        [sink.events]
        kind = "kafka"
        brokers = "h:9092"
    "#;
    Config::parse(Path::new("tailwater.toml"), text, std::iter::empty()).expect("well formed")
}

/// The file's text under the two usual ends.
fn headed(text: &str) -> String {
    format!("source = \"lms\"\nsink = \"warehouse\"\n{text}")
}

fn parse(text: &str) -> MappingFile {
    match MappingFile::parse(SourceFile::new("m.toml", text)) {
        Ok(file) => file,
        Err(findings) => panic!("{}", findings.render(false)),
    }
}

fn resolved(text: &str, live: &Live) -> (Resolved, Findings) {
    resolve(&config(), &[parse(text)], live)
}

/// Plans of a mapping in which nothing is wrong.
fn resolved_whole(text: &str, live: &Live) -> Resolved {
    let (resolved, findings) = resolved(text, live);
    assert!(!findings.has_errors(), "{}", findings.render(false));
    resolved
}

/// One source `lms` and one sink `warehouse`.
fn live(source: Vec<Table>, sink: Vec<Table>) -> Live {
    let source = LiveSource { catalog: catalog("lms", source), server_version: 150_004, ..LiveSource::default() };
    let sink = LiveSink { catalog: catalog("dwh", sink), types: BTreeMap::new() };
    Live {
        sources: BTreeMap::from([("lms".to_owned(), source)]),
        sinks: BTreeMap::from([("warehouse".to_owned(), sink)]),
        clickhouse: BTreeMap::new(),
        kafka: BTreeMap::new(),
        assume: Vec::new(),
    }
}

fn catalog(database: &str, tables: Vec<Table>) -> Catalog {
    Catalog { database: database.to_owned(), tables }
}

/// A table from `name type` and `name type!` (NOT NULL) columns; its primary key is unique and its replica identity.
fn table(name: &str, columns: &[&str], key: &[&str]) -> Table {
    let key: Vec<String> = key.iter().map(|column| (*column).to_owned()).collect();
    Table {
        oid: 16_400,
        name: name.parse().expect("schema.name"),
        kind: TableKind::Table,
        columns: columns.iter().map(|column| self::column(column)).collect(),
        primary_key: key.clone(),
        unique_keys: if key.is_empty() { Vec::new() } else { vec![key.clone()] },
        replica_identity: ReplicaIdentity::Default,
        identity_columns: key,
        foreign_keys: Vec::new(),
        row_security: false,
        unlogged: false,
        is_partition: false,
        straying_partition: None,
        rows_estimate: 0,
    }
}

fn column(text: &str) -> Column {
    let (name, declared) = text.split_once(' ').expect("name and type");
    let type_name = declared.trim_end_matches('!');
    let known = [
        ("boolean", 16, false),
        ("bigint", 20, false),
        ("integer", 23, false),
        ("text", 25, true),
        ("json", 114, true),
        ("jsonb", 3802, true),
        ("double precision", 701, false),
        ("character varying", 1043, true),
        ("text[]", 1009, true),
        ("date", 1082, false),
        ("timestamp without time zone", 1114, false),
        ("timestamp with time zone", 1184, false),
        ("numeric", 1700, true),
    ];
    let plain = match type_name.split_once('(') {
        Some((before, after)) => format!("{before}{}", after.split_once(')').expect("closed").1),
        None => type_name.to_owned(),
    };
    let (oid, toastable) = known.iter().find(|(name, ..)| *name == plain).map_or((16_500, false), |row| (row.1, row.2));
    Column {
        name: name.to_owned(),
        type_oid: oid,
        type_modifier: -1,
        type_name: type_name.to_owned(),
        wire_type: plain.clone(),
        wire_oid: oid,
        type_kind: if plain.ends_with("[]") { TypeKind::Array } else { TypeKind::Base },
        not_null: declared.ends_with('!'),
        generated: false,
        has_default: false,
        toastable,
        wire_modifier: -1,
        has_binary: true,
        equals_bytewise: true,
        enum_labels: Vec::new(),
    }
}

/// With REPLICA IDENTITY FULL.
fn full(mut table: Table) -> Table {
    table.replica_identity = ReplicaIdentity::Full;
    table.identity_columns = table.columns.iter().map(|column| column.name.clone()).collect();
    table
}

/// With one column changed.
fn with(mut table: Table, name: &str, change: impl FnOnce(&mut Column)) -> Table {
    change(table.columns.iter_mut().find(|column| column.name == name).expect("the column"));
    table
}

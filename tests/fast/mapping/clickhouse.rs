//! Mappings into ClickHouse.

use tailwater::catalog::TableName;
use tailwater::mapping::clickhouse::{ClickHouseColumn, ClickHouseTable, LiveClickHouse};
use tailwater::mapping::resolve::{Live, Resolved, resolve};

use super::{live, table};
use tailwater::config::Config;
use tailwater::diagnostic::Findings;

const MAPPING: &str = "source = \"lms\"\nsink = \"ch\"\n[table.\"dwh.t\"]\nfrom = \"public.t\"\ncolumns = \"*\"\n";

/// A target from `name type` columns, ordered by `key`.
fn target(columns: &[&str], key: &[&str]) -> ClickHouseTable {
    let column = |text: &&str| {
        let (name, type_name) = text.split_once(' ').expect("name and type");
        ClickHouseColumn { name: name.to_owned(), type_name: type_name.to_owned(), default_kind: String::new() }
    };
    ClickHouseTable {
        name: TableName::new("dwh", "t"),
        engine: "ReplacingMergeTree".to_owned(),
        is_versioned: true,
        sorting_key: key.iter().map(|name| (*name).to_owned()).collect(),
        partition_key: Vec::new(),
        columns: columns.iter().chain(&["_version UInt128", "_deleted UInt8"]).map(column).collect(),
        is_refreshable: false,
        query: String::new(),
    }
}

fn resolved(mapping: &str, source: &[&str], target: ClickHouseTable) -> (Resolved, Findings) {
    let text = "mappings = [\"m.toml\"]\n[source.lms]\nurl = \"postgres://u@h/d\"\n\
                [sink.ch]\nkind = \"clickhouse\"\nurl = \"http://h\"\n";
    let config = Config::parse(std::path::Path::new("t.toml"), text, std::iter::empty()).expect("well formed");
    let mut ends: Live = live(vec![table("public.t", source, &["id"])], Vec::new());
    ends.clickhouse.insert("ch".to_owned(), LiveClickHouse { tables: vec![target] });
    resolve(&config, &[super::parse(mapping)], &ends)
}

#[test]
fn columns_are_sent_in_their_targets_types() {
    let (resolved, findings) =
        resolved(MAPPING, &["id bigint!", "note text"], target(&["id Int64", "note Nullable(String)"], &["id"]));
    assert!(!findings.has_errors(), "{}", findings.render(false));
    let types: Vec<_> = resolved.plans[0].inputs.iter().map(|input| input.stage_type.as_str()).collect();
    assert_eq!(types, ["Int64", "Nullable(String)"]);
}

#[test]
fn types_that_are_understood_as_text_only_want_a_text_stream() {
    for (pay, wants_text) in [("pay public.pay", true), ("pay text", false), ("pay text[]", false)] {
        let target = target(&["id Int64", "pay Nullable(String)"], &["id"]);
        let (resolved, findings) = resolved(MAPPING, &["id bigint!", pay], target);
        assert!(!findings.has_errors(), "{pay}: {}", findings.render(false));
        assert_eq!(resolved.plans[0].wants_text(), wants_text, "{pay}");
    }
}

#[test]
fn what_does_not_fit_is_told_before_anything_runs() {
    let cases = [
        (MAPPING, &["id bigint!", "n bigint"][..], target(&["id Int64", "n Int64"], &["n"]), "is ordered by (n)"),
        (MAPPING, &["id bigint!", "n text"], target(&["id Int64", "n Int64"], &["id"]), "cannot take text"),
        (MAPPING, &["id bigint!", "n text"], target(&["id Int64"], &["id"]), "does not exist in target"),
        (MAPPING, &["id bigint!"], target(&["id Nullable(Int64)"], &["id"]), "equal keys may not be found"),
    ];
    for (mapping, source, target, expected) in cases {
        let (_, findings) = resolved(mapping, source, target);
        let text = findings.render(false);
        assert!(findings.has_errors() && text.contains(expected), "{expected}: {text}");
    }
}

//! What sources publish for a mapping.

use tailwater::catalog::{Table, TableName};
use tailwater::diagnostic::Findings;
use tailwater::mapping::plan::Published;
use tailwater::mapping::resolve::{Live, resolve};

use super::{config, full, headed, live, parse, table, with};

fn source() -> Table {
    table("public.a", &["id integer!", "n integer", "secret integer"], &["id"])
}

fn ends(source: Table) -> Live {
    let columns = ["id integer!", "n integer", "secret integer"];
    live(vec![source], vec![table("dwh.d", &columns, &["id"]), table("dwh.e", &columns, &["id"])])
}

/// The column list for `public.a`, of mappings with these lines.
fn published(tables: &[&str], live: &Live) -> (Option<Vec<String>>, Findings) {
    let mut text = String::new();
    for (name, lines) in ["dwh.d", "dwh.e"].iter().zip(tables) {
        text.push_str(&format!("[table.\"{name}\"]\nfrom = \"public.a\"\n{lines}\n"));
    }
    let (mut resolved, findings) = resolve(&config(), &[parse(&headed(&text))], live);
    assert!(!findings.has_errors(), "{}", findings.render(false));
    let mut tables = resolved.published.remove("lms").expect("published");
    assert_eq!(tables.len(), 1);
    let Published { table, columns } = tables.remove(0);
    assert_eq!(table, TableName::new("public", "a"));
    (columns, findings)
}

fn names(names: &[&str]) -> Option<Vec<String>> {
    Some(names.iter().map(|name| (*name).to_owned()).collect())
}

#[test]
fn only_needed_columns_are_published() {
    let (columns, findings) = published(&["columns = { id = \"id\" }"], &ends(source()));
    assert_eq!((columns, findings.0.len()), (names(&["id"]), 0));
    let two = ["columns = { id = \"id\" }", "columns = { id = \"id\", n = { sql = \"n + 1\" } }"];
    assert_eq!(published(&two, &ends(source())).0, names(&["id", "n"]), "the union of two mappings");
    let filtered = ["columns = { id = \"id\" }\nwhere = \"n > 0\""];
    assert_eq!(published(&filtered, &ends(source())).0, names(&["id", "n"]), "filters read too");
}

#[test]
fn identity_columns_are_always_published() {
    let lines = "columns = { id = { value = 1 }, n = \"n\" }\nkey = [\"id\"]";
    assert_eq!(published(&[lines], &ends(source())).0, names(&["id", "n"]));
}

#[test]
fn star_publishes_columns_to_come() {
    assert_eq!(published(&["columns = \"*\""], &ends(source())).0, None);
    let with_generated = with(source(), "secret", |column| column.generated = true);
    let named = "columns = { id = \"id\", n = \"n\" }";
    assert_eq!(published(&[named], &ends(with_generated)).0, None, "every column that is sent is needed");
}

#[test]
fn excluded_columns_stay_at_the_source() {
    let (columns, findings) = published(&["columns = \"*\"\nexclude = [\"secret\"]"], &ends(source()));
    assert_eq!((columns, findings.0.len()), (names(&["id", "n"]), 0));
}

#[test]
fn an_exclusion_that_cannot_be_kept_is_said() {
    let lines = "columns = \"*\"\nexclude = [\"secret\"]";
    let mut old = ends(source());
    old.sources.get_mut("lms").expect("present").server_version = 140_011;
    let cases = [
        (vec![lines], old, "need Postgres 15"),
        (vec![lines], ends(full(source())), "REPLICA IDENTITY FULL sends whole rows"),
        (vec![lines, "columns = \"*\""], ends(source()), "another mapping of the same table needs it"),
        (vec![lines, "columns = { id = \"id\", n = \"secret\" }"], ends(source()), "another mapping"),
    ];
    for (tables, live, expected) in cases {
        let (_, findings) = published(&tables, &live);
        let rendered = findings.render(false);
        assert!(rendered.contains("warning: excluded column \"secret\" of \"public.a\" still leaves"), "{rendered}");
        assert!(rendered.contains(expected) && rendered.contains("m.toml:6:12"), "{rendered}");
    }
    let identity = Table { identity_columns: vec!["id".to_owned(), "secret".to_owned()], ..source() };
    let rendered = published(&[lines], &ends(identity)).1.render(false);
    assert!(rendered.contains("it belongs to the table's replica identity"), "{rendered}");
}

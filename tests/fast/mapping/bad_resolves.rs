//! Mappings that are well written and do not fit the databases: what the user reads about each.

use tailwater::catalog::{ReplicaIdentity, Table, TableKind};
use tailwater::mapping::resolve::Live;

use super::{full, headed, live, resolved, table, with};

fn course() -> Table {
    let columns = [
        "id integer!",
        "title character varying(255)",
        "body text",
        "flag boolean",
        "ratio double precision",
        "at timestamp without time zone",
        "payload jsonb",
        "twice integer",
    ];
    with(table("public.course", &columns, &["id"]), "twice", |column| column.generated = true)
}

fn target() -> Table {
    let columns =
        ["id integer!", "title character varying(255)", "flag boolean", "n integer", "at date", "twice integer"];
    with(table("dwh.d", &columns, &["id"]), "twice", |column| column.generated = true)
}

/// Each of `expected` is drawn when `[table."dwh.d"]` from `public.course` has these lines.
fn check(lines: &str, live: &Live, expected: &[&str]) {
    check_text(&headed(&format!("[table.\"dwh.d\"]\nfrom = \"public.course\"\n{lines}\n")), live, expected);
}

fn check_text(text: &str, live: &Live, expected: &[&str]) {
    let (resolved, findings) = resolved(text, live);
    let rendered = findings.render(false);
    for part in expected {
        assert!(rendered.contains(part), "{text}\n-- expected --\n{part}\n-- found --\n{rendered}");
    }
    assert!(!findings.has_errors() || resolved.plans.is_empty() && resolved.views.is_empty());
}

#[test]
fn an_unknown_column_is_drawn_with_its_caret() {
    let text = headed("[table.\"dwh.d\"]\nfrom = \"public.course\"\ncolumns = { id = \"id\", title = \"titel\" }\n");
    let (_, findings) = resolved(&text, &live(vec![course()], vec![target()]));
    let expected = "\
error: column \"titel\" does not exist in \"public.course\"
 --> m.toml:5:32
  |
5 | columns = { id = \"id\", title = \"titel\" }
  |                                ^^^^^^^ no such column at the source
  |
  = hint: did you mean \"title\"?";
    assert_eq!(findings.render(false), expected);
}

#[test]
fn a_partition_that_logs_less_than_its_root_says_is_named() {
    let straying_partition = Some(tailwater::catalog::TableName::new("public", "course_1999"));
    let root = Table { kind: TableKind::Partitioned, straying_partition, ..course() };
    for (root, hint) in [
        (full(root.clone()), "ALTER TABLE \"public\".\"course_1999\" REPLICA IDENTITY FULL"),
        (root, "ALTER TABLE \"public\".\"course_1999\" REPLICA IDENTITY DEFAULT"),
    ] {
        let told = "partition \"public.course_1999\" has another replica identity than \"public.course\"";
        check("columns = { id = \"id\" }", &live(vec![root], vec![target()]), &[told, hint]);
    }
}

#[test]
fn every_misfit_has_its_finding() {
    let live = live(vec![course()], vec![target()]);
    let cases: &[(&str, &[&str])] = &[
        (
            "columns = { id = \"id\", tite = \"title\" }",
            &["\"tite\" does not exist in target \"dwh.d\"", "did you mean \"title\"?"],
        ),
        (
            "columns = { id = \"id\", title = { sql = \"to_jsonb(s) ->> 'title'\" } }",
            &["reads \"s\", which is the row as a whole", "name the columns"],
        ),
        (
            "columns = \"*\"",
            &["\"body\" does not exist in target", "`rename` or `exclude` it", "generated and left out"],
        ),
        (
            "columns = \"*\"\nexclude = [\"bdy\"]",
            &["\"bdy\" does not exist in \"public.course\"", "did you mean \"body\"?"],
        ),
        ("columns = \"*\"\nrename = { boddy = \"x\" }", &["\"boddy\" does not exist in \"public.course\""]),
        ("columns = \"*\"\nmask = { tilte = \"sha256\" }", &["\"tilte\" does not exist in \"public.course\""]),
        (
            "columns = \"*\"\nrename = { flag = \"title\" }",
            &["two columns of \"public.course\" are written to \"title\""],
        ),
        (
            "columns = { id = \"id\", n = \"twice\" }",
            &["\"twice\" of \"public.course\" is generated, and the source does not"],
        ),
        (
            "columns = { id = \"id\", twice = { value = 1 } }",
            &["column \"twice\" of \"dwh.d\" is generated", "cannot be written"],
        ),
        ("columns = { title = \"title\" }", &["\"id\", of the primary key of \"public.course\", is not mapped"]),
        (
            "columns = { id = \"id\", n = \"title\" }",
            &["column \"n\" is integer, and cannot take character varying(255)", "5:24"],
        ),
        (
            "columns = { id = \"id\", flag = \"at\" }",
            &["\"flag\" is boolean, and cannot take timestamp without time zone"],
        ),
        ("columns = { id = \"id\", n = { meta = \"commit_lsn\" } }", &["\"n\" is integer, and cannot take pg_lsn"]),
        (
            "columns = { id = \"id\", n = \"flag\" }\nmask = { flag = \"sha256\" }",
            &["cannot take boolean (sent as text)"],
        ),
        (
            "columns = { id = \"id\", n = \"id\" }\nkey = [\"n\"]",
            &["no unique index on exactly (n)", "CREATE UNIQUE INDEX ON \"dwh\".\"d\" (\"n\")", "6:7"],
        ),
        (
            "columns = { id = \"id\", title = \"title\" }\nkey = [\"title\"]",
            &["\"title\" needs \"title\", which is outside the replica identity", "REPLICA IDENTITY FULL"],
        ),
        (
            "columns = { id = { meta = \"xid\" } }\nkey = [\"id\"]",
            &["key column \"id\" changes with every change of the row"],
        ),
        (
            "columns = { id = \"id\", flag = { sql = \"flg and true\" } }",
            &["warning: \"sql\" reads \"flg\"", "did you mean \"flag\"?", "5:40"],
        ),
        (
            "columns = { id = \"id\", flag = { sql = '\"Flag\"' } }",
            &["error: \"sql\" reads \"Flag\", which is no column", "5:40"],
        ),
        ("columns = { id = \"id\", n = { json = \"flag.a\" } }", &["column \"flag\" is boolean, not json"]),
        (
            "columns = { id = \"id\", n = { json = \"payload.a\" } }",
            &["\"payload\" of \"public.course\" may be large", "or also map the column as it is"],
        ),
        (
            "columns = { id = \"id\", n = { sql = \"length(body)\" } }",
            &["\"body\" of \"public.course\" may be large", "ALTER TABLE \"public\".\"course\" REPLICA IDENTITY FULL"],
        ),
        (
            "columns = { id = \"id\" }\nwhere = \"body <> ''\"",
            &["\"body\" of \"public.course\" may be large", "m.toml:6:9"],
        ),
        (
            "columns = { id = \"id\", title = \"title\" }\nwhere = \"flag\"",
            &["warning: a row that comes to match \"where\" by an update may lack \"title\""],
        ),
        (
            "columns = { id = \"id\", title = \"title\" }\nmode = \"append\"",
            &["\"title\" of \"public.course\" may be large"],
        ),
        (
            "columns = { id = \"id\" }\ndelete = \"soft\"",
            &[
                "deleted column \"_tailwater_deleted\" does not exist",
                "ADD COLUMN \"_tailwater_deleted\" boolean NOT NULL DEFAULT false",
            ],
        ),
        (
            "columns = { id = \"id\" }\ndelete = \"soft\"\ndeleted_column = \"n\"",
            &["deleted column \"n\" is integer, not boolean"],
        ),
    ];
    for (lines, expected) in cases {
        check(lines, &live, expected);
    }
}

#[test]
fn what_is_excluded_cannot_be_used() {
    let live = live(vec![course()], vec![target()]);
    let lines = "columns = { \"*\" = true, n = { sql = \"length(title)\" }, title = \"title\" }\nexclude = [\"title\"]\nwhere = \"title > 'a'\"";
    let text = headed(&format!("[table.\"dwh.d\"]\nfrom = \"public.course\"\n{lines}\n"));
    let rendered = resolved(&text, &live).1.render(false);
    assert_eq!(rendered.matches("column \"title\" is excluded, and used here").count(), 3, "{rendered}");
}

#[test]
fn sources_that_cannot_be_followed_are_refused() {
    let lines = "columns = { id = \"id\" }";
    let kinds = [
        (TableKind::View, "\"public.course\" is a view, and its changes are in no log"),
        (TableKind::MaterializedView, "is a materialized view"),
        (TableKind::Foreign, "is a foreign table"),
    ];
    for (kind, expected) in kinds {
        check(lines, &live(vec![Table { kind, ..course() }], vec![target()]), &[expected, "map the tables under it."]);
    }
    check(lines, &live(vec![Table { unlogged: true, ..course() }], vec![target()]), &["is unlogged", "SET LOGGED"]);
    let secured = Table { row_security: true, ..course() };
    check(lines, &live(vec![secured], vec![target()]), &["warning: \"public.course\" has row security", "BYPASSRLS"]);
    let misspelt = Table { name: "public.corse".parse().expect("a name"), ..course() };
    let expected =
        ["\"public.course\" does not exist in source \"lms\"", "did you mean \"public.corse\"?", "m.toml:4:8"];
    check(lines, &live(vec![misspelt], vec![target()]), &expected);
    let elsewhere = Table { name: "app.course".parse().expect("a name"), ..course() };
    check(lines, &live(vec![elsewhere], vec![target()]), &["did you mean \"app.course\"?"]);
}

#[test]
fn targets_that_do_not_fit_are_refused() {
    let lines = "columns = { id = \"id\" }";
    let expected = ["\"dwh.d\" does not exist in sink \"warehouse\"", "`tailwater setup --create-targets` creates it"];
    check(lines, &live(vec![course()], Vec::new()), &expected);
    let view = Table { kind: TableKind::View, ..target() };
    check(lines, &live(vec![course()], vec![view]), &["\"dwh.d\" of sink \"warehouse\" is not a table"]);
    let strict = with(target(), "n", |column| column.not_null = true);
    check(lines, &live(vec![course()], vec![strict]), &["column \"n\" of \"dwh.d\" is NOT NULL and not mapped"]);
    let keyless = Table { unique_keys: vec![vec!["id".to_owned(), "n".to_owned()]], ..target() };
    check(lines, &live(vec![course()], vec![keyless]), &["has no unique index on exactly (id)"]);
}

#[test]
fn a_source_without_identity_needs_one() {
    let lines = "columns = { id = \"id\" }\nkey = [\"id\"]";
    let keyless = Table { primary_key: Vec::new(), identity_columns: Vec::new(), ..course() };
    let expected = ["table \"public.course\" has no replica identity", "REPLICA IDENTITY FULL", "m.toml:4:8"];
    check(lines, &live(vec![keyless.clone()], vec![target()]), &expected);
    let nothing = Table { replica_identity: ReplicaIdentity::Nothing, identity_columns: Vec::new(), ..course() };
    check(lines, &live(vec![nothing], vec![target()]), &expected[..1]);
    let undeclared = "columns = { id = \"id\" }";
    check(
        undeclared,
        &live(vec![keyless.clone()], vec![target()]),
        &["has no primary key, and the mapping names no key", "REPLICA IDENTITY FULL` at the source: then no key is"],
    );
    check(
        &format!("{undeclared}\nmode = \"insert_new\""),
        &live(vec![full(keyless.clone())], vec![target()]),
        &["has no primary key, and the mapping names no key", "target columns that are unique together."],
    );
    let (resolved, findings) = resolved(
        &headed(&format!("[table.\"dwh.d\"]\nfrom = \"public.course\"\n{lines}\n")),
        &live(vec![full(keyless)], vec![target()]),
    );
    assert!(findings.0.is_empty(), "{}", findings.render(false));
    assert_eq!(resolved.plans[0].key_inputs, [0]);
}

#[test]
fn without_a_key_only_whole_rows_as_they_are_can_be_mirrored() {
    let keyless = full(Table { primary_key: Vec::new(), identity_columns: Vec::new(), ..course() });
    let live = live(vec![keyless], vec![target()]);
    let cases: &[(&str, &[&str])] = &[
        (
            "columns = { id = \"id\", n = { sql = \"id + 1\" } }",
            &["\"public.course\" has no key, and column \"n\" is not a column of it as it is", "5:24", "add `key ="],
        ),
        ("columns = { id = \"id\", title = { meta = \"op\" } }", &["column \"title\" is not a column of it"]),
        ("columns = { id = \"id\" }\nwhere = \"flag\"", &["\"where\" cannot be used without one", "6:9"]),
        ("columns = { id = \"id\" }\ndelete = \"soft\"", &["delete \"soft\" cannot be used without one"]),
    ];
    for (lines, expected) in cases {
        check(lines, &live, expected);
    }
}

#[test]
fn keys_are_never_null_nor_floating() {
    let lines = "columns = { id = \"id\", n = \"ratio\" }\nkey = [\"n\"]";
    check(lines, &live(vec![full(course())], vec![target()]), &["key column \"n\" is double precision"]);
    let dated = Table { unique_keys: vec![vec!["at".to_owned()]], ..target() };
    let lines = "columns = { id = \"id\", at = \"at\" }\nkey = [\"at\"]";
    let expected =
        ["key column \"at\" is cut from timestamp without time zone to date", "different rows may become one"];
    check(lines, &live(vec![full(course())], vec![dated]), &expected);
    let nullable = with(full(course()), "id", |column| column.not_null = false);
    let open = with(target(), "id", |column| column.not_null = false);
    check("columns = { id = \"id\" }", &live(vec![nullable], vec![open]), &["key column \"id\" may be NULL"]);
}

#[test]
fn types_of_users_must_exist_at_both_ends() {
    let columns = ["id integer!", "place public.geometry", "tags public.mood[]"];
    let source = || table("public.course", &columns, &["id"]);
    let sink = || table("dwh.d", &columns, &["id"]);
    let text = "columns = { id = \"id\", place = \"place\" }";
    check(
        text,
        &live(vec![source()], vec![sink()]),
        &["type public.geometry of column \"place\" does not exist in sink"],
    );
    let mut known = live(vec![source()], vec![sink()]);
    known.sinks.get_mut("warehouse").expect("present").types.insert("public.geometry".to_owned(), 17_000);
    let text = headed(&format!("[table.\"dwh.d\"]\nfrom = \"public.course\"\n{text}\n"));
    let (resolved, findings) = resolved(&text, &known);
    assert!(findings.0.is_empty(), "{}", findings.render(false));
    assert_eq!(resolved.plans[0].inputs[1].stage_type_oid, 17_000);
    check(
        "columns = { id = \"id\", tags = \"tags\" }",
        &known,
        &["an array of a type that other databases number differently"],
    );
}

#[test]
fn views_must_be_materialized_and_refreshable() {
    let view =
        |kind, unique: &[&str]| live(Vec::new(), vec![Table { kind, ..table("dwh.v", &["id integer"], unique) }]);
    let text = headed("[view.\"dwh.v\"]\nrefresh = \"concurrently\"\n");
    check_text(
        &text,
        &live(Vec::new(), Vec::new()),
        &["materialized view \"dwh.v\" does not exist in sink \"warehouse\""],
    );
    check_text(&text, &view(TableKind::View, &[]), &["\"dwh.v\" is not a materialized view", "always fresh"]);
    check_text(&text, &view(TableKind::Table, &[]), &["a table is mapped under `[table]`"]);
    let expected = ["\"dwh.v\" cannot be refreshed concurrently", "CREATE UNIQUE INDEX ON \"dwh\".\"v\"", "m.toml:3:7"];
    check_text(&text, &view(TableKind::MaterializedView, &[]), &expected);
    let (resolved, findings) = resolved(&text, &view(TableKind::MaterializedView, &["id"]));
    assert!(findings.0.is_empty() && resolved.views.len() == 1);
}

#[test]
fn the_same_finding_of_two_sinks_is_said_once() {
    let mut both = live(vec![course()], vec![target()]);
    let second = both.sinks["warehouse"].clone();
    both.sinks.insert("second".to_owned(), second);
    let text = "source = \"lms\"\nsink = [\"warehouse\", \"second\"]\n[table.\"dwh.d\"]\nfrom = \"public.course\"\ncolumns = { id = \"id\", n = \"title\" }\n";
    let (_, findings) = resolved(text, &both);
    assert_eq!(findings.0.len(), 1, "{}", findings.render(false));
}

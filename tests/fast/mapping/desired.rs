//! Target tables that are to be created.

use tailwater::catalog::TypeKind;
use tailwater::mapping::desired::{Desired, ddl, desired_tables};
use tailwater::mapping::resolve::{Live, resolve};

use super::{config, full, headed, live, parse, table, with};

const MAPPING: &str = r#"
[table."dwh.d_course"]
from    = "public.course"
columns = { course_id = "id", title = "title", mood = "mood", demo = { sql = "f is true", type = "boolean" }, n = { value = 1 }, at = { meta = "commit_ts" } }
delete  = "soft"

[table."dwh.log"]
from    = "public.course"
columns = { id = "id", op = { meta = "op" } }
mode    = "append"
"#;

fn ends() -> Live {
    let source = table(
        "public.course",
        &["id integer!", "title character varying(255)!", "mood public.mood", "f boolean"],
        &["id"],
    );
    let mut ends = live(vec![with(source, "mood", |column| column.type_kind = TypeKind::Enum)], Vec::new());
    ends.sources.get_mut("lms").expect("present").catalog.tables[0].columns[1].toastable = false;
    ends
}

#[test]
fn ddl_creates_what_mappings_describe() {
    let (Desired { tables, .. }, findings) = desired_tables(&config(), &[parse(&headed(MAPPING))], &ends());
    assert!(findings.0.is_empty(), "{}", findings.render(false));
    let expected = "\
CREATE SCHEMA IF NOT EXISTS \"dwh\";

CREATE TABLE IF NOT EXISTS \"dwh\".\"d_course\" (
    \"course_id\" integer NOT NULL,
    \"title\" character varying(255) NOT NULL,
    \"mood\" text,
    \"demo\" boolean,
    \"n\" bigint,
    \"at\" timestamp with time zone,
    \"_tailwater_deleted\" boolean NOT NULL DEFAULT false,
    PRIMARY KEY (\"course_id\")
);

CREATE TABLE IF NOT EXISTS \"dwh\".\"log\" (
    \"id\" integer NOT NULL,
    \"op\" text
);
";
    assert_eq!(ddl(&tables), expected);
}

#[test]
fn a_table_without_a_key_gets_none() {
    let mapping = "[table.\"dwh.log\"]\nfrom = \"public.log\"\ncolumns = \"*\"\n";
    let ends = live(vec![full(table("public.log", &["id integer!", "doc json"], &[]))], Vec::new());
    let (Desired { tables, .. }, findings) = desired_tables(&config(), &[parse(&headed(mapping))], &ends);
    assert!(findings.0.is_empty(), "{}", findings.render(false));
    assert!(tables[0].primary_key.is_empty());
    let ends = Live { assume: tables, ..ends };
    let (resolved, findings) = resolve(&config(), &[parse(&headed(mapping))], &ends);
    assert!(findings.0.is_empty(), "{}", findings.render(false));
    assert!(resolved.plans[0].is_multiset());
}

#[test]
fn plans_can_be_made_before_tables_are() {
    let mut ends = ends();
    let file = parse(&headed(MAPPING));
    let (Desired { tables, .. }, _) = desired_tables(&config(), std::slice::from_ref(&file), &ends);
    assert!(resolve(&config(), std::slice::from_ref(&file), &ends).1.has_errors(), "they are not there yet");
    ends.assume = tables;
    let (resolved, findings) = resolve(&config(), &[file], &ends);
    assert!(!findings.has_errors(), "{}", findings.render(false));
    assert_eq!(resolved.plans.len(), 2);
}

#[test]
fn tables_that_exist_are_not_desired() {
    let mut ends = ends();
    let existing = table("dwh.log", &["id integer"], &[]);
    ends.sinks.get_mut("warehouse").expect("present").catalog.tables.push(existing);
    let (Desired { tables, .. }, _) = desired_tables(&config(), &[parse(&headed(MAPPING))], &ends);
    assert_eq!(tables.iter().map(|table| table.target.name.as_str()).collect::<Vec<_>>(), ["d_course"]);
}

#[test]
fn an_expression_without_type_cannot_be_created() {
    let text = headed(&MAPPING.replace(", type = \"boolean\"", ""));
    let (Desired { tables, .. }, findings) = desired_tables(&config(), &[parse(&text)], &ends());
    let rendered = findings.render(false);
    assert!(rendered.contains("the type of column \"demo\" is not known before it exists"), "{rendered}");
    assert_eq!(tables.len(), 1);
}

#[test]
fn a_plain_column_may_say_its_type() {
    let mapping = "[table.\"dwh.d_course\"]\nfrom = \"public.course\"\n\
                   columns = { id = \"id\", name = { column = \"title\", type = \"varchar(300)\" } }\n";
    let (Desired { tables, .. }, findings) = desired_tables(&config(), &[parse(&headed(mapping))], &ends());
    assert!(findings.0.is_empty(), "{}", findings.render(false));
    assert!(ddl(&tables).contains("    \"name\" varchar(300) NOT NULL,\n"), "{}", ddl(&tables));
}

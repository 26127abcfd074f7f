//! The lessons model: an online school's tables into a star.

use std::time::Duration;

use tailwater::catalog::{ForeignKey, Table, TableKind, TableName};
use tailwater::mapping::plan::{Input, InputFrom, Meta, Mode, Output, OutputFrom, Plan, Published, RefreshMode};
use tailwater::mapping::resolve::Live;
use tailwater::value::clickhouse::types::OnOverflow;

use super::{live, resolved_whole, table};

const MAPPING: &str = r#"
source = "lms"
sink   = "warehouse"

[table."dwh.d_course"]
from    = "public.course"
key     = ["course_id"]
columns = { course_id = "id", title = "title", is_demo = { sql = "coalesce(is_demo_enroll, false)" }, synced = { meta = "commit_ts" } }

[table."dwh.d_stream"]
from    = "public.stream"
columns = { stream_id = "id", course_id = "course_id", name = "name", start_at = "start_at" }

[table."ods.stream_module_lesson"]
from    = "public.stream_module_lesson"
columns = "*"
exclude = ["homework_url"]

[view."dwh.f_lesson"]
refresh = "concurrently"
every   = "2s"
"#;

fn lessons() -> Live {
    let source = vec![
        table(
            "public.course",
            &[
                "id integer!",
                "title character varying(255)!",
                "created_at timestamp without time zone",
                "icon_url character varying(255)",
                "is_demo_enroll boolean",
            ],
            &["id"],
        ),
        table(
            "public.stream",
            &[
                "id integer!",
                "course_id integer",
                "start_at timestamp without time zone",
                "name character varying(255)",
            ],
            &["id"],
        ),
        table(
            "public.stream_module_lesson",
            &["id integer!", "title character varying(255)", "description text", "homework_url character varying(500)"],
            &["id"],
        ),
    ];
    let mut d_stream = table(
        "dwh.d_stream",
        &["stream_id integer!", "course_id integer", "name text", "start_at timestamp with time zone"],
        &["stream_id"],
    );
    d_stream.foreign_keys.push(ForeignKey {
        columns: vec!["course_id".to_owned()],
        references: TableName::new("dwh", "d_course"),
        deferrable: false,
    });
    let sink = vec![
        table(
            "dwh.d_course",
            &[
                "course_id integer!",
                "title character varying(255)",
                "is_demo boolean!",
                "synced timestamp with time zone",
            ],
            &["course_id"],
        ),
        d_stream,
        table("ods.stream_module_lesson", &["id bigint!", "title character varying(255)", "description text"], &["id"]),
        Table { kind: TableKind::MaterializedView, ..table("dwh.f_lesson", &["id integer"], &["id"]) },
    ];
    live(source, sink)
}

fn input(name: &str, stage_type: &str, stage_type_oid: u32, toastable: bool) -> Input {
    let from = InputFrom::Column(name.to_owned());
    let stage_type = stage_type.to_owned();
    let on_overflow = OnOverflow::Error;
    let (nested, mask, source_type) = (false, None, None);
    Input { name: name.to_owned(), from, stage_type, stage_type_oid, nested, toastable, mask, source_type, on_overflow }
}

/// A plan's inputs without their types at the source.
fn inputs(plan: &Plan) -> Vec<Input> {
    plan.inputs.iter().map(|input| Input { source_type: None, ..input.clone() }).collect()
}

fn output(column: &str, target_type: &str, input: usize, cast: bool) -> Output {
    Output { column: column.to_owned(), target_type: target_type.to_owned(), from: OutputFrom::Input { input, cast } }
}

#[test]
fn lessons_come_to_plans() {
    let resolved = resolved_whole(MAPPING, &lessons());
    assert_eq!(resolved.plans.len(), 3);
    let course = &resolved.plans[0];
    assert_eq!((course.source.as_str(), course.sink.as_str()), ("lms", "warehouse"));
    assert_eq!(course.target, TableName::new("dwh", "d_course"));
    let commit_ts = Input {
        name: "_tailwater_commit_ts".to_owned(),
        from: InputFrom::Meta(Meta::CommitTs),
        ..input("", "timestamp with time zone", 1184, false)
    };
    let expected = [
        input("id", "integer", 23, false),
        input("title", "varchar", 1043, true),
        input("is_demo_enroll", "boolean", 16, false),
        commit_ts,
    ];
    assert_eq!(inputs(course), expected);
    assert_eq!(course.source_columns, ["id", "title", "is_demo_enroll"]);
    let is_demo = Output {
        column: "is_demo".to_owned(),
        target_type: "boolean".to_owned(),
        from: OutputFrom::Sql {
            text: "CAST((coalesce(is_demo_enroll, false)) AS boolean)".to_owned(),
            inputs: vec![2],
        },
    };
    let expected = [
        output("course_id", "integer", 0, false),
        output("title", "character varying(255)", 1, false),
        is_demo,
        output("synced", "timestamp with time zone", 3, false),
    ];
    assert_eq!(course.outputs, expected);
    assert_eq!((&course.key[..], &course.key_inputs[..], course.mode), (&[0][..], &[0][..], Mode::Upsert));
    assert!(!course.shared_target && !course.follows_columns && course.parents.is_empty());
}

#[test]
fn types_that_differ_are_cast_and_parents_known() {
    let resolved = resolved_whole(MAPPING, &lessons());
    let stream = &resolved.plans[1];
    let expected = [
        output("stream_id", "integer", 0, false),
        output("course_id", "integer", 1, false),
        output("name", "text", 2, true),
        output("start_at", "timestamp with time zone", 3, true),
    ];
    assert_eq!(stream.outputs, expected);
    assert_eq!(stream.key, [0], "the key comes from the source's primary key");
    assert_eq!(stream.parents, [TableName::new("dwh", "d_course")]);
}

#[test]
fn star_follows_the_source_and_excluded_columns_stay_there() {
    let resolved = resolved_whole(MAPPING, &lessons());
    let lesson = &resolved.plans[2];
    assert!(lesson.follows_columns);
    assert_eq!(lesson.source_columns, ["id", "title", "description"]);
    let published = |table: &str, columns: &[&str]| Published {
        table: TableName::new("public", table),
        columns: Some(columns.iter().map(|column| (*column).to_owned()).collect()),
    };
    let expected = [
        published("course", &["id", "title", "is_demo_enroll"]),
        Published { table: TableName::new("public", "stream"), columns: None },
        published("stream_module_lesson", &["id", "title", "description"]),
    ];
    assert_eq!(resolved.published["lms"], expected);
}

#[test]
fn views_keep_their_pace() {
    let resolved = resolved_whole(MAPPING, &lessons());
    let [view] = resolved.views.as_slice() else { panic!("one view") };
    assert_eq!(view.view, TableName::new("dwh", "f_lesson"));
    assert_eq!((view.refresh, view.every), (RefreshMode::Concurrently, Duration::from_secs(2)));
}

//! What a mapping that fits comes to: casts, constants, expressions, masks, keys.

use std::collections::BTreeMap;

use tailwater::catalog::{ReplicaIdentity, Table, TypeKind};
use tailwater::mapping::plan::{DeleteMode, InputFrom, Mask, Meta, Mode, OutputFrom, Plan};
use tailwater::mapping::resolve::{AbsentEnd, Live, resolve};

use super::{config, full, headed, live, parse, resolved_whole, table, with};

/// The single plan of a table with these lines.
fn plan(lines: &str, source: Table, target: Table) -> Plan {
    let text = headed(&format!("[table.\"dwh.d\"]\nfrom = \"public.a\"\n{lines}\n"));
    let mut plans = resolved_whole(&text, &live(vec![source], vec![target])).plans;
    assert_eq!(plans.len(), 1);
    plans.remove(0)
}

/// The SQL text of the plan's output for a column, and the names of what it reads.
fn sql<'a>(plan: &'a Plan, column: &str) -> (&'a str, Vec<&'a str>) {
    let output = plan.outputs.iter().find(|output| output.column == column).expect("mapped");
    match &output.from {
        OutputFrom::Sql { text, inputs } => {
            (text, inputs.iter().map(|input| plan.inputs[*input].name.as_str()).collect())
        }
        OutputFrom::Input { .. } => panic!("{column} is no expression"),
    }
}

fn source() -> Table {
    table("public.a", &["id integer!", "t character varying(20)", "j json", "f boolean", "Odd integer"], &["id"])
}

#[test]
fn constants_are_cast_to_their_column() {
    let target = ["id integer!", "i bigint", "s character varying(20)", "b boolean", "d timestamp with time zone"];
    let lines = "columns = { id = \"id\", i = { value = 7 }, s = { value = \"it's\" }, b = { value = true }, \
                 d = { value = 2024-05-01T00:00:00Z } }";
    let plan = plan(lines, source(), table("dwh.d", &target, &["id"]));
    assert_eq!(sql(&plan, "i"), ("CAST('7' AS bigint)", vec![]));
    assert_eq!(sql(&plan, "s"), ("CAST('it''s' AS varchar)", vec![]));
    assert_eq!(sql(&plan, "b").0, "CAST('true' AS boolean)");
    assert_eq!(sql(&plan, "d").0, "CAST('2024-05-01T00:00:00Z' AS timestamp with time zone)");
    assert_eq!(plan.source_columns, ["id"], "constants read nothing");
}

#[test]
fn expressions_read_what_they_name() {
    let target = ["id integer!", "a integer", "b character(3)", "c text"];
    let lines = "columns = { id = \"id\", a = { sql = '\"Odd\" + odd(id)' }, b = { sql = \"f::text -- f\" }, \
                 c = { sql = \"now()\" } }";
    let plan = plan(lines, source(), table("dwh.d", &target, &["id"]));
    assert_eq!(sql(&plan, "a"), ("CAST((\"Odd\" + odd(id)) AS integer)", vec!["Odd", "id"]));
    assert_eq!(sql(&plan, "b"), ("CAST((f::text -- f\n) AS bpchar)", vec!["f"]), "lengths are checked, not cut");
    assert_eq!(sql(&plan, "c"), ("CAST((now()) AS text)", vec![]));
}

#[test]
fn without_a_primary_key_whole_old_rows_are_found_by_all_that_is_mapped() {
    let keyless = full(table("public.a", &["t text", "j json", "unmapped integer"], &[]));
    let target = table("dwh.d", &["t text", "copy text", "j json"], &[]);
    let plan = plan("columns = { t = \"t\", copy = \"t\", j = \"j\" }", keyless, target);
    assert!(plan.is_multiset());
    assert_eq!((plan.key.len(), &plan.key_inputs[..]), (0, &[0, 1][..]));
    assert!(plan.inputs.iter().all(|input| !input.toastable), "the whole old row is sent");
}

#[test]
fn pair_that_lacks_an_end_is_not_forgotten() {
    let text = "source = [\"lms\", \"other\"]\nsink = [\"warehouse\", \"second\"]\n\
                [table.\"dwh.d\"]\nfrom = \"public.a\"\nkey = [\"s\", \"id\"]\n\
                columns = { id = \"id\", s = { meta = \"source\" } }\n";
    let target = table("dwh.d", &["s text!", "id integer!"], &["s", "id"]);
    let live = live(vec![source()], vec![target]);
    let (resolved, _) = resolve(&config(), &[parse(text)], &live);
    let absent = resolved.absent.iter().map(|one| (one.source.as_str(), one.sink.as_str(), one.end));
    let expected = [
        ("lms", "second", AbsentEnd::Sink),
        ("other", "warehouse", AbsentEnd::Source),
        ("other", "second", AbsentEnd::Source),
    ];
    assert!(absent.eq(expected), "{:?}", resolved.absent);
    assert!(resolved.absent.iter().all(|absent| absent.targets.iter().map(ToString::to_string).eq(["dwh.d"])));
    let [plan] = &resolved.plans[..] else { panic!("{:?}", resolved.plans) };
    assert!(plan.shared_target, "how a table is shared is configured, whoever answers");
}

#[test]
fn json_paths_become_operators() {
    let target = ["id integer!", "user_id integer", "name text"];
    let lines = "columns = { id = \"id\", user_id = { json = \"j.user.id\" }, name = { json = 'j.\"full name\"' } }";
    let plan = plan(lines, full(source()), table("dwh.d", &target, &["id"]));
    assert_eq!(sql(&plan, "user_id"), ("CAST((\"j\"::jsonb #>> '{user,id}') AS integer)", vec!["j"]));
    assert_eq!(sql(&plan, "name").0, "(\"j\"::jsonb #>> '{\"full name\"}')");
    assert!(!plan.inputs[1].toastable, "the whole old row is sent");
}

#[test]
fn metas_are_inputs_or_constants() {
    let target = ["id integer!", "s text", "o text", "l text", "x bigint", "n timestamp with time zone", "d date"];
    let lines = "columns = { id = \"id\", s = { meta = \"source\" }, o = { meta = \"op\" }, l = { meta = \"commit_lsn\" }, \
                 x = { meta = \"xid\" }, n = { meta = \"synced_at\" }, d = { meta = \"synced_at\" } }";
    let plan = plan(lines, source(), table("dwh.d", &target, &["id"]));
    assert_eq!(sql(&plan, "s"), ("CAST('lms' AS text)", vec![]));
    assert_eq!((sql(&plan, "n").0, sql(&plan, "d").0), ("now()", "CAST(now() AS date)"));
    let inputs: Vec<_> = plan.inputs.iter().map(|input| (input.name.as_str(), input.stage_type.as_str())).collect();
    let expected = [
        ("id", "integer"),
        ("_tailwater_op", "text"),
        ("_tailwater_commit_lsn", "pg_lsn"),
        ("_tailwater_xid", "bigint"),
    ];
    assert_eq!(inputs, expected);
    assert_eq!(plan.inputs[2].from, InputFrom::Meta(Meta::CommitLsn));
    assert_eq!(plan.outputs[3].from, OutputFrom::Input { input: 2, cast: true });
    assert_eq!(plan.source_columns, ["id"]);
}

#[test]
fn values_travel_in_a_type_that_both_ends_have() {
    let source =
        table("public.a", &["id integer!", "m public.mood", "p public.amount", "r aclitem", "l text[]"], &["id"]);
    let source = with(source, "m", |column| column.type_kind = TypeKind::Enum);
    let source = with(source, "p", |column| {
        (column.type_kind, column.wire_type, column.wire_oid) = (TypeKind::Domain, "numeric".to_owned(), 1700);
    });
    let source = with(source, "r", |column| column.has_binary = false);
    let target = table("dwh.d", &["id integer!", "m text", "p numeric(10,2)", "r text", "l text[]"], &["id"]);
    let plan = plan("columns = \"*\"", source, target);
    let inputs: Vec<_> =
        plan.inputs.iter().map(|input| (input.stage_type.as_str(), input.stage_type_oid, input.nested)).collect();
    let expected = [
        ("integer", 23, false),
        ("text", 25, false),
        ("numeric", 1700, false),
        ("text", 25, false),
        ("text[]", 1009, true),
    ];
    assert_eq!(inputs, expected);
    assert_eq!(plan.outputs[2].from, OutputFrom::Input { input: 2, cast: false }, "a modifier is no cast");
    assert_eq!(plan.outputs[2].target_type, "numeric(10,2)");
    assert_eq!(plan.outputs[2].cast_type(), "numeric");
}

#[test]
fn star_takes_renames_masks_and_more_columns() {
    let target = table("dwh.d", &["a_id integer!", "t text", "f text", "Odd integer"], &["a_id"]);
    let lines = "columns = { \"*\" = true, f = { sql = \"f::text\" } }\nrename = { id = \"a_id\" }\nexclude = [\"j\"]\n\
                 mask = { t = \"sha256\" }";
    let plan = plan(lines, source(), target);
    let names: Vec<&str> = plan.outputs.iter().map(|output| output.column.as_str()).collect();
    assert_eq!(names, ["a_id", "t", "Odd", "f"]);
    assert_eq!((plan.inputs[1].mask, plan.inputs[1].stage_type.as_str()), (Some(Mask::Sha256), "text"));
    assert!(plan.follows_columns);
}

#[test]
fn filters_and_modes_are_kept() {
    let lines = "columns = { id = \"id\", \"Odd\" = \"Odd\" }\nwhere = \"f is not false\"\nmode = \"insert_new\"\ndelete = \"ignore\"";
    let plan = plan(lines, source(), table("dwh.d", &["id integer!", "Odd integer"], &["id"]));
    assert_eq!((plan.filter.as_deref(), &plan.filter_inputs[..]), (Some("f is not false"), &[2][..]));
    assert_eq!((plan.mode, plan.delete), (Mode::InsertNew, DeleteMode::Ignore));
    assert_eq!(plan.source_columns, ["id", "Odd", "f"]);
}

#[test]
fn a_soft_delete_has_its_column() {
    let target = table("dwh.d", &["id integer!", "_tailwater_deleted boolean!"], &["id"]);
    let plan = plan("columns = { id = \"id\" }\ndelete = \"soft\"", source(), target);
    assert_eq!(plan.deleted_column.as_deref(), Some("_tailwater_deleted"));
}

#[test]
fn a_key_may_follow_a_chosen_index() {
    let source = Table {
        replica_identity: ReplicaIdentity::Index,
        identity_columns: vec!["Odd".to_owned()],
        ..with(source(), "Odd", |column| column.not_null = true)
    };
    let target = table("dwh.d", &["id integer!", "o integer!"], &["o"]);
    let plan = plan("columns = { id = \"id\", o = \"Odd\" }\nkey = [\"o\"]", source, target);
    assert_eq!((&plan.key[..], &plan.key_inputs[..]), (&[1][..], &[1][..]));
}

#[test]
fn an_append_needs_no_key() {
    let source = table("public.a", &["id integer!", "n integer"], &["id"]);
    let target = table("dwh.d", &["id integer", "op text"], &[]);
    let plan = plan("columns = { id = \"id\", op = { meta = \"op\" } }\nmode = \"append\"", source, target);
    assert!(plan.key.is_empty() && plan.mode == Mode::Append);
}

#[test]
fn several_sources_share_a_target() {
    let text = "source = [\"lms\", \"other\"]\nsink = \"warehouse\"\n[table.\"dwh.d\"]\nfrom = \"public.a\"\n\
                columns = { id = \"id\", project = { meta = \"source\" } }\n";
    let target = table("dwh.d", &["project character varying(20)!", "id integer!"], &["project", "id"]);
    let mut live = live(vec![source()], vec![target]);
    live.sources.insert("other".to_owned(), live.sources["lms"].clone());
    let resolved = resolved_whole(text, &live);
    let [first, second] = resolved.plans.as_slice() else { panic!("two plans") };
    assert_eq!((first.source.as_str(), second.source.as_str()), ("lms", "other"));
    assert_eq!(first.key, [1, 0], "the source comes first in the key that is taken by default");
    assert!(first.shared_target && second.shared_target);
    assert_eq!(sql(second, "project").0, "CAST('other' AS varchar)");
    assert_eq!(resolved.published.len(), 2);
}

#[test]
fn ends_that_did_not_answer_are_passed_over() {
    let file = parse(&headed("[table.\"dwh.d\"]\nfrom = \"public.a\"\ncolumns = \"*\"\n[view.\"dwh.v\"]\n"));
    let live = Live {
        sources: BTreeMap::new(),
        sinks: BTreeMap::new(),
        clickhouse: BTreeMap::new(),
        kafka: BTreeMap::new(),
        assume: Vec::new(),
    };
    let (resolved, findings) = resolve(&config(), &[file], &live);
    assert!(resolved.plans.is_empty() && resolved.views.is_empty() && findings.0.is_empty());
}

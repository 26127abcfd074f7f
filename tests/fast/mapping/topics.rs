//! `[topic]` sections against a source: which rows and columns are meant, and what is wrong with what they say.

use std::collections::BTreeMap;

use tailwater::catalog::Table;
use tailwater::config::Config;
use tailwater::diagnostic::{Findings, SourceFile};
use tailwater::mapping::MappingFile;
use tailwater::mapping::kafka::LiveKafka;
use tailwater::mapping::resolve::{Live, Resolved, resolve};

use super::{full, live, table, with};

fn tables() -> Vec<Table> {
    let columns = [
        "id bigint!",
        "status text",
        "total numeric(10,2)",
        "paid boolean",
        "note json",
        "due date",
        "made bigint",
        "alias text",
    ];
    let orders = with(full(table("public.orders", &columns, &["id"])), "made", |column| column.generated = true);
    let orders = with(orders, "alias", |column| column.equals_bytewise = false);
    vec![orders, table("public.lines", &["id bigint!", "status text", "amount bigint"], &["id"])]
}

fn resolved(section: &str) -> (Resolved, Findings) {
    resolved_of("\"lms\"", section)
}

fn resolved_of(sources: &str, section: &str) -> (Resolved, Findings) {
    let text = "mappings = [\"m.toml\"]\n[source.lms]\nurl = \"postgres://u@h/d\"\n[source.crm]\nurl = \"postgres://u@h/c\"\n\
                [sink.events]\nkind = \"kafka\"\nbrokers = \"h:1\"\n";
    let config = Config::parse(std::path::Path::new("t.toml"), text, std::iter::empty()).expect("well formed");
    let mut ends: Live = live(tables(), Vec::new());
    let crm = ends.sources["lms"].clone();
    ends.sources.insert("crm".to_owned(), crm);
    let topics = ["lms.public.orders", "lms.public.lines"].map(|name| (name.to_owned(), 3));
    ends.kafka.insert("events".to_owned(), LiveKafka { topics: BTreeMap::from(topics) });
    let mapping = format!("source = {sources}\nsink = \"events\"\n[topic]\n{section}");
    match MappingFile::parse(SourceFile::new("m.toml", mapping)) {
        Ok(file) => resolve(&config, &[file], &ends),
        Err(findings) => (Resolved::default(), findings),
    }
}

/// By table, the columns that messages have.
fn columns(section: &str) -> BTreeMap<String, Vec<String>> {
    let (resolved, findings) = resolved(section);
    assert!(!findings.has_errors(), "{}", findings.render(false));
    let of = |plan: &tailwater::mapping::plan::Plan| {
        plan.topic.iter().flat_map(|topic| &topic.columns).map(|column| column.name.clone()).collect()
    };
    resolved.plans.iter().map(|plan| (plan.from.name.clone(), of(plan))).collect()
}

#[test]
fn columns_are_included_or_excluded_and_keys_stay() {
    let expect = |section: &str, orders: &[&str], lines: &[&str]| {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let expected = BTreeMap::from([("orders".to_owned(), owned(orders)), ("lines".to_owned(), owned(lines))]);
        assert_eq!(columns(&format!("tables = \"public.*\"\n{section}\n")), expected, "{section}");
    };
    expect("", &["id", "status", "total", "paid", "note", "due", "alias"], &["id", "status", "amount"]);
    let excluded = "exclude = [\"public.orders.tot*\", \"public.*.status\"]";
    expect(excluded, &["id", "paid", "note", "due", "alias"], &["id", "amount"]);
    expect("include = [\"public.orders.tot*\", \"*.*.status\"]", &["id", "status", "total"], &["id", "status"]);
    // A list of what may be sent sends nothing of a table that it does not name, but for the key.
    expect("include = \"public.lines.amount\"", &["id"], &["id", "amount"]);
    // What is generated is not sent, and may be named.
    expect("include = \"public.orders.*\"", &["id", "status", "total", "paid", "note", "due", "alias"], &["id"]);
}

#[test]
fn a_condition_is_compiled_for_the_tables_that_it_is_of() {
    let section = "tables = \"public.*\"\nwhere = { \"public.orders\" = \" status <> 'draft' AND NOT paid \" }\n";
    let (resolved, findings) = resolved(section);
    assert!(findings.0.is_empty(), "{}", findings.render(false));
    let filter = |name: &str| {
        let plan = resolved.plans.iter().find(|plan| plan.from.name == name).expect("a plan");
        let text = plan.topic.as_ref().and_then(|topic| topic.filter.as_ref()).map(|filter| filter.text().to_owned());
        (text, plan.filter_inputs.clone())
    };
    assert_eq!(filter("orders"), (Some("status <> 'draft' AND NOT paid".to_owned()), vec![1, 3]));
    assert_eq!(filter("lines"), (None, Vec::new()));
}

/// What is written in `where` of public.orders, and what is said of it.
#[test]
fn what_a_condition_cannot_say_is_told_with_its_place() {
    let start = "where = { \"public.orders\" = \"".len();
    let cases: &[(&str, &str, &[&str])] = &[
        ("", "", &["\"where\" is not understood: it is empty"]),
        ("status = 'a", "'a", &["the quote is not closed"]),
        ("status = 'a' AND", "AND", &["it ends where a column has to stand"]),
        ("status = 'a' 'b'", "'b'", &["AND, OR or the end has to stand here", "[NOT] IN"]),
        ("lower(status) = 'a'", "lower", &["functions are not called here"]),
        ("status LIKE 'a%'", "LIKE", &["AND, OR or the end has to stand here"]),
        ("status = NULL", "NULL", &["nothing equals NULL: write IS NULL"]),
        ("total + 1 > 2", "+", &["AND, OR or the end"]),
        ("total::int = 2", "::", &["AND, OR or the end"]),
        ("total > $1", "$", &["this is not understood here"]),
        ("orders.total > 1", ".", &["this is not understood here"]),
        ("total IN (1, )", ")", &["a constant has to stand here"]),
        ("total BETWEEN 1 OR 2", "OR", &["AND has to stand here"]),
        ("total IS 5", "5", &["NULL, TRUE or FALSE has to stand here"]),
        ("total = status", "status", &["a column is compared with a constant, not with a column"]),
        ("1 = 1", "=", &["a column is compared with a constant"]),
        ("order > 1", "order", &["a column has to stand here"]),
        ("statsu = 'a'", "statsu", &["\"where\" reads \"statsu\"", "did you mean \"status\"?"]),
        ("Status = 'a' OR \\\"Status\\\" = 'b'", "", &["\"where\" reads \"Status\", which is no column"]),
        ("total", "total", &["column \"total\" is numeric(10,2), not boolean"]),
        ("status > 'a'", ">", &["column \"status\" is text", "their collation's"]),
        ("status = 5", "5", &["it is compared with a 'string'"]),
        ("total = 'abc'", "'abc'", &["it is compared with a number"]),
        ("total = 1e9999", "1e9999", &["this number is too large or too small"]),
        ("id = '1.5'", "'1.5'", &["no whole number that the column's type can hold"]),
        ("paid = 1", "1", &["a boolean is compared with TRUE or FALSE"]),
        ("note = 'x'", "note", &["column \"note\" is json, which is not compared here", "IS [NOT] NULL"]),
        ("due = '2024-02-30'", "", &["column \"due\" is date"]),
        (
            "alias = 'a'",
            "alias",
            &["column \"alias\" of \"public.orders\" has a nondeterministic collation", "only IS [NOT] NULL"],
        ),
        ("alias IN ('a', 'b')", "alias", &["a nondeterministic collation"]),
        ("made = 1", "made", &["column \"made\" of \"public.orders\" is generated"]),
    ];
    for (condition, part, words) in cases {
        let section = format!("where = {{ \"public.orders\" = \"{condition}\" }}\ntables = \"public.orders\"\n");
        let said = resolved(&section).1.render(false);
        for word in *words {
            assert!(said.contains(word), "{condition}\n-- expected --\n{word}\n-- found --\n{said}");
        }
        assert_eq!(said.matches("error").count(), 1, "{condition}: {said}");
        if !part.is_empty() {
            let at = start + 1 + condition.rfind(part).expect("part of the condition");
            assert!(said.contains(&format!("m.toml:4:{at}")), "{condition}: not at column {at}:\n{said}");
            assert!(said.contains(&"^".repeat(part.len())), "{condition}:\n{said}");
        }
    }
    let asked = resolved("tables = \"public.orders\"\nwhere = \"alias IS NOT NULL\"\n").1;
    assert!(!asked.has_errors(), "{}", asked.render(false));
    // Not deep enough to matter to the stack.
    let deep = format!("{}paid{}", "(".repeat(100_000), ")".repeat(100_000));
    let said = resolved(&format!("tables = \"public.orders\"\nwhere = \"{deep}\"\n")).1;
    assert!(said.0[0].message.contains("more than 50 parentheses and NOTs"), "{}", said.0[0].message);
}

#[test]
fn what_would_not_be_right_of_every_change_is_refused() {
    let cases: &[(&str, &[&str])] = &[
        (
            "tables = \"public.lines\"\nwhere = \"status = 'a'\"\n",
            &[
                "error: \"where\" reads \"status\", which is outside the replica identity of \"public.lines\"",
                "m.toml:5:10",
                "run `ALTER TABLE \"public\".\"lines\" REPLICA IDENTITY FULL`",
            ],
        ),
        (
            "tables = \"public.lines\"\nwhere = \"id > 5\"\n",
            &["warning: a row that comes to match \"where\" by an update may lack \"status\""],
        ),
        (
            "tables = \"public.*\"\nwhere = \"paid\"\n",
            &["error: \"where\" reads \"paid\", which is no column of \"public.lines\"", "m.toml:5:10"],
        ),
        (
            "tables = \"public.orders\"\nwhere = { \"public.order\" = \"paid\" }\n",
            &["error: \"where\" names \"public.order\"", "m.toml:5:11", "did you mean \"public.orders\"?"],
        ),
        (
            "tables = \"public.orders\"\nkey = { \"public.order\" = \"id\" }\n",
            &["error: \"key\" names \"public.order\"", "m.toml:5:9"],
        ),
        (
            "tables = \"public.orders\"\nexclude = \"public.orders.status\"\nwhere = \"status = 'a'\"\n",
            &["error: column \"status\" is excluded, and used here", "m.toml:6:10"],
        ),
        ("tables = \"public.orders\"\nwhere = 5\n", &["\"where\" must be a string, or a table", "m.toml:5:9"]),
        (
            "tables = \"public.orders\"\nexclude = \"public.orders.i?\"\n",
            &["error: column \"id\" of \"public.orders\" is excluded, and its messages are keyed by it", "m.toml:5:11"],
        ),
        (
            "tables = \"public.orders\"\nexclude = \"public.orders.sttaus\"\n",
            &["warning: no column of source \"lms\" is meant by this", "m.toml:5:11"],
        ),
        (
            "tables = \"public.orders\"\nexclude = \"public.orders.due\"\ninclude = \"public.orders.id\"\n",
            &["error: [topic] has both \"include\" and \"exclude\"", "m.toml:6:1"],
        ),
        ("tables = \"public.orders\"\ninclude = []\n", &["error: \"include\" names no column", "m.toml:5:11"]),
        (
            "tables = \"public.orders\"\ninclude = \"id\"\n",
            &["error: \"id\" is not schema.table.column", "m.toml:5:11"],
        ),
    ];
    for (section, words) in cases {
        let said = resolved(section).1.render(false);
        for word in *words {
            assert!(said.contains(word), "{section}\n-- expected --\n{word}\n-- found --\n{said}");
        }
    }
}

/// What is remembered of a table stands under its topic's name: of two, the second would be taken for copied with the first.
#[test]
fn a_topic_is_of_one_table() {
    let said = |section: &str| resolved(section).1.render(false);
    let name = "name = \"{source}.public.orders\"\n";
    let both = said(&format!("tables = \"public.*\"\n{name}"));
    for words in [
        "\"public.orders\"",
        "\"public.lines\"",
        "topic \"lms.public.orders\" of sink \"events\" is to have",
        "m.toml:5:8",
        "{table}",
    ] {
        assert!(both.contains(words), "{words}: {both}");
    }
    assert_eq!(both.matches("error: ").count(), 1, "{both}");
    assert_eq!(said(&format!("tables = \"public.orders\"\n{name}")), "");
    // Of two sources, too: their rows may have equal keys.
    let of_two = |name: &str| {
        let section = format!("tables = \"public.orders\"\nname = \"{name}\"\n");
        resolved_of("[\"lms\", \"crm\"]", &section).1.render(false)
    };
    let both = of_two("lms.public.{table}");
    assert!(both.contains("\"public.orders\" of source \"lms\" and \"public.orders\" of source \"crm\""), "{both}");
    assert!(!of_two("{source}.public.{table}").contains("is to have"));
}

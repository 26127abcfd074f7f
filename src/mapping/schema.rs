//! The mapping language as a JSON Schema, so that editors complete and check mapping files: `schemas/mapping.schema.json`.
//!
//! The types here only describe; files are read by `syntax`, whose keys a test compares with these.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde_json::Value;

use super::plan::{DeleteMode, Mask, Meta, Mode, RefreshMode, TopicFormat};
use crate::value::clickhouse::types::OnOverflow;
use crate::value::debezium::{BinaryMode, DecimalMode, HstoreMode, IntervalMode, TimePrecision};

/// The schema as it is committed: pretty JSON and a line end.
pub fn json() -> String {
    let schema = SchemaSettings::draft07().into_generator().into_root_schema_for::<MappingSchema>();
    let mut schema = schema.to_value();
    without_null(&mut schema);
    format!("{schema:#}\n")
}

/// TOML has no null: an optional key is one that may be left out.
fn without_null(schema: &mut Value) {
    match schema {
        Value::Object(object) => {
            if let Some(Value::Array(types)) = object.get_mut("type") {
                types.retain(|name| name != "null");
                if let [one] = types.as_slice() {
                    let one = one.clone();
                    object.insert("type".to_owned(), one);
                }
            }
            if let Some(Value::Array(choices)) = object.get_mut("anyOf") {
                choices.retain(|choice| choice.get("type").is_none_or(|name| name != "null"));
            }
            object.retain(|key, value| !(key == "default" && value.is_null()));
            object.values_mut().for_each(without_null);
        }
        Value::Array(items) => items.iter_mut().for_each(without_null),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// A tailwater mapping file: which tables of a source feed which tables of a sink.
#[derive(JsonSchema)]
#[schemars(rename = "Mapping", deny_unknown_fields)]
#[expect(dead_code, reason = "describes the language; nothing is read into it")]
struct MappingSchema {
    /// The `[source.NAME]` of the configuration, or a list of several that feed the same tables.
    #[schemars(extend("examples" = ["lms", ["eu", "us"]]))]
    source: OneOrMore,
    /// The `[sink.NAME]` of the configuration, or a list.
    #[schemars(extend("examples" = ["warehouse"]))]
    sink: OneOrMore,
    /// Target tables by name: `[table."dwh.d_course"]`. One source row makes one target row.
    table: Option<BTreeMap<String, TableSchema>>,
    /// Materialized views by name: `[view."dwh.lessons"]`. Refreshed after the tables that they read have changed.
    view: Option<BTreeMap<String, ViewSchema>>,
    /// Of a Kafka sink: the tables whose changes go to topics of their own.
    topic: Option<TopicSchema>,
}

#[derive(JsonSchema)]
#[schemars(rename = "OneOrMore", untagged)]
#[expect(dead_code, reason = "describes the language; nothing is read into it")]
enum OneOrMore {
    One(String),
    More(Vec<String>),
}

/// One target table.
#[derive(JsonSchema)]
#[schemars(rename = "Table", deny_unknown_fields)]
#[expect(dead_code, reason = "describes the language; nothing is read into it")]
struct TableSchema {
    /// The source's table: "schema.name".
    #[schemars(extend("examples" = ["public.course"]))]
    from: String,
    /// Target columns that identify a row; by default those that come from the source's primary key, if it has one.
    #[schemars(extend("examples" = [["course_id"]]))]
    key: Option<OneOrMore>,
    /// "*" for all columns of the source, or each target column with where it comes from.
    #[schemars(extend("examples" = ["*", { "course_id": "id", "title": "title" }]))]
    columns: ColumnsSchema,
    /// With "*": source columns that have another name in the target.
    #[schemars(extend("examples" = [{ "id": "client_id" }]))]
    rename: Option<BTreeMap<String, String>>,
    /// With "*": source columns that are not read. Where the source allows it they are left out of the publication.
    #[schemars(extend("examples" = [["password_hash"]]))]
    exclude: Option<Vec<String>>,
    /// Source columns that are replaced by a keyed hash; the key is the configuration's `mask_salt`.
    #[schemars(extend("examples" = [{ "email": "sha256" }]))]
    mask: Option<BTreeMap<String, Mask>>,
    /// Source columns, and what a ClickHouse sink writes for their values that the target's type cannot hold.
    #[schemars(extend("examples" = [{ "valid_until": "null" }]))]
    on_overflow: Option<BTreeMap<String, OnOverflow>>,
    /// A condition in the sink's SQL over source columns; rows for which it is not true are not in the target.
    #[schemars(rename = "where", extend("examples" = ["not is_test"]))]
    filter: Option<String>,
    /// What a source row does to the target.
    mode: Option<Mode>,
    /// What a deleted source row does to the target.
    delete: Option<DeleteMode>,
    /// The boolean target column that `delete = "soft"` sets; by default "_tailwater_deleted".
    deleted_column: Option<String>,
}

#[derive(JsonSchema)]
#[schemars(rename = "Columns", untagged)]
#[expect(dead_code, reason = "describes the language; nothing is read into it")]
enum ColumnsSchema {
    Star(StarSchema),
    Each(EachSchema),
}

#[derive(JsonSchema)]
#[schemars(rename = "Star")]
#[expect(dead_code, reason = "describes the language; nothing is read into it")]
enum StarSchema {
    /// Every column of the source table that is not excluded, new ones as they appear.
    #[schemars(rename = "*")]
    All,
}

/// Target columns and where they come from.
#[derive(JsonSchema)]
#[schemars(rename = "EachColumn")]
#[expect(dead_code, reason = "describes the language; nothing is read into it")]
struct EachSchema {
    /// All other columns of the source table under their own names, too.
    #[schemars(rename = "*")]
    all: Option<bool>,
    #[schemars(flatten)]
    columns: BTreeMap<String, ColumnSchema>,
}

#[derive(JsonSchema)]
#[schemars(rename = "Column", untagged)]
#[expect(dead_code, reason = "describes the language; nothing is read into it")]
enum ColumnSchema {
    /// A source column's name.
    Source(String),
    Typed(TypedSchema),
    Sql(SqlSchema),
    Value(ValueSchema),
    Meta(MetaSchema),
    Json(JsonPathSchema),
}

/// A source column whose target has another type than it would get by itself.
#[derive(JsonSchema)]
#[schemars(rename = "TypedColumn", deny_unknown_fields)]
#[expect(dead_code, reason = "describes the language; nothing is read into it")]
struct TypedSchema {
    #[schemars(extend("examples" = ["amount"]))]
    column: String,
    /// The column's SQL type where tailwater creates the target table.
    #[schemars(rename = "type", extend("examples" = ["Decimal(38, 10)"]))]
    declared_type: Option<String>,
}

/// An expression in the sink's SQL over source columns.
#[derive(JsonSchema)]
#[schemars(rename = "SqlColumn", deny_unknown_fields)]
#[expect(dead_code, reason = "describes the language; nothing is read into it")]
struct SqlSchema {
    #[schemars(extend("examples" = ["coalesce(is_demo_enroll, false)"]))]
    sql: String,
    /// The column's SQL type, needed where tailwater creates the target table.
    #[schemars(rename = "type", extend("examples" = ["boolean"]))]
    declared_type: Option<String>,
}

/// A constant.
#[derive(JsonSchema)]
#[schemars(rename = "ValueColumn", deny_unknown_fields)]
#[expect(dead_code, reason = "describes the language; nothing is read into it")]
struct ValueSchema {
    value: LiteralSchema,
    /// The column's SQL type where tailwater creates the target table.
    #[schemars(rename = "type")]
    declared_type: Option<String>,
}

#[derive(JsonSchema)]
#[schemars(rename = "Literal", untagged)]
#[expect(dead_code, reason = "describes the language; nothing is read into it")]
enum LiteralSchema {
    Text(String),
    Number(f64),
    Boolean(bool),
}

/// What tailwater knows of the change.
#[derive(JsonSchema)]
#[schemars(rename = "MetaColumn", deny_unknown_fields)]
#[expect(dead_code, reason = "describes the language; nothing is read into it")]
struct MetaSchema {
    meta: Meta,
    /// The column's SQL type where tailwater creates the target table.
    #[schemars(rename = "type")]
    declared_type: Option<String>,
}

/// A value inside a JSON column.
#[derive(JsonSchema)]
#[schemars(rename = "JsonColumn", deny_unknown_fields)]
#[expect(dead_code, reason = "describes the language; nothing is read into it")]
struct JsonPathSchema {
    /// The source column and the path, with dots between.
    #[schemars(extend("examples" = ["payload.user.id"]))]
    json: String,
    /// The column's SQL type, needed where tailwater creates the target table.
    #[schemars(rename = "type", extend("examples" = ["text"]))]
    declared_type: Option<String>,
}

/// One materialized view.
#[derive(JsonSchema)]
#[schemars(rename = "View", deny_unknown_fields)]
#[expect(dead_code, reason = "describes the language; nothing is read into it")]
struct ViewSchema {
    /// How it is refreshed.
    refresh: Option<RefreshMode>,
    /// Not more often than this; by default "10s".
    #[schemars(extend("examples" = ["10s", "1m", "500ms"]))]
    every: Option<String>,
}

/// Tables of the source whose changes go to topics, one topic a table.
#[derive(JsonSchema)]
#[schemars(rename = "Topic", deny_unknown_fields)]
#[expect(dead_code, reason = "describes the language; nothing is read into it")]
struct TopicSchema {
    /// "schema.table", `*` for any characters and `?` for one.
    #[schemars(extend("examples" = [["public.*"]]))]
    tables: OneOrMore,
    /// Tables that the patterns above catch and that are not meant.
    exclude_tables: Option<OneOrMore>,
    /// Columns that messages have beside those of their keys: "schema.table.column", with wildcards. Not together with
    /// `exclude`.
    #[schemars(extend("examples" = [["public.client.id", "public.client.name*"]]))]
    include: Option<OneOrMore>,
    /// Columns that never leave the source: "schema.table.column", with wildcards.
    #[schemars(extend("examples" = [["public.client.password_hash"]]))]
    exclude: Option<OneOrMore>,
    /// A condition in a small part of SQL, for every table or by table; rows for which it is not true are not sent.
    #[schemars(rename = "where", extend("examples" = [{ "public.orders": "status <> 'draft' AND total >= 10" }]))]
    filter: Option<TopicWhereSchema>,
    /// By table the columns that its messages are keyed by, where that is not its primary key.
    #[schemars(extend("examples" = [{ "public.log": ["id"] }]))]
    key: Option<BTreeMap<String, OneOrMore>>,
    /// Name of a table's topic, by default "{source}.{schema}.{table}".
    #[schemars(extend("examples" = ["{source}.{schema}.{table}"]))]
    name: Option<String>,
    format: Option<TopicFormat>,
    /// Partitions of a topic that `setup --create-targets` makes, by default 6.
    partitions: Option<u32>,
    /// A delete is followed by a message without a value, so that compaction forgets the key; by default true.
    tombstones: Option<bool>,
    /// Changes of which no message is made, by Debezium's letters: "c", "u", "d", "t", or "none"; by default "t", TRUNCATE.
    #[schemars(extend("examples" = ["t", "none", "u,t"]))]
    skipped_operations: Option<OneOrMore>,
    /// JSON comes with Kafka Connect's schema; by default false.
    schemas: Option<bool>,
    /// How `numeric` and `money` are written, by default "precise".
    decimal_handling_mode: Option<DecimalMode>,
    /// How `date`, `time` and `timestamp` are written, by default "adaptive".
    time_precision_mode: Option<TimePrecision>,
    /// How `interval` is written, by default "numeric".
    interval_handling_mode: Option<IntervalMode>,
    /// How `hstore` is written, by default "json".
    hstore_handling_mode: Option<HstoreMode>,
    /// How `bytea` is written, by default "bytes".
    binary_handling_mode: Option<BinaryMode>,
    /// Digits behind the point of the server's currency, by default 2.
    money_fraction_digits: Option<u8>,
    /// Columns of types that Debezium does not know are written as the bytes of their text, instead of left out.
    include_unknown_datatypes: Option<bool>,
    /// Stands for a large value that an update left as it was; by default "__debezium_unavailable_value".
    unavailable_value_placeholder: Option<String>,
}

#[derive(JsonSchema)]
#[schemars(rename = "TopicWhere", untagged)]
#[expect(dead_code, reason = "describes the language; nothing is read into it")]
enum TopicWhereSchema {
    Every(String),
    Each(BTreeMap<String, String>),
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::{syntax, syntax_column};
    use super::*;

    #[test]
    fn schema_has_exactly_the_keys_that_are_read() {
        let schema: Value = serde_json::from_str(&json()).expect("it is JSON");
        let keys = |of: &Value| -> BTreeSet<String> {
            of["properties"].as_object().expect("an object").keys().cloned().collect()
        };
        let read = |keys: &[&str]| keys.iter().map(|key| (*key).to_owned()).collect::<BTreeSet<String>>();
        let definitions = &schema["definitions"];
        assert_eq!(keys(&schema), read(&syntax::TOP_KEYS));
        assert_eq!(keys(&definitions["Table"]), read(&syntax::TABLE_KEYS));
        assert_eq!(keys(&definitions["View"]), read(&syntax::VIEW_KEYS));
        assert_eq!(keys(&definitions["Topic"]), read(&crate::mapping::kafka::TOPIC_KEYS));
        let columns = ["TypedColumn", "SqlColumn", "ValueColumn", "MetaColumn", "JsonColumn"];
        for (index, name) in columns.iter().enumerate() {
            let expected = read(&[syntax_column::FROM_KEYS[index], syntax_column::TYPE_KEY]);
            assert_eq!(keys(&definitions[name]), expected, "{name}");
        }
        let metas: Vec<&str> = syntax::METAS.iter().map(|(name, _)| *name).collect();
        let described = definitions["Meta"]["oneOf"].as_array().expect("choices");
        assert_eq!(described.iter().map(|choice| choice["const"].as_str().expect("a name")).collect::<Vec<_>>(), metas);
    }
}

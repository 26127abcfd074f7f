//! Debezium's own examples, field for field.

use postgres_types::Type;
use serde_json::{Value, json};

use super::*;
use crate::catalog::TableName;
use crate::checkpoint::UnixMicros;
use crate::lsn::Lsn;
use crate::value::clickhouse::types::{Form, SourceType};

mod avro;
mod events;
mod flat;
mod hostile;
mod schemas;
mod times;
mod types;

const ORIGIN: Origin<'_> = Origin { version: "3.6.0", name: "PostgreSQL_server", database: "postgres" };

fn column(name: &str, ty: &Type, modifier: i32, nullable: bool) -> Column {
    Column {
        name: name.to_owned(),
        source: SourceType::built_in(ty.oid(), modifier),
        type_name: if ty.name().starts_with('_') { format!("{}[]", &ty.name()[1..]) } else { ty.name().to_owned() },
        labels: Vec::new(),
        nullable,
        excluded: false,
    }
}

fn shape_of(table: &str, columns: &[Column], key: &[&str], options: &Options) -> TableShape {
    let key: Vec<String> = key.iter().map(|name| (*name).to_owned()).collect();
    TableShape::new(&ORIGIN, &TableName::new("public", table), columns, &key, options).expect("a shape")
}

fn info() -> SourceInfo {
    SourceInfo {
        committed: UnixMicros(1_559_033_904_863_123),
        snapshot: Snapshot::False,
        last_commit_lsn: Some(Lsn(24_023_119)),
        lsn: Lsn(24_023_128),
        xid: Some(555),
    }
}

const NOW: UnixMicros = UnixMicros(1_559_033_904_863_841);

type Row<'a> = std::iter::Copied<std::slice::Iter<'a, Cell<'a>>>;

fn read(bytes: &[u8]) -> Value {
    let text = std::str::from_utf8(bytes).expect("JSON is UTF-8");
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn value_of(shape: &TableShape, change: &Change<Row<'_>>) -> Value {
    let mut out = Vec::new();
    shape.value(&mut out, change, &info(), None, NOW).expect("it has a form");
    read(&out)
}

//! The envelope's schema: fields in the order in which they are written.

use super::Snapshot;
use crate::value::debezium::schema::{Schema, Shape};

/// The envelope's schema around the row's, whose name is set already.
pub(in crate::value::debezium) fn schema(name: String, row: Schema) -> Schema {
    let int64 = || Schema::from(Shape::Int64);
    let row = row.optional();
    let fields = [
        ("before", row.clone()),
        ("after", row),
        ("source", source_schema()),
        ("transaction", transaction_schema().optional()),
        ("op", Schema::from(Shape::String)),
        ("ts_ms", int64().optional()),
        ("ts_us", int64().optional()),
        ("ts_ns", int64().optional()),
    ];
    Schema { name: Some(name), ..Schema::structure(fields).version(2) }
}

fn source_schema() -> Schema {
    let text = || Schema::from(Shape::String);
    let int64 = || Schema::from(Shape::Int64);
    let snapshot = Schema {
        default: Some("false"),
        ..Schema::named(Shape::String, "io.debezium.data.Enum").parameter("allowed", Snapshot::NAMES).optional()
    };
    let fields = [
        ("version", text()),
        ("connector", text()),
        ("name", text()),
        ("ts_ms", int64()),
        ("snapshot", snapshot),
        ("db", text()),
        ("sequence", text().optional()),
        ("ts_us", int64().optional()),
        ("ts_ns", int64().optional()),
        ("schema", text()),
        ("table", text()),
        ("txId", int64().optional()),
        ("lsn", int64().optional()),
        ("xmin", int64().optional()),
        ("origin", text().optional()),
        ("origin_lsn", int64().optional()),
    ];
    Schema { name: Some("io.debezium.connector.postgresql.Source".to_owned()), ..Schema::structure(fields).version(1) }
}

fn transaction_schema() -> Schema {
    let fields = [
        ("id", Schema::from(Shape::String)),
        ("total_order", Schema::from(Shape::Int64)),
        ("data_collection_order", Schema::from(Shape::Int64)),
    ];
    Schema { name: Some("event.block".to_owned()), ..Schema::structure(fields).version(1) }
}

//! Connect's schemas as Avro's, the way Confluent's `AvroData` turns one into the other and Avro prints it.
//!
//! A named struct is a record, written out where it stands first and named where it stands again. What Avro has no word for
//! is kept in properties: `connect.version`, `connect.parameters`, `connect.name`, `connect.type`, and Avro's own
//! `logicalType` for Connect's own types.

use std::collections::HashSet;

use crate::value::debezium::json::quote;
use crate::value::debezium::schema::{Schema, Shape};

/// Name of a struct that has none.
const NAMELESS: &str = "io.confluent.connect.avro.ConnectDefault";
/// Digits of a decimal of which Connect does not say how many it has.
const PRECISION: &str = "64";

/// The schema as JSON.
pub(in crate::value::debezium) fn text(schema: &Schema) -> String {
    let mut writer = Writer { out: Vec::new(), known: HashSet::new() };
    writer.write(schema, "");
    String::from_utf8(writer.out).expect("names and properties are text")
}

struct Writer {
    out: Vec<u8>,
    /// Full names of the records that were written out.
    known: HashSet<String>,
}

impl Writer {
    fn raw(&mut self, text: &str) {
        self.out.extend_from_slice(text.as_bytes());
    }

    fn quoted(&mut self, text: &str) {
        quote(&mut self.out, text.as_bytes());
    }

    fn property(&mut self, name: &str, value: &str) {
        self.raw(",\"");
        self.raw(name);
        self.raw("\":");
        self.quoted(value);
    }

    /// Writes a schema inside a record of that namespace.
    fn write(&mut self, schema: &Schema, namespace: &str) {
        match (schema.optional, schema.default) {
            (false, _) => self.base(schema, namespace),
            (true, None) => {
                self.raw("[\"null\",");
                self.base(schema, namespace);
                self.raw("]");
            }
            (true, Some(_)) => {
                self.raw("[");
                self.base(schema, namespace);
                self.raw(",\"null\"]");
            }
        }
    }

    fn base(&mut self, schema: &Schema, namespace: &str) {
        match &schema.shape {
            Shape::Struct(fields) => self.record(schema, fields, namespace),
            Shape::Array(element) => {
                self.raw("{\"type\":\"array\",\"items\":");
                self.write(element, namespace);
                self.raw("}");
            }
            Shape::Map(value) => {
                self.raw("{\"type\":\"map\",\"values\":");
                self.write(value, namespace);
                self.raw("}");
            }
            Shape::Boolean => self.primitive(schema, "boolean"),
            Shape::Int16 | Shape::Int32 => self.primitive(schema, "int"),
            Shape::Int64 => self.primitive(schema, "long"),
            Shape::Float => self.primitive(schema, "float"),
            Shape::Double => self.primitive(schema, "double"),
            Shape::Bytes => self.primitive(schema, "bytes"),
            Shape::String => self.primitive(schema, "string"),
        }
    }

    fn primitive(&mut self, schema: &Schema, name: &str) {
        if schema.name.is_none() && schema.shape != Shape::Int16 {
            return self.quoted(name);
        }
        self.raw("{\"type\":");
        self.quoted(name);
        if schema.name.as_deref() == Some("org.apache.kafka.connect.data.Decimal") {
            let parameter = |wanted: &str| {
                schema.parameters.iter().find(|(name, _)| *name == wanted).map(|(_, value)| value.as_str())
            };
            let scale = parameter("scale").unwrap_or("0");
            let precision = parameter("connect.decimal.precision").unwrap_or(PRECISION);
            self.raw(&format!(",\"scale\":{scale},\"precision\":{precision}"));
        }
        self.properties(schema);
        if schema.shape == Shape::Int16 {
            self.property("connect.type", "int16");
        }
        match schema.name.as_deref() {
            Some("org.apache.kafka.connect.data.Decimal") => self.property("logicalType", "decimal"),
            Some("org.apache.kafka.connect.data.Date") => self.property("logicalType", "date"),
            Some("org.apache.kafka.connect.data.Time") => self.property("logicalType", "time-millis"),
            Some("org.apache.kafka.connect.data.Timestamp") => self.property("logicalType", "timestamp-millis"),
            _ => {}
        }
        self.raw("}");
    }

    fn properties(&mut self, schema: &Schema) {
        if let Some(doc) = schema.doc {
            self.property("connect.doc", doc);
        }
        if let Some(version) = schema.version {
            self.raw(&format!(",\"connect.version\":{version}"));
        }
        for (place, (name, value)) in schema.parameters.iter().enumerate() {
            self.raw(if place == 0 { ",\"connect.parameters\":{" } else { "," });
            self.quoted(name);
            self.raw(":");
            self.quoted(value);
        }
        if !schema.parameters.is_empty() {
            self.raw("}");
        }
        if let Some(default) = schema.default {
            self.property("connect.default", default);
        }
        if let Some(name) = &schema.name {
            self.property("connect.name", name);
        }
    }

    fn record(&mut self, schema: &Schema, fields: &[(String, Schema)], outer: &str) {
        let full_name = schema.name.as_deref().unwrap_or(NAMELESS);
        let (namespace, name) = full_name.rsplit_once('.').unwrap_or(("", full_name));
        if !self.known.insert(full_name.to_owned()) {
            return self.quoted(if namespace == outer { name } else { full_name });
        }
        self.raw("{\"type\":\"record\"");
        self.property("name", name);
        if namespace != outer {
            self.property("namespace", namespace);
        }
        self.raw(",\"fields\":[");
        for (place, (name, field)) in fields.iter().enumerate() {
            self.raw(if place == 0 { "{\"name\":" } else { ",{\"name\":" });
            self.quoted(name);
            self.raw(",\"type\":");
            self.write(field, namespace);
            match field.default {
                Some(default) => self.property("default", default),
                None if field.optional => self.raw(",\"default\":null"),
                None => {}
            }
            self.raw("}");
        }
        self.raw("]");
        self.properties(schema);
        self.raw("}");
    }
}

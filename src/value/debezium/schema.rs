//! Kafka Connect's schemas: what Debezium says of a value beside the value, and how `JsonConverter` writes it.

use super::json::quote;

/// Type, and what is said of it. Debezium's own ("semantic") types are such types with a name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Schema {
    pub shape: Shape,
    pub optional: bool,
    pub name: Option<String>,
    pub version: Option<u32>,
    pub doc: Option<&'static str>,
    pub parameters: Vec<(&'static str, String)>,
    /// Text; no other default is used.
    pub default: Option<&'static str>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Shape {
    Boolean,
    Int16,
    Int32,
    Int64,
    Float,
    Double,
    Bytes,
    String,
    Array(Box<Schema>),
    /// Of text to this.
    Map(Box<Schema>),
    Struct(Vec<(String, Schema)>),
}

impl From<Shape> for Schema {
    fn from(shape: Shape) -> Schema {
        Schema { shape, optional: false, name: None, version: None, doc: None, parameters: Vec::new(), default: None }
    }
}

impl Schema {
    /// A semantic type in its first version.
    pub fn named(shape: Shape, name: impl Into<String>) -> Schema {
        Schema { name: Some(name.into()), version: Some(1), ..shape.into() }
    }

    pub fn array(element: Schema) -> Schema {
        Shape::Array(Box::new(element)).into()
    }

    pub fn structure(fields: impl IntoIterator<Item = (&'static str, Schema)>) -> Schema {
        Shape::Struct(fields.into_iter().map(|(name, schema)| (name.to_owned(), schema)).collect()).into()
    }

    pub fn optional(self) -> Schema {
        Schema { optional: true, ..self }
    }

    pub fn optional_if(self, optional: bool) -> Schema {
        Schema { optional, ..self }
    }

    pub fn version(self, version: u32) -> Schema {
        Schema { version: Some(version), ..self }
    }

    pub fn parameter(mut self, name: &'static str, value: impl ToString) -> Schema {
        self.parameters.push((name, value.to_string()));
        self
    }

    /// The schema as JSON, in the order of `JsonConverter`; `field` is its name in a struct.
    pub fn write_json(&self, out: &mut Vec<u8>, field: Option<&str>) {
        out.extend_from_slice(b"{\"type\":\"");
        out.extend_from_slice(self.shape.json_name().as_bytes());
        out.push(b'"');
        match &self.shape {
            Shape::Array(element) => {
                out.extend_from_slice(b",\"items\":");
                element.write_json(out, None);
            }
            Shape::Map(value) => {
                out.extend_from_slice(b",\"keys\":{\"type\":\"string\",\"optional\":false},\"values\":");
                value.write_json(out, None);
            }
            Shape::Struct(fields) => {
                out.extend_from_slice(b",\"fields\":[");
                for (place, (name, schema)) in fields.iter().enumerate() {
                    if place > 0 {
                        out.push(b',');
                    }
                    schema.write_json(out, Some(name));
                }
                out.push(b']');
            }
            _ => {}
        }
        out.extend_from_slice(if self.optional { b",\"optional\":true" } else { b",\"optional\":false" });
        let mut text = |name: &str, value: &str| {
            out.extend_from_slice(b",\"");
            out.extend_from_slice(name.as_bytes());
            out.extend_from_slice(b"\":");
            quote(out, value.as_bytes());
        };
        if let Some(name) = &self.name {
            text("name", name);
        }
        if let Some(version) = self.version {
            out.extend_from_slice(format!(",\"version\":{version}").as_bytes());
        }
        self.write_json_tail(out, field);
    }

    fn write_json_tail(&self, out: &mut Vec<u8>, field: Option<&str>) {
        if let Some(doc) = self.doc {
            out.extend_from_slice(b",\"doc\":");
            quote(out, doc.as_bytes());
        }
        for (place, (name, value)) in self.parameters.iter().enumerate() {
            out.extend_from_slice(if place == 0 { b",\"parameters\":{" } else { b"," });
            quote(out, name.as_bytes());
            out.push(b':');
            quote(out, value.as_bytes());
        }
        if !self.parameters.is_empty() {
            out.push(b'}');
        }
        if let Some(default) = self.default {
            out.extend_from_slice(b",\"default\":");
            quote(out, default.as_bytes());
        }
        if let Some(field) = field {
            out.extend_from_slice(b",\"field\":");
            quote(out, field.as_bytes());
        }
        out.push(b'}');
    }
}

impl Shape {
    fn json_name(&self) -> &'static str {
        match self {
            Shape::Boolean => "boolean",
            Shape::Int16 => "int16",
            Shape::Int32 => "int32",
            Shape::Int64 => "int64",
            Shape::Float => "float",
            Shape::Double => "double",
            Shape::Bytes => "bytes",
            Shape::String => "string",
            Shape::Array(_) => "array",
            Shape::Map(_) => "map",
            Shape::Struct(_) => "struct",
        }
    }
}

//! The committed JSON Schema.

#[test]
fn committed_schema_is_the_one_that_is_emitted() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/schemas/mapping.schema.json");
    let committed = std::fs::read_to_string(path).unwrap_or_default();
    let emitted = tailwater::mapping::schema::json();
    assert!(committed == emitted, "run `tailwater schema json > schemas/mapping.schema.json`");
}

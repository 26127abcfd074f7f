//! Names of topics and schemas.
//!
//! Kafka takes letters, digits, `.`, `_` and `-`, at most 249 of them; Avro takes letters, digits and `_` between dots, and
//! no digit first. What is not taken becomes an underscore, one for each UTF-16 unit, as Debezium counts characters.

/// Kafka's limit, less what its own file names need.
const TOPIC_LENGTH_MAX: usize = 249;

/// A topic's name with every character that Kafka does not take replaced.
pub fn topic_name(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    for c in name.chars() {
        match c {
            'a'..='z' | 'A'..='Z' | '0'..='9' | '.' | '_' | '-' => out.push(c),
            _ => out.extend(std::iter::repeat_n('_', c.len_utf16())),
        }
    }
    out.truncate(TOPIC_LENGTH_MAX);
    match out.as_str() {
        "." => "_".to_owned(),
        ".." => "__".to_owned(),
        _ => out,
    }
}

/// A schema's full name as Avro takes it (`schema.name.adjustment.mode = avro`). A digit that may not stand first is kept
/// behind its underscore.
pub fn avro_name(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    for (place, c) in name.chars().enumerate() {
        match c {
            'a'..='z' | 'A'..='Z' | '_' => out.push(c),
            '0'..='9' if place > 0 => out.push(c),
            '0'..='9' => out.extend(['_', c]),
            '.' if place > 0 => out.push(c),
            _ => out.extend(std::iter::repeat_n('_', c.len_utf16())),
        }
    }
    out
}

/// A field's name as Avro takes it (`field.name.adjustment.mode = avro`).
pub(super) fn avro_field(name: &str) -> String {
    avro_name(&name.replace('.', "_"))
}

/// `<prefix>.<schema>.<table>`, unless the user names topics otherwise.
pub fn table_topic(prefix: &str, schema: &str, table: &str) -> String {
    topic_name(&format!("{prefix}.{schema}.{table}"))
}

/// `topic.transaction`, unless the user names it otherwise.
pub const TRANSACTION_TOPIC: &str = "transaction";
/// `topic.heartbeat.prefix`, unless the user names it otherwise.
pub const HEARTBEAT_PREFIX: &str = "__debezium-heartbeat";

/// Where transactions' begins and ends are told.
pub fn transaction_topic(prefix: &str, topic_transaction: &str) -> String {
    topic_name(&format!("{prefix}.{topic_transaction}"))
}

/// Where heartbeats are sent.
pub fn heartbeat_topic(heartbeat_prefix: &str, prefix: &str) -> String {
    topic_name(&format!("{heartbeat_prefix}.{prefix}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_are_named_as_debezium_names_them() {
        assert_eq!(table_topic("fulfillment", "inventory", "products"), "fulfillment.inventory.products");
        assert_eq!(transaction_topic("fulfillment", TRANSACTION_TOPIC), "fulfillment.transaction");
        assert_eq!(heartbeat_topic(HEARTBEAT_PREFIX, "fulfillment"), "__debezium-heartbeat.fulfillment");
        assert_eq!(
            table_topic("test_server", "Quoted_\" . Schema", "Quoted_\" . Table"),
            "test_server.Quoted___._Schema.Quoted___._Table"
        );
    }

    #[test]
    fn what_kafka_does_not_take_is_replaced() {
        assert_eq!(topic_name("a b/ü😀-Z.9"), "a_b____-Z.9");
        assert_eq!(topic_name("."), "_");
        assert_eq!(topic_name(".."), "__");
        assert_eq!(topic_name(&"x".repeat(300)).len(), 249);
    }

    #[test]
    fn what_avro_does_not_take_is_replaced() {
        assert_eq!(avro_name("my-server.public.9 lives.Value"), "my_server.public.9_lives.Value");
        assert_eq!(avro_name("1st.x"), "_1st.x");
        assert_eq!(avro_name("ok_1.a.B"), "ok_1.a.B");
    }
}

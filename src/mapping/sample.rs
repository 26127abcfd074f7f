//! A plan as plain as can be: tests of those who take plans say what theirs has beyond it.

use super::kafka::Skipped;
use super::plan::{DeleteMode, Expected, Input, InputFrom, Mode, Plan, Topic, TopicFormat, TopicOptions};
use crate::catalog::TableName;
use crate::value::clickhouse::types::OnOverflow;
use crate::value::debezium;

/// Of a column of the same name.
pub fn input(name: &str, stage_type: &str, stage_type_oid: u32) -> Input {
    Input {
        name: name.to_owned(),
        from: InputFrom::Column(name.to_owned()),
        stage_type: stage_type.to_owned(),
        stage_type_oid,
        nested: false,
        toastable: false,
        mask: None,
        source_type: None,
        on_overflow: OnOverflow::Error,
    }
}

/// For `public.t` into `dwh.t`, with the first input for a key.
pub fn plan(inputs: Vec<Input>) -> Plan {
    Plan {
        source: "s".to_owned(),
        sink: "w".to_owned(),
        from: TableName::new("public", "t"),
        target: TableName::new("dwh", "t"),
        inputs,
        outputs: Vec::new(),
        key: vec![0],
        key_inputs: vec![0],
        filter: None,
        filter_inputs: Vec::new(),
        mode: Mode::Upsert,
        delete: DeleteMode::Hard,
        deleted_column: None,
        shared_target: false,
        parents: Vec::new(),
        source_columns: Vec::new(),
        follows_columns: false,
        expected: Expected::default(),
        topic: None,
    }
}

/// For source `s`; the plan's mode is to be `append`.
pub fn topic(columns: &[debezium::Column]) -> Topic {
    Topic {
        name: "s.public.t".to_owned(),
        prefix: "s".to_owned(),
        format: TopicFormat::DebeziumJson,
        options: TopicOptions { tombstones: true, skipped: Skipped::NONE, values: debezium::Options::default() },
        partitions: 1,
        columns: columns.to_vec(),
        filter: None,
        include: None,
        exclude: Vec::new(),
        names_key: false,
        types: std::sync::Arc::default(),
    }
}

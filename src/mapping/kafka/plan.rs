//! A draft against Kafka: does its topic exist, and can its messages be keyed? If so, the plan.

use super::{LiveKafka, TopicMapping};
use crate::diagnostic::{Finding, Findings};
use crate::mapping::draft::{Draft, DraftFrom};
use crate::mapping::plan::{Expected, Input, InputFrom, Output, OutputFrom, Plan, Topic};
use crate::mapping::target::Ends;
use crate::value::clickhouse::types::{OnOverflow, SourceType};
use crate::value::debezium;

/// The plan, or findings why there is none.
pub(in crate::mapping) fn plan(
    draft: &Draft<'_>,
    topic: &TopicMapping,
    name: &str,
    ends: Ends<'_>,
    sink: &LiveKafka,
    findings: &mut Findings,
) -> Option<Plan> {
    let report = |finding: Finding| finding.at(&draft.file.file, topic.name.span.clone());
    if draft.key.is_empty() {
        let message = format!("table \"{}\" has no primary key, and the mapping names no key", draft.table.name);
        let finding = Finding::error("no-key", message).at(&draft.file.file, topic.span.clone());
        let hint = format!("messages keep their order by key: add `key = {{ \"{}\" = [\"…\"] }}`.", draft.table.name);
        findings.push(finding.label("its changes have no order without one").hint(hint));
        return None;
    }
    let Some(&partitions) = sink.topics.get(name) else {
        let message = format!("topic \"{name}\" does not exist in sink \"{}\"", ends.sink);
        let hint = "`tailwater setup --create-targets` creates it.";
        findings.push(report(Finding::error("unknown-target", message).hint(hint)));
        return None;
    };
    let columns = draft.columns.iter().filter_map(|column| match &column.from {
        DraftFrom::Column(from) => Some(*from),
        DraftFrom::Sql { .. } | DraftFrom::Value(_) | DraftFrom::Meta(_) | DraftFrom::Json { .. } => None,
    });
    let columns: Vec<_> = columns.collect();
    let inputs = columns.iter().map(|column| Input {
        name: column.name.clone(),
        from: InputFrom::Column(column.name.clone()),
        stage_type: column.wire_type.clone(),
        stage_type_oid: column.wire_oid,
        nested: false,
        toastable: column.toastable,
        mask: None,
        source_type: Some(SourceType::of(column)),
        on_overflow: OnOverflow::default(),
    });
    let outputs = columns.iter().enumerate().map(|(input, column)| Output {
        column: column.name.clone(),
        target_type: column.type_name.clone(),
        from: OutputFrom::Input { input, cast: false },
    });
    Some(Plan {
        source: ends.source.to_owned(),
        sink: ends.sink.to_owned(),
        from: draft.mapping.from.value.clone(),
        target: draft.mapping.target.value.clone(),
        inputs: inputs.collect(),
        outputs: outputs.collect(),
        // Every column is an input and an output at the draft's place.
        key: draft.key.clone(),
        key_inputs: draft.key.clone(),
        filter: None,
        filter_inputs: Vec::new(),
        mode: draft.mapping.mode,
        delete: draft.mapping.delete,
        deleted_column: None,
        shared_target: false,
        parents: Vec::new(),
        source_columns: columns.iter().map(|column| column.name.clone()).collect(),
        follows_columns: true,
        expected: Expected::default(),
        topic: Some(Topic {
            name: name.to_owned(),
            prefix: ends.source.to_owned(),
            format: topic.format,
            options: topic.options.clone(),
            partitions,
            columns: columns.iter().map(|column| debezium::Column::of(column)).collect(),
        }),
    })
}

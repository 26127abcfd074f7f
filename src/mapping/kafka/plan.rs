//! A draft against Kafka: does its topic exist, and can its messages be keyed? If so, the plan.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{LiveKafka, Pattern, Rows, TopicMapping};
use crate::catalog::UserType;
use crate::diagnostic::{Finding, Findings};
use crate::mapping::draft::{Draft, DraftFrom};
use crate::mapping::plan::{Input, InputFrom, Output, OutputFrom, Plan, Topic};
use crate::mapping::plan_build::Layout;
use crate::mapping::syntax::At;
use crate::mapping::target::Ends;
use crate::value::clickhouse::types::OnOverflow;
use crate::value::debezium;

/// The plan, or findings why there is none.
pub(in crate::mapping) fn plan(
    draft: &Draft<'_>,
    topic: &TopicMapping,
    name: &str,
    rows: &Rows,
    ends: Ends<'_>,
    (sink, types): (&LiveKafka, &Arc<BTreeMap<u32, UserType>>),
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
    let columns: Vec<_> = columns.map(debezium::Column::of).collect();
    let layout = Layout {
        inputs: columns.iter().map(input).collect(),
        outputs: columns.iter().enumerate().map(output).collect(),
        // Every column is an input and an output at the draft's place.
        key_inputs: draft.key.clone(),
        filter_inputs: rows.inputs.clone(),
        parents: Vec::new(),
    };
    Some(Plan {
        // Each source has topics of its own.
        shared_target: false,
        topic: Some(Topic {
            name: name.to_owned(),
            prefix: ends.source.to_owned(),
            format: topic.format,
            options: topic.options.clone(),
            partitions,
            filter: rows.filter.clone(),
            columns,
            include: topic.include.as_ref().map(|patterns| values(patterns)),
            exclude: values(&topic.exclude),
            names_key: topic.keys.iter().any(|key| key.table.value == draft.mapping.from.value),
            types: types.clone(),
        }),
        ..layout.plan(draft, ends)
    })
}

fn values(patterns: &[At<Pattern>]) -> Vec<Pattern> {
    patterns.iter().map(|pattern| pattern.value.clone()).collect()
}

/// A column that a message has.
pub(super) fn input(column: &debezium::Column) -> Input {
    Input {
        name: column.name.clone(),
        from: InputFrom::Column(column.name.clone()),
        stage_type: column.type_name.clone(),
        stage_type_oid: column.source.oid,
        nested: false,
        toastable: true,
        mask: None,
        source_type: Some(column.source.clone()),
        on_overflow: OnOverflow::default(),
    }
}

pub(super) fn output((input, column): (usize, &debezium::Column)) -> Output {
    Output {
        column: column.name.clone(),
        target_type: column.type_name.clone(),
        from: OutputFrom::Input { input, cast: false },
    }
}

//! What somebody who only looks hears of tables that changed, at the place in the mapping that names them.

use super::COPY_ANEW;
use super::cases::Case;
use crate::catalog::TableName;
use crate::diagnostic::{Finding, Findings};
use crate::mapping::MappingFile;

/// Code of the finding that a topic's table is gone. The pattern that means it need not mean any one, so nothing is wrong with
/// the mapping.
pub const GONE_TOPIC: &str = "topic-table-gone";

/// What to do about a mapping whose table is gone.
const GONE: &str = "remove its mapping if the table is done with, which leaves its target as it is; `tailwater run` sets it \
                    aside and goes on with the others.";

/// The same where a pattern means it.
const GONE_FROM_TOPIC: &str = "name it in `exclude_tables` if the table is done with, which leaves its topic as it is; \
                               `tailwater run` sets it aside and goes on with the others.";

/// Adds what there is to say of a mapped table. Of one that is gone every sink would say the same.
pub(super) fn told(case: &Case, file: &MappingFile, findings: &mut Findings) {
    let from = &file.tables[case.table].from.span;
    let about = |finding: fn(&'static str, String) -> Finding, why: &String| {
        finding("table-changed", format!("\"{}\": {why}", case.from)).at(&file.file, from.clone())
    };
    let broken = case.broken.iter().map(|why| match case.now {
        None => about(Finding::error, why).label("no such table in the source any more").hint(GONE),
        Some(_) => about(Finding::error, why).label(format!("of sink \"{}\"", case.sink)).hint(format!("{COPY_ANEW}.")),
    });
    for finding in broken.chain(case.notes.iter().map(|why| about(Finding::warning, why))) {
        if !findings.0.contains(&finding) {
            findings.push(finding);
        }
    }
}

/// What there is to say of a topic's table, at the pattern that means it.
pub(super) fn told_of_topic(message: String, from: &TableName, has_heir: bool, file: Option<&MappingFile>) -> Finding {
    let finding = match has_heir {
        true => Finding::warning("table-changed", message),
        false => Finding::error(GONE_TOPIC, message).hint(GONE_FROM_TOPIC),
    };
    let pattern = file.and_then(|file| {
        let mut patterns = file.topic.iter().flat_map(|topic| &topic.tables);
        Some((file, patterns.find(|pattern| pattern.value.matches(&from.to_string()))?))
    });
    match pattern {
        Some((file, pattern)) => finding.at(&file.file, pattern.span.clone()),
        None => finding,
    }
}

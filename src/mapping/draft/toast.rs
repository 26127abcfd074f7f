//! Large values that an UPDATE does not send: whether the mapping can do without them.

use super::{Draft, DraftFrom, Drafting};
use crate::catalog::ReplicaIdentity;
use crate::diagnostic::Finding;
use crate::mapping::plan::Mode;

impl<'a> Drafting<'a> {
    /// An UPDATE leaves large values unsent that it did not touch. What is not stored as it came cannot be made again.
    pub(super) fn toast(&mut self, draft: &Draft<'a>) {
        // A message says of such a value that it was not sent.
        if self.table.replica_identity == ReplicaIdentity::Full || self.file.topic.is_some() {
            return;
        }
        let full = format!("run `ALTER TABLE {} REPLICA IDENTITY FULL` at the source", self.table.name.quoted());
        let stored = |name: &str| {
            self.mapping.mode == Mode::Upsert
                && draft
                    .columns
                    .iter()
                    .any(|column| matches!(column.from, DraftFrom::Column(from) if from.name == name))
        };
        let mut findings = Vec::new();
        let filter = draft.mapping.filter.as_ref().map(|filter| (&draft.filter_reads[..], filter.span.clone(), false));
        let columns = draft.columns.iter().map(|column| {
            let plain = matches!(column.from, DraftFrom::Column(_));
            (column.from.reads(), column.span.clone(), plain && draft.mapping.mode != Mode::Append)
        });
        for (reads, span, safe) in columns.chain(filter) {
            for read in reads.iter().filter(|read| read.toastable && !safe && !stored(&read.name)) {
                let message = format!(
                    "\"{}\" of \"{}\" may be large, and then an update that leaves it alone does not send it",
                    read.name, self.table.name
                );
                let finding = Finding::error("toast-unsent", message).label("cannot be computed without it");
                let hint = match self.mapping.mode {
                    Mode::Upsert => format!("{full}, or also map the column as it is."),
                    Mode::Append | Mode::InsertNew => format!("{full}."),
                };
                findings.push((span.clone(), finding.hint(hint)));
            }
        }
        if let (Some(filter), true) = (&draft.mapping.filter, findings.is_empty())
            && let Some(column) =
                draft.columns.iter().flat_map(|column| column.from.reads()).find(|read| read.toastable)
        {
            let message = format!("a row that comes to match \"where\" by an update may lack \"{}\"", column.name);
            let finding = Finding::warning("toast-unsent", message).label("a large value is sent only when it changes");
            let hint = format!("{full}, so that such a row is whole; without it the table stops there.");
            findings.push((filter.span.clone(), finding.hint(hint)));
        }
        for (span, finding) in findings {
            self.report(span, finding);
        }
    }
}

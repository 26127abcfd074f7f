//! Rows without a key, found by all their values.

use super::Writer;
use crate::catalog::quote_ident;
use crate::mapping::plan::OutputFrom;

impl Writer<'_> {
    /// Takes as many of the target's rows away as the row set has equal ones.
    ///
    /// Rows are equal if their text is: that holds for every type, those without an equality operator included, and tells
    /// apart what `=` does not (1.0 and 1.00). They are joined by a hash of it, so that the target is read once whatever the
    /// number of rows, and none of its texts is sorted or kept; `IS TRUE` keeps the texts themselves out of the join's keys. A place
    /// in a partitioned table is one of a partition.
    pub(in super::super) fn remove(&self, from: &str) -> String {
        let held = image(self.columns().into_iter().map(|column| format!("h.{column}")));
        format!(
            "DELETE FROM {target} AS t USING (SELECT h.tableoid AS part, h.ctid AS place, g.copies, \
             row_number() OVER (PARTITION BY g.kind) AS number FROM \
             (SELECT image, hashtextextended(image, 0) AS hash, count(*) AS copies, row_number() OVER () AS kind \
             FROM (SELECT {wanted} AS image FROM {from}) AS w GROUP BY 1) AS g \
             JOIN {target} AS h ON hashtextextended({held}, 0) = g.hash AND ({held} = g.image) IS TRUE) AS n \
             WHERE t.ctid = n.place AND t.tableoid = n.part AND n.number <= n.copies",
            target = self.target,
            wanted = image(self.stored_values()),
        )
    }

    /// The outputs' values over `s` as the target would store them.
    fn stored_values(&self) -> impl Iterator<Item = String> + '_ {
        self.plan.outputs.iter().map(|output| match &output.from {
            OutputFrom::Input { input, .. } => {
                let name = quote_ident(&self.plan.inputs[*input].name);
                // What this would cut, and storing refuses, is in no target.
                format!("CAST(s.{name} AS {})", output.target_type)
            }
            OutputFrom::Sql { text, .. } => format!("({text})"),
        })
    }
}

fn image(values: impl Iterator<Item = String>) -> String {
    // Bytes are compared, whatever the database's collation.
    format!("(ROW({})::text COLLATE \"C\")", values.collect::<Vec<_>>().join(", "))
}

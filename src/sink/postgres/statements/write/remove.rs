//! Rows without a key, found by all their values.

use super::Writer;
use crate::catalog::quote_ident;
use crate::mapping::plan::OutputFrom;

impl Writer<'_> {
    /// Takes as many of the target's rows away as the row set has equal ones.
    ///
    /// Rows are equal if their text is: that holds for every type, those without an equality operator included, tells
    /// apart what `=` does not (1.0 and 1.00), and can be hashed, so that the target is read once whatever the number of
    /// rows. A place in a partitioned table is one of a partition.
    pub(in super::super) fn remove(&self, from: &str) -> String {
        let held = self.columns().into_iter().map(|column| format!("h.{column}"));
        format!(
            "DELETE FROM {target} AS t USING (SELECT h.tableoid AS part, h.ctid AS place, g.copies, \
             row_number() OVER (PARTITION BY g.image) AS number FROM \
             (SELECT {image} AS image, count(*) AS copies FROM {from} GROUP BY 1) AS g \
             JOIN {target} AS h ON {held} = g.image) AS n \
             WHERE t.ctid = n.place AND t.tableoid = n.part AND n.number <= n.copies",
            target = self.target,
            image = image(self.stored_values()),
            held = image(held),
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
    // Bytes are compared, whatever the database's collation: equal is the same, and sorting is cheap.
    format!("ROW({})::text COLLATE \"C\"", values.collect::<Vec<_>>().join(", "))
}

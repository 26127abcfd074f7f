//! Rows that the target holds, replaced in place.

use super::{Mode, OutputFrom, Writer, quote_ident};

/// A setting of the transaction: what an UPDATE tells the statement behind it.
const FOUND: &str = "tailwater.found_all";

impl Writer<'_> {
    /// Keys are compared as they come, by the index that makes them unique, and every row is written.
    pub(in super::super) fn can_replace(&self) -> bool {
        let plan = self.plan;
        let is_plain = |&output: &usize| matches!(plan.outputs[output].from, OutputFrom::Input { cast: false, .. });
        plan.mode == Mode::Upsert
            && plan.filter.is_none()
            && plan.key.iter().all(is_plain)
            && plan.key.len() < plan.outputs.len()
    }

    pub(in super::super) fn replace(&self, from: &str) -> String {
        let others = (0..self.plan.outputs.len()).filter(|output| !self.plan.key.contains(output));
        let column = |output: usize| quote_ident(&self.plan.outputs[output].column);
        let mut set: Vec<_> = others.clone().map(|output| format!("{} = n.v{output}", column(output))).collect();
        set.extend(self.plan.deleted_column.iter().map(|column| format!("{} = false", quote_ident(column))));
        let values: Vec<_> = others.map(|output| format!("{} AS v{output}", self.value(output))).collect();
        format!(
            "WITH touched AS (UPDATE {} AS t SET {} FROM (SELECT {}, {} FROM {from}) AS n WHERE {} RETURNING 1) \
             SELECT set_config('{FOUND}', (count(*) = $1::bigint)::text, true) FROM touched",
            self.target,
            set.join(", "),
            self.key_values(),
            values.join(", "),
            self.key_matches("t"),
        )
    }

    /// The stage is not even looked at where nothing was missed.
    pub(in super::super) fn upsert_if_missed(&self, from: &str) -> String {
        self.upsert(&format!("{from} WHERE NOT current_setting('{FOUND}')::boolean"))
    }
}

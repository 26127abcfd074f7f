//! One transaction that refreshes views together.
//!
//! It is REPEATABLE READ, and its first query reads the sources' checkpoints. The checkpoint changes in the transaction
//! that changes the tables, and REFRESH computes the view by the transaction's snapshot, so every view of the round shows
//! exactly the positions read, and a view over another shows that one's new content. Two daemons that refresh the same
//! view meet in its row of `view_state`: the later one fails to serialize, and no older content replaces newer.
//!
//! A TRUNCATE is seen by every snapshot as soon as it is committed; the sink empties tables by DELETE.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use tokio_postgres::Client;
use tokio_postgres::types::PgLsn;

use super::graph::View;
use super::session::Refused;
use crate::catalog::TableName;
use crate::lsn::Lsn;
use crate::mapping::plan::{RefreshMode, ViewPlan};
use crate::postgres::error::SqlError;
use crate::sink::state::name_text;

/// An open transaction of the refresher. Dropped, it must be followed by the end of its connection.
pub(super) struct Round<'a> {
    client: &'a Client,
    /// Each source's checkpoint in the transaction's snapshot: its `end_lsn`.
    pub lsns: Vec<(String, Lsn)>,
    /// Tables of which the snapshot holds a part, each a target: they are being copied, or catch up with their copy.
    pub partial: BTreeSet<TableName>,
}

impl<'a> Round<'a> {
    /// # Errors
    /// Of the connection or of the state tables, after which the connection is of no use.
    pub async fn begin(client: &'a Client) -> Result<Self, SqlError> {
        client.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ WRITE").await?;
        let mut lsns = Vec::new();
        for row in client.query("SELECT source, end_lsn FROM tailwater.checkpoint ORDER BY source", &[]).await? {
            lsns.push((row.try_get(0)?, Lsn(row.try_get::<_, PgLsn>(1)?.into())));
        }
        let partial = "SELECT target FROM tailwater.table_state WHERE state IN ('pending', 'copying', 'catchup')";
        let rows = client.query(partial, &[]).await?;
        let partial = rows.iter().filter_map(|row| row.try_get::<_, &str>(0).ok()?.parse().ok()).collect();
        Ok(Round { client, lsns, partial })
    }

    /// Refreshes one view; those it reads have been.
    ///
    /// # Errors
    /// The outer one ends the round and the connection.
    pub async fn refresh(&self, plan: &ViewPlan, view: &View) -> Result<Result<Duration, Refused>, SqlError> {
        let began = Instant::now();
        let concurrently = if is_concurrent(plan.refresh, view) { "CONCURRENTLY " } else { "" };
        let sql = format!("REFRESH MATERIALIZED VIEW {concurrently}{}", plan.view.quoted());
        self.client.batch_execute("SAVEPOINT view").await?;
        match self.client.batch_execute(&sql).await.map_err(SqlError::from) {
            Ok(()) => self.client.batch_execute("RELEASE SAVEPOINT view").await?,
            Err(error) if error.sqlstate().is_none() => return Err(error),
            Err(error) => {
                // Fails if the error was the connection's last word.
                self.client.batch_execute("ROLLBACK TO SAVEPOINT view; RELEASE SAVEPOINT view").await?;
                return Ok(Err(Refused(error.into())));
            }
        }
        Ok(Ok(began.elapsed()))
    }

    /// Records what the refreshed views show, and ends the transaction.
    pub async fn commit(self, refreshed: &BTreeMap<&TableName, Duration>) -> Result<(), SqlError> {
        const RECORD: &str = "
            INSERT INTO tailwater.view_state AS s (view, source, lsn, refreshed_at, seconds)
            SELECT v.view, c.source, c.end_lsn, clock_timestamp(), v.seconds
            FROM tailwater.checkpoint AS c
            CROSS JOIN unnest($1::text[], $2::double precision[]) AS v (view, seconds)
            ON CONFLICT (view, source) DO UPDATE
            SET lsn = excluded.lsn, refreshed_at = excluded.refreshed_at, seconds = excluded.seconds";
        if !refreshed.is_empty() {
            let views: Vec<_> = refreshed.keys().map(|view| name_text(view)).collect();
            let seconds: Vec<_> = refreshed.values().map(Duration::as_secs_f64).collect();
            self.client.execute(RECORD, &[&views, &seconds]).await?;
        }
        self.client.batch_execute("COMMIT").await?;
        Ok(())
    }
}

/// A view that holds nothing yet cannot be compared with its new content, so its first refresh is plain.
fn is_concurrent(mode: RefreshMode, view: &View) -> bool {
    let Some(found) = &view.found else { return false };
    match mode {
        RefreshMode::Auto => found.populated && found.unique_index,
        RefreshMode::Concurrently => found.populated,
        RefreshMode::Plain => false,
    }
}

/// Of these views, those that do not show every source's checkpoint, by their place.
pub(super) async fn behind(client: &Client, plans: &[ViewPlan]) -> Result<Vec<usize>, SqlError> {
    const BEHIND: &str = "
        SELECT w.place
        FROM unnest($1::text[]) WITH ORDINALITY AS w (view, place)
        WHERE EXISTS (SELECT
                      FROM tailwater.checkpoint AS c
                      LEFT JOIN tailwater.view_state AS s ON s.view = w.view AND s.source = c.source
                      WHERE s.lsn IS DISTINCT FROM c.end_lsn)";
    let views: Vec<_> = plans.iter().map(|plan| name_text(&plan.view)).collect();
    let mut places = Vec::new();
    for row in client.query(BEHIND, &[&views]).await? {
        places.push(usize::try_from(row.try_get::<_, i64>(0)? - 1).unwrap_or(usize::MAX));
    }
    places.retain(|place| *place < plans.len());
    Ok(places)
}

#[cfg(test)]
mod tests {
    use super::super::graph::tests::view;
    use super::*;

    #[test]
    fn concurrently_only_where_it_can_succeed_or_was_asked_for() {
        use RefreshMode::{Auto, Concurrently, Plain};
        let cases = [
            (Auto, true, true, true),
            (Auto, true, false, false),
            (Auto, false, true, false),
            (Concurrently, true, true, true),
            (Concurrently, false, true, false),
            // Readers were promised never to wait: the server's refusal is reported instead.
            (Concurrently, true, false, true),
            (Plain, true, true, false),
        ];
        for (mode, populated, unique_index, expected) in cases {
            let mut view = view("v", 1, &[], &[]);
            let found = view.found.as_mut().expect("made so");
            (found.populated, found.unique_index) = (populated, unique_index);
            assert_eq!(is_concurrent(mode, &view), expected, "{mode:?} {populated} {unique_index}");
        }
    }
}

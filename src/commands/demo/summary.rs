//! The end: both databases are asked what they hold.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use tokio_postgres::types::PgLsn;
use tokio_postgres::{Client, Row};

use super::daemon::Daemon;
use super::writer::{Delays, Written};
use crate::lsn::Lsn;
use crate::postgres::error::describe;
use crate::telemetry::human::{count, seconds};
use crate::telemetry::status::Status;

const SOURCE_DIGEST: &str = include_str!("../../../schemas/source/lessons_digest.sql");
const WAREHOUSE_DIGEST: &str = include_str!("../../../schemas/postgres/lessons_digest.sql");
const WAREHOUSE_CHECK: &str = include_str!("../../../schemas/postgres/lessons_check.sql");

/// For the last changes to arrive and the views to be refreshed.
const CATCH_UP_WITHIN: Duration = Duration::from_secs(60);

const LOOK: Duration = Duration::from_millis(20);

/// After a comparison that found a difference: it reads every row.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// What both ends said once everything should have arrived.
pub struct Summary {
    relations: Vec<Relation>,
    /// Rows of the model's own check: views that differ from their queries, lessons without a module.
    faults: u64,
    checkpoint: Lsn,
    confirmed: Lsn,
    lag_bytes: u64,
    /// From the last change's commit until the checkpoint was seen past it.
    arrived: Option<Duration>,
    /// From the last change's commit until everything was equal, or until patience ended.
    waited: Duration,
}

/// A table or view of the warehouse beside what it should be from the source's tables.
#[derive(Debug)]
struct Relation {
    name: String,
    source: Content,
    warehouse: Content,
}

#[derive(PartialEq, Eq, Debug)]
struct Content {
    row_count: i64,
    digest: Option<String>,
}

/// Both ends, with no writer.
pub struct Ends<'a> {
    pub source: &'a Client,
    pub warehouse: &'a Client,
}

impl Summary {
    /// Waits until the warehouse holds `last` and its views show it, then compares. What differs after a while differs.
    pub async fn take(ends: &Ends<'_>, daemon: &mut Daemon, last: &Written) -> Result<Summary> {
        let began = Instant::now();
        let mut arrived = None;
        loop {
            if arrived.is_none() && checkpoint(ends.warehouse).await? > last.lsn {
                arrived = Some(last.committed_at.elapsed());
            }
            let in_time = began.elapsed() < CATCH_UP_WITHIN;
            let status = daemon.status().await?;
            let shown = status.is_some_and(|status| status.views.iter().all(|view| view.staleness_seconds == 0.0));
            if in_time && !(shown && arrived.is_some()) {
                tokio::time::sleep(LOOK).await;
                continue;
            }
            let summary = Summary { arrived, waited: last.committed_at.elapsed(), ..Summary::ask(ends).await? };
            if summary.is_equal() || !in_time {
                return Ok(summary);
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    async fn ask(ends: &Ends<'_>) -> Result<Summary> {
        let (sources, held) = (ask(ends.source, SOURCE_DIGEST).await?, ask(ends.warehouse, WAREHOUSE_DIGEST).await?);
        let mut relations = Vec::new();
        for row in &sources {
            let name: String = row.get(0);
            let held = held.iter().find(|held| held.get::<_, &str>(0) == name);
            let warehouse = content(held.with_context(|| format!("the warehouse does not list {name}"))?);
            relations.push(Relation { name, source: content(row), warehouse });
        }
        let faults = ask(ends.warehouse, WAREHOUSE_CHECK).await?.len() as u64;
        let checkpoint = checkpoint(ends.warehouse).await?;
        let slot = ask(ends.source, "SELECT min(confirmed_flush_lsn), pg_current_wal_lsn() FROM pg_replication_slots");
        let slot = slot.await?;
        let slot = slot.first().context("the source does not list its slots")?;
        let confirmed = slot.get::<_, Option<PgLsn>>(0).context("the source has no slot")?;
        Ok(Summary {
            relations,
            faults,
            checkpoint,
            confirmed: Lsn(confirmed.into()),
            lag_bytes: Lsn(slot.get::<_, PgLsn>(1).into()).bytes_since(checkpoint),
            arrived: None,
            waited: Duration::ZERO,
        })
    }

    /// Whether the warehouse is what it should be.
    pub fn is_equal(&self) -> bool {
        let promised = self.confirmed <= self.checkpoint && self.faults == 0;
        promised && !self.relations.is_empty() && self.relations.iter().all(|each| each.source == each.warehouse)
    }

    /// As lines for a person.
    pub fn render(&self, written: &Written, status: &Status, delays: &Delays) -> String {
        let mut lines = vec![format!("{:<26}{:>14}{:>18}", "relation", "at the source", "in the warehouse")];
        for each in &self.relations {
            let verdict = if each.source == each.warehouse { "same content" } else { "DIFFERENT" };
            let rows = (rows(each.source.row_count), rows(each.warehouse.row_count));
            lines.push(format!("{:<26}{:>14}{:>18}  {verdict}", each.name, rows.0, rows.1));
        }
        lines.push(String::new());
        lines.push(match self.faults {
            0 => "views       equal their queries over the warehouse's tables".to_owned(),
            faults => format!("views       DIFFER from their queries in {} rows", count(faults)),
        });
        let (checkpoint, confirmed, lag) = (self.checkpoint, self.confirmed, count(self.lag_bytes));
        lines.push(format!("positions   checkpoint {checkpoint}, slot confirmed to {confirmed};"));
        lines.push(format!("            the source's WAL ends {lag} bytes later"));
        let applied: u64 = status.pairs.iter().map(|pair| pair.transactions).sum();
        let (written, applied) = (count(written.count), count(applied));
        lines.push(format!("changes     {written} by the writer, {applied} transactions applied by the daemon"));
        lines.extend(delay_lines(delays));
        lines.push(String::new());
        let after = |duration: Duration| seconds(duration.as_secs_f64());
        let waited = after(self.waited);
        lines.push(match (self.is_equal(), self.arrived) {
            (true, Some(arrived)) => {
                format!("Both databases agree: the tables within {}, the views within {waited}.", after(arrived))
            }
            (true, None) => format!("Both databases agree within {waited}."),
            (false, _) => format!("The databases DIFFER, {waited} after the last change."),
        });
        lines.join("\n")
    }
}

/// How soon changes were seen in the warehouse.
fn delay_lines(delays: &Delays) -> Vec<String> {
    let (Some(half), Some(all)) = (delays.quantile(0.5), delays.quantile(1.0)) else { return Vec::new() };
    // Of fewer, the last hundredth is only the slowest one.
    let most = delays.quantile(0.99).filter(|_| delays.count() >= 100);
    let shares = [("half", Some(half)), ("99 %", most), ("all", Some(all))];
    let shares = shares.into_iter().filter_map(|(share, delay)| Some((share, delay?.as_secs_f64())));
    let shares: Vec<String> = shares.map(|(share, delay)| format!("{share} within {}", seconds(delay))).collect();
    vec![
        format!(
            "delay       {} changes were looked for in the warehouse once committed:",
            count(delays.count() as u64)
        ),
        format!("            visible {}", shares.join(", ")),
    ]
}

fn rows(number: i64) -> String {
    count(u64::try_from(number).unwrap_or_default())
}

fn content(row: &Row) -> Content {
    Content { row_count: row.get(1), digest: row.get(2) }
}

async fn checkpoint(warehouse: &Client) -> Result<Lsn> {
    let rows = ask(warehouse, "SELECT min(end_lsn) FROM tailwater.checkpoint").await?;
    let at: Option<PgLsn> = rows.first().and_then(|row| row.get(0));
    Ok(at.map_or(Lsn::ZERO, |at| Lsn(at.into())))
}

/// The rows of one statement without parameters.
pub async fn ask(client: &Client, sql: &str) -> Result<Vec<Row>> {
    client.query(sql, &[]).await.map_err(|error| anyhow!("{}", describe(&error)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary(warehouse_digest: &str, faults: u64, confirmed: u64) -> Summary {
        let content = |digest: &str| Content { row_count: 2, digest: Some(digest.to_owned()) };
        let relation =
            Relation { name: "dwh.d_course".to_owned(), source: content("a"), warehouse: content(warehouse_digest) };
        Summary {
            relations: vec![relation],
            faults,
            checkpoint: Lsn(10),
            confirmed: Lsn(confirmed),
            lag_bytes: 0,
            arrived: None,
            waited: Duration::from_secs(1),
        }
    }

    #[test]
    fn equal_means_content_views_and_positions() {
        assert!(summary("a", 0, 10).is_equal());
        assert!(!summary("b", 0, 10).is_equal(), "same number of rows, other content");
        assert!(!summary("a", 1, 10).is_equal(), "a view differs from its query");
        assert!(!summary("a", 0, 11).is_equal(), "confirmed past the checkpoint");
    }
}

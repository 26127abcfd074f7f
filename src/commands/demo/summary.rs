//! The end: all databases are asked what they hold.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use tokio_postgres::types::PgLsn;
use tokio_postgres::{Client, Row};

use super::clickhouse;
use super::daemon::{CLICKHOUSE_SINK, Daemon, KAFKA_SINK, POSTGRES_SINK};
use super::events::Reader;
use super::topics::{self, Topic};
use super::writer::{Delays, Written};
use crate::lsn::Lsn;
use crate::postgres::error::describe;
use crate::sink::clickhouse::http;
use crate::telemetry::human::{count, seconds};
use crate::telemetry::status::Status;

const SOURCE_DIGEST: &str = include_str!("../../../schemas/source/lessons_digest.sql");
const WAREHOUSE_DIGEST: &str = include_str!("../../../schemas/postgres/lessons_digest.sql");
const CLICKHOUSE_DIGEST: &str = include_str!("../../../schemas/clickhouse/lessons_digest.sql");
const WAREHOUSE_CHECK: &str = include_str!("../../../schemas/postgres/lessons_check.sql");

/// For the last changes to arrive and the views to be refreshed.
const CATCH_UP_WITHIN: Duration = Duration::from_secs(60);

const LOOK: Duration = Duration::from_millis(20);

/// After a comparison that found a difference: it reads every row.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// What all ends said once everything should have arrived.
pub struct Summary {
    relations: Vec<Relation>,
    /// Empty where there is no Kafka.
    topics: Vec<Topic>,
    /// Rows of the model's own check: views that differ from their queries, lessons without a module.
    faults: u64,
    /// The lowest of all sinks.
    checkpoint: Lsn,
    confirmed: Lsn,
    lag_bytes: u64,
    /// From the last change's commit until every checkpoint was seen past it.
    arrived: Option<Duration>,
    /// From the last change's commit until everything was equal, or until patience ended.
    waited: Duration,
}

/// A table or view of the warehouses beside what it should be from the source's tables.
#[derive(Debug)]
struct Relation {
    name: String,
    source: Content,
    warehouse: Content,
    clickhouse: Option<Content>,
}

impl Relation {
    fn is_equal(&self) -> bool {
        self.source == self.warehouse && self.clickhouse.as_ref().is_none_or(|held| self.source == *held)
    }
}

#[derive(PartialEq, Eq, Debug)]
struct Content {
    row_count: i64,
    digest: Option<String>,
}

/// All ends, with no writer.
pub struct Ends<'a> {
    pub source: &'a Client,
    pub warehouse: &'a Client,
    pub clickhouse: Option<&'a http::Client>,
    pub events: Option<&'a Reader>,
}

impl Ends<'_> {
    /// How many rows the first copies brought: sink, target, rows.
    pub async fn copied(&self) -> Result<Vec<(&'static str, String, u64)>> {
        let rows = ask(self.warehouse, "SELECT target, rows FROM tailwater.table_state ORDER BY target").await?;
        let row_of = |row: &Row| (POSTGRES_SINK, row.get(0), row.get::<_, i64>(1).unsigned_abs());
        let mut copied: Vec<_> = rows.iter().map(row_of).collect();
        if let Some(client) = self.clickhouse {
            let sql = "SELECT target, rows FROM tailwater.table_state FINAL ORDER BY target";
            for row in clickhouse::ask(client, sql).await? {
                let [target, rows] = &row[..] else { bail!("ClickHouse does not say what was copied") };
                copied.push((CLICKHOUSE_SINK, target.clone(), rows.parse()?));
            }
        }
        if let Some(reader) = self.events {
            copied.extend(reader.seen()?.copied().map(|(topic, rows)| (KAFKA_SINK, topic.to_owned(), rows)));
        }
        Ok(copied)
    }

    /// Whether the consumer has read what the first copies brought: how soon it sees a change would else be its own delay.
    pub fn have_read_copies(&self) -> Result<bool> {
        self.events.map_or(Ok(true), |reader| Ok(reader.seen()?.has_read_copies()))
    }

    /// What every sink holds.
    async fn checkpoint(&self) -> Result<Lsn> {
        let rows = ask(self.warehouse, "SELECT min(end_lsn) FROM tailwater.checkpoint").await?;
        let at: Option<PgLsn> = rows.first().and_then(|row| row.get(0));
        let at = at.map_or(Lsn::ZERO, |at| Lsn(at.into()));
        let at = match self.clickhouse {
            Some(client) => at.min(clickhouse::checkpoint(client).await?),
            None => at,
        };
        Ok(self.events.map_or(at, |reader| at.min(*reader.checkpoint.borrow())))
    }
}

impl Summary {
    /// Waits until the warehouses hold `last` and the views show it, then compares. What differs after a while differs.
    pub async fn take(ends: &Ends<'_>, daemon: &mut Daemon, last: &Written) -> Result<Summary> {
        let began = Instant::now();
        let mut arrived = None;
        loop {
            if arrived.is_none() && ends.checkpoint().await? > last.lsn {
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
        let of_clickhouse = match ends.clickhouse {
            Some(client) => Some(clickhouse::ask(client, CLICKHOUSE_DIGEST).await.context("ask ClickHouse")?),
            None => None,
        };
        let mut relations = Vec::new();
        for row in &sources {
            let name: String = row.get(0);
            let held = held.iter().find(|held| held.get::<_, &str>(0) == name);
            let warehouse = content(held.with_context(|| format!("the warehouse does not list {name}"))?);
            let clickhouse = of_clickhouse.as_ref().map(|rows| {
                let held = rows.iter().find(|held| held.first() == Some(&name));
                // A relation without rows is not listed.
                held.map_or(Content { row_count: 0, digest: None }, |held| content_of_text(held))
            });
            relations.push(Relation { name, source: content(row), warehouse, clickhouse });
        }
        let topics = match ends.events {
            Some(reader) => topics::compare(ends.source, reader).await?,
            None => Vec::new(),
        };
        let faults = ask(ends.warehouse, WAREHOUSE_CHECK).await?.len() as u64;
        let checkpoint = ends.checkpoint().await?;
        let slot = ask(ends.source, "SELECT min(confirmed_flush_lsn), pg_current_wal_lsn() FROM pg_replication_slots");
        let slot = slot.await?;
        let slot = slot.first().context("the source does not list its slots")?;
        let confirmed = slot.get::<_, Option<PgLsn>>(0).context("the source has no slot")?;
        Ok(Summary {
            relations,
            topics,
            faults,
            checkpoint,
            confirmed: Lsn(confirmed.into()),
            lag_bytes: Lsn(slot.get::<_, PgLsn>(1).into()).bytes_since(checkpoint),
            arrived: None,
            waited: Duration::ZERO,
        })
    }

    /// Whether the warehouses are what they should be.
    pub fn is_equal(&self) -> bool {
        let promised = self.confirmed <= self.checkpoint && self.faults == 0 && self.topics.iter().all(Topic::is_equal);
        promised && !self.relations.is_empty() && self.relations.iter().all(Relation::is_equal)
    }

    /// As lines for a person.
    pub fn render(&self, written: &Written, status: &Status, delays: &[Delays]) -> String {
        let mut lines = Vec::new();
        let mut line = |name: &str, counts: [&str; 3], verdict: &str| {
            let [source, warehouse, clickhouse] = counts;
            // Nothing stands there where there is no ClickHouse.
            let clickhouse = if clickhouse.is_empty() { String::new() } else { format!("{clickhouse:>15}") };
            let line = format!("{name:<26}{source:>14}{warehouse:>14}{clickhouse}  {verdict}");
            lines.push(line.trim_end().to_owned());
        };
        let has_clickhouse = self.relations.iter().any(|each| each.clickhouse.is_some());
        let heading = if has_clickhouse { "in ClickHouse" } else { "" };
        line("relation", ["at the source", "in Postgres", heading], "");
        for each in &self.relations {
            let verdict = if each.is_equal() { "same content" } else { "DIFFERENT" };
            let clickhouse = each.clickhouse.as_ref().map(|held| rows(held.row_count)).unwrap_or_default();
            let counts = [rows(each.source.row_count), rows(each.warehouse.row_count), clickhouse];
            line(&each.name, counts.each_ref().map(String::as_str), verdict);
        }
        lines.push(String::new());
        if !self.topics.is_empty() {
            lines.extend(topics::render(&self.topics));
            lines.push(String::new());
        }
        lines.push(match self.faults {
            0 => "views       equal their queries over the warehouse's tables".to_owned(),
            faults => format!("views       DIFFER from their queries in {} rows", count(faults)),
        });
        let (checkpoint, confirmed, lag) = (self.checkpoint, self.confirmed, count(self.lag_bytes));
        lines.push(format!("positions   checkpoint {checkpoint}, slot confirmed to {confirmed};"));
        lines.push(format!("            the source's WAL ends {lag} bytes later"));
        lines.push(format!("changes     {} by the writer; transactions applied by the daemon:", count(written.count)));
        let applied = status.pairs.iter().map(|pair| format!("{} to {}", count(pair.transactions), pair.sink));
        lines.push(format!("            {}", applied.collect::<Vec<_>>().join(", ")));
        lines.extend(delay_lines(delays));
        lines.push(String::new());
        let after = |duration: Duration| seconds(duration.as_secs_f64());
        let waited = after(self.waited);
        let ends = if self.topics.is_empty() { "databases" } else { "databases and topics" };
        lines.push(match (self.is_equal(), self.arrived) {
            (true, Some(arrived)) => {
                format!("All {ends} agree: the tables within {}, the views within {waited}.", after(arrived))
            }
            (true, None) => format!("All {ends} agree within {waited}."),
            (false, _) => format!("The {ends} DIFFER, {waited} after the last change."),
        });
        lines.join("\n")
    }
}

/// How soon changes were seen in each warehouse.
fn delay_lines(delays: &[Delays]) -> Vec<String> {
    let mut lines: Vec<String> = delays.iter().filter_map(delay_line).collect();
    if !lines.is_empty() {
        lines.insert(0, "delay       changes that were looked for once committed were visible:".to_owned());
    }
    lines
}

fn delay_line(delays: &Delays) -> Option<String> {
    let (half, all) = (delays.quantile(0.5)?, delays.quantile(1.0)?);
    // Of fewer, the last hundredth is only the slowest one.
    let most = delays.quantile(0.99).filter(|_| delays.count() >= 100);
    let shares = [("half", Some(half)), ("99 %", most), ("all", Some(all))];
    let shares = shares.into_iter().filter_map(|(share, delay)| Some((share, delay?.as_secs_f64())));
    let shares: Vec<String> = shares.map(|(share, delay)| format!("{share} within {}", seconds(delay))).collect();
    Some(format!("            in {:<10} {} (of {})", delays.sink, shares.join(", "), count(delays.count() as u64)))
}

fn rows(number: i64) -> String {
    count(u64::try_from(number).unwrap_or_default())
}

fn content(row: &Row) -> Content {
    Content { row_count: row.get(1), digest: row.get(2) }
}

/// A relation's name, its row count and its digest.
fn content_of_text(row: &[String]) -> Content {
    let row_count = row.get(1).and_then(|count| count.parse().ok()).unwrap_or(-1);
    Content { row_count, digest: row.get(2).cloned() }
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
        let relation = Relation {
            name: "dwh.d_course".to_owned(),
            source: content("a"),
            warehouse: content(warehouse_digest),
            clickhouse: None,
        };
        Summary {
            relations: vec![relation],
            topics: Vec::new(),
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
        let mut other = summary("a", 0, 10);
        other.relations[0].clickhouse = Some(Content { row_count: 2, digest: Some("b".to_owned()) });
        assert!(!other.is_equal(), "ClickHouse has other content");
        assert!(!summary("a", 1, 10).is_equal(), "a view differs from its query");
        assert!(!summary("a", 0, 11).is_equal(), "confirmed past the checkpoint");
    }
}

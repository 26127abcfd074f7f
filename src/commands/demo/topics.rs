//! What the topics tell, beside what the source holds.

use anyhow::{Context, Result};
use serde_json::{Map, Value};
use tokio_postgres::Client;

use super::events::{Fold, Reader, RowHash};
use super::summary::ask;
use crate::catalog::{quote_ident, quote_literal};
use crate::telemetry::human::count;

/// A topic's messages folded by key, beside the table's rows.
#[derive(Debug)]
pub struct Topic {
    pub name: String,
    source_rows: usize,
    rows: usize,
    messages: u64,
    /// Rows that are told otherwise than the source has them, or not at all.
    different: usize,
    repeats: u64,
}

impl Topic {
    pub fn is_equal(&self) -> bool {
        self.rows == self.source_rows && self.different == 0 && self.repeats == 0
    }
}

/// Every topic, with no writer.
pub async fn compare(source: &Client, reader: &Reader) -> Result<Vec<Topic>> {
    let names: Vec<String> = reader.seen()?.folds.keys().cloned().collect();
    let mut topics = Vec::new();
    for name in names {
        let (_, table) = name.rsplit_once('.').context("a topic is named by its table")?;
        let rows = rows(source, table).await?;
        let seen = reader.seen()?;
        let fold = seen.folds.get(&name).context("a topic is gone")?;
        topics.push(compare_one(&name, &rows, fold));
    }
    Ok(topics)
}

fn compare_one(name: &str, rows: &[Map<String, Value>], fold: &Fold) -> Topic {
    // Every table of the model has this key.
    let key = |row: &Map<String, Value>| format!("{{\"id\":{}}}", row.get("id").unwrap_or(&Value::Null));
    let is_different = |row: &&Map<String, Value>| fold.row(key(row).as_bytes()) != Some(&RowHash::new(row));
    Topic {
        name: name.to_owned(),
        source_rows: rows.len(),
        rows: fold.row_count(),
        messages: fold.messages,
        different: rows.iter().filter(is_different).count(),
        repeats: fold.repeats,
    }
}

/// A table's rows as its topic has them: times as numbers since 1970, in the unit that holds their precision.
async fn rows(source: &Client, table: &str) -> Result<Vec<Map<String, Value>>> {
    let columns = format!(
        "SELECT column_name::text, datetime_precision::int FROM information_schema.columns \
         WHERE table_schema = 'public' AND table_name = {}",
        quote_literal(table)
    );
    let columns = ask(source, &columns).await?.into_iter().map(|row| {
        let column = quote_ident(row.get(0));
        let per_second = match row.get::<_, Option<i32>>(1) {
            None => return column,
            Some(0..=3) => 1_000,
            Some(_) => 1_000_000,
        };
        format!("(extract(epoch FROM {column}) * {per_second})::bigint AS {column}")
    });
    let sql = format!(
        "SELECT to_jsonb(row)::text FROM (SELECT {} FROM public.{}) AS row",
        columns.collect::<Vec<_>>().join(", "),
        quote_ident(table)
    );
    let rows = ask(source, &sql).await.with_context(|| format!("read the source's {table}"))?;
    rows.iter().map(|row| Ok(serde_json::from_str(row.get(0))?)).collect()
}

/// As lines for a person.
pub fn render(topics: &[Topic]) -> Vec<String> {
    let mut lines = vec![format!("{:<32}{:>8}{:>14}{:>15}", "topic", "rows", "in Kafka", "messages")];
    for topic in topics {
        let verdict = match (topic.is_equal(), topic.repeats) {
            (true, _) => "same rows".to_owned(),
            (false, 0) => format!("DIFFERENT in {} rows", count(topic.different as u64)),
            (false, repeats) => format!("DIFFERENT: {} messages came again or too late", count(repeats)),
        };
        let counts = [topic.source_rows as u64, topic.rows as u64, topic.messages].map(count);
        let [source, kafka, messages] = counts;
        lines.push(format!("{:<32}{source:>8}{kafka:>14}{messages:>15}  {verdict}", topic.name));
    }
    lines
}

//! The source's transactions as Debezium tells of them: a message where one begins and one where it ends, and between them
//! each event with its place.
//!
//! A transaction that no event is of is not told. One of several batches is told once: its parts are one transaction of the
//! producer, which is given up as a whole, and its counts with it.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::beside::{Buffers, Channel};
use super::cluster::Cluster;
use super::encode::{LSN_HEADER, ORDINAL_HEADER};
use super::failure::KafkaFailure;
use super::producer::Producer;
use crate::assemble::Begin;
use crate::checkpoint::UnixMicros;
use crate::lsn::Lsn;
use crate::mapping::plan::Plan;
use crate::sink::ApplyError;
use crate::value::debezium::{Boundary, Message, Order};

pub(super) struct Transactions {
    channel: Channel,
    /// By plan: `schema.table`.
    tables: Vec<String>,
    open: Option<Open>,
}

/// A transaction whose begin was told.
struct Open {
    begin: Begin,
    events: u64,
    /// By plan.
    in_tables: BTreeMap<usize, u64>,
}

impl Transactions {
    /// `None` if nobody asked for them.
    pub async fn of(cluster: &Cluster, source: &str, plans: &[Arc<Plan>]) -> Result<Option<Transactions>, ApplyError> {
        let Some(topic) = cluster.beside().transaction_topic(source) else { return Ok(None) };
        let channel =
            Channel::open(cluster, topic, plans, [Message::TransactionKey, Message::TransactionValue]).await?;
        let tables = plans.iter().map(|plan| plan.from.to_string()).collect();
        Ok(Some(Transactions { channel, tables, open: None }))
    }

    /// The place that the next event of a table has in a transaction.
    pub fn next(&self, begin: &Begin, plan_index: usize) -> Order {
        let open = self.open.as_ref().filter(|open| open.begin == *begin);
        let in_table = open.and_then(|open| open.in_tables.get(&plan_index)).copied().unwrap_or(0);
        Order { total: open.map_or(0, |open| open.events) + 1, in_table: in_table + 1 }
    }

    /// Counts events of a table that are about to be sent, the first of them at `lsn`. Before the first one of a transaction
    /// its begin is told, and the end of the one before.
    pub async fn count(
        &mut self,
        producer: &mut Producer,
        begin: &Begin,
        lsn: Lsn,
        plan_index: usize,
        events: u64,
    ) -> Result<(), KafkaFailure> {
        if events == 0 {
            return Ok(());
        }
        if self.open.as_ref().is_none_or(|open| open.begin != *begin) {
            self.end(producer).await?;
            self.tell(producer, begin, lsn, &Boundary::Begin).await?;
            self.open = Some(Open { begin: *begin, events: 0, in_tables: BTreeMap::new() });
        }
        let open = self.open.as_mut().expect("it was just opened");
        open.events += events;
        *open.in_tables.entry(plan_index).or_default() += events;
        Ok(())
    }

    /// Tells the end of the transaction whose begin was told, if there is one.
    pub async fn end(&mut self, producer: &mut Producer) -> Result<(), KafkaFailure> {
        let Some(open) = self.open.take() else { return Ok(()) };
        // A table may have several topics.
        let mut counts = BTreeMap::<&str, u64>::new();
        for (plan_index, count) in &open.in_tables {
            *counts.entry(&self.tables[*plan_index]).or_default() += count;
        }
        let tables: Vec<_> = counts.into_iter().map(|(table, count)| (table.to_owned(), count)).collect();
        self.tell(producer, &open.begin, open.begin.commit_lsn, &Boundary::End { tables: &tables }).await
    }

    async fn tell(
        &mut self,
        producer: &mut Producer,
        begin: &Begin,
        lsn: Lsn,
        boundary: &Boundary<'_>,
    ) -> Result<(), KafkaFailure> {
        let Buffers { messages, key, value } = self.channel.buffers();
        messages.transaction_key(key, begin.xid, lsn);
        messages.transaction_value(value, begin.xid, lsn, begin.commit_ts, boundary);
        // As those of rows have it, so that it can be told whether a checkpoint covers it.
        let place = match boundary {
            Boundary::Begin => 1,
            Boundary::End { tables } => tables.iter().map(|(_, events)| events).sum::<u64>() + 1,
        };
        let (lsn, ordinal) = (begin.commit_lsn.to_string(), place.to_string());
        let headers = [(LSN_HEADER, lsn.as_bytes()), (ORDINAL_HEADER, ordinal.as_bytes())];
        self.channel.send(producer, &headers, UnixMicros::now()).await
    }
}

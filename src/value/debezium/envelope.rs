//! The envelope around a change: the row before and after, where the change comes from, what it is and when it was told.
//!
//! Fields stand in the order of Debezium's schema: `before`, `after`, `source`, `transaction`, `op`, `ts_ms`, `ts_us`,
//! `ts_ns`.

use super::EncodeError;
use super::form::Payload;
use super::out::{Label, Out};
use super::shape::Origin;
use super::table::{Image, Table};
use crate::catalog::TableName;
use crate::checkpoint::UnixMicros;
use crate::lsn::Lsn;
use crate::tuple::Cell;

mod schema;

pub(super) use schema::schema;

/// A change of one row, or of a whole table. `R` is a row's cells in the columns' order, [`crate::tuple::Cells`] or any other
/// iterator that can be cloned.
#[derive(Clone, Debug)]
pub enum Change<R> {
    Create {
        after: R,
    },
    /// A row that was copied, not changed.
    Read {
        after: R,
    },
    Update {
        before: Option<Old<R>>,
        after: R,
    },
    Delete {
        before: Option<Old<R>>,
    },
    Truncate,
}

/// What of the row before a change was sent.
#[derive(Clone, Debug)]
pub enum Old<R> {
    /// The columns of the replica identity. The others are NULL in the event, or 0 of their type where NULL has no place.
    Key(R),
    Full(R),
}

/// Which row of a copy an event is of; of a streamed change, `False`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Snapshot {
    True,
    First,
    FirstInDataCollection,
    LastInDataCollection,
    Last,
    #[default]
    False,
    Incremental,
}

impl Snapshot {
    /// Debezium's names, in its order.
    const NAMES: &str = "true,first,first_in_data_collection,last_in_data_collection,last,false,incremental";

    pub(super) fn name(self) -> &'static str {
        match self {
            Snapshot::True => "true",
            Snapshot::First => "first",
            Snapshot::FirstInDataCollection => "first_in_data_collection",
            Snapshot::LastInDataCollection => "last_in_data_collection",
            Snapshot::Last => "last",
            Snapshot::False => "false",
            Snapshot::Incremental => "incremental",
        }
    }
}

/// Where in its source's history a change stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SourceInfo {
    /// When its transaction was committed; of a copied row, when it was read.
    pub committed: UnixMicros,
    pub snapshot: Snapshot,
    /// Of the transaction before this one; the first half of `sequence`.
    pub last_commit_lsn: Option<Lsn>,
    /// Of the change itself.
    pub lsn: Lsn,
    pub xid: Option<u32>,
}

/// The change's place in its transaction, both counted from 1.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Order {
    /// Among all of the transaction's events.
    pub total: u64,
    /// Among those of its table.
    pub in_table: u64,
}

impl Order {
    /// The place behind so many more events of the same table.
    pub fn after(self, events: u64) -> Order {
        Order { total: self.total + events, in_table: self.in_table + events }
    }
}

/// When the event was made, and what surrounds the change.
#[derive(Clone, Copy, Debug)]
pub(super) struct Frame {
    pub info: SourceInfo,
    pub order: Option<Order>,
    pub now: UnixMicros,
}

/// A change in its envelope.
pub(super) struct Event<'e, R> {
    pub envelope: &'e Envelope,
    pub table: &'e Table,
    pub change: &'e Change<R>,
    pub frame: Frame,
}

impl<'a, R: Iterator<Item = Cell<'a>> + Clone> Payload for Event<'_, R> {
    fn write<O: Out>(self, out: &mut O) -> Result<(), EncodeError> {
        self.envelope.write(out, self.table, self.change, &self.frame)
    }
}

/// What of the envelope is the same for all changes of a table, already encoded.
pub(super) struct Envelope {
    /// The source up to its time.
    source_head: Vec<u8>,
    source_database: Vec<u8>,
    /// The table's schema and name.
    source_table: Vec<u8>,
    labels: Labels,
}

struct Labels {
    before: Label,
    after: Label,
    source: Label,
    transaction: Label,
    op: Label,
    times: [Label; 3],
    snapshot: Label,
    sequence: Label,
    transaction_id: Label,
    lsn: Label,
    /// `xmin`, `origin` and `origin_lsn`, of which none is known here.
    unknown: [Label; 3],
    order: [Label; 3],
}

impl Labels {
    fn new() -> Labels {
        Labels {
            before: Label::new("before"),
            after: Label::new("after"),
            source: Label::new("source"),
            transaction: Label::new("transaction"),
            op: Label::new("op"),
            times: ["ts_ms", "ts_us", "ts_ns"].map(Label::new),
            snapshot: Label::new("snapshot"),
            sequence: Label::new("sequence"),
            transaction_id: Label::new("txId"),
            lsn: Label::new("lsn"),
            unknown: ["xmin", "origin", "origin_lsn"].map(Label::new),
            order: ["id", "total_order", "data_collection_order"].map(Label::new),
        }
    }
}

impl Envelope {
    /// `out` writes into an empty buffer; the pieces are cut out of a source block written there.
    pub fn new<O: Out>(mut out: O, origin: &Origin<'_>, table: &TableName) -> Envelope {
        let labels = Labels::new();
        let text = |out: &mut O, name: &str, value: &str| {
            out.field(&Label::new(name));
            out.text(value.as_bytes());
        };
        let [ts_ms, ts_us, ts_ns] = &labels.times;
        out.begin_struct();
        text(&mut out, "version", origin.version);
        text(&mut out, "connector", "postgresql");
        text(&mut out, "name", origin.name);
        let source_head = out.buffer().clone();
        out.field(ts_ms);
        out.int(0);
        let from = out.buffer().len();
        text(&mut out, "db", origin.database);
        let source_database = out.buffer()[from..].to_vec();
        out.field(ts_us);
        out.some();
        out.int(0);
        out.field(ts_ns);
        out.some();
        out.int(0);
        let from = out.buffer().len();
        text(&mut out, "schema", &table.schema);
        text(&mut out, "table", &table.name);
        let source_table = out.buffer()[from..].to_vec();
        Envelope { source_head, source_database, source_table, labels }
    }

    fn write<'a, O: Out, R: Iterator<Item = Cell<'a>> + Clone>(
        &self,
        out: &mut O,
        table: &Table,
        change: &Change<R>,
        frame: &Frame,
    ) -> Result<(), EncodeError> {
        let (before, after, op) = match change {
            Change::Create { after } => (None, Some(after), "c"),
            Change::Read { after } => (None, Some(after), "r"),
            Change::Update { before, after } => (before.as_ref(), Some(after), "u"),
            Change::Delete { before } => (before.as_ref(), None, "d"),
            Change::Truncate => (None, None, "t"),
        };
        out.begin_struct();
        out.field(&self.labels.before);
        match before {
            None => out.null(),
            Some(old) => {
                out.some();
                write_old(out, table, old)?;
            }
        }
        out.field(&self.labels.after);
        match after {
            None => out.null(),
            Some(after) => {
                out.some();
                let whole_old = match before {
                    Some(Old::Full(old)) => Some(old.clone()),
                    Some(Old::Key(_)) | None => None,
                };
                table.write_row(out, after.clone(), Image::Full, whole_old)?;
            }
        }
        out.field(&self.labels.source);
        self.write_source(out, &frame.info);
        self.write_tail(out, frame, op);
        out.end_struct();
        Ok(())
    }

    fn write_source<O: Out>(&self, out: &mut O, info: &SourceInfo) {
        let [ts_ms, ts_us, ts_ns] = &self.labels.times;
        let micros = info.committed.0;
        out.buffer().extend_from_slice(&self.source_head);
        out.field(ts_ms);
        out.int(micros.div_euclid(1_000));
        out.field(&self.labels.snapshot);
        out.some_or_default();
        out.text(info.snapshot.name().as_bytes());
        out.buffer().extend_from_slice(&self.source_database);
        out.field(&self.labels.sequence);
        out.some();
        sequence_text(out, info);
        out.field(ts_us);
        out.some();
        out.int(micros);
        out.field(ts_ns);
        out.some();
        out.int(micros.saturating_mul(1_000));
        out.buffer().extend_from_slice(&self.source_table);
        out.field(&self.labels.transaction_id);
        match info.xid {
            None => out.null(),
            Some(xid) => {
                out.some();
                out.int(xid.into());
            }
        }
        out.field(&self.labels.lsn);
        out.some();
        out.int(info.lsn.0.cast_signed());
        for label in &self.labels.unknown {
            out.field(label);
            out.null();
        }
        out.end_struct();
    }

    fn write_tail<O: Out>(&self, out: &mut O, frame: &Frame, op: &str) {
        out.field(&self.labels.transaction);
        match (frame.order, frame.info.xid) {
            (Some(order), Some(xid)) => {
                let [id, total, in_table] = &self.labels.order;
                out.some();
                out.begin_struct();
                out.field(id);
                transaction_id_text(out, xid, frame.info.lsn);
                out.field(total);
                out.int(order.total.cast_signed());
                out.field(in_table);
                out.int(order.in_table.cast_signed());
                out.end_struct();
            }
            _ => out.null(),
        }
        out.field(&self.labels.op);
        out.text(op.as_bytes());
        let micros = frame.now.0;
        let times = [micros.div_euclid(1_000), micros, micros.saturating_mul(1_000)];
        for (label, time) in self.labels.times.iter().zip(times) {
            out.field(label);
            out.some();
            out.int(time);
        }
    }
}

fn write_old<'a, O: Out, R: Iterator<Item = Cell<'a>> + Clone>(
    out: &mut O,
    table: &Table,
    old: &Old<R>,
) -> Result<(), EncodeError> {
    match old {
        Old::Key(row) => table.write_row(out, row.clone(), Image::Key, None::<R>),
        Old::Full(row) => table.write_row(out, row.clone(), Image::Full, None::<R>),
    }
}

/// `["<last commit>","<this change>"]`, as text.
pub(super) fn sequence_text<O: Out>(out: &mut O, info: &SourceInfo) {
    compose(out, |buffer| {
        match info.last_commit_lsn {
            None => buffer.extend_from_slice(b"[null,\""),
            Some(last) => {
                buffer.extend_from_slice(b"[\"");
                push_number(buffer, last.0);
                buffer.extend_from_slice(b"\",\"");
            }
        }
        push_number(buffer, info.lsn.0);
        buffer.extend_from_slice(b"\"]");
    });
}

/// `<xid>:<lsn>`
pub(super) fn transaction_id_text<O: Out>(out: &mut O, xid: u32, lsn: Lsn) {
    compose(out, |buffer| {
        push_number(buffer, xid.into());
        buffer.push(b':');
        push_number(buffer, lsn.0);
    });
}

fn push_number(out: &mut Vec<u8>, number: u64) {
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

fn compose<O: Out>(out: &mut O, write: impl FnOnce(&mut Vec<u8>)) {
    let composed = out.composed_text(|buffer| {
        write(buffer);
        Ok(())
    });
    composed.expect("nothing can fail");
}

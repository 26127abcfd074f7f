//! A table's changes as messages: what they say, what they are keyed by, and where they go.

#[cfg(test)]
mod tests;

use crate::assemble::Begin;
use crate::checkpoint::UnixMicros;
use crate::lsn::Lsn;
use crate::mapping::plan::{Plan, Topic, TopicFormat};
use crate::tuple::Cell;
use crate::value::debezium::{
    AvroShape, Change, DeleteHandling, EncodeError, Flat, FlatOptions, FlatShape, NEW_KEY_HEADER, OLD_KEY_HEADER, Old,
    Order, Origin, ShapeError, Snapshot, SourceInfo, TableShape,
};

use super::failure::KafkaFailure;
use super::partition::partition_of;
use super::producer::{Producer, Record};
use super::registry::SchemaIds;

/// Headers of every message: the position of its change, by which whoever reads twice can tell.
pub const LSN_HEADER: &str = "lsn";
pub const ORDINAL_HEADER: &str = "ordinal";

/// Where a message without a key goes. Always the same one, so that two of them keep their order.
const KEYLESS_PARTITION: i32 = 0;

/// What a batch says of a row, with the cells of its images by input.
pub enum Images<'r, 'a> {
    Insert(&'r [Cell<'a>]),
    Update(Option<Old<&'r [Cell<'a>]>>, &'r [Cell<'a>]),
    Delete(Old<&'r [Cell<'a>]>),
    /// Of all rows.
    Truncate,
}

/// Where a change stands.
pub struct At<'b> {
    pub begin: &'b Begin,
    /// Commit of the transaction before this one.
    pub last_commit: Lsn,
    /// Of the change itself.
    pub lsn: Lsn,
    pub ordinal: u64,
    /// The place in its transaction that the change's first event has, if events say so.
    pub order: Option<Order>,
    /// When its message is made.
    pub now: UnixMicros,
}

/// How a change is written.
enum Shape {
    Envelope {
        shape: Box<TableShape>,
        tombstones: bool,
    },
    /// The row alone.
    Flat(Box<FlatShape>),
    /// The envelope, under schemas that have these numbers.
    Avro {
        shape: Box<AvroShape>,
        schemas: SchemaIds,
        tombstones: bool,
    },
}

/// What a table's messages in Avro look like, and under which schemas.
pub(super) fn avro_shape(plan: &Plan, topic: &Topic, database: &str) -> Result<AvroShape, ShapeError> {
    AvroShape::new(&origin(topic, database), &plan.from, &topic.columns, &key_of(plan), &topic.options.values)
}

fn origin<'a>(topic: &'a Topic, database: &'a str) -> Origin<'a> {
    Origin { version: env!("CARGO_PKG_VERSION"), name: &topic.prefix, database }
}

fn key_of(plan: &Plan) -> Vec<String> {
    plan.key_inputs.iter().map(|&input| plan.inputs[input].name.clone()).collect()
}

impl Shape {
    fn new(plan: &Plan, topic: &Topic, database: &str, schemas: Option<SchemaIds>) -> Result<Shape, String> {
        let of_table = |error: ShapeError| format!("table \"{}\": {error}", plan.from);
        let (origin, key) = (origin(topic, database), key_of(plan));
        let (columns, options) = (&topic.columns, &topic.options);
        match topic.format {
            TopicFormat::DebeziumJson => {
                let shape = TableShape::new(&origin, &plan.from, columns, &key, &options.values).map_err(of_table)?;
                Ok(Shape::Envelope { shape: Box::new(shape), tombstones: options.tombstones })
            }
            TopicFormat::Json => {
                let handling = if options.tombstones { DeleteHandling::Tombstone } else { DeleteHandling::Drop };
                let flat = FlatOptions { delete_tombstone_handling_mode: handling, ..FlatOptions::default() };
                let shape = FlatShape::new(&origin, &plan.from, columns, &key, &options.values, &flat);
                Ok(Shape::Flat(Box::new(shape.map_err(of_table)?)))
            }
            TopicFormat::Avro => {
                let shape = Box::new(avro_shape(plan, topic, database).map_err(of_table)?);
                let schemas = schemas.ok_or_else(|| format!("table \"{}\": no schema is registered", plan.from))?;
                Ok(Shape::Avro { shape, schemas, tombstones: options.tombstones })
            }
        }
    }

    fn key<'a>(&self, out: &mut Vec<u8>, row: impl Iterator<Item = Cell<'a>> + Clone) -> Result<(), EncodeError> {
        match self {
            Shape::Envelope { shape, .. } => shape.key(out, row),
            Shape::Flat(shape) => shape.key(out, row),
            Shape::Avro { shape, schemas, .. } => {
                out.extend_from_slice(&schemas.key.prefix());
                shape.key(out, row)
            }
        }
    }

    fn key_changes<'a, R: Iterator<Item = Cell<'a>> + Clone>(&self, before: &Old<R>, after: R) -> bool {
        match self {
            Shape::Envelope { shape, .. } => shape.key_changes(before, after),
            Shape::Flat(shape) => shape.key_changes(before, after),
            Shape::Avro { shape, .. } => shape.key_changes(before, after),
        }
    }

    /// Appends the message's value and says what is to be sent.
    fn value<'a, R: Iterator<Item = Cell<'a>> + Clone>(
        &self,
        out: &mut Vec<u8>,
        change: &Change<R>,
        info: &SourceInfo,
        order: Option<Order>,
        now: UnixMicros,
    ) -> Result<Flat, EncodeError> {
        match self {
            Shape::Envelope { shape, tombstones } => {
                shape.value(out, change, info, order, now)?;
                Ok(envelope_of(change, *tombstones))
            }
            Shape::Avro { shape, schemas, tombstones } => {
                out.extend_from_slice(&schemas.value.prefix());
                shape.value(out, change, info, order, now)?;
                Ok(envelope_of(change, *tombstones))
            }
            Shape::Flat(shape) => shape.value(out, change, info, order, now),
        }
    }
}

/// What is sent of a change that has an envelope.
fn envelope_of<R>(change: &Change<R>, tombstones: bool) -> Flat {
    let is_delete = matches!(change, Change::Delete { .. });
    if is_delete && tombstones { Flat::ValueThenTombstone } else { Flat::Value }
}

/// How one table's changes become messages. Buffers are used again for each.
pub struct Messages {
    pub(super) topic: Topic,
    shape: Shape,
    texts: Vec<bool>,
    buffers: Buffers,
}

#[derive(Default)]
struct Buffers {
    key: Vec<u8>,
    old_key: Vec<u8>,
    value: Vec<u8>,
    second: Vec<u8>,
    /// What `lsn` is the text of.
    placed: Option<Lsn>,
    lsn: String,
    ordinal: String,
}

/// One message, ready to be sent.
pub struct Message<'m> {
    topic: &'m str,
    partition: i32,
    /// `None`: the message is of no row.
    key: Option<&'m [u8]>,
    value: Option<&'m [u8]>,
    headers: [Option<(&'m str, &'m [u8])>; 3],
    timestamp_ms: i64,
}

impl Message<'_> {
    /// # Errors
    /// The producer does not take it.
    pub async fn send(&self, producer: &Producer) -> Result<(), KafkaFailure> {
        let headers = self.headers.map(|header| header.unwrap_or_default());
        let count = self.headers.iter().filter(|header| header.is_some()).count();
        let record = Record {
            topic: self.topic,
            partition: self.partition,
            key: self.key,
            value: self.value,
            headers: &headers[..count],
            timestamp_ms: self.timestamp_ms,
        };
        producer.send(&record).await
    }
}

impl Messages {
    /// `schemas`: as registered, of a format that has some.
    ///
    /// # Errors
    /// A column of the key has a type that no message can be keyed by.
    pub fn new(plan: &Plan, database: &str, schemas: Option<SchemaIds>) -> Result<Messages, String> {
        let Some(topic) = &plan.topic else { return Err(format!("table \"{}\" has no topic", plan.from)) };
        let shape = Shape::new(plan, topic, database, schemas)?;
        let texts = topic.columns.iter().map(|column| !column.reads_binary(&topic.options.values)).collect();
        Ok(Messages { topic: topic.clone(), shape, texts, buffers: Buffers::default() })
    }

    /// Only the text form of this input is understood.
    pub fn wants_text(&self, input: usize) -> bool {
        self.texts[input]
    }

    /// The message of a row that was copied at this position.
    ///
    /// # Errors
    /// A value has no form in the message.
    pub fn read<'a>(&mut self, row: &[Cell<'a>], lsn: Lsn, now: UnixMicros) -> Result<Message<'_>, String> {
        let info = SourceInfo { committed: now, snapshot: Snapshot::True, last_commit_lsn: None, lsn, xid: None };
        let cells = row.iter().zip(&self.texts).map(|(cell, is_text)| match cell {
            Cell::Binary(text) if *is_text => Cell::Text(text),
            cell => *cell,
        });
        self.buffers.place(lsn, 0);
        self.buffers.key.clear();
        self.buffers.value.clear();
        self.shape.key(&mut self.buffers.key, cells.clone()).map_err(|error| error.to_string())?;
        let change = Change::Read { after: cells };
        let written = self.shape.value(&mut self.buffers.value, &change, &info, None, now);
        // A row that is there always has a value.
        let _always_a_value = written.map_err(|error| error.to_string())?;
        Ok(self.message(Some(&self.buffers.key), Some(&self.buffers.value), None, now))
    }

    /// Encodes a change, for [`Messages::messages`] to take.
    ///
    /// # Errors
    /// A value has no form in the message.
    pub fn change(&mut self, images: Images<'_, '_>, at: &At<'_>) -> Result<Sent, EncodeError> {
        let info = SourceInfo {
            committed: at.begin.commit_ts,
            snapshot: Snapshot::False,
            last_commit_lsn: Some(at.last_commit),
            lsn: at.lsn,
            xid: Some(at.begin.xid),
        };
        let Messages { shape, buffers, topic, .. } = self;
        let skipped = topic.options.skipped;
        buffers.place(at.begin.commit_lsn, at.ordinal);
        let Buffers { key, old_key, value, second, .. } = buffers;
        [&mut *key, &mut *old_key, &mut *value, &mut *second].into_iter().for_each(Vec::clear);
        let mut sent = Sent::default();
        match images {
            Images::Insert(row) if !skipped.creates => {
                shape.key(key, row.iter().copied())?;
                let change = Change::Create { after: row.iter().copied() };
                sent.first = shape.value(value, &change, &info, at.order, at.now)?;
            }
            Images::Delete(old) if !skipped.deletes => {
                let old = cells(&old);
                shape.key(key, row_of(&old))?;
                sent.first = shape.value(value, &Change::Delete { before: Some(old) }, &info, at.order, at.now)?;
            }
            Images::Update(old, row) => {
                let old = old.as_ref().map(cells);
                let row = row.iter().copied();
                shape.key(key, row.clone())?;
                match old {
                    Some(old) if shape.key_changes(&old, row.clone()) => {
                        shape.key(old_key, row_of(&old))?;
                        sent.moved = true;
                        if !skipped.deletes {
                            let change = Change::Delete { before: Some(old) };
                            sent.first = shape.value(value, &change, &info, at.order, at.now)?;
                        }
                        if !skipped.creates {
                            let order = at.order.map(|order| order.after(sent.events()));
                            sent.second = shape.value(second, &Change::Create { after: row }, &info, order, at.now)?;
                        }
                    }
                    _ if skipped.updates => {}
                    before => {
                        let change = Change::Update { before, after: row };
                        sent.first = shape.value(value, &change, &info, at.order, at.now)?;
                    }
                }
            }
            Images::Truncate if !skipped.truncates => {
                let change = Change::<std::iter::Empty<Cell<'_>>>::Truncate;
                sent.keyless = true;
                sent.first = shape.value(value, &change, &info, at.order, at.now)?;
            }
            Images::Insert(_) | Images::Delete(_) | Images::Truncate => {}
        }
        Ok(sent)
    }

    /// The messages of the change that was encoded last: one, or with a key that changes one for each key, and a tombstone
    /// behind each delete; none if such changes are skipped.
    pub fn messages(&self, sent: Sent, now: UnixMicros) -> impl Iterator<Item = Message<'_>> {
        let Buffers { key, old_key, value, second, .. } = &self.buffers;
        let (first_key, new_key) = if sent.moved { (old_key, Some((NEW_KEY_HEADER, &key[..]))) } else { (key, None) };
        let first_key = (!sent.keyless).then_some(&first_key[..]);
        let has_value = matches!(sent.first, Flat::Value | Flat::ValueThenTombstone);
        let has_tombstone = matches!(sent.first, Flat::Tombstone | Flat::ValueThenTombstone);
        let has_second = matches!(sent.second, Flat::Value | Flat::ValueThenTombstone);
        let messages = [
            has_value.then(|| self.message(first_key, Some(value), new_key, now)),
            has_tombstone.then(|| self.message(first_key, None, None, now)),
            has_second.then(|| self.message(Some(key), Some(second), Some((OLD_KEY_HEADER, old_key)), now)),
        ];
        messages.into_iter().flatten()
    }

    fn message<'m>(
        &'m self,
        key: Option<&'m [u8]>,
        value: Option<&'m [u8]>,
        other: Option<(&'m str, &'m [u8])>,
        now: UnixMicros,
    ) -> Message<'m> {
        let Buffers { lsn, ordinal, .. } = &self.buffers;
        Message {
            topic: &self.topic.name,
            partition: key.map_or(KEYLESS_PARTITION, |key| partition_of(key, self.topic.partitions)),
            key,
            value,
            headers: [Some((LSN_HEADER, lsn.as_bytes())), Some((ORDINAL_HEADER, ordinal.as_bytes())), other],
            timestamp_ms: now.0 / 1_000,
        }
    }
}

/// What came of a change.
#[derive(Clone, Copy)]
pub struct Sent {
    /// Of the change, or of the delete of the key that the row had.
    first: Flat,
    /// Of the create of the key that the row has now.
    second: Flat,
    /// The row was given another key.
    moved: bool,
    /// The change is of no row.
    keyless: bool,
}

impl Default for Sent {
    fn default() -> Self {
        Sent { first: Flat::Nothing, second: Flat::Nothing, moved: false, keyless: false }
    }
}

impl Sent {
    /// How many events the change's messages are, tombstones not counted.
    pub fn events(self) -> u64 {
        u64::from(self.first != Flat::Nothing) + u64::from(self.second != Flat::Nothing)
    }
}

impl Buffers {
    fn place(&mut self, lsn: Lsn, ordinal: u64) {
        // All changes of a transaction have the same.
        if self.placed.replace(lsn) != Some(lsn) {
            self.lsn = lsn.to_string();
        }
        self.ordinal.clear();
        self.ordinal.push_str(itoa::Buffer::new().format(ordinal));
    }
}

fn cells<'r, 'a>(old: &Old<&'r [Cell<'a>]>) -> Old<std::iter::Copied<std::slice::Iter<'r, Cell<'a>>>> {
    match old {
        Old::Key(row) => Old::Key(row.iter().copied()),
        Old::Full(row) => Old::Full(row.iter().copied()),
    }
}

fn row_of<R: Clone>(old: &Old<R>) -> R {
    match old {
        Old::Key(row) | Old::Full(row) => row.clone(),
    }
}

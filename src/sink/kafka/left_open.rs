//! What brokers have left open although whoever wrote it is fenced.
//!
//! A transaction ends by a mark in each of its partitions. Brokers of 4.3.0 to 4.4.0 leave the mark out where a partition has
//! no leader at the moment (KAFKA-20734), and tell of the end all the same. Readers of committed messages then wait there, and
//! the next transaction of the same id decides over what is open as well: what was given up would be told with what is told
//! again. So whoever takes over looks, and gives up first what the checkpoint does not cover.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Headers as _, Message as _};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tracing::{info, warn};

use super::address::KafkaAddress;
use super::client::{Reports, SLICE};
use super::cluster::Remembered;
use super::encode::{LSN_HEADER, ORDINAL_HEADER};
use super::failure::KafkaFailure;
use super::producer::{Producer, Record};
use super::state::TableRecord;
use super::topics::{LOOK_EVERY, blocking, patiently, reader};
use crate::checkpoint::UnixMicros;
use crate::lsn::Lsn;

/// How long the brokers may take to mark the end of what was given up.
const MARKED_WITHIN: Duration = Duration::from_secs(20);

/// How long one record may take to be read.
const READ_WITHIN: Duration = Duration::from_secs(10);

/// So many records of a partition, aborted ones and marks included, tell whether the last transaction is shown there.
const LAST: i64 = 1_000;

/// Topic and partition.
pub type Place = (String, i32);

/// Who gives up what is open, each what it wrote itself.
pub struct Owners<'p> {
    pub changes: &'p mut Producer,
    /// `None` while copies may be under way.
    pub copies: Option<&'p mut Producer>,
}

/// Whose an open transaction is, by its first record.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Whose {
    /// Changes that no checkpoint covers.
    Changes,
    /// A copy that was not written down as whole.
    Copy,
    /// Something that was committed: the next commit shows it.
    Committed,
    Stranger,
}

/// The position of a message, by its headers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Told {
    lsn: Lsn,
    /// 0: of a row that was copied.
    ordinal: u64,
}

/// Gives up what is open of a source's messages in these places and was not committed, as far as its owners are here.
///
/// # Errors
/// The brokers do not answer, or do not end it.
pub async fn end_left_open(
    address: &KafkaAddress,
    places: &BTreeSet<Place>,
    remembered: &Remembered,
    mut owners: Owners<'_>,
) -> Result<(), KafkaFailure> {
    let until = Instant::now() + MARKED_WITHIN;
    let mut given_up: BTreeMap<Place, i64> = BTreeMap::new();
    loop {
        let open = open_places(address, places.clone()).await?;
        let marked = |(place, from): (&Place, &i64)| given_up.get(place).is_none_or(|before| before < from);
        if open.iter().all(marked) {
            let judged = judge(address, remembered, &open).await?;
            let theirs =
                |wanted: Whose| judged.iter().filter(move |(_, whose)| *whose == wanted).map(|(place, _)| place);
            let mut ended = give_up(owners.changes, theirs(Whose::Changes).collect()).await?;
            if let Some(copies) = &mut owners.copies {
                ended.extend(give_up(copies, theirs(Whose::Copy).collect()).await?);
            }
            if ended.is_empty() {
                judged.iter().for_each(|(place, whose)| tell(place, open[place], *whose));
                return Ok(());
            }
            given_up.extend(ended.into_iter().map(|place| (place.clone(), open[&place])));
        }
        // Also if there is more and more to give up: then somebody else writes by our names.
        if Instant::now() >= until {
            return Err(KafkaFailure::Transient { message: "brokers do not end what was given up".to_owned() });
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Gives up what is open of a source's state, in the name of those who write there and were fenced, so that its memory can be
/// read.
///
/// # Errors
/// Messages that the state does not cover are shown: they were committed with what is open, and would be told again. Or the
/// brokers do not answer, or do not end it.
pub async fn end_left_open_state(
    address: &KafkaAddress,
    state_topic: &str,
    shown: &Remembered,
    writers: Vec<&mut Producer>,
) -> Result<(), KafkaFailure> {
    let state = BTreeSet::from([(state_topic.to_owned(), 0)]);
    if open_places(address, state.clone()).await?.is_empty() {
        return Ok(());
    }
    if let Some(((topic, partition), lsn)) = told_beyond(address, shown).await? {
        let message = format!(
            "topic \"{topic}\": partition {partition} shows a change of {lsn}, which the checkpoint does not cover: brokers left \
             the end of its transaction out in \"{state_topic}\" (KAFKA-20734)"
        );
        return Err(KafkaFailure::Transient { message });
    }
    for writer in writers {
        give_up(writer, state.iter().collect()).await?;
    }
    let until = Instant::now() + MARKED_WITHIN;
    while !open_places(address, state.clone()).await?.is_empty() {
        if Instant::now() >= until {
            let message = format!("topic \"{state_topic}\" is held up by a transaction of somebody else");
            return Err(KafkaFailure::Transient { message });
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Ok(())
}

/// A message among the last of a partition that is shown although what is remembered does not cover it.
async fn told_beyond(address: &KafkaAddress, shown: &Remembered) -> Result<Option<(Place, Lsn)>, KafkaFailure> {
    let (checkpoint, tables) = (checkpoint_of(shown), shown.tables.clone());
    let (address, places) = (address.clone(), places(shown));
    if places.is_empty() {
        return Ok(None);
    }
    blocking("read what is shown", move |_, given_up| {
        let reader = reader(&address, "read_committed")?;
        let places = those_there(&reader, places)?;
        let ends = ends_of(&reader, &places, Offset::End)?;
        let begins = ends_of(&reader, &places, Offset::Beginning)?;
        for (place, end) in ends {
            let begin = begins.get(&place).copied().unwrap_or_default().max(end - LAST);
            let of: Vec<_> = tables.values().filter(|record| record.topic == place.0).collect();
            let beyond = |told: &Told| matches!(whose(Some(*told), checkpoint, &of), Whose::Changes | Whose::Copy);
            let mut last = read_from(&reader, &place, begin, given_up)?;
            while let Some(told) = last.next().transpose()? {
                if let Some(told) = told.filter(beyond) {
                    return Ok(Some((place.clone(), told.lsn)));
                }
            }
        }
        Ok(None)
    })
    .await
}

fn checkpoint_of(remembered: &Remembered) -> Lsn {
    remembered.checkpoint.as_ref().map(|stored| stored.checkpoint.commit_lsn).unwrap_or_default()
}

/// The partitions that a source's rows are in.
pub fn places(remembered: &Remembered) -> BTreeSet<Place> {
    let of = |record: &TableRecord| {
        let topic = record.topic.clone();
        (0..record.partitions).map(move |partition| (topic.clone(), partition))
    };
    remembered.tables.values().flat_map(of).collect()
}

fn tell((topic, partition): &Place, from: i64, whose: Whose) {
    match whose {
        Whose::Committed => warn!(
            %topic, partition, offset = from,
            "brokers left the end of a transaction out (KAFKA-20734): what is committed here is shown with the next message"
        ),
        Whose::Stranger => warn!(
            %topic, partition, offset = from,
            "a transaction of somebody else is open: readers of committed messages wait for its end"
        ),
        // A copy that is under way ends by itself.
        Whose::Changes | Whose::Copy => {}
    }
}

/// Opens a transaction in these places and aborts it, by which the brokers mark all that the producer's id has open there.
async fn give_up(producer: &mut Producer, places: BTreeSet<&Place>) -> Result<BTreeSet<Place>, KafkaFailure> {
    if places.is_empty() {
        return Ok(BTreeSet::new());
    }
    producer.begin().await?;
    for (topic, partition) in &places {
        let (key, timestamp_ms) = (Some(&b"given up"[..]), UnixMicros::now().0 / 1_000);
        let nothing = Record { topic, partition: *partition, key, value: None, headers: &[], timestamp_ms };
        producer.send(&nothing).await?;
    }
    // What was not sent yet would only be forgotten.
    producer.deliver().await?;
    producer.abort().await?;
    for (topic, partition) in &places {
        info!(%topic, partition, "ended what brokers had left open (KAFKA-20734)");
    }
    Ok(places.into_iter().cloned().collect())
}

/// Where a transaction is open, with the offset of its first record.
async fn open_places(address: &KafkaAddress, places: BTreeSet<Place>) -> Result<BTreeMap<Place, i64>, KafkaFailure> {
    if places.is_empty() {
        return Ok(BTreeMap::new());
    }
    let address = address.clone();
    blocking("look for open transactions", move |_, _| {
        let uncommitted = reader(&address, "read_uncommitted")?;
        let places = those_there(&uncommitted, places)?;
        // First: what is committed while this looks is not open.
        let ends = ends_of(&uncommitted, &places, Offset::End)?;
        let stable = ends_of(&*reader(&address, "read_committed")?, &places, Offset::End)?;
        let is_open = |(place, from): &(Place, i64)| ends.get(place).is_some_and(|end| from < end);
        Ok(stable.into_iter().filter(is_open).collect())
    })
    .await
}

/// Without those whose topic is gone: of such a one nothing else is answered.
fn those_there(reader: &BaseConsumer<Reports>, places: BTreeSet<Place>) -> Result<BTreeSet<Place>, KafkaFailure> {
    let what = "list topics";
    let metadata = patiently(reader, what, "", || reader.client().fetch_metadata(None, SLICE))?;
    let counts: BTreeMap<_, _> =
        metadata.topics().iter().map(|topic| (topic.name(), topic.partitions().len())).collect();
    let is_there = |(topic, partition): &Place| {
        counts.get(topic.as_str()).is_some_and(|count| usize::try_from(*partition).is_ok_and(|at| at < *count))
    };
    Ok(places.into_iter().filter(is_there).collect())
}

/// Where partitions end, or begin, for a reader; without those of which no broker says so. One question to each broker.
fn ends_of(
    reader: &BaseConsumer<Reports>,
    places: &BTreeSet<Place>,
    which: Offset,
) -> Result<BTreeMap<Place, i64>, KafkaFailure> {
    if places.is_empty() {
        return Ok(BTreeMap::new());
    }
    let what = "look for the end";
    let mut asked = TopicPartitionList::with_capacity(places.len());
    for (topic, partition) in places {
        // In place of a time; librdkafka passes it on as it is (ListOffsets, "latest" and "earliest").
        let added = asked.add_partition_offset(topic, *partition, which);
        added.map_err(|error| KafkaFailure::of(what, topic, &error))?;
    }
    let told = patiently(reader, what, "", || reader.offsets_for_times(asked.clone(), SLICE))?;
    let told = told.elements();
    let end = |offset| if let Offset::Offset(offset) = offset { Some(offset) } else { None };
    let ends = told.iter().filter(|element| element.error().is_ok());
    Ok(ends.filter_map(|at| Some(((at.topic().to_owned(), at.partition()), end(at.offset())?))).collect())
}

/// Reads the first record of each open transaction, and tells whose it is.
async fn judge(
    address: &KafkaAddress,
    remembered: &Remembered,
    open: &BTreeMap<Place, i64>,
) -> Result<Vec<(Place, Whose)>, KafkaFailure> {
    if open.is_empty() {
        return Ok(Vec::new());
    }
    let (address, open) = (address.clone(), open.clone());
    let firsts = blocking("read what is open", move |_, given_up| {
        let reader = reader(&address, "read_uncommitted")?;
        let first = |(place, from): (Place, i64)| {
            let told = read_from(&reader, &place, from, given_up)?.next().transpose()?.flatten();
            Ok((place, told))
        };
        open.into_iter().map(first).collect::<Result<Vec<_>, KafkaFailure>>()
    });
    let checkpoint = checkpoint_of(remembered);
    let judged = firsts.await?.into_iter().map(|(place, told)| {
        let tables: Vec<_> = remembered.tables.values().filter(|record| record.topic == place.0).collect();
        (place, whose(told, checkpoint, &tables))
    });
    Ok(judged.collect())
}

/// `tables`: those whose messages are in the topic; none where transactions are told of.
fn whose(told: Option<Told>, checkpoint: Lsn, tables: &[&TableRecord]) -> Whose {
    match told {
        None => Whose::Stranger,
        // A table that catches up has none told.
        Some(Told { lsn, .. }) if tables.is_empty() => {
            if lsn <= checkpoint {
                Whose::Committed
            } else {
                Whose::Changes
            }
        }
        Some(Told { ordinal: 0, .. }) if tables.iter().all(|table| table.is_filled()) => Whose::Committed,
        Some(Told { ordinal: 0, .. }) => Whose::Copy,
        // What a table catches up with is older than the checkpoint, and committed with its joining.
        Some(Told { lsn, .. }) if lsn <= checkpoint && tables.iter().any(|table| table.joined) => Whose::Committed,
        Some(_) => Whose::Changes,
    }
}

/// The positions that a partition's records tell from an offset on, to its end; `None` of a record that is no message of ours.
fn read_from<'r>(
    reader: &'r BaseConsumer<Reports>,
    (topic, partition): &'r Place,
    from: i64,
    given_up: &'r AtomicBool,
) -> Result<impl Iterator<Item = Result<Option<Told>, KafkaFailure>> + 'r, KafkaFailure> {
    let failed = |error: &_| reader.context().explain(KafkaFailure::of("read", topic, error));
    let mut at = TopicPartitionList::new();
    at.add_partition_offset(topic, *partition, Offset::Offset(from)).map_err(|error| failed(&error))?;
    reader.assign(&at).map_err(|error| failed(&error))?;
    let next = move || {
        let until = Instant::now() + READ_WITHIN;
        while Instant::now() < until && !given_up.load(Ordering::Relaxed) {
            match reader.poll(LOOK_EVERY) {
                // Of an earlier place.
                Some(Ok(record)) if record.topic() != topic || record.partition() != *partition => {}
                Some(Ok(record)) => return Some(Ok(told_of(&record))),
                Some(Err(KafkaError::PartitionEOF(of))) if of == *partition => return None,
                // librdkafka looks for the group's coordinator; no right to one is needed.
                Some(Err(KafkaError::PartitionEOF(_)))
                | Some(Err(KafkaError::MessageConsumption(RDKafkaErrorCode::GroupAuthorizationFailed)))
                | None => {}
                Some(Err(error)) => match failed(&error) {
                    KafkaFailure::Transient { .. } => {}
                    failure => return Some(Err(failure)),
                },
            }
        }
        let message = format!("topic \"{topic}\": partition {partition} was not read from offset {from} on");
        Some(Err(KafkaFailure::Transient { message }))
    };
    Ok(std::iter::from_fn(next))
}

fn told_of(record: &BorrowedMessage<'_>) -> Option<Told> {
    let headers = record.headers()?;
    let header = |name: &str| {
        let value = headers.iter().find(|header| header.key == name)?.value?;
        std::str::from_utf8(value).ok()
    };
    Some(Told { lsn: header(LSN_HEADER)?.parse().ok()?, ordinal: header(ORDINAL_HEADER)?.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::TableName;
    use crate::sink::state::TableState;

    fn table(state: TableState, joined: bool) -> TableRecord {
        let name = TableName::new("public", "course");
        TableRecord { state, joined, ..TableRecord::new(&name, "lms.public.course") }
    }

    #[test]
    fn only_what_no_checkpoint_covers_is_given_up() {
        let (copying, filled) = (table(TableState::Copying, false), table(TableState::Catchup, false));
        let joined = table(TableState::Streaming, true);
        let change = |lsn| Some(Told { lsn: Lsn(lsn), ordinal: 3 });
        let row = Some(Told { lsn: Lsn(5), ordinal: 0 });
        let cases = [
            (change(20), &joined, Whose::Changes),
            (change(10), &joined, Whose::Committed),
            (change(9), &joined, Whose::Committed),
            // What it catches up with.
            (change(9), &filled, Whose::Changes),
            (row, &copying, Whose::Copy),
            (row, &filled, Whose::Committed),
            (None, &joined, Whose::Stranger),
        ];
        for (told, table, expected) in cases {
            assert_eq!(whose(told, Lsn(10), &[table]), expected, "{told:?} of {table:?}");
        }
        assert_eq!(whose(row, Lsn(10), &[&joined, &copying]), Whose::Copy);
        for (lsn, expected) in [(10, Whose::Committed), (20, Whose::Changes)] {
            assert_eq!(whose(change(lsn), Lsn(10), &[]), expected, "the begin or end of a transaction at {lsn}");
        }
        assert_eq!(whose(None, Lsn(10), &[]), Whose::Stranger);
    }
}

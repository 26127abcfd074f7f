//! A made-up source: one table, random transactions on it, the stream's messages for them, and what the table held after each.

use std::collections::BTreeMap;

use tailwater::checkpoint::{Checkpoint, Position, UnixMicros};
use tailwater::frame;
use tailwater::lsn::Lsn;
use tailwater::sink::clickhouse::encode::version;

use crate::support::random::Random;

const FIRST_LSN: u64 = 1_000;
/// From one commit's start to the next.
const STEP: u64 = 100;
const OID: u32 = 7;

/// Both columns of the key.
pub type Key = (u64, &'static str);

/// The other columns; the two texts may be large, and an update may leave them unsent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Row {
    pub texts: [Option<String>; 2],
    pub number: u64,
    /// Of the last change.
    pub version: u128,
}

/// What a condition says of a row's number.
pub fn matches(number: u64) -> bool {
    !number.is_multiple_of(4)
}

pub type Table = BTreeMap<Key, Row>;

struct Transaction {
    frames: Vec<u8>,
    end: Checkpoint,
    after: Table,
}

#[derive(Default)]
pub struct History {
    /// A condition chooses among rows, see [`matches`].
    is_filtered: bool,
    transactions: Vec<Transaction>,
    rows: Table,
    counter: u64,
}

/// A transaction that is being written.
struct Open<'a> {
    history: &'a mut History,
    frames: Vec<u8>,
    commit_lsn: Lsn,
    ordinal: u64,
}

impl History {
    pub fn new(is_filtered: bool) -> History {
        History { is_filtered, ..History::default() }
    }

    pub fn len(&self) -> usize {
        self.transactions.len()
    }

    /// What a sink says that holds the first `count` transactions.
    pub fn checkpoint(&self, count: usize) -> Checkpoint {
        let none = Checkpoint { commit_lsn: Lsn(1), end_lsn: Lsn(1), ordinal: 0, commit_ts: None };
        count.checked_sub(1).map_or(none, |last| self.transactions[last].end)
    }

    /// The table after the first `count` transactions.
    pub fn after(&self, count: usize) -> Table {
        count.checked_sub(1).map_or_else(Table::new, |last| self.transactions[last].after.clone())
    }

    /// How many transactions end at this LSN or before it.
    pub fn count_until(&self, end_lsn: Lsn) -> usize {
        self.transactions.partition_point(|transaction| transaction.end.end_lsn <= end_lsn)
    }

    /// The stream of a connection that begins after `from` transactions and has brought `until` of them.
    pub fn stream(&self, from: usize, until: usize) -> Vec<u8> {
        let mut frames = Vec::new();
        frame::write_message(&mut frames, &relation());
        self.transactions[from..until].iter().for_each(|transaction| frames.extend_from_slice(&transaction.frames));
        frames
    }

    /// One more transaction, of random changes.
    pub fn commit_any(&mut self, random: &mut Random) {
        let changes = random.below(6);
        self.commit(|open| (0..changes).for_each(|_| open.any(random)));
    }

    /// One more transaction, of these changes.
    pub fn commit_these(&mut self, changes: &[Change]) {
        self.commit(|open| changes.iter().for_each(|change| open.change(*change)));
    }

    fn commit(&mut self, write: impl FnOnce(&mut Open<'_>)) {
        let commit_lsn = Lsn(FIRST_LSN + STEP * u64::try_from(self.len()).expect("few transactions"));
        let end_lsn = Lsn(commit_lsn.0 + STEP);
        let mut frames = Vec::new();
        let begin = [&b"B"[..], &commit_lsn.0.to_be_bytes(), &[0; 8], &5_u32.to_be_bytes()].concat();
        frame::write_message(&mut frames, &begin);
        let mut open = Open { history: self, frames, commit_lsn, ordinal: 0 };
        write(&mut open);
        let Open { mut frames, ordinal, .. } = open;
        let commit = [&b"C\0"[..], &commit_lsn.0.to_be_bytes(), &end_lsn.0.to_be_bytes(), &[0; 8]].concat();
        frame::write_message(&mut frames, &commit);
        let end = Checkpoint { commit_lsn, end_lsn, ordinal, commit_ts: Some(UnixMicros::from_postgres(0)) };
        let after = self.rows.clone();
        self.transactions.push(Transaction { frames, end, after });
    }

    fn text(&mut self, name: char) -> Option<String> {
        self.counter += 1;
        (!self.counter.is_multiple_of(9)).then(|| format!("{name}{}", self.counter))
    }
}

/// One change, if it is possible when its turn comes.
#[derive(Clone, Copy, Debug)]
pub enum Change {
    Insert(Key),
    /// From one key to another, or in place; which of the texts are new and so are sent.
    Update(Key, Key, [bool; 2]),
    Delete(Key),
    Truncate,
}

impl Open<'_> {
    fn any(&mut self, random: &mut Random) {
        let key = |random: &mut Random| -> Key { (random.below(3), if random.one_in(2) { "a" } else { "b" }) };
        let (one, other) = (key(random), key(random));
        let news = |random: &mut Random| [random.one_in(3), random.one_in(3)];
        match random.below(16) {
            0..4 => self.change(Change::Insert(one)),
            4..7 => self.change(Change::Update(one, one, news(random))),
            7..10 => self.change(Change::Update(one, other, news(random))),
            10 => {
                // Two rows change places by way of a third key.
                let third = (9, "a");
                let both = self.history.rows.contains_key(&one) && self.history.rows.contains_key(&other);
                if both && one != other {
                    self.change(Change::Update(one, third, news(random)));
                    self.change(Change::Update(other, one, news(random)));
                    self.change(Change::Update(third, other, news(random)));
                }
            }
            11..13 => self.change(Change::Delete(one)),
            13 => {
                self.change(Change::Delete(one));
                self.change(Change::Insert(one));
            }
            14 => {
                self.change(Change::Insert(one));
                self.change(Change::Delete(one));
            }
            _ if random.one_in(3) => self.change(Change::Truncate),
            _ => {}
        }
    }

    fn change(&mut self, change: Change) {
        let rows = &self.history.rows;
        let is_possible = match change {
            Change::Insert(key) => !rows.contains_key(&key),
            Change::Update(old, key, _) => rows.contains_key(&old) && (old == key || !rows.contains_key(&key)),
            Change::Delete(key) => rows.contains_key(&key),
            Change::Truncate => true,
        };
        if !is_possible {
            return;
        }
        self.ordinal += 1;
        let message = match change {
            Change::Insert(key) => {
                let texts = ['a', 'b'].map(|name| self.history.text(name));
                let row = self.row(texts);
                let message = [b"I", &OID.to_be_bytes()[..], b"N", &tuple(key, &row, [false; 2])].concat();
                self.history.rows.insert(key, row);
                message
            }
            Change::Update(old, key, news) => self.update(old, key, news),
            Change::Delete(key) => {
                self.history.rows.remove(&key);
                [b"D", &OID.to_be_bytes()[..], b"K", &key_tuple(key)].concat()
            }
            Change::Truncate => {
                self.history.rows.clear();
                [b"T", &1_u32.to_be_bytes()[..], b"\0", &OID.to_be_bytes()].concat()
            }
        };
        frame::write_message(&mut self.frames, &message);
    }

    fn row(&mut self, texts: [Option<String>; 2]) -> Row {
        self.history.counter += 1;
        let position = Position { commit_lsn: self.commit_lsn, ordinal: self.ordinal };
        Row { texts, number: self.history.counter, version: version(position) }
    }

    fn update(&mut self, old: Key, key: Key, news: [bool; 2]) -> Vec<u8> {
        let before = self.history.rows.remove(&old).expect("it was looked for");
        // Of a row that comes to match nobody has what is not sent.
        let sent: u64 = news.into_iter().map(u64::from).sum();
        let comes = self.history.is_filtered && !matches(before.number) && matches(self.history.counter + sent + 1);
        let news = news.map(|is_new| is_new || comes);
        let mut texts = before.texts;
        let mut unsent = [false; 2];
        for (place, text) in texts.iter_mut().enumerate() {
            if news[place] {
                *text = self.history.text(if place == 0 { 'a' } else { 'b' });
            } else {
                unsent[place] = text.is_some();
            }
        }
        let row = self.row(texts);
        let new = tuple(key, &row, unsent);
        self.history.rows.insert(key, row);
        let old = if old == key { Vec::new() } else { [b"K", &key_tuple(old)[..]].concat() };
        [b"U", &OID.to_be_bytes()[..], &old, b"N", &new].concat()
    }
}

/// The table's description, as under REPLICA IDENTITY DEFAULT.
fn relation() -> Vec<u8> {
    let mut bytes = [b"R", &OID.to_be_bytes()[..], b"public\0t\0d", &5_u16.to_be_bytes()].concat();
    let columns: [(&str, u8, u32); 5] = [("k1", 1, 20), ("a", 0, 25), ("b", 0, 25), ("k2", 1, 25), ("number", 0, 20)];
    for (name, in_key, type_oid) in columns {
        bytes.push(in_key);
        bytes.extend_from_slice(name.as_bytes());
        bytes.push(0);
        bytes.extend_from_slice(&type_oid.to_be_bytes());
        bytes.extend_from_slice(&[0xFF; 4]);
    }
    bytes
}

/// One value on the wire.
enum Wire<'a> {
    Null,
    Unchanged,
    Text(&'a str),
}

fn tuple((k1, k2): Key, row: &Row, unsent: [bool; 2]) -> Vec<u8> {
    let text = |place: usize| match &row.texts[place] {
        _ if unsent[place] => Wire::Unchanged,
        Some(text) => Wire::Text(text),
        None => Wire::Null,
    };
    let (k1, number) = (k1.to_string(), row.number.to_string());
    cells(&[Wire::Text(&k1), text(0), text(1), Wire::Text(k2), Wire::Text(&number)])
}

/// Only the key's columns; the others as NULL.
fn key_tuple((k1, k2): Key) -> Vec<u8> {
    cells(&[Wire::Text(&k1.to_string()), Wire::Null, Wire::Null, Wire::Text(k2), Wire::Null])
}

fn cells(cells: &[Wire<'_>]) -> Vec<u8> {
    let mut bytes = u16::try_from(cells.len()).expect("few columns").to_be_bytes().to_vec();
    for cell in cells {
        match cell {
            Wire::Null => bytes.push(b'n'),
            Wire::Unchanged => bytes.push(b'u'),
            Wire::Text(text) => {
                bytes.push(b't');
                bytes.extend_from_slice(&u32::try_from(text.len()).expect("short").to_be_bytes());
                bytes.extend_from_slice(text.as_bytes());
            }
        }
    }
    bytes
}

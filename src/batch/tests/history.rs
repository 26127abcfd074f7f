//! Random valid histories of one table, as the source would send them.

use std::collections::BTreeMap;

use crate::lsn::Lsn;
use crate::mapping::plan::Mode;

pub const FIRST_LSN: u64 = 1_000;
/// From one commit's start to the next.
pub const STEP: u64 = 100;
const OID: u32 = 7;

/// What the source logs of old rows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Identity {
    /// The key, when it changes.
    Key,
    /// An index over the key and the number, when one of them changes.
    Wide,
    Full,
}

/// Two key columns.
pub type Key = [u8; 2];

/// The other columns; the two texts may be large.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Row {
    pub texts: [Option<String>; 2],
    pub number: u32,
}

impl Row {
    pub fn numbered(number: u32) -> Row {
        let text = |name| Some(format!("{name}{number}"));
        Row { texts: [text('a'), text('b')], number }
    }
}

/// One change, with the whole row.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Action {
    Insert { key: Key, row: Row },
    Update { old: Key, key: Key, before: Row, row: Row, unsent: [bool; 2] },
    Delete { key: Key, before: Row },
    Truncate,
}

/// One pgoutput message.
#[derive(Clone, Debug)]
pub struct Message {
    pub bytes: Vec<u8>,
}

#[derive(Clone, Debug)]
pub struct Transaction {
    pub actions: Vec<Action>,
    pub end_lsn: Lsn,
    pub source_after: BTreeMap<Key, Row>,
}

#[derive(Clone, Debug)]
pub struct History {
    pub messages: Vec<Message>,
    pub transactions: Vec<Transaction>,
}

/// The source while a history is made up.
struct Source {
    rows: BTreeMap<Key, Row>,
    counter: u32,
    /// Key changes may leave texts unsent.
    moves_unsent: bool,
}

impl Source {
    /// What a choice comes to, if it is possible now.
    fn choose(&mut self, choice: [u8; 4], out: &mut Vec<Action>) {
        let [kind, one, other, flags] = choice;
        let (one, other) = ([one % 3, one / 128], [other % 3, other / 128]);
        match kind % 16 {
            0..4 => self.insert(one, flags, out),
            4..8 => self.update(one, one, flags, out),
            8..11 => self.update(one, other, flags, out),
            11 => {
                // Two rows change places by way of a third key.
                let third = [9, 9];
                if one != other && self.rows.contains_key(&one) && self.rows.contains_key(&other) {
                    self.update(one, third, flags, out);
                    self.update(other, one, flags >> 2, out);
                    self.update(third, other, flags >> 4, out);
                }
            }
            12..14 => self.delete(one, out),
            14 => {
                self.delete(one, out);
                self.insert(one, flags, out);
            }
            _ if flags % 4 == 0 => {
                self.rows.clear();
                out.push(Action::Truncate);
            }
            _ => {}
        }
    }

    fn next(&mut self, name: char) -> Option<String> {
        self.counter += 1;
        (!self.counter.is_multiple_of(7)).then(|| format!("{name}{}", self.counter))
    }

    fn insert(&mut self, key: Key, _: u8, out: &mut Vec<Action>) {
        if !self.rows.contains_key(&key) {
            let row = Row { texts: [self.next('a'), self.next('b')], number: self.counter };
            self.rows.insert(key, row.clone());
            out.push(Action::Insert { key, row });
        }
    }

    fn update(&mut self, old: Key, key: Key, flags: u8, out: &mut Vec<Action>) {
        let is_free = old == key || !self.rows.contains_key(&key);
        let Some(before) = self.rows.get(&old).filter(|_| is_free).cloned() else { return };
        let mut row = before.clone();
        let mut unsent = [false; 2];
        for (text, unsent) in unsent.iter_mut().enumerate() {
            if flags & (1 << text) == 0 {
                row.texts[text] = self.next(if text == 0 { 'a' } else { 'b' });
            } else {
                *unsent = row.texts[text].is_some() && (self.moves_unsent || old == key);
            }
        }
        if flags & 4 == 0 {
            self.counter += 1;
            row.number = self.counter;
        }
        self.rows.remove(&old);
        self.rows.insert(key, row.clone());
        out.push(Action::Update { old, key, before, row, unsent });
    }

    fn delete(&mut self, key: Key, out: &mut Vec<Action>) {
        if let Some(before) = self.rows.remove(&key) {
            out.push(Action::Delete { key, before });
        }
    }
}

impl History {
    pub fn new(choices: &[Vec<[u8; 4]>], identity: Identity, mode: Mode) -> History {
        // In mode `insert_new` the target's old row may hold other values than the source's, so an unsent text of a row
        // that moves has no single right answer.
        let moves_unsent = mode != Mode::InsertNew || identity == Identity::Full;
        let mut source = Source { rows: BTreeMap::new(), counter: 0, moves_unsent };
        let mut history = History { messages: Vec::new(), transactions: Vec::new() };
        let mut layout = Layout { identity, has_dropped: false };
        history.relation(layout);
        for transaction in choices {
            let mut actions = Vec::new();
            history.begin();
            for (place, &choice) in transaction.iter().enumerate() {
                if choice[3] > 240 {
                    // The table is altered inside the transaction: a column before all others comes or goes.
                    layout.has_dropped = !layout.has_dropped;
                    history.relation(layout);
                } else if choice[3] > 230 && place == 0 {
                    history.relation(layout);
                }
                let from = actions.len();
                source.choose(choice, &mut actions);
                for action in &actions[from..] {
                    history.messages.push(Message { bytes: layout.encode(action) });
                }
            }
            history.commit(actions, source.rows.clone());
        }
        history
    }

    /// Exactly these actions.
    pub fn of(transactions: &[&[Action]], identity: Identity) -> History {
        let mut history = History { messages: Vec::new(), transactions: Vec::new() };
        let layout = Layout { identity, has_dropped: false };
        history.relation(layout);
        for actions in transactions {
            history.begin();
            for action in *actions {
                history.messages.push(Message { bytes: layout.encode(action) });
            }
            history.commit(actions.to_vec(), BTreeMap::new());
        }
        history
    }

    /// Appends an update whose old row does not hold the key, as from a table without replica identity.
    pub fn without_identity(&mut self) {
        self.begin();
        let mut bytes = vec![b'U'];
        bytes.extend_from_slice(&OID.to_be_bytes());
        bytes.extend_from_slice(b"N\0\x05uunnn");
        self.messages.push(Message { bytes });
        self.commit(Vec::new(), BTreeMap::new());
    }

    fn relation(&mut self, layout: Layout) {
        self.messages.push(Message { bytes: layout.relation() });
    }

    fn lsn(&self) -> u64 {
        FIRST_LSN + STEP * u64::try_from(self.transactions.len()).expect("few transactions")
    }

    fn begin(&mut self) {
        let bytes = [&b"B"[..], &self.lsn().to_be_bytes(), &1u64.to_be_bytes(), &5u32.to_be_bytes()].concat();
        self.messages.push(Message { bytes });
    }

    fn commit(&mut self, actions: Vec<Action>, source_after: BTreeMap<Key, Row>) {
        let lsn = self.lsn();
        // The next transaction's commit record may begin where this one ends.
        let end = lsn + STEP;
        let bytes = [&b"C\0"[..], &lsn.to_be_bytes(), &end.to_be_bytes(), &1u64.to_be_bytes()].concat();
        self.messages.push(Message { bytes });
        self.transactions.push(Transaction { actions, end_lsn: Lsn(end), source_after });
    }
}

/// How the table is laid out on the wire.
#[derive(Clone, Copy)]
struct Layout {
    identity: Identity,
    /// A column that no mapping names stands before all others.
    has_dropped: bool,
}

/// One value on the wire.
enum Wire<'a> {
    Null,
    Unchanged,
    Text(&'a [u8]),
}

impl Layout {
    fn relation(self) -> Vec<u8> {
        let replica_identity = match self.identity {
            Identity::Key => b'd',
            Identity::Wide => b'i',
            Identity::Full => b'f',
        };
        let is_full = self.identity == Identity::Full;
        let is_wide = self.identity != Identity::Key;
        let mut columns = vec![("a", is_full), ("k", true), ("b", is_full), ("number", is_wide), ("l", true)];
        if self.has_dropped {
            columns.insert(0, ("dropped", is_full));
        }
        let mut bytes = vec![b'R'];
        bytes.extend_from_slice(&OID.to_be_bytes());
        bytes.extend_from_slice(b"public\0t\0");
        bytes.push(replica_identity);
        bytes.extend_from_slice(&u16::try_from(columns.len()).expect("few columns").to_be_bytes());
        for (name, is_identity) in columns {
            bytes.push(u8::from(is_identity));
            bytes.extend_from_slice(name.as_bytes());
            bytes.extend_from_slice(b"\0\0\0\0\x19\xff\xff\xff\xff");
        }
        bytes
    }

    fn encode(self, action: &Action) -> Vec<u8> {
        let oid = OID.to_be_bytes();
        match action {
            Action::Insert { key, row } => [b"I", &oid[..], b"N", &self.row(*key, row, [false; 2])].concat(),
            Action::Update { old, key, before, row, unsent } => {
                let new = self.row(*key, row, *unsent);
                let is_identity_changed =
                    old != key || (self.identity == Identity::Wide && before.number != row.number);
                match self.identity {
                    Identity::Full => [b"U", &oid[..], b"O", &self.row(*old, before, [false; 2]), b"N", &new].concat(),
                    _ if is_identity_changed => [b"U", &oid[..], b"K", &self.key(*old, before), b"N", &new].concat(),
                    _ => [b"U", &oid[..], b"N", &new].concat(),
                }
            }
            Action::Delete { key, before } => match self.identity {
                Identity::Full => [b"D", &oid[..], b"O", &self.row(*key, before, [false; 2])].concat(),
                Identity::Key | Identity::Wide => [b"D", &oid[..], b"K", &self.key(*key, before)].concat(),
            },
            Action::Truncate => [b"T", &1u32.to_be_bytes()[..], b"\0", &oid].concat(),
        }
    }

    fn row(self, key: Key, row: &Row, unsent: [bool; 2]) -> Vec<u8> {
        let text = |place: usize| match &row.texts[place] {
            _ if unsent[place] => Wire::Unchanged,
            Some(text) => Wire::Text(text.as_bytes()),
            None => Wire::Null,
        };
        let parts = [key[0].to_string(), row.number.to_string(), key[1].to_string()];
        let [first, number, second] = parts.each_ref().map(|part| Wire::Text(part.as_bytes()));
        self.tuple(vec![text(0), first, text(1), number, second])
    }

    /// Only the replica identity's columns; the others as NULL.
    fn key(self, key: Key, row: &Row) -> Vec<u8> {
        let parts = [key[0].to_string(), row.number.to_string(), key[1].to_string()];
        let [first, number, second] = parts.each_ref().map(|part| Wire::Text(part.as_bytes()));
        let number = if self.identity == Identity::Wide { number } else { Wire::Null };
        self.tuple(vec![Wire::Null, first, Wire::Null, number, second])
    }

    fn tuple(self, mut cells: Vec<Wire<'_>>) -> Vec<u8> {
        if self.has_dropped {
            cells.insert(0, Wire::Text(b"old"));
        }
        let mut bytes = u16::try_from(cells.len()).expect("few columns").to_be_bytes().to_vec();
        for cell in cells {
            match cell {
                Wire::Null => bytes.push(b'n'),
                Wire::Unchanged => bytes.push(b'u'),
                Wire::Text(text) => {
                    bytes.push(b't');
                    bytes.extend_from_slice(&u32::try_from(text.len()).expect("short").to_be_bytes());
                    bytes.extend_from_slice(text);
                }
            }
        }
        bytes
    }
}

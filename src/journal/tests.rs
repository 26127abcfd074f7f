//! The journal against a model: a source whose transactions are known, and readers that put them together again.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::checkpoint::UnixMicros;
use crate::frame::{self, Boundary, Frame};
use crate::lsn::Lsn;

use super::{Block, Item, Journal, JournalError, Options, Reader};

mod damage;
mod following;
mod keeping;
mod reading;

/// A directory that goes away with the test.
pub(super) struct Scratch(PathBuf);

impl Scratch {
    pub(super) fn new() -> Scratch {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let name = format!("tailwater-journal-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        let _ = fs::remove_dir_all(&path);
        Scratch(path)
    }

    pub(super) fn options(&self) -> Options {
        Options {
            dir: self.0.join("lms"),
            retention: Duration::from_secs(3600),
            max_bytes: 1 << 40,
            segment_bytes: 2_000,
            memory_bytes: 1_000,
            fsync: false,
            system_identifier: Some(7),
        }
    }

    fn segments(&self) -> Vec<PathBuf> {
        let found = super::recover::segment_files(&self.0.join("lms")).expect("the directory is there");
        found.into_iter().map(|(_, path)| path).collect()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// One transaction: where it ends, and its rows as (relation, version of the relation, bytes of the row).
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Transaction {
    pub(super) end: Lsn,
    rows: Vec<(u32, u32, usize)>,
}

fn transactions(rows: &[Vec<(u32, u32, usize)>]) -> Vec<Transaction> {
    let transaction = |(idx, rows): (usize, &Vec<(u32, u32, usize)>)| Transaction {
        end: Lsn(1_000 + 100 * (idx as u64 + 1)),
        rows: rows.clone(),
    };
    rows.iter().enumerate().map(transaction).collect()
}

/// As many transactions of one row of 100 bytes each.
pub(super) fn simple_transactions(count: usize) -> Vec<Transaction> {
    transactions(&vec![vec![(1, 1, 100)]; count])
}

pub(super) const START: Lsn = Lsn(1_000);

/// What a server sends to one connection that starts at `from`.
pub(super) fn stream(transactions: &[Transaction], from: Lsn) -> Vec<u8> {
    let mut sent: HashMap<u32, u32> = HashMap::new();
    let mut bytes = Vec::new();
    for transaction in transactions.iter().filter(|transaction| transaction.end > from) {
        frame::write_message(&mut bytes, b"B-begin");
        for (relation, version, length) in &transaction.rows {
            let ids = [relation.to_be_bytes(), version.to_be_bytes()].concat();
            if sent.insert(*relation, *version) != Some(*version) {
                frame::write_message(&mut bytes, &[&b"R"[..], &ids].concat());
            }
            frame::write_message(&mut bytes, &[&b"I"[..], &ids, &vec![b'x'; *length]].concat());
        }
        let (commit, end) = (transaction.end.0 - 10, transaction.end.0);
        let lsns = [commit.to_be_bytes(), end.to_be_bytes(), [0; 8]].concat();
        frame::write_message(&mut bytes, &[&b"C\0"[..], &lsns].concat());
    }
    bytes
}

/// The frames at the front of `bytes` as one block, and how many bytes they are.
pub(super) fn next_block(bytes: &[u8], start: Boundary, bytes_max: usize) -> Block {
    let mut end = start;
    let (scan, walked) = end.walk(bytes, bytes_max);
    walked.expect("well formed");
    let bytes = Bytes::copy_from_slice(&bytes[..scan.bytes]);
    Block { bytes, start, end, has_relation: scan.has_relation, received_at: UnixMicros(1) }
}

fn append_all(journal: &Journal, mut bytes: &[u8], block_bytes: usize) {
    let mut boundary = Boundary::new(journal.held().expect("begun").end.end_lsn);
    while !bytes.is_empty() {
        let block = next_block(bytes, boundary, block_bytes);
        boundary = block.end;
        bytes = &bytes[block.bytes.len()..];
        journal.append(block).expect("append");
    }
}

/// A journal of these transactions, in blocks of this size.
pub(super) fn filled(options: Options, transactions: &[Transaction], block_bytes: usize) -> Journal {
    let journal = Journal::open(options).expect("open");
    journal.begin(START).expect("begin");
    append_all(&journal, &stream(transactions, START), block_bytes);
    journal
}

/// Puts transactions together from what a reader yields, and insists on knowing each row's relation.
#[derive(Default)]
struct Assembled {
    relations: HashMap<u32, u32>,
    open: Option<Vec<(u32, u32, usize)>>,
    done: Vec<Transaction>,
    restarts: usize,
}

impl Assembled {
    fn take(&mut self, item: Item) {
        match item {
            Item::Restarted => {
                self.open = None;
                self.restarts += 1;
            }
            Item::Block(block) => {
                assert_eq!(self.open.is_some(), block.start.in_transaction, "blocks follow each other");
                self.take_frames(&block.bytes);
                assert_eq!(self.open.is_some(), block.end.in_transaction);
            }
        }
    }

    fn take_frames(&mut self, mut bytes: &[u8]) {
        while let Some((frame, length)) = frame::take(bytes).expect("well formed") {
            bytes = &bytes[length..];
            let Frame::Message(message) = frame else { continue };
            let number = |at: usize| u32::from_be_bytes(message[at..at + 4].try_into().expect("four bytes"));
            match message[0] {
                b'B' => assert!(self.open.replace(Vec::new()).is_none(), "a transaction begins inside another"),
                b'R' => drop(self.relations.insert(number(1), number(5))),
                b'I' => {
                    assert_eq!(self.relations.get(&number(1)), Some(&number(5)), "the relation in force");
                    self.open.as_mut().expect("in a transaction").push((number(1), number(5), message.len() - 9));
                }
                b'C' => {
                    let end = Lsn(u64::from_be_bytes(message[10..18].try_into().expect("eight bytes")));
                    self.done.push(Transaction { end, rows: self.open.take().expect("in a transaction") });
                }
                other => panic!("unexpected message {other}"),
            }
        }
        assert!(bytes.is_empty(), "blocks have whole frames");
    }

    /// What was asked for.
    fn after(&self, from: Lsn) -> Vec<Transaction> {
        self.done.iter().filter(|transaction| transaction.end > from).cloned().collect()
    }
}

/// Everything that is there.
fn drain(reader: &mut Reader, assembled: &mut Assembled) -> Result<(), JournalError> {
    while let Some(item) = reader.try_next()? {
        assembled.take(item);
    }
    Ok(())
}

pub(super) fn read_from(journal: &Journal, from: Lsn) -> Result<Vec<Transaction>, JournalError> {
    let mut assembled = Assembled::default();
    drain(&mut journal.reader(from)?, &mut assembled)?;
    Ok(assembled.after(from))
}

/// Waits until the journal's own thread has done its part.
fn wait_until(what: &str, mut reached: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !reached() {
        assert!(Instant::now() < deadline, "{what}: not reached in time");
        std::thread::yield_now();
    }
}

fn compressed_count(scratch: &Scratch) -> usize {
    let listed = super::list(&scratch.0.join("lms")).expect("list");
    listed.iter().filter(|segment| segment.compressed).count()
}

//! Readers see exactly what was appended.

use proptest::prelude::*;

use super::super::{Follower, Start, follow};
use super::*;

#[derive(Clone, Debug)]
enum Step {
    /// So many blocks of about this size.
    Append(usize, usize),
    /// The connection broke: the stream starts again at the journal's end.
    Reconnect,
    /// The process was killed: the journal is opened again.
    Reopen,
    /// A reader starts from what part of the held range, in 256ths.
    Reader(u8),
    /// Readers take a few items each.
    Read(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (1..6_usize, prop_oneof![1..200_usize, 200..3_000_usize]).prop_map(|(count, bytes)| Step::Append(count, bytes)),
        1 => Just(Step::Reconnect),
        1 => Just(Step::Reopen),
        2 => any::<u8>().prop_map(Step::Reader),
        2 => (1..20_usize).prop_map(Step::Read),
    ]
}

/// Rows of a few relations whose versions only grow.
fn source() -> impl Strategy<Value = Vec<Transaction>> {
    let row = (0..4_u32, 0..20_u32, 0..120_usize);
    prop::collection::vec(prop::collection::vec(row, 0..25), 1..60).prop_map(|mut rows| {
        let mut versions = [1; 4];
        for (relation, version, _) in rows.iter_mut().flatten() {
            let current = &mut versions[*relation as usize];
            *current += u32::from(*version == 0);
            *version = *current;
        }
        transactions(&rows)
    })
}

/// One run of the model.
struct Run<'a> {
    scratch: &'a Scratch,
    options: Options,
    source: &'a [Transaction],
    journal: Option<Journal>,
    /// What the server has still to send to this connection.
    unsent: Vec<u8>,
    boundary: Boundary,
    readers: Vec<(Lsn, Reader, Assembled)>,
    /// These know the directory only, and live on when the process does not.
    followers: Vec<(Lsn, Follower, Assembled)>,
}

impl Run<'_> {
    fn journal(&self) -> &Journal {
        self.journal.as_ref().expect("open")
    }

    fn connect(&mut self) {
        let at = self.journal().held().map_or(START, |held| held.end.end_lsn);
        self.journal().begin(at).expect("begin");
        self.unsent = stream(self.source, at);
        self.boundary = Boundary::new(at);
    }

    fn append(&mut self, bytes_max: usize) {
        if self.unsent.is_empty() {
            return;
        }
        let block = next_block(&self.unsent, self.boundary, bytes_max);
        self.boundary = block.end;
        self.unsent.drain(..block.bytes.len());
        self.journal().append(block).expect("append");
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Append(count, bytes) => (0..count).for_each(|_| self.append(bytes)),
            Step::Reconnect => self.connect(),
            Step::Reopen => {
                self.check_readers();
                self.readers.clear();
                self.journal = None;
                self.journal = Some(Journal::open(self.options.clone()).expect("open again"));
                self.connect();
            }
            Step::Reader(part) => {
                let held = self.journal().held().expect("begun");
                let from = Lsn(held.first.0 + held.end.end_lsn.bytes_since(held.first) * u64::from(part) / 255);
                let reader = self.journal().reader(from).expect("held");
                self.readers.push((from, reader, Assembled::default()));
                let follower = follow(&self.options.dir, Start::At(from)).expect("held");
                self.followers.push((from, follower, Assembled::default()));
            }
            Step::Read(count) => {
                for (_, reader, assembled) in &mut self.readers {
                    let items = (0..count).map_while(|_| reader.try_next().expect("readable"));
                    items.for_each(|item| assembled.take(item));
                }
                for (_, follower, assembled) in &mut self.followers {
                    let items = (0..count).map_while(|_| follower.try_next().expect("readable"));
                    items.for_each(|item| assembled.take(item));
                }
            }
        }
    }

    /// Each reader, read to the end, has what ends after its start and at the journal's end or before.
    fn check_readers(&mut self) {
        let end = self.journal().held().expect("begun").end.end_lsn;
        for (from, reader, assembled) in &mut self.readers {
            drain(reader, assembled).expect("readable");
            let expected: Vec<Transaction> =
                self.source.iter().filter(|one| one.end > *from && one.end <= end).cloned().collect();
            assert_eq!(assembled.after(*from), expected, "from {from} in {:?}", self.scratch.segments());
        }
        for (from, follower, assembled) in &mut self.followers {
            while let Some(item) = follower.try_next().expect("readable") {
                assembled.take(item);
            }
            let expected: Vec<Transaction> =
                self.source.iter().filter(|one| one.end > *from && one.end <= end).cloned().collect();
            assert_eq!(assembled.after(*from), expected, "followed from {from} in {:?}", self.scratch.segments());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 120, ..ProptestConfig::default() })]

    #[test]
    fn readers_see_what_was_appended(
        source in source(),
        steps in prop::collection::vec(step(), 1..60),
        segment_bytes in prop_oneof![Just(1_u64), 200..6_000_u64],
        memory_bytes in prop_oneof![Just(0_u64), 300..8_000_u64, Just(1 << 30)],
    ) {
        let scratch = Scratch::new();
        let options = Options { segment_bytes, memory_bytes, ..scratch.options() };
        let journal = Some(Journal::open(options.clone()).expect("open"));
        let (unsent, boundary) = (Vec::new(), Boundary::new(START));
        let (readers, followers) = (Vec::new(), Vec::new());
        let mut run = Run { scratch: &scratch, options, source: &source, journal, unsent, boundary, readers, followers };
        run.connect();
        for step in &steps {
            run.step(step);
        }
        run.check_readers();
        for part in [0, 80, 170, 255] {
            run.step(&Step::Reader(part));
        }
        while !run.unsent.is_empty() {
            run.append(700);
        }
        run.check_readers();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_readers_follow_a_live_writer() {
    let scratch = Scratch::new();
    let source = simple_transactions(2_000);
    let options = Options { segment_bytes: 20_000, memory_bytes: 10_000, ..scratch.options() };
    let journal = Journal::open(options).expect("open");
    journal.begin(START).expect("begin");
    let last = source.last().expect("some").end;
    let readers: Vec<_> = (0..3)
        .map(|_| {
            let mut reader = journal.reader(START).expect("held");
            tokio::spawn(async move {
                let mut assembled = Assembled::default();
                while assembled.done.last().is_none_or(|transaction| transaction.end < last) {
                    assembled.take(reader.next().await.expect("readable"));
                }
                assembled
            })
        })
        .collect();
    let writer = tokio::task::spawn_blocking({
        let (journal, bytes) = (journal.clone(), stream(&source, START));
        move || append_all(&journal, &bytes, 900)
    });
    writer.await.expect("the writer ends");
    for reader in readers {
        assert_eq!(reader.await.expect("the reader ends").done, source);
    }
}

#[tokio::test]
async fn dropped_next_loses_nothing() {
    let scratch = Scratch::new();
    let source = simple_transactions(300);
    let journal = filled(Options { memory_bytes: 0, ..scratch.options() }, &source, 500);
    let mut reader = journal.reader(START).expect("held");
    let mut assembled = Assembled::default();
    while assembled.done.len() < source.len() {
        // The first poll starts a read from the file and is dropped in its middle.
        tokio::select! {
            biased;
            item = reader.next() => assembled.take(item.expect("readable")),
            () = std::future::ready(()) => {}
        }
        tokio::task::yield_now().await;
        if let Some(item) = reader.try_next().expect("readable") {
            assembled.take(item);
        }
    }
    assert_eq!(assembled.done, source);
}

#[tokio::test]
async fn closed_journal_ends_its_readers() {
    let scratch = Scratch::new();
    let source = simple_transactions(3);
    let journal = filled(scratch.options(), &source, 500);
    let mut reader = journal.reader(START).expect("held");
    drop(journal);
    let mut assembled = Assembled::default();
    let error = loop {
        match reader.next().await {
            Ok(item) => assembled.take(item),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, JournalError::Closed), "{error}");
    assert_eq!(assembled.done, source);
}

/// A transaction is open when the connection breaks; in memory or not, readers are told, and see it once.
fn check_restart(memory_bytes: u64, committed_before: usize) {
    let scratch = Scratch::new();
    let source = transactions(&vec![vec![(1, 1, 400); 10]; committed_before + 1]);
    let options = Options { memory_bytes, segment_bytes: 1 << 20, ..scratch.options() };
    let journal = Journal::open(options.clone()).expect("open");
    journal.begin(START).expect("begin");
    let bytes = stream(&source, START);
    let mut cut = &bytes[..bytes.len() - 1];
    let mut boundary = Boundary::new(START);
    loop {
        let block = next_block(cut, boundary, 600);
        if block.bytes.is_empty() {
            break;
        }
        boundary = block.end;
        cut = &cut[block.bytes.len()..];
        journal.append(block).expect("append");
    }
    let (mut reader, mut assembled) = (journal.reader(START).expect("held"), Assembled::default());
    drain(&mut reader, &mut assembled).expect("readable");
    assert!(assembled.open.is_some());
    let end = journal.held().expect("begun").end;
    assert!(end.in_transaction);
    journal.begin(end.end_lsn).expect("begin again");
    assert!(!journal.held().expect("begun").end.in_transaction);
    append_all(&journal, &stream(&source, end.end_lsn), 600);
    drain(&mut reader, &mut assembled).expect("readable");
    assert_eq!((&assembled.done, assembled.restarts), (&source, 1));
    assert_eq!(read_from(&journal, START).expect("readable"), source);
    drop(journal);
    let journal = Journal::open(options).expect("open");
    assert_eq!(read_from(&journal, START).expect("readable"), source);
}

#[test]
fn restart_retracts_the_open_transaction() {
    for memory_bytes in [0, 1 << 20] {
        for committed_before in [0, 1, 5] {
            check_restart(memory_bytes, committed_before);
        }
    }
}

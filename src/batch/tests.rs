//! Folding against a sequential model: whatever a source does, in whatever blocks and parts it arrives, after every commit
//! the target is what applying the changes one by one would have made of it.

mod history;
mod multiset;
mod target;

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use proptest::prelude::*;

use super::{BatchEnd, BatchLimits, BuildError, Builder, TableCause, Taken, Taking};
use crate::checkpoint::Checkpoint;
use crate::lsn::Lsn;
use crate::mapping::plan::{DeleteMode, Mode};
use history::{Action, History, Identity, Message};
use target::{Rows, Target, plan};

/// How one run is set up.
#[derive(Clone, Debug)]
struct Setup {
    identity: Identity,
    mode: Mode,
    delete: DeleteMode,
    trusts_inserts: bool,
    /// Transactions that the snapshot of the table holds already.
    copied: usize,
    rows: usize,
    commits: u64,
    /// Frames per block, in turn.
    blocks: Vec<usize>,
    /// Whether a batch is taken out after the block when it stands between transactions, in turn.
    takes: Vec<bool>,
}

fn setup() -> impl Strategy<Value = Setup> {
    let identity = prop::sample::select(vec![Identity::Key, Identity::Wide, Identity::Full]);
    let mode = prop::sample::select(vec![Mode::Upsert, Mode::Upsert, Mode::Upsert, Mode::InsertNew]);
    let delete = prop::sample::select(vec![DeleteMode::Hard, DeleteMode::Hard, DeleteMode::Soft, DeleteMode::Ignore]);
    let cuts = (prop::collection::vec(1..20usize, 1..6), prop::collection::vec(any::<bool>(), 1..6));
    (identity, mode, delete, any::<bool>(), 0..4usize, 1..30usize, 1..6u64, cuts).prop_map(
        |(identity, mode, delete, trusts_inserts, copied, rows, commits, (blocks, takes))| Setup {
            identity,
            mode,
            delete,
            trusts_inserts,
            copied,
            rows,
            commits,
            blocks,
            takes,
        },
    )
}

/// Cuts the stream's frames into blocks.
fn blocks(messages: &[Message], sizes: &[usize]) -> Vec<Bytes> {
    let mut sizes = sizes.iter().cycle();
    let mut rest = messages;
    let mut blocks = Vec::new();
    while !rest.is_empty() {
        let size = sizes.next().map_or(1, |size| (*size).min(rest.len()));
        let mut block = Vec::new();
        for message in &rest[..size] {
            crate::frame::write_message(&mut block, &message.bytes);
        }
        blocks.push(Bytes::from(block));
        rest = &rest[size..];
    }
    blocks
}

/// The target's rows after each commit, by the commit's end.
fn expected(history: &History, setup: &Setup) -> BTreeMap<Lsn, Rows> {
    let mut rows = Rows::default();
    let mut after = BTreeMap::new();
    for (number, transaction) in history.transactions.iter().enumerate() {
        if number < setup.copied {
            // The snapshot holds what the source held.
            rows = Rows::of_source(&transaction.source_after);
        } else {
            transaction.actions.iter().for_each(|action| rows.apply(action, setup.mode, setup.delete));
        }
        after.insert(transaction.end_lsn, rows.clone());
    }
    after
}

fn run(history: &History, setup: &Setup) -> Result<(), TestCaseError> {
    let plan = Arc::new(plan(setup.mode, setup.delete));
    let limits = BatchLimits { rows: setup.rows, bytes: usize::MAX, commits: setup.commits };
    let mut builder = Builder::new(&[plan], Checkpoint::default(), limits);
    let copied = setup.copied.min(history.transactions.len());
    let snapshot = history.transactions[..copied].last();
    let from = snapshot.map_or(Lsn::ZERO, |last| last.end_lsn);
    builder.set_taking(0, Taking::From(from));
    if !setup.trusts_inserts {
        builder.set_trust(0, false);
    }
    let expected = expected(history, setup);
    let mut target = Target::new(snapshot.map(|last| Rows::of_source(&last.source_after)).unwrap_or_default());
    let mut apply = |builder: &mut Builder| -> Result<(), TestCaseError> {
        let batch = builder.take();
        target.apply(&batch)?;
        if let BatchEnd::Commit(checkpoint) = batch.end
            && checkpoint.end_lsn >= from
            && let Some(rows) = expected.get(&checkpoint.end_lsn)
        {
            prop_assert_eq!(&target.rows, rows, "after {}", checkpoint.end_lsn);
        }
        Ok(())
    };
    let mut takes = setup.takes.iter().cycle();
    for block in blocks(&history.messages, &setup.blocks) {
        let mut at = 0;
        while let Taken::Until(rest) = builder.push(&block, at).expect("a valid history") {
            at = rest;
            apply(&mut builder)?;
        }
        let is_wanted = builder.at_boundary() && *takes.next().unwrap_or(&true);
        if builder.is_full() || (is_wanted && !builder.is_empty()) {
            apply(&mut builder)?;
        }
    }
    apply(&mut builder)?;
    let last = history.transactions.last().map(|last| last.end_lsn).unwrap_or_default();
    prop_assert_eq!(builder.reached().end_lsn, last);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3_000, ..ProptestConfig::default() })]

    #[test]
    fn folded_batches_equal_the_changes_one_by_one(
        setup in setup(),
        choices in prop::collection::vec(prop::collection::vec(any::<[u8; 4]>(), 0..14), 1..9),
    ) {
        run(&History::new(&choices, setup.identity, setup.mode), &setup)?;
    }

    #[test]
    fn whole_history_in_one_batch_equals_the_changes_one_by_one(
        setup in setup(),
        choices in prop::collection::vec(prop::collection::vec(any::<[u8; 4]>(), 0..30), 1..5),
    ) {
        let setup = Setup { rows: usize::MAX, commits: u64::MAX, takes: vec![false], ..setup };
        run(&History::new(&choices, setup.identity, setup.mode), &setup)?;
    }
}

fn small(transactions: &[&[Action]]) -> (Builder, Bytes) {
    let history = History::of(transactions, Identity::Key);
    let limits = BatchLimits { rows: usize::MAX, bytes: usize::MAX, commits: u64::MAX };
    let mut builder = Builder::new(&[Arc::new(plan(Mode::Upsert, DeleteMode::Hard))], Checkpoint::default(), limits);
    builder.set_taking(0, Taking::From(Lsn::ZERO));
    let block = blocks(&history.messages, &[usize::MAX]).remove(0);
    (builder, block)
}

fn insert(key: u8) -> Action {
    Action::Insert { key: [key, 0], row: history::Row::numbered(u32::from(key)) }
}

#[test]
fn repeated_transactions_are_left_out() {
    // After a lost connection the source sends again what was taken but not yet confirmed.
    let (mut builder, block) = small(&[&[insert(1)], &[insert(2)]]);
    assert_eq!(builder.push(&block, 0), Ok(Taken::Whole));
    let reached = builder.reached();
    assert_eq!(builder.push(&block, 0), Ok(Taken::Whole));
    assert_eq!(builder.reached(), reached);
    let batch = builder.take();
    assert_eq!((batch.commits, batch.changes(), batch.end), (2, 2, BatchEnd::Commit(reached)));
}

#[test]
fn transaction_left_out_does_not_hold_a_batch_open() {
    let (mut builder, block) = small(&[&[insert(1)], &[insert(2), insert(3)]]);
    builder.stop_at(Lsn(history::FIRST_LSN + history::STEP));
    let whole = block.len();
    let mut cut = block.slice(..whole);
    // Up to the last frame, the second transaction's commit, left off.
    let commit = crate::frame::XLOG_HEADER_BYTES + 26;
    cut.truncate(whole - commit);
    assert_eq!(builder.push(&cut, 0), Ok(Taken::Whole));
    assert!(!builder.at_boundary());
    assert!(matches!(builder.take().end, BatchEnd::Commit(_)));
}

#[test]
fn each_part_of_a_large_transaction_knows_how_old_it_is() {
    let (mut builder, block) = small(&[&[insert(1), insert(2), insert(3)]]);
    builder.set_limits(BatchLimits { rows: 1, bytes: usize::MAX, commits: u64::MAX });
    let mut at = 0;
    let mut parts = 0;
    while let Ok(Taken::Until(rest)) = builder.push(&block, at) {
        at = rest;
        assert!(builder.take().oldest_commit_ts.is_some());
        parts += 1;
    }
    assert_eq!(parts, 3);
    let last = builder.take();
    assert!(last.oldest_commit_ts.is_some() && last.is_rowless());
    assert!(builder.oldest_commit_ts().is_none());
}

#[test]
fn row_without_its_key_stops_its_table_only() {
    let mut history = History::of(&[&[insert(1)]], Identity::Key);
    history.without_identity();
    let limits = BatchLimits { rows: 9, bytes: usize::MAX, commits: 9 };
    let mut builder = Builder::new(&[Arc::new(plan(Mode::Upsert, DeleteMode::Hard))], Checkpoint::default(), limits);
    builder.set_taking(0, Taking::From(Lsn::ZERO));
    let block = blocks(&history.messages, &[usize::MAX]).remove(0);
    let error = builder.push(&block, 0);
    let is_key = |cause: &TableCause| matches!(cause, TableCause::Key(_));
    assert!(matches!(&error, Err(BuildError::Table { plan_index: 0, cause, .. }) if is_key(cause)), "{error:?}");
}

/// An INSERT with its values marked as binary.
fn as_binary(message: &[u8]) -> Vec<u8> {
    const COLUMNS_AT: usize = 8;
    let mut bytes = message.to_vec();
    let mut at = COLUMNS_AT;
    while at < bytes.len() {
        if bytes[at] != b't' {
            at += 1;
            continue;
        }
        bytes[at] = b'b';
        let length: [u8; 4] = bytes[at + 1..at + 5].try_into().expect("four bytes");
        at += 5 + u32::from_be_bytes(length) as usize;
    }
    bytes
}

#[test]
fn keys_of_both_forms_are_not_taken_for_different_ones() {
    use crate::value::clickhouse::types::SourceType;
    let mut history = History::of(&[&[insert(1)], &[insert(1)]], Identity::Key);
    let second = history.messages.iter().rposition(|message| message.bytes[0] == b'I').expect("two inserts");
    history.messages[second].bytes = as_binary(&history.messages[second].bytes);
    let block = blocks(&history.messages, &[usize::MAX]).remove(0);
    let limits = BatchLimits { rows: 9, bytes: usize::MAX, commits: 9 };
    for (key_type, is_taken) in [(postgres_types::Type::INT4, false), (postgres_types::Type::TEXT, true)] {
        let mut plan = plan(Mode::Upsert, DeleteMode::Hard);
        for input in [0, 1] {
            plan.inputs[input].source_type = Some(SourceType::built_in(key_type.oid(), -1));
        }
        let mut builder = Builder::new(&[Arc::new(plan)], Checkpoint::default(), limits);
        builder.set_taking(0, Taking::From(Lsn::ZERO));
        let pushed = builder.push(&block, 0);
        let forms = matches!(
            &pushed,
            Err(BuildError::Table { cause: TableCause::Key(super::fold::KeyMissing::Forms { .. }), .. })
        );
        assert_eq!((pushed.is_ok(), forms), (is_taken, !is_taken), "{key_type}: {pushed:?}");
    }
}

#[test]
fn relation_without_columns_passes() {
    let (mut builder, _) = small(&[]);
    let mut block = Vec::new();
    for message in
        [&b"R\0\0\0\x09public\0empty\0d\0\0"[..], &[&b"B"[..], &[0; 7], &[9], &[0; 12]].concat(), b"I\0\0\0\x09N\0\0"]
    {
        crate::frame::write_message(&mut block, message);
    }
    assert_eq!(builder.push(&Bytes::from(block), 0), Ok(Taken::Whole));
    assert!(builder.take().is_rowless());
}

/// An empty transaction, sent some time after its commit.
fn sent_after(millis: i64, lsn: u64) -> Bytes {
    let begin = [b"B".as_slice(), &lsn.to_be_bytes(), &[0; 8], &[0, 0, 0, 9]].concat();
    let commit = [b"C\0".as_slice(), &lsn.to_be_bytes(), &(lsn + 8).to_be_bytes(), &[0; 8]].concat();
    let mut block = Vec::new();
    for message in [begin, commit] {
        let start = block.len();
        crate::frame::write_message(&mut block, &message);
        let clock = start + crate::frame::XLOG_HEADER_BYTES - 8;
        block[clock..clock + 8].copy_from_slice(&(millis * 1_000).to_be_bytes());
    }
    Bytes::from(block)
}

#[test]
fn backlog_is_gathered_and_a_live_stream_is_not() {
    let limits = BatchLimits { rows: 10, bytes: usize::MAX, commits: 10 };
    let mut builder = Builder::new(&[], Checkpoint::default(), limits);
    // The sender's clock may be set back: that says nothing of how far it is behind.
    for (step, (behind_ms, waits_ms)) in [(3, 0), (300, 0), (60_000, 100), (-500, 0)].into_iter().enumerate() {
        builder.push(&sent_after(behind_ms, 100 * (step as u64 + 1)), 0).expect("well formed");
        assert_eq!(builder.gathers_for().as_millis(), waits_ms, "behind by {behind_ms} ms");
        assert_eq!(builder.is_behind(), waits_ms > 0, "behind by {behind_ms} ms");
    }
    builder.push(&sent_after(60_000, 900), 0).expect("well formed");
    let mut idle = Vec::new();
    crate::frame::write_keepalive(&mut idle, Lsn(2_000), false);
    builder.push(&Bytes::from(idle), 0).expect("well formed");
    assert!(builder.gathers_for().is_zero() && !builder.is_behind(), "nothing more comes");
}

/// A plan whose changes all become messages.
fn topic_plan() -> crate::mapping::plan::Plan {
    use crate::mapping::kafka::Skipped;
    use crate::mapping::plan::{Topic, TopicFormat, TopicOptions};
    let topic = Topic {
        name: "s.public.t".to_owned(),
        prefix: "s".to_owned(),
        format: TopicFormat::DebeziumJson,
        options: TopicOptions { tombstones: true, skipped: Skipped::NONE, values: Default::default() },
        partitions: 1,
        columns: Vec::new(),
        filter: None,
        include: None,
        exclude: Vec::new(),
        names_key: false,
        types: Arc::default(),
    };
    crate::mapping::plan::Plan { topic: Some(topic), ..plan(Mode::Append, DeleteMode::Hard) }
}

#[test]
fn truncates_of_a_topic_keep_their_place() {
    let truncate = Action::Truncate;
    let first = [insert(1), truncate.clone(), truncate.clone(), insert(2)];
    let last = [insert(3), truncate.clone()];
    let transactions: [&[Action]; 3] = [&first, std::slice::from_ref(&truncate), &last];
    let history = History::of(&transactions, Identity::Key);
    let block = blocks(&history.messages, &[usize::MAX]).remove(0);
    // Whole, and in parts of one row each.
    for rows in [usize::MAX, 1] {
        let limits = BatchLimits { rows, bytes: usize::MAX, commits: u64::MAX };
        let mut builder = Builder::new(&[Arc::new(topic_plan())], Checkpoint::default(), limits);
        builder.set_taking(0, Taking::From(Lsn::ZERO));
        let (mut told, mut at, mut is_more) = (Vec::new(), 0, true);
        while is_more {
            match builder.push(&block, at).expect("a valid history") {
                Taken::Until(rest) => at = rest,
                Taken::Whole => is_more = false,
            }
            let batch = builder.take();
            for table in &batch.tables {
                assert!(table.truncate.is_none() && !batch.is_rowless());
                let mut emptied = table.emptied.iter().peekable();
                for place in 0..=table.entries.len() {
                    while let Some(one) = emptied.next_if(|one| one.entries_before == place) {
                        let commit_lsn = batch.transactions[one.transaction as usize].commit_lsn;
                        told.push((commit_lsn, one.ordinal, "t"));
                    }
                    if let Some(entry) = table.entries.get(place) {
                        let position = batch.position(&table.rows[entry.row as usize]);
                        told.push((position.commit_lsn, position.ordinal, "c"));
                    }
                }
                assert_eq!(emptied.next(), None);
            }
        }
        let lsn = |number: u64| Lsn(history::FIRST_LSN + number * history::STEP);
        let first = [(lsn(0), 1, "c"), (lsn(0), 2, "t"), (lsn(0), 3, "t"), (lsn(0), 4, "c")];
        let rest = [(lsn(1), 1, "t"), (lsn(2), 1, "c"), (lsn(2), 2, "t")];
        assert_eq!(told, [&first[..], &rest].concat(), "{rows} rows a batch");
    }
}

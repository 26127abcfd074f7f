//! Rows without a key against a sequential model: after every commit the target holds as many of each row as applying the
//! changes one by one would have left.

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;

use super::blocks;
use super::history::{Action, History, Identity, Key, Row};
use super::target::plan;
use crate::batch::{Batch, BatchEnd, BatchLimits, BuildError, Builder, Net, TableCause, Taken, Taking};
use crate::checkpoint::Checkpoint;
use crate::lsn::Lsn;
use crate::mapping::plan::{DeleteMode, Mode, Plan};
use crate::tuple::Cell;

/// How often each row is held, its values in the inputs' order.
type Counts = BTreeMap<Vec<Option<String>>, usize>;

fn keyless(delete: DeleteMode) -> Plan {
    let mut plan = plan(Mode::Upsert, delete);
    plan.key.clear();
    plan.key_inputs = (0..plan.inputs.len()).collect();
    plan.inputs.iter_mut().for_each(|input| input.toastable = false);
    plan
}

/// So few different rows that most have equals.
fn row(choice: u8) -> (Key, Row) {
    let text = |bit: u8| (choice & bit != 0).then(|| "large".to_owned());
    ([choice & 1, 0], Row { texts: [text(2), text(4)], number: 1 })
}

fn values(key: Key, row: &Row) -> Vec<Option<String>> {
    let [a, b] = row.texts.clone();
    vec![Some(key[0].to_string()), Some(key[1].to_string()), a, b, Some(row.number.to_string())]
}

/// A history of valid actions, and what the target is to hold after each transaction.
fn history(choices: &[Vec<[u8; 3]>], delete: DeleteMode) -> (History, Vec<Counts>) {
    let mut source: Vec<(Key, Row)> = Vec::new();
    let mut held = Counts::new();
    let mut after = Vec::new();
    let mut transactions = Vec::new();
    for transaction in choices {
        let mut actions = Vec::new();
        for &[kind, which, what] in transaction {
            act(kind, which, row(what), &mut source, &mut actions);
        }
        for action in &actions {
            apply(action, delete, &mut held);
        }
        after.push(held.clone());
        transactions.push(actions);
    }
    let transactions: Vec<&[Action]> = transactions.iter().map(Vec::as_slice).collect();
    (History::of(&transactions, Identity::Full), after)
}

fn act(kind: u8, which: u8, new: (Key, Row), source: &mut Vec<(Key, Row)>, actions: &mut Vec<Action>) {
    let place = usize::from(which) % source.len().max(1);
    let (key, row) = new;
    match (kind % 32, source.get(place).cloned()) {
        (0, _) => {
            source.clear();
            actions.push(Action::Truncate);
        }
        (1..10, Some((key, before))) => {
            source.swap_remove(place);
            actions.push(Action::Delete { key, before });
        }
        (10..20, Some((old, before))) => {
            // What an update leaves alone may not be sent.
            let unsent = [0, 1].map(|text| which & 128 != 0 && row.texts[text].is_some() && row.texts == before.texts);
            source[place] = (key, row.clone());
            actions.push(Action::Update { old, key, before, row, unsent });
        }
        _ => {
            source.push((key, row.clone()));
            actions.push(Action::Insert { key, row });
        }
    }
}

fn apply(action: &Action, delete: DeleteMode, held: &mut Counts) {
    let mut remove = |row: Vec<Option<String>>| *held.get_mut(&row).expect("the model holds it") -= 1;
    match action {
        Action::Insert { key, row } => *held.entry(values(*key, row)).or_default() += 1,
        Action::Update { old, key, before, row, .. } => {
            remove(values(*old, before));
            *held.entry(values(*key, row)).or_default() += 1;
        }
        Action::Delete { key, before } if delete == DeleteMode::Hard => remove(values(*key, before)),
        Action::Truncate if delete == DeleteMode::Hard => held.clear(),
        Action::Delete { .. } | Action::Truncate => {}
    }
    held.retain(|_, count| *count > 0);
}

/// The order of `sink::postgres::apply`: emptied, removed, added.
fn take(batch: &Batch, held: &mut Counts) -> Result<(), TestCaseError> {
    for table in &batch.tables {
        if table.truncate.is_some() {
            held.clear();
        }
        let row = |row: u32| -> Vec<Option<String>> {
            let value = |input| match batch.cell(table, row, input) {
                Cell::Text(text) | Cell::Binary(text) => Some(String::from_utf8_lossy(text).into_owned()),
                Cell::Null => None,
                Cell::Unchanged => Some("a value that the batch does not know".to_owned()),
            };
            (0..table.plan.inputs.len()).map(value).collect()
        };
        for entry in table.entries.iter().filter(|entry| entry.net == Net::Delete) {
            let row = row(entry.row);
            let count = held.get_mut(&row).filter(|count| **count > 0);
            prop_assert!(count.is_some(), "{:?} is missing", row);
            count.into_iter().for_each(|count| *count -= 1);
        }
        for entry in table.entries.iter().filter(|entry| entry.net == Net::Insert) {
            *held.entry(row(entry.row)).or_default() += 1;
        }
        prop_assert!(table.entries.iter().all(|entry| matches!(entry.net, Net::Insert | Net::Delete)));
    }
    held.retain(|_, count| *count > 0);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_500, ..ProptestConfig::default() })]

    #[test]
    fn rows_without_a_key_are_counted_as_one_by_one(
        choices in prop::collection::vec(prop::collection::vec(any::<[u8; 3]>(), 0..25), 1..9),
        delete in prop::sample::select(vec![DeleteMode::Hard, DeleteMode::Hard, DeleteMode::Ignore]),
        rows in prop::sample::select(vec![1, 2, 7, usize::MAX]),
        commits in 1..5u64,
        sizes in prop::collection::vec(1..40usize, 1..4),
    ) {
        let (history, expected) = history(&choices, delete);
        let limits = BatchLimits { rows, bytes: usize::MAX, commits };
        let mut builder = Builder::new(&[Arc::new(keyless(delete))], Checkpoint::default(), limits);
        builder.set_taking(0, Taking::From(Lsn::ZERO));
        let mut held = Counts::new();
        let mut look = |builder: &mut Builder| -> Result<(), TestCaseError> {
            let batch = builder.take();
            take(&batch, &mut held)?;
            if let BatchEnd::Commit(checkpoint) = batch.end {
                let place = history.transactions.iter().position(|known| known.end_lsn == checkpoint.end_lsn);
                if let Some(place) = place {
                    prop_assert_eq!(&held, &expected[place], "after {}", checkpoint.end_lsn);
                }
            }
            Ok(())
        };
        for block in blocks(&history.messages, &sizes) {
            let mut at = 0;
            while let Taken::Until(rest) = builder.push(&block, at).expect("a valid history") {
                at = rest;
                look(&mut builder)?;
            }
            if builder.is_full() {
                look(&mut builder)?;
            }
        }
        look(&mut builder)?;
    }
}

#[test]
fn old_row_that_is_only_a_key_stops_its_table() {
    let (key, row) = row(7);
    let update = Action::Update { old: key, key, before: row.clone(), row: row.clone(), unsent: [false; 2] };
    let delete = Action::Delete { key, before: row };
    for action in [update, delete] {
        let history = History::of(&[&[action]], Identity::Key);
        let limits = BatchLimits { rows: 9, bytes: usize::MAX, commits: 9 };
        let mut builder = Builder::new(&[Arc::new(keyless(DeleteMode::Hard))], Checkpoint::default(), limits);
        builder.set_taking(0, Taking::From(Lsn::ZERO));
        let error = builder.push(&blocks(&history.messages, &[usize::MAX])[0], 0);
        let Err(BuildError::Table { cause: TableCause::Key(cause), .. }) = error else { panic!("taken: {error:?}") };
        assert!(cause.to_string().ends_with("its replica identity is no longer FULL"), "{cause}");
    }
}

//! Who holds what: takes the sinks' proofs of durability and yields the one position that may be confirmed to a source.
//!
//! Invariant I1: `confirmed_flush_lsn` never exceeds the checkpoint recorded in any sink (with `ack = "journal"`: the
//! fsynced end of the journal). Confirming is final, since the server forgets what was confirmed.

use std::collections::BTreeMap;

use crate::checkpoint::Checkpoint;
use crate::lsn::Lsn;
use crate::sink::Durable;

/// A position that the source may be told. Only a [`Ledger`] makes one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Confirm(Lsn);

impl Confirm {
    /// Everything that ends here or before is held by whoever has to hold it.
    pub fn lsn(self) -> Lsn {
        self.0
    }
}

/// A sink that has tables of the source and has not said what it holds. While a ledger has one, the source is told nothing new:
/// by I1 the sink holds at least what was confirmed before, and nobody knows of more.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Unread {
    sink: String,
    confirmed: Lsn,
}

impl Unread {
    /// `confirmed` is the slot's `confirmed_flush_lsn`, read when nobody else could move it any more.
    pub fn new(sink: &str, confirmed: Lsn) -> Self {
        Unread { sink: sink.to_owned(), confirmed }
    }

    pub fn sink(&self) -> &str {
        &self.sink
    }

    /// What the sink holds at least, unless it was restored, or the journal rules (`ack = "journal"`).
    pub fn confirmed(&self) -> Lsn {
        self.confirmed
    }
}

/// What is known of one sink.
#[derive(Clone, Copy, Debug)]
enum Party {
    Read(Checkpoint),
    Unread { confirmed: Lsn },
}

impl Party {
    /// Up to here the sink is no reason to keep anything from being confirmed.
    fn lets(&self) -> Lsn {
        match self {
            Party::Read(checkpoint) => checkpoint.end_lsn,
            Party::Unread { confirmed } => *confirmed,
        }
    }
}

/// All sinks of one source, with what they are known to hold.
#[derive(Debug)]
pub struct Ledger {
    parties: BTreeMap<String, Party>,
    confirmed: Lsn,
}

impl Ledger {
    /// A ledger for the named sinks: those that were read, each at what it recorded before this run, and the others.
    pub fn new<'a>(
        recorded: impl IntoIterator<Item = &'a Durable>,
        unread: impl IntoIterator<Item = &'a Unread>,
    ) -> Self {
        let read = recorded.into_iter().map(|durable| (durable.sink().to_owned(), Party::Read(durable.checkpoint())));
        let mut parties: BTreeMap<_, _> = read.collect();
        assert!(!parties.is_empty(), "a source without a sink confirms nothing");
        for Unread { sink, confirmed } in unread {
            let before = parties.insert(sink.clone(), Party::Unread { confirmed: *confirmed });
            assert!(before.is_none(), "sink {sink} was read");
        }
        Ledger { parties, confirmed: Lsn::ZERO }
    }

    /// What each sink is known to hold that was read.
    pub fn durable(&self) -> Vec<(String, Checkpoint)> {
        let read = self.parties.iter().filter_map(|(sink, party)| match party {
            Party::Read(checkpoint) => Some((sink.clone(), *checkpoint)),
            Party::Unread { .. } => None,
        });
        read.collect()
    }

    /// Names of the sinks that were not read.
    pub fn unread(&self) -> Vec<String> {
        let unread = self.parties.iter().filter(|(_, party)| matches!(party, Party::Unread { .. }));
        unread.map(|(sink, _)| sink.clone()).collect()
    }

    /// What may be confirmed with what is known now.
    pub fn confirm(&mut self) -> Confirm {
        let least = self.parties.values().map(Party::lets).min().unwrap_or(Lsn::ZERO);
        assert!(least >= self.confirmed, "the least durable position went back: {} then {least}", self.confirmed);
        self.confirmed = least;
        Confirm(least)
    }

    /// Takes a sink's proof and yields what may be confirmed now.
    pub fn record(&mut self, durable: &Durable) -> Confirm {
        let checkpoint = durable.checkpoint();
        let Some(Party::Read(recorded)) = self.parties.get_mut(durable.sink()) else {
            panic!("{} proves something, and was not read when the ledger was made", durable.sink());
        };
        assert!(
            checkpoint.end_lsn >= recorded.end_lsn,
            "checkpoint of {} went back: {} then {}",
            durable.sink(),
            recorded.end_lsn,
            checkpoint.end_lsn
        );
        *recorded = checkpoint;
        self.confirm()
    }

    /// The confirmable position when the journal alone rules (`ack = "journal"`): its fsynced end.
    pub fn journal_rules(synced: JournalSynced) -> Confirm {
        Confirm(synced.0)
    }
}

/// The journal's end after an fsync that returned. Made only by the journal's writer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct JournalSynced(Lsn);

impl JournalSynced {
    /// For the stream, right after `Journal::sync` returned this position.
    pub fn after_sync(end_lsn: Lsn) -> Self {
        JournalSynced(end_lsn)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn durable(sink: &str, end: u64) -> Durable {
        Durable::for_test(sink, Checkpoint { end_lsn: Lsn(end), ..Checkpoint::default() })
    }

    #[test]
    fn slowest_sink_rules() {
        let mut ledger = Ledger::new(&[durable("a", 10), durable("b", 20)], &[]);
        assert_eq!(ledger.confirm().lsn(), Lsn(10));
        assert_eq!(ledger.record(&durable("b", 90)).lsn(), Lsn(10));
        assert_eq!(ledger.record(&durable("a", 50)).lsn(), Lsn(50));
    }

    #[test]
    fn sink_that_was_not_read_lets_nothing_be_confirmed() {
        let mut ledger = Ledger::new(&[durable("a", 10), durable("b", 20)], &[Unread::new("c", Lsn(7))]);
        assert_eq!(ledger.confirm().lsn(), Lsn(7));
        ledger.record(&durable("a", 900));
        assert_eq!(ledger.record(&durable("b", 900)).lsn(), Lsn(7));
        assert_eq!(ledger.durable().len(), 2, "nothing is known of the third");
    }

    #[test]
    #[should_panic(expected = "was not read")]
    fn sink_that_was_not_read_proves_nothing() {
        Ledger::new(&[durable("a", 10)], &[Unread::new("c", Lsn(7))]).record(&durable("c", 20));
    }

    #[test]
    #[should_panic(expected = "went back")]
    fn a_checkpoint_never_goes_back() {
        Ledger::new(&[durable("a", 10)], &[]).record(&durable("a", 9));
    }

    proptest! {
        #[test]
        fn never_above_any_sink_and_never_back(steps in prop::collection::vec((0usize..3, 0u64..50), 1..100)) {
            let names = ["a", "b", "c"];
            let mut held = [1u64; 3];
            let mut ledger = Ledger::new(&[durable("a", 1), durable("b", 1), durable("c", 1)], &[]);
            let mut last = ledger.confirm();
            for (sink, advance) in steps {
                held[sink] += advance;
                let confirm = ledger.record(&durable(names[sink], held[sink]));
                prop_assert!(held.iter().all(|&end| confirm.lsn() <= Lsn(end)));
                prop_assert!(confirm >= last);
                last = confirm;
            }
        }
    }
}

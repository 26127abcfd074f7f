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

/// The durable positions of all parties of one source.
#[derive(Debug)]
pub struct Ledger {
    durable: BTreeMap<String, Checkpoint>,
    confirmed: Lsn,
}

impl Ledger {
    /// A ledger for the named sinks, each at what it recorded before this run.
    pub fn new<'a>(recorded: impl IntoIterator<Item = &'a Durable>) -> Self {
        let durable: BTreeMap<_, _> =
            recorded.into_iter().map(|durable| (durable.sink().to_owned(), durable.checkpoint())).collect();
        assert!(!durable.is_empty(), "a source without a sink confirms nothing");
        Ledger { durable, confirmed: Lsn::ZERO }
    }

    /// What each sink is known to hold.
    pub fn durable(&self) -> Vec<(String, Checkpoint)> {
        self.durable.iter().map(|(sink, checkpoint)| (sink.clone(), *checkpoint)).collect()
    }

    /// What may be confirmed with what is known now.
    pub fn confirm(&mut self) -> Confirm {
        let least = self.durable.values().map(|checkpoint| checkpoint.end_lsn).min().unwrap_or(Lsn::ZERO);
        assert!(least >= self.confirmed, "the least durable position went back: {} then {least}", self.confirmed);
        self.confirmed = least;
        Confirm(least)
    }

    /// Takes a sink's proof and yields what may be confirmed now.
    pub fn record(&mut self, durable: &Durable) -> Confirm {
        let checkpoint = durable.checkpoint();
        let recorded = self.durable.get_mut(durable.sink()).expect("the sink was named when the ledger was made");
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
        let mut ledger = Ledger::new(&[durable("a", 10), durable("b", 20)]);
        assert_eq!(ledger.confirm().lsn(), Lsn(10));
        assert_eq!(ledger.record(&durable("b", 90)).lsn(), Lsn(10));
        assert_eq!(ledger.record(&durable("a", 50)).lsn(), Lsn(50));
    }

    #[test]
    #[should_panic(expected = "went back")]
    fn a_checkpoint_never_goes_back() {
        Ledger::new(&[durable("a", 10)]).record(&durable("a", 9));
    }

    proptest! {
        #[test]
        fn never_above_any_sink_and_never_back(steps in prop::collection::vec((0usize..3, 0u64..50), 1..100)) {
            let names = ["a", "b", "c"];
            let mut held = [1u64; 3];
            let mut ledger = Ledger::new(&[durable("a", 1), durable("b", 1), durable("c", 1)]);
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

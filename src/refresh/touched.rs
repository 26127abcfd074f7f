//! Which tables changed: what appliers tell the refresher, without ever waiting for it.
//!
//! A set, not a queue: its bound is the number of tables. A commit is announced before it is made and marked after it:
//! whoever takes a snapshot and then asks what was [`seen`](TouchedTables::seen) misses no table that the snapshot shows
//! changed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// Tables by their index in the refresher's `targets`.
#[derive(Debug, Default)]
pub struct TouchedTables {
    tables: Mutex<Tables>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Tables {
    /// Changed, as far as anybody knows by a commit, and not yet taken note of.
    marked: BTreeSet<usize>,
    /// Being changed by transactions that have not ended, with how many of them.
    open: BTreeMap<usize, usize>,
}

impl TouchedTables {
    /// The tables that a transaction is about to change. The applier holds the answer until it knows how its commit
    /// ended, and drops it then.
    pub fn touch(self: &Arc<Self>, tables: impl IntoIterator<Item = usize>) -> Touch {
        let touch = Touch { touched: self.clone(), tables: tables.into_iter().collect() };
        let mut state = self.lock();
        for table in &touch.tables {
            *state.open.entry(*table).or_default() += 1;
        }
        drop(state);
        touch
    }

    /// The tables were changed by a commit that was not announced.
    pub fn mark(&self, tables: &[usize]) {
        self.lock().marked.extend(tables);
        self.changed.notify_one();
    }

    /// Takes the marked tables; whoever takes them must see to them.
    pub(super) fn take(&self) -> BTreeSet<usize> {
        std::mem::take(&mut self.lock().marked)
    }

    /// The tables that are marked or announced, without taking them.
    pub(super) fn seen(&self) -> BTreeSet<usize> {
        let state = self.lock();
        state.marked.iter().chain(state.open.keys()).copied().collect()
    }

    /// Ends when tables were marked since the last call. May be cancelled.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }

    fn lock(&self) -> MutexGuard<'_, Tables> {
        // A set is whole after every step, whoever panicked.
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Announced changes. Dropped, they count as committed, which is right for a commit of which nobody knows whether it was
/// made: a refresh too many is harmless.
#[derive(Debug)]
#[must_use = "dropped before the commit, it marks the tables too early"]
pub struct Touch {
    touched: Arc<TouchedTables>,
    tables: BTreeSet<usize>,
}

impl Touch {
    /// The transaction is known to have been rolled back.
    pub fn discard(mut self) {
        let tables = std::mem::take(&mut self.tables);
        self.touched.lock().close(&tables);
    }
}

impl Drop for Touch {
    fn drop(&mut self) {
        if self.tables.is_empty() {
            return;
        }
        let mut state = self.touched.lock();
        state.close(&self.tables);
        state.marked.extend(&self.tables);
        drop(state);
        self.touched.changed.notify_one();
    }
}

impl Tables {
    fn close(&mut self, tables: &BTreeSet<usize>) {
        for table in tables {
            if let Some(count) = self.open.get_mut(table) {
                *count -= 1;
                if *count == 0 {
                    self.open.remove(table);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn announced_table_is_seen_at_once_and_taken_after_the_commit() {
        let touched = Arc::new(TouchedTables::default());
        let (first, second) = (touched.touch([1, 2]), touched.touch([2]));
        assert_eq!(touched.seen(), BTreeSet::from([1, 2]));
        assert_eq!(touched.take(), BTreeSet::new());
        drop(first);
        assert_eq!(touched.take(), BTreeSet::from([1, 2]));
        assert_eq!(touched.seen(), BTreeSet::from([2]), "the second transaction still runs");
        drop(second);
        assert_eq!((touched.take(), touched.seen()), (BTreeSet::from([2]), BTreeSet::new()));
    }

    #[tokio::test]
    async fn discarded_change_wakes_nobody_and_marked_one_does() {
        let touched = Arc::new(TouchedTables::default());
        touched.touch([1]).discard();
        assert_eq!(touched.seen(), BTreeSet::new());
        let woken = async |touched: &TouchedTables| {
            tokio::time::timeout(std::time::Duration::from_millis(1), touched.changed()).await.is_ok()
        };
        assert!(!woken(&touched).await);
        touched.mark(&[3]);
        assert!(woken(&touched).await, "a mark made while nobody waited is not lost");
        assert_eq!(touched.take(), BTreeSet::from([3]));
    }
}

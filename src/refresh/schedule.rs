//! When which view is refreshed: decided without clock or database.
//!
//! - A view is due when a table that it reads has changed, and `every` has passed since its last refresh began.
//! - Views that are due together are refreshed together, upstream first.
//! - A view that is due takes with it every view it reads that is not fresh, whatever that one's `every` says: refreshed
//!   from a stale one it would claim a position that it does not show.
//! - A view never takes those with it that read it: they are due in their own time.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::graph::ViewGraph;
use crate::catalog::TableName;
use crate::mapping::plan::ViewPlan;

/// What is known of each view, in the plans' order.
#[derive(Debug)]
pub(super) struct Schedule {
    targets: Vec<TableName>,
    views: Vec<Entry>,
}

#[derive(Debug)]
struct Entry {
    name: TableName,
    every: Duration,
    /// `None` until the catalog was read.
    learned: Option<Learned>,
    /// Does not show what its tables hold.
    stale: bool,
    not_before: Option<Instant>,
}

#[derive(PartialEq, Eq, Debug)]
struct Learned {
    incarnation: Option<u64>,
    /// Indices of targets.
    tables: BTreeSet<usize>,
    /// Indices of views.
    upstream: BTreeSet<usize>,
    /// Place in the order of refreshes.
    rank: usize,
}

impl Schedule {
    pub fn new(plans: &[ViewPlan], targets: Vec<TableName>) -> Self {
        let entry = |plan: &ViewPlan| Entry {
            name: plan.view.clone(),
            every: plan.every,
            learned: None,
            stale: false,
            not_before: None,
        };
        Schedule { targets, views: plans.iter().map(entry).collect() }
    }

    /// Takes over what the catalog says now. A view that was made anew since the last look, or reads other tables, or
    /// holds nothing, is stale. Answers which views became so.
    pub fn learn(&mut self, graph: &ViewGraph) -> Vec<usize> {
        let index = |name: &TableName| self.views.iter().position(|entry| &entry.name == name);
        let mut news = Vec::new();
        for (rank, view) in graph.views.iter().enumerate() {
            let Some(own) = index(&view.name) else { continue };
            let tables = self.targets.iter().enumerate().filter(|(_, target)| view.tables.contains(*target));
            let learned = Learned {
                incarnation: view.found.as_ref().map(|found| found.incarnation),
                tables: tables.map(|(target, _)| target).collect(),
                upstream: view.upstream.iter().filter_map(index).filter(|other| *other != own).collect(),
                rank,
            };
            let populated = view.found.as_ref().is_none_or(|found| found.populated);
            news.push((own, learned, populated));
        }
        let mut stale = Vec::new();
        for (own, learned, populated) in news {
            let before = self.views[own].learned.replace(learned);
            let after = self.views[own].learned.as_ref();
            let content =
                |learned: Option<&Learned>| learned.map(|learned| (learned.incarnation, learned.tables.clone()));
            let changed = before.is_some() && content(before.as_ref()) != content(after);
            if (changed || !populated) && self.mark_stale(own) {
                stale.push(own);
            }
        }
        stale
    }

    /// Tables changed. Answers which views became stale by it.
    pub fn touch(&mut self, tables: &BTreeSet<usize>) -> Vec<usize> {
        let touched: Vec<_> = (0..self.views.len()).filter(|&view| self.reads(view, tables)).collect();
        touched.into_iter().filter(|&view| self.mark_stale(view)).collect()
    }

    /// Answers whether the view was fresh before.
    pub fn mark_stale(&mut self, view: usize) -> bool {
        !std::mem::replace(&mut self.views[view].stale, true)
    }

    /// When a view is due next; in the past if one is due now, `None` if all are fresh.
    pub fn next_due(&self, now: Instant) -> Option<Instant> {
        let stale = self.views.iter().filter(|entry| entry.stale);
        stale.map(|entry| entry.not_before.unwrap_or(now)).min()
    }

    /// The views to refresh now, in this order. `late` are tables that may have changed before the snapshot was taken
    /// though no [`touch`](Self::touch) has said so yet.
    pub fn group(&self, now: Instant, late: &BTreeSet<usize>) -> Vec<usize> {
        let is_due = |entry: &Entry| entry.stale && entry.not_before.is_none_or(|instant| instant <= now);
        let mut group: BTreeSet<usize> = (0..self.views.len()).filter(|&view| is_due(&self.views[view])).collect();
        // Upstream is transitive, so one step takes all.
        for view in group.clone() {
            let stale = |&other: &usize| self.views[other].stale || self.reads(other, late);
            group.extend(self.upstream(view).filter(stale));
        }
        let mut group = Vec::from_iter(group);
        group.sort_by_key(|&view| self.views[view].learned.as_ref().map_or(usize::MAX, |learned| learned.rank));
        group
    }

    /// The views that a view reads.
    pub fn upstream(&self, view: usize) -> impl Iterator<Item = usize> {
        self.views[view].learned.iter().flat_map(|learned| learned.upstream.iter().copied())
    }

    /// The view reads one of the tables.
    pub fn reads(&self, view: usize, tables: &BTreeSet<usize>) -> bool {
        self.views[view].learned.as_ref().is_some_and(|learned| !learned.tables.is_disjoint(tables))
    }

    /// The index of a table that changed, as far as it is one of the daemon's.
    pub fn target(&self, name: &TableName) -> Option<usize> {
        self.targets.iter().position(|target| target == name)
    }

    /// A refresh that began at `began` was committed.
    pub fn refreshed(&mut self, view: usize, began: Instant) {
        let entry = &mut self.views[view];
        entry.stale = false;
        entry.not_before = Some(began + entry.every);
    }

    /// The view was not refreshed; it is tried again at `at`.
    pub fn postpone(&mut self, view: usize, at: Instant) {
        self.views[view].stale = true;
        self.views[view].not_before = Some(at);
    }

    /// The view was not refreshed because one that it reads was not; both are tried again together.
    pub fn postpone_with(&mut self, view: usize, upstream: usize) {
        self.views[view].stale = true;
        self.views[view].not_before = self.views[upstream].not_before;
    }
}

#[cfg(test)]
mod tests {
    use super::super::graph::View;
    use super::super::graph::tests::{graph, view};
    use super::*;
    use crate::mapping::plan::RefreshMode;

    const NONE: BTreeSet<usize> = BTreeSet::new();

    /// Views `up` (every 60 s, reads t), `down` (every 10 s, reads up and u), `other` (every 10 s, reads w).
    fn views() -> Vec<View> {
        vec![view("down", 1, &["t", "u"], &["up"]), view("up", 2, &["t"], &[]), view("other", 3, &["w"], &[])]
    }

    const DOWN: usize = 0;
    const UP: usize = 1;
    const OTHER: usize = 2;

    fn schedule() -> Schedule {
        let plan = |name: &str, seconds| ViewPlan {
            sink: "w".to_owned(),
            view: TableName::new("s", name),
            refresh: RefreshMode::Auto,
            every: Duration::from_secs(seconds),
        };
        let targets = ["t", "u", "w"].map(|name| TableName::new("s", name)).to_vec();
        let mut schedule = Schedule::new(&[plan("down", 10), plan("up", 60), plan("other", 10)], targets);
        assert_eq!(schedule.learn(&graph(views())), [0; 0]);
        schedule
    }

    fn after(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    #[test]
    fn only_views_of_changed_tables_are_due_and_upstream_comes_first() {
        let (mut schedule, now) = (schedule(), Instant::now());
        assert_eq!((schedule.next_due(now), schedule.group(now, &NONE)), (None, vec![]));
        assert_eq!(schedule.touch(&BTreeSet::from([0])), [DOWN, UP]);
        assert_eq!(schedule.touch(&BTreeSet::from([0])), [0; 0], "they are stale already");
        assert_eq!((schedule.next_due(now), schedule.group(now, &NONE)), (Some(now), vec![UP, DOWN]));
        assert_eq!(schedule.touch(&BTreeSet::from([2])), [OTHER]);
        assert_eq!(schedule.group(now, &NONE).len(), 3);
    }

    #[test]
    fn refresh_waits_until_every_has_passed_since_the_last_began() {
        let (mut schedule, start) = (schedule(), Instant::now());
        schedule.touch(&BTreeSet::from([2]));
        schedule.refreshed(OTHER, start);
        assert_eq!(schedule.next_due(start), None);
        schedule.touch(&BTreeSet::from([2]));
        assert_eq!(schedule.next_due(after(start, 1)), Some(after(start, 10)));
        assert_eq!(schedule.group(after(start, 9), &NONE), [0; 0]);
        assert_eq!(schedule.group(after(start, 10), &NONE), [OTHER]);
    }

    #[test]
    fn due_view_takes_a_stale_upstream_along_before_its_time() {
        let (mut schedule, start) = (schedule(), Instant::now());
        schedule.touch(&BTreeSet::from([0]));
        schedule.refreshed(UP, start);
        schedule.refreshed(DOWN, start);
        schedule.touch(&BTreeSet::from([1]));
        assert_eq!(schedule.group(after(start, 10), &NONE), [DOWN], "a fresh upstream stays");
        schedule.touch(&BTreeSet::from([0]));
        assert_eq!(schedule.group(after(start, 10), &NONE), [UP, DOWN]);
    }

    #[test]
    fn upstream_that_may_have_changed_before_the_snapshot_comes_along() {
        let (mut schedule, now) = (schedule(), Instant::now());
        schedule.touch(&BTreeSet::from([1]));
        assert_eq!(schedule.group(now, &BTreeSet::from([0])), [UP, DOWN]);
        assert_eq!(schedule.group(now, &BTreeSet::from([1, 2])), [DOWN]);
    }

    #[test]
    fn postponed_view_stays_stale_and_holds_up_no_other() {
        let (mut schedule, now) = (schedule(), Instant::now());
        schedule.touch(&BTreeSet::from([0, 2]));
        schedule.postpone(OTHER, after(now, 60));
        assert_eq!(schedule.group(now, &NONE), [UP, DOWN]);
        schedule.refreshed(UP, now);
        schedule.refreshed(DOWN, now);
        assert_eq!(schedule.next_due(now), Some(after(now, 60)));
    }

    #[test]
    fn view_made_anew_or_emptied_or_reading_other_tables_is_stale() {
        let mut schedule = schedule();
        assert_eq!(schedule.learn(&graph(views())), [0; 0]);
        let mut changed = views();
        changed[UP].found.as_mut().expect("made so").incarnation = 99;
        changed[OTHER].tables.insert(TableName::new("s", "u"));
        assert_eq!(schedule.learn(&graph(changed.clone())), [UP, OTHER]);
        changed[DOWN].found.as_mut().expect("made so").populated = false;
        assert_eq!(schedule.learn(&graph(changed)), [DOWN]);
    }
}

//! What the journal's parts share, under one short lock: the segments, the newest blocks, and who still needs what.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use crate::frame::Boundary;
use crate::lsn::Lsn;

use super::{Block, Held, NotHeld, Options};

/// One segment file.
#[derive(Clone, Debug)]
pub(super) struct Segment {
    /// Counts up from file to file in the order of the stream; not on disk.
    pub id: u64,
    /// The first of the ids that this one took the place of: each had nothing but a transaction that came again.
    pub replaces: u64,
    pub path: PathBuf,
    pub salt: u32,
    pub start: Boundary,
    /// First LSN of the segment that it continues, as on disk.
    pub continues: Option<Lsn>,
    /// That segment stands before it.
    pub joined: bool,
    /// Void is what the segment before it has of a transaction left open.
    pub restarts: bool,
    /// Blocks written, `None` if an earlier process closed it: then as many as the file has.
    pub blocks: Option<u64>,
    pub bytes: u64,
    /// `None` while blocks are appended.
    pub closed_at: Option<SystemTime>,
    pub compressed: bool,
    /// The compression thread works on it, or failed to.
    pub busy: bool,
}

/// A place in the journal: before the block of this index.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Place {
    pub segment: u64,
    pub block: u64,
}

/// What stands at a place.
pub(super) enum Found {
    /// It is still in memory.
    Memory(Block),
    /// It is in this file, which has this many blocks so far.
    File(Segment),
    /// Nothing yet.
    End,
    /// The next segment, which continues this one.
    Next(Segment),
    /// The transaction that was open at this place comes again, in this segment.
    Again(Segment),
    /// It was deleted, or the stream began anew behind a gap.
    Gone(NotHeld),
}

pub(super) struct Segments {
    list: VecDeque<Segment>,
    end: Option<Boundary>,
    /// `commit_lsn` of the last transaction that ended, as far as this process knows.
    last_commit: Option<Lsn>,
    memory: VecDeque<(Place, Block)>,
    memory_bytes: u64,
    memory_bytes_max: u64,
    bytes: u64,
    max_bytes: u64,
    retention: Duration,
    holds: BTreeMap<u64, (String, Lsn)>,
    next_hold: u64,
    /// Nothing is deleted before the stream begins: until then those who need segments may not have said so.
    may_delete: bool,
    /// When the present second began, the bytes published since, and those of the second before: to tell a backlog from a
    /// trickle.
    window: (Instant, u64, u64),
}

/// A stream that fills more than this in a second is draining a backlog, and its CPU is better spent on that.
const BUSY_BYTES: u64 = 8 << 20;
const BUSY_WINDOW: Duration = Duration::from_secs(1);

/// What a block in memory costs beside its bytes.
const BLOCK_OVERHEAD_BYTES: u64 = 256;

impl Segments {
    pub(super) fn new(options: &Options, list: Vec<Segment>, end: Option<Boundary>) -> Segments {
        Segments {
            bytes: list.iter().map(|segment| segment.bytes).sum(),
            list: list.into(),
            end,
            last_commit: None,
            memory: VecDeque::new(),
            memory_bytes: 0,
            memory_bytes_max: options.memory_bytes,
            max_bytes: options.max_bytes,
            retention: options.retention,
            holds: BTreeMap::new(),
            next_hold: 0,
            may_delete: false,
            window: (Instant::now(), 0, 0),
        }
    }

    pub(super) fn held(&self) -> Option<Held> {
        Some(Held { first: self.list.get(self.run_start())?.start.end_lsn, end: self.end? })
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn max_bytes(&self) -> u64 {
        self.max_bytes
    }

    pub(super) fn last(&self) -> Option<&Segment> {
        self.list.back()
    }

    /// The id for the next segment.
    pub(super) fn next_id(&self) -> u64 {
        self.list.back().map_or(0, |segment| segment.id + 1)
    }

    /// A block is in the file, which has `bytes` now.
    pub(super) fn publish(&mut self, block: Block, bytes: u64) {
        let Some(segment) = self.list.back_mut() else { return };
        let place = Place { segment: segment.id, block: segment.blocks.unwrap_or_default() };
        self.bytes += bytes - segment.bytes;
        segment.bytes = bytes;
        segment.blocks = Some(place.block + 1);
        self.end = Some(block.end);
        if block.end.commit_lsn > Lsn::ZERO {
            self.last_commit = self.last_commit.max(Some(block.end.commit_lsn));
        }
        if self.window.0.elapsed() >= BUSY_WINDOW {
            self.window = (Instant::now(), 0, self.window.1);
        }
        self.window.1 += block.bytes.len() as u64;
        self.memory_bytes += block.bytes.len() as u64 + BLOCK_OVERHEAD_BYTES;
        self.memory.push_back((place, block));
        while self.memory_bytes > self.memory_bytes_max
            && let Some((_, oldest)) = self.memory.pop_front()
        {
            self.memory_bytes -= oldest.bytes.len() as u64 + BLOCK_OVERHEAD_BYTES;
        }
    }

    /// A new segment takes the blocks from now on; the last one is closed.
    pub(super) fn push(&mut self, segment: Segment) {
        if let Some(last) = self.list.back_mut() {
            last.closed_at.get_or_insert_with(SystemTime::now);
        }
        self.end = Some(segment.start);
        self.bytes += segment.bytes;
        self.list.push_back(segment);
    }

    /// A new segment under the last one's name, which had nothing but the transaction that comes again.
    pub(super) fn replace_last(&mut self, segment: Segment) {
        if let Some(last) = self.list.pop_back() {
            self.bytes -= last.bytes;
        }
        self.end = Some(segment.start);
        self.bytes += segment.bytes;
        self.list.push_back(segment);
    }

    /// Where a reader from `from` begins: its segment.
    pub(super) fn place_of(&self, from: Lsn) -> Result<Place, NotHeld> {
        let held = self.held();
        if !held.is_some_and(|held| (held.first..=held.end.end_lsn).contains(&from)) {
            return Err(NotHeld { from, held });
        }
        let after = self.list.partition_point(|segment| segment.start.end_lsn <= from);
        match after.checked_sub(1).and_then(|idx| self.list.get(idx)) {
            Some(segment) => Ok(Place { segment: segment.id, block: 0 }),
            None => Err(NotHeld { from, held }),
        }
    }

    /// What stands at `place`, which a reader that is past `reached` wants.
    pub(super) fn find(&self, place: Place, reached: Lsn) -> Found {
        let gone = || Found::Gone(NotHeld { from: reached, held: self.held() });
        let idx = self.list.partition_point(|segment| segment.id < place.segment);
        let Some(segment) = self.list.get(idx) else { return gone() };
        if segment.id != place.segment {
            let has_all_before = reached >= segment.start.end_lsn;
            return match segment.replaces <= place.segment {
                true => Found::Again(segment.clone()),
                // Deleted under a reader that stood at its end.
                false if has_all_before && segment.restarts => Found::Again(segment.clone()),
                false if has_all_before => Found::Next(segment.clone()),
                false => gone(),
            };
        }
        if segment.blocks.is_none_or(|blocks| place.block < blocks) && place.block != u64::MAX {
            let idx = self.memory.partition_point(|(in_memory, _)| *in_memory < place);
            return match self.memory.get(idx) {
                Some((in_memory, block)) if *in_memory == place => Found::Memory(block.clone()),
                _ => Found::File(segment.clone()),
            };
        }
        match self.list.get(idx + 1) {
            None => Found::End,
            Some(next) if !next.joined => gone(),
            Some(next) if next.restarts => Found::Again(next.clone()),
            Some(next) => Found::Next(next.clone()),
        }
    }

    /// The segment of this id, if it is still there.
    pub(super) fn get(&self, id: u64) -> Option<&Segment> {
        self.list.iter().find(|segment| segment.id == id)
    }

    /// The segment after this one, if it continues it.
    pub(super) fn after(&self, id: u64) -> Option<&Segment> {
        self.list.iter().find(|segment| segment.id > id).filter(|segment| segment.joined)
    }

    /// The start of the segment after `id`, or the journal's end: what damage in `id` may reach to.
    pub(super) fn end_of(&self, id: u64) -> Lsn {
        let after = self.list.partition_point(|segment| segment.id <= id);
        match self.list.get(after) {
            Some(next) => next.start.end_lsn,
            None => self.end.map_or(Lsn::ZERO, |end| end.end_lsn),
        }
    }

    /// Takes a closed segment to compress, oldest first. It is not deleted before [`compressed`](Self::compressed). None
    /// while the stream is busy, unless the journal is half full.
    pub(super) fn take_uncompressed(&mut self) -> Option<Segment> {
        let is_busy = self.window.0.elapsed() < 2 * BUSY_WINDOW && self.window.1.max(self.window.2) > BUSY_BYTES;
        if is_busy && self.bytes < self.max_bytes / 2 {
            return None;
        }
        let segment = self.list.iter_mut().find(|one| one.closed_at.is_some() && !one.compressed && !one.busy)?;
        segment.busy = true;
        Some(segment.clone())
    }

    /// The segment has this many bytes now, or stays as it was.
    pub(super) fn compressed(&mut self, id: u64, bytes: Option<u64>) {
        let Some(segment) = self.list.iter_mut().find(|segment| segment.id == id) else { return };
        segment.busy = false;
        // Not tried again before the next start: what made it fail once, damage or a full disk, would again.
        segment.compressed = true;
        if let Some(bytes) = bytes {
            self.bytes = self.bytes - segment.bytes + bytes;
            segment.bytes = bytes;
        }
    }

    /// The stream began.
    pub(super) fn let_delete(&mut self) {
        self.may_delete = true;
    }

    /// Takes out the segments that may go and should: too old, or over the cap; oldest first, and none behind one
    /// that stays.
    pub(super) fn take_deletable(&mut self) -> Vec<PathBuf> {
        if !self.may_delete {
            return Vec::new();
        }
        let now = SystemTime::now();
        // Before the last gap nothing can be read into the present, so no hold can mean it.
        let mut behind_gap = self.run_start();
        let mut victims = Vec::new();
        while let (Some(segment), Some(next)) = (self.list.front(), self.list.get(1)) {
            let old = segment.closed_at.is_some_and(|at| now.duration_since(at).is_ok_and(|age| age >= self.retention));
            let needed = behind_gap == 0 && self.is_needed(next.start.end_lsn);
            if segment.busy || needed || !(old || self.bytes >= self.max_bytes) {
                break;
            }
            self.bytes -= segment.bytes;
            victims.push(segment.path.clone());
            self.list.pop_front();
            behind_gap = behind_gap.saturating_sub(1);
        }
        victims
    }

    /// Every hold has reached the last transaction's end. The journal may reach further, without a transaction in between:
    /// a sink that is in the middle of the next one does not record that.
    pub(super) fn all_caught_up(&self) -> bool {
        match (self.last_commit, self.end) {
            (Some(commit_lsn), _) => !self.is_needed(Lsn(commit_lsn.0 + 1)),
            (None, Some(end)) => !self.is_needed(end.end_lsn),
            (None, None) => true,
        }
    }

    pub(super) fn add_hold(&mut self, name: String) -> u64 {
        self.next_hold += 1;
        self.holds.insert(self.next_hold, (name, Lsn::ZERO));
        self.next_hold
    }

    pub(super) fn move_hold(&mut self, id: u64, lsn: Lsn) {
        if let Some(hold) = self.holds.get_mut(&id) {
            hold.1 = lsn;
        }
    }

    pub(super) fn remove_hold(&mut self, id: u64) {
        self.holds.remove(&id);
    }

    pub(super) fn holds(&self) -> Vec<(String, Lsn)> {
        self.holds.values().cloned().collect()
    }

    /// Someone needs transactions that end at `end` or before.
    fn is_needed(&self, end: Lsn) -> bool {
        self.holds.values().any(|(_, lsn)| *lsn < end)
    }

    /// Index of the first segment from which all are joined.
    fn run_start(&self) -> usize {
        self.list.iter().rposition(|segment| !segment.joined).unwrap_or(0)
    }
}

//! The journal's own thread: compresses closed segments and deletes those that nobody needs any more.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use tracing::{debug, warn};

use crate::lsn::Lsn;

use super::cursor::{Cursor, Unreadable};
use super::format::{RecordHeader, SegmentHeader};
use super::recover::COMPRESSING_EXTENSION;
use super::{JournalError, Options, Shared};

/// How often segments are looked through: retention passes also when nothing is written, and a segment that was left alone
/// while the stream was busy has its turn soon.
const INTERVAL: Duration = Duration::from_secs(2);

/// Fast enough to keep up with any stream on a part of one core; higher levels cost more time than they save disk.
const LEVEL: i32 = 1;

pub(super) struct Compressor {
    stop: Arc<AtomicBool>,
    waker: SyncSender<()>,
    thread: Option<JoinHandle<()>>,
}

impl Compressor {
    pub(super) fn start(shared: Arc<Shared>, options: &Options) -> Result<Compressor, JournalError> {
        let (waker, wakes) = sync_channel(1);
        let stop = Arc::new(AtomicBool::new(false));
        let thread = std::thread::Builder::new()
            .name("journal".to_owned())
            .spawn({
                let (stop, dir) = (stop.clone(), options.dir.clone());
                move || run(&shared, &dir, &stop, &wakes)
            })
            .map_err(JournalError::io("start the thread for", &options.dir))?;
        Ok(Compressor { stop, waker, thread: Some(thread) })
    }

    /// Whoever closes a segment sends here; a full channel needs no second message.
    pub(super) fn waker(&self) -> SyncSender<()> {
        self.waker.clone()
    }
}

impl Drop for Compressor {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        // Full: the thread is about to look at `stop` anyway.
        let _ = self.waker.try_send(());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            warn!("journal thread panicked");
        }
    }
}

/// Deletes segment files that were taken out of the journal.
pub(super) fn delete(victims: &[PathBuf]) {
    for path in victims {
        match fs::remove_file(path) {
            Ok(()) => debug!(file = %path.display(), "journal segment deleted"),
            // It stays until the next start finds it again.
            Err(error) => warn!(file = %path.display(), %error, "journal segment not deleted"),
        }
    }
}

fn run(shared: &Shared, dir: &Path, stop: &AtomicBool, wakes: &Receiver<()>) {
    while !stop.load(Ordering::Acquire) {
        loop {
            let victims = shared.segments().take_deletable();
            delete(&victims);
            let Some(segment) = shared.segments().take_uncompressed() else { break };
            let bytes = match compress(&segment.path, dir, stop) {
                Ok(Some(bytes)) => Some(bytes),
                Ok(None) => return,
                Err(error) => {
                    let file = segment.path.display();
                    warn!(%file, error = %describe(error, &segment.path), "journal segment not compressed");
                    make_durable(&segment.path);
                    None
                }
            };
            shared.segments().compressed(segment.id, bytes);
        }
        // Timed out or woken: either way it is time to look. Disconnected cannot be: `stop` comes first.
        let _ = wakes.recv_timeout(INTERVAL);
    }
}

fn describe(error: Unreadable, path: &Path) -> String {
    match error {
        Unreadable::Io(error) => error.to_string(),
        other => other.into_error(path, Lsn::ZERO, Lsn::ZERO).to_string(),
    }
}

/// A closed segment that stays as it is must at least be on disk.
fn make_durable(path: &Path) {
    if let Err(error) = File::open(path).and_then(|file| file.sync_data()) {
        warn!(file = %path.display(), %error, "journal segment not synced");
    }
}

/// Puts a compressed copy in the segment's place. Readers that have the old file open go on with it.
fn compress(path: &Path, dir: &Path, stop: &AtomicBool) -> Result<Option<u64>, Unreadable> {
    let blocks = blocks_to_keep(path)?;
    let copy_path = path.with_extension(COMPRESSING_EXTENSION);
    let copied = copy(path, &copy_path, blocks, stop).and_then(|bytes| {
        if bytes.is_some() {
            fs::rename(&copy_path, path).and_then(|()| File::open(dir)?.sync_all()).map_err(Unreadable::Io)?;
        }
        Ok(bytes)
    });
    if !matches!(copied, Ok(Some(_))) {
        // The error that counts is the first; the next start removes what is left.
        let _ = fs::remove_file(&copy_path);
    }
    copied
}

/// Blocks that hold anything but a transaction left open at the end, which is void.
pub(super) fn blocks_to_keep(path: &Path) -> Result<u64, Unreadable> {
    let mut cursor = Cursor::open(path)?;
    let mut keep = 0;
    while let Some(header) = cursor.peek()? {
        cursor.skip(&header);
        if !header.is_inside_one_transaction() {
            keep = cursor.block;
        }
    }
    Ok(if cursor.boundary.in_transaction { keep } else { cursor.block })
}

fn copy(path: &Path, copy_path: &Path, blocks: u64, stop: &AtomicBool) -> Result<Option<u64>, Unreadable> {
    let mut cursor = Cursor::open(path)?;
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(copy_path)
        .map_err(Unreadable::Io)?;
    let mut copy =
        Copy { file: BufWriter::new(file), zstd: zstd::bulk::Compressor::new(LEVEL).map_err(Unreadable::Io)? };
    let header = SegmentHeader { compressed: true, ..cursor.header };
    copy.file.write_all(&header.encode()).map_err(Unreadable::Io)?;
    let (record, head) = cursor.head();
    copy.add(record, head, header.salt).map_err(Unreadable::Io)?;
    while cursor.block < blocks {
        if stop.load(Ordering::Acquire) {
            return Ok(None);
        }
        let Some(block) = cursor.read()? else { break };
        let Some(record) = RecordHeader::of(&block) else { return Err(Unreadable::Damaged(cursor.offset())) };
        copy.add(&record, &block.bytes, header.salt).map_err(Unreadable::Io)?;
    }
    finish(copy, path).map(Some).map_err(Unreadable::Io)
}

struct Copy {
    file: BufWriter<File>,
    zstd: zstd::bulk::Compressor<'static>,
}

impl Copy {
    fn add(&mut self, record: &RecordHeader, bytes: &Bytes, salt: u32) -> io::Result<()> {
        let small = self.zstd.compress(bytes)?;
        let zstd = small.len() < bytes.len();
        let stored: &[u8] = if zstd { &small } else { bytes };
        let record = RecordHeader {
            payload_crc: crc32c::crc32c(stored),
            stored: u32::try_from(stored.len()).map_err(io::Error::other)?,
            zstd,
            ..*record
        };
        self.file.write_all(&record.encode(salt))?;
        self.file.write_all(stored)
    }
}

fn finish(copy: Copy, path: &Path) -> io::Result<u64> {
    let file = copy.file.into_inner().map_err(io::IntoInnerError::into_error)?;
    // Retention counts from when the segment was closed, also after a restart.
    file.set_modified(fs::metadata(path)?.modified()?)?;
    file.sync_all()?;
    Ok(file.metadata()?.len())
}

//! What is kept, what is deleted, and where a journal begins anew.

use std::os::unix::fs::PermissionsExt;

use super::*;

#[test]
fn hold_keeps_segments_until_it_moves_on() {
    let scratch = Scratch::new();
    let source = simple_transactions(60);
    let journal = Journal::open(Options { retention: Duration::ZERO, ..scratch.options() }).expect("open");
    let hold = journal.hold("warehouse");
    journal.begin(START).expect("begin");
    append_all(&journal, &stream(&source, START), 300);
    let closed = scratch.segments().len() - 1;
    assert!(closed >= 3);
    wait_until("compression", || compressed_count(&scratch) == closed);
    assert_eq!(read_from(&journal, START).expect("all is kept"), source);
    assert_eq!(journal.holds(), [("warehouse".to_owned(), Lsn::ZERO)]);

    let middle = source[30].end;
    hold.set(middle);
    append_all(&journal, &stream(&simple_transactions(80), journal.held().expect("begun").end.end_lsn), 300);
    wait_until("deletion", || journal.held().expect("begun").first > START);
    assert!(journal.held().expect("begun").first <= middle);
    let kept = read_from(&journal, middle).expect("what is held is kept");
    assert_eq!(kept, simple_transactions(80)[31..]);
    let error = journal.reader(START).err().expect("deleted");
    assert_eq!((error.from, error.held), (START, journal.held()));
    assert!(error.to_string().contains(&format!("not {START}")), "{error}");
}

#[test]
fn journal_at_its_cap_waits_for_the_holds() {
    let scratch = Scratch::new();
    let source = simple_transactions(400);
    let options = Options { max_bytes: 16_000, memory_bytes: 0, ..scratch.options() };
    let journal = Journal::open(options).expect("open");
    let hold = journal.hold("warehouse");
    journal.begin(START).expect("begin");
    let mut bytes = &stream(&source, START)[..];
    let mut boundary = Boundary::new(START);
    let mut stops = 0;
    while !bytes.is_empty() {
        if !journal.has_room() {
            stops += 1;
            assert!(journal.bytes() >= 16_000 && journal.bytes() < 20_000);
            // The sink catches up half the way.
            let held = journal.held().expect("begun");
            hold.set(Lsn(held.first.0 + held.end.end_lsn.bytes_since(held.first) / 2));
            wait_until("room", || journal.has_room());
        }
        let block = next_block(bytes, boundary, 300);
        boundary = block.end;
        bytes = &bytes[block.bytes.len()..];
        journal.append(block).expect("append");
    }
    assert!(stops > 3, "it stopped {stops} times");
}

#[test]
fn transaction_larger_than_the_cap_is_let_in() {
    let scratch = Scratch::new();
    let source = transactions(&[vec![(1, 1, 100)], vec![(1, 1, 1_000); 40]]);
    let journal = Journal::open(Options { max_bytes: 16_000, ..scratch.options() }).expect("open");
    let hold = journal.hold("warehouse");
    journal.begin(START).expect("begin");
    let bytes = stream(&source, START);
    let most = next_block(&bytes, Boundary::new(START), bytes.len() - 1_000);
    let (rest, boundary) = (&bytes[most.bytes.len()..], most.end);
    journal.append(most).expect("append");
    assert!(boundary.in_transaction && !journal.has_room(), "the first transaction is not in the sink yet");
    hold.set(source[0].end);
    assert!(journal.has_room(), "nothing but the open transaction is in the way");
    journal.append(next_block(rest, boundary, usize::MAX)).expect("append");
    assert!(!journal.has_room());
    assert_eq!(read_from(&journal, START).expect("readable"), source);
}

#[test]
fn reader_at_the_end_of_a_segment_goes_on_when_it_is_deleted() {
    let scratch = Scratch::new();
    let source = transactions(&[vec![(1, 1, 1_000); 40], vec![(1, 1, 100)]]);
    let options = Options { max_bytes: 16_000, retention: Duration::ZERO, ..scratch.options() };
    let journal = Journal::open(options).expect("open");
    let hold = journal.hold("warehouse");
    journal.begin(START).expect("begin");
    let (mut reader, mut assembled) = (journal.reader(START).expect("held"), Assembled::default());
    append_all(&journal, &stream(&source[..1], START), 300);
    drain(&mut reader, &mut assembled).expect("all of it is there");
    hold.set(source[0].end);
    let behind = stream(&source, source[0].end);
    journal.append(next_block(&behind, journal.held().expect("begun").end, usize::MAX)).expect("append");
    wait_until("the first segment is gone", || journal.held().expect("begun").first > START);
    drain(&mut reader, &mut assembled).expect("nothing is missing");
    assert_eq!(assembled.done, source);
}

#[test]
fn gap_starts_anew() {
    let scratch = Scratch::new();
    let source = simple_transactions(40);
    let options = Options { memory_bytes: 0, ..scratch.options() };
    let journal = filled(options.clone(), &source[..20], 300);
    let (mut before, mut assembled) = (journal.reader(START).expect("held"), Assembled::default());
    let behind_gap = source[24].end;
    journal.begin(behind_gap).expect("begin");
    let held = journal.held().expect("begun");
    assert_eq!((held.first, held.end), (behind_gap, Boundary::new(behind_gap)));
    append_all(&journal, &stream(&source, behind_gap), 300);
    let error = drain(&mut before, &mut assembled).expect_err("it would have to jump");
    assert!(matches!(error, JournalError::NotHeld(gone) if gone.from == source[19].end), "{error}");
    assert_eq!(assembled.done, source[..20]);
    for journal in
        [journal, { Journal::open(Options { dir: scratch.0.join("other"), ..options.clone() }) }.expect("open")]
    {
        drop(journal);
    }
    let journal = Journal::open(options).expect("open again");
    assert_eq!(journal.held().expect("held").first, behind_gap);
    assert!(journal.reader(source[10].end).is_err());
    assert_eq!(read_from(&journal, behind_gap).expect("readable"), source[25..]);
    let listed = super::super::list(&scratch.0.join("lms")).expect("list");
    assert_eq!(listed[0].first, START, "what is before the gap stays on disk");
    assert_eq!(listed.iter().filter(|segment| !segment.continues).count(), 2);
}

#[test]
fn segments_before_a_gap_are_deleted_though_someone_holds_all() {
    let scratch = Scratch::new();
    let source = simple_transactions(40);
    let journal = filled(Options { retention: Duration::ZERO, ..scratch.options() }, &source[..1], 300);
    let _hold = journal.hold("warehouse");
    journal.begin(source[20].end).expect("begin");
    append_all(&journal, &stream(&source, source[20].end), 300);
    wait_until("deletion", || scratch.segments()[0].to_string_lossy().contains("0C1C"));
    assert_eq!(read_from(&journal, source[20].end).expect("readable"), source[21..]);
}

#[test]
fn stream_may_not_begin_before_the_end() {
    let scratch = Scratch::new();
    let source = simple_transactions(5);
    let journal = filled(scratch.options(), &source, 300);
    let error = journal.begin(source[2].end).expect_err("held already");
    assert!(matches!(error, JournalError::BeginsBefore { at, end } if at == source[2].end && end == source[4].end));
}

#[test]
fn block_that_does_not_follow_is_refused() {
    let scratch = Scratch::new();
    let source = simple_transactions(5);
    let journal = Journal::open(scratch.options()).expect("open");
    let block = next_block(&stream(&source, START), Boundary::new(START), usize::MAX);
    assert!(matches!(journal.append(block.clone()), Err(JournalError::NotBegun)));
    assert!(matches!(journal.sync(), Err(JournalError::NotBegun)));
    journal.begin(START).expect("begin");
    journal.append(block.clone()).expect("append");
    assert!(matches!(journal.append(block), Err(JournalError::NotContiguous { .. })));
    assert_eq!(read_from(&journal, START).expect("readable"), source);
}

#[test]
fn second_opening_of_a_directory_is_refused() {
    let scratch = Scratch::new();
    let journal = Journal::open(scratch.options()).expect("open");
    assert!(matches!(Journal::open(scratch.options()), Err(JournalError::Locked { .. })));
    drop(journal);
    assert!(Journal::open(scratch.options()).is_ok());
}

#[test]
fn files_are_for_their_owner_only() {
    let scratch = Scratch::new();
    let source = simple_transactions(60);
    let journal = filled(scratch.options(), &source, 300);
    wait_until("compression", || compressed_count(&scratch) > 1);
    let mode = |path: &PathBuf| fs::metadata(path).expect("there").permissions().mode() & 0o777;
    assert_eq!(mode(&scratch.0.join("lms")), 0o700);
    // While segments are renamed a listed name is always there.
    assert!(scratch.segments().iter().all(|path| mode(path) == 0o600));
    drop(journal);
}

#[test]
fn sync_tells_the_durable_end() {
    let scratch = Scratch::new();
    let source = simple_transactions(60);
    let journal = filled(Options { fsync: true, ..scratch.options() }, &source, 300);
    assert_eq!(journal.sync().expect("synced"), source[59].end);
}

#[test]
fn void_transaction_leaves_no_trace_once_compressed() {
    let scratch = Scratch::new();
    let source = transactions(&[vec![(1, 1, 100)], vec![(1, 1, 1_000); 40]]);
    let options = Options { segment_bytes: 1 << 20, memory_bytes: 0, ..scratch.options() };
    let journal = Journal::open(options).expect("open");
    journal.begin(START).expect("begin");
    for _ in 0..5 {
        let at = journal.held().expect("begun").end.end_lsn;
        journal.begin(at).expect("begin");
        let bytes = stream(&source, at);
        let (mut cut, mut boundary) = (&bytes[..bytes.len() - 1], Boundary::new(at));
        while let block = next_block(cut, boundary, 700)
            && !block.bytes.is_empty()
        {
            boundary = block.end;
            cut = &cut[block.bytes.len()..];
            journal.append(block).expect("append");
        }
    }
    let at = journal.held().expect("begun").end.end_lsn;
    journal.begin(at).expect("begin");
    append_all(&journal, &stream(&source, at), 700);
    wait_until("compression", || compressed_count(&scratch) == 1);
    let listed = super::super::list(&scratch.0.join("lms")).expect("list");
    assert_eq!(listed.len(), 2);
    assert!(listed[0].frame_bytes < 1_500, "{listed:?}");
    assert_eq!(read_from(&journal, START).expect("readable"), source);
}

#[test]
fn nothing_is_deleted_before_the_stream_begins() {
    let scratch = Scratch::new();
    let source = simple_transactions(60);
    drop(filled(scratch.options(), &source, 300));
    let journal = Journal::open(Options { retention: Duration::ZERO, ..scratch.options() }).expect("open");
    assert!(journal.has_room());
    wait_until("compression", || compressed_count(&scratch) + 1 == scratch.segments().len());
    assert_eq!(read_from(&journal, START).expect("all is kept"), source);
    journal.begin(source[59].end).expect("begin");
    assert!(journal.inner.shared.segments().take_deletable().len() > 1);
}

//! Damaged files: a torn tail costs only itself, and damage anywhere else is never returned as data.

use proptest::prelude::*;

use super::*;

/// The journal opened again with these bytes for its last segment.
fn reopened_with(scratch: &Scratch, last: &std::path::Path, bytes: &[u8]) -> Result<Journal, JournalError> {
    fs::write(last, bytes).expect("write");
    Journal::open(scratch.options())
}

/// The files of a journal of these transactions; the last one is open, the others may be compressed or not.
fn closed_files(source: &[Transaction], segment_bytes: u64) -> (Scratch, Vec<(PathBuf, Vec<u8>)>) {
    let scratch = Scratch::new();
    drop(filled(Options { segment_bytes, ..scratch.options() }, source, 300));
    let files = scratch.segments().into_iter().map(|path| (path.clone(), fs::read(path).expect("read"))).collect();
    (scratch, files)
}

#[test]
fn torn_tail_is_cut_at_every_byte() {
    let source = simple_transactions(12);
    let (scratch, mut files) = closed_files(&source, 1_000);
    let (last, whole) = files.pop().expect("some");
    assert!(!files.is_empty(), "there are closed segments too");
    let mut held_before = START;
    for length in 0..=whole.len() {
        for path in scratch.segments() {
            fs::remove_file(path).expect("remove");
        }
        for (path, bytes) in &files {
            fs::write(path, bytes).expect("write");
        }
        let journal = reopened_with(&scratch, &last, &whole[..length]).expect("opens");
        let end = journal.held().expect("something is held").end.end_lsn;
        assert!(end >= held_before, "a longer file holds no less");
        held_before = end;
        let expected: Vec<Transaction> = source.iter().filter(|one| one.end <= end).cloned().collect();
        assert_eq!(read_from(&journal, START).expect("readable"), expected);
        // It goes on from there.
        if length % 37 == 0 {
            journal.begin(end).expect("begin");
            append_all(&journal, &stream(&source, end), 300);
            assert_eq!(read_from(&journal, START).expect("readable"), source, "after a cut at {length}");
        }
    }
    assert_eq!(held_before, source.last().expect("some").end);
}

#[test]
fn journal_torn_at_its_first_bytes_is_empty() {
    let (scratch, files) = closed_files(&simple_transactions(2), 1 << 20);
    let (path, bytes) = &files[0];
    let journal = reopened_with(&scratch, path, &bytes[..70]).expect("opens");
    assert_eq!(journal.held(), None);
    assert!(journal.reader(START).is_err());
}

#[test]
fn damage_before_the_last_record_is_named() {
    let source = simple_transactions(12);
    let (scratch, files) = closed_files(&source, 1 << 20);
    let (path, mut bytes) = files[0].clone();
    let at = bytes.len() / 2;
    bytes[at] ^= 1;
    let Err(error) = reopened_with(&scratch, &path, &bytes) else { panic!("opened") };
    let JournalError::Damaged { file, at: record, from, to } = &error else { panic!("{error}") };
    assert_eq!(file, &path);
    assert!((*record..*record + 800).contains(&(at as u64)));
    assert!(from < to && *from > START && *to < source.last().expect("some").end, "{error}");
}

#[test]
fn damage_in_a_closed_segment_is_named_when_it_is_read() {
    let source = simple_transactions(60);
    let scratch = Scratch::new();
    let options = Options { memory_bytes: 0, ..scratch.options() };
    let journal = filled(options.clone(), &source, 300);
    let closed = scratch.segments().len() - 1;
    wait_until("compression", || compressed_count(&scratch) == closed);
    drop(journal);
    let segments = scratch.segments();
    let mut bytes = fs::read(&segments[1]).expect("read");
    let at = bytes.len() - 5;
    bytes[at] ^= 0x10;
    fs::write(&segments[1], &bytes).expect("write");
    let journal = Journal::open(options).expect("opens: closed segments are checked when read");
    let mut reader = journal.reader(START).expect("held");
    let mut assembled = Assembled::default();
    for _ in 0..2 {
        let error = drain(&mut reader, &mut assembled).expect_err("damaged");
        let JournalError::Damaged { file, from, to, .. } = &error else { panic!("{error}") };
        assert_eq!(file, &segments[1]);
        assert_eq!(*from, assembled.done.last().expect("some").end);
        assert!(to > from);
    }
    let behind = journal.held().expect("begun").end.end_lsn;
    assert_eq!(read_from(&journal, behind).expect("what is behind can be read"), []);
}

#[test]
fn shortened_closed_segment_is_damage() {
    let source = simple_transactions(60);
    let (scratch, files) = closed_files(&source, 2_000);
    let (path, _) = &files[1];
    let listed = super::super::list(&scratch.0.join("lms")).expect("list");
    assert!(listed[1].end < listed[2].end);
    let mut cursor = super::super::cursor::Cursor::open(path).expect("opens");
    let header = cursor.peek().expect("readable").expect("a block");
    cursor.skip(&header);
    let bytes = fs::read(path).expect("read");
    fs::write(path, &bytes[..usize::try_from(cursor.offset()).expect("small")]).expect("write");
    let journal = Journal::open(scratch.options()).expect("opens");
    let error = read_from(&journal, START).expect_err("damaged");
    assert!(
        matches!(&error, JournalError::Damaged { file, to, .. } if file == path && *to == listed[2].first),
        "{error}"
    );
}

#[test]
fn other_versions_are_refused_by_name() {
    let (scratch, files) = closed_files(&simple_transactions(2), 1 << 20);
    let (path, mut bytes) = files[0].clone();
    bytes[8] = 9;
    let Err(error) = reopened_with(&scratch, &path, &bytes) else { panic!("opened") };
    assert!(matches!(error, JournalError::Version { found: 9, .. }), "{error}");
}

#[test]
fn segments_of_another_server_are_refused() {
    let (scratch, _) = closed_files(&simple_transactions(2), 1 << 20);
    let Err(error) = Journal::open(Options { system_identifier: Some(8), ..scratch.options() }) else {
        panic!("opened")
    };
    assert!(matches!(error, JournalError::OtherSource { found: 7, expected: 8, .. }), "{error}");
    assert!(Journal::open(Options { system_identifier: None, ..scratch.options() }).is_ok());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// Whatever bit is wrong, wherever: an error, or a true prefix.
    #[test]
    fn flipped_bit_is_never_data(segment: prop::sample::Index, byte: prop::sample::Index, bit in 0..8_u8) {
        let source = simple_transactions(40);
        let (scratch, files) = closed_files(&source, 2_000);
        let (path, mut bytes) = files[segment.index(files.len())].clone();
        let at = byte.index(bytes.len());
        bytes[at] ^= 1 << bit;
        fs::write(&path, &bytes).expect("write");
        let Ok(journal) = Journal::open(scratch.options()) else { return Ok(()) };
        let Some(held) = journal.held() else { return Ok(()) };
        prop_assert_eq!(held.first, START);
        let mut assembled = Assembled::default();
        let read = drain(&mut journal.reader(START).expect("held"), &mut assembled);
        prop_assert_eq!(&assembled.done[..], &source[..assembled.done.len()], "a prefix");
        if read.is_ok() {
            // Only the last record can go unnoticed, as what a crash tore.
            prop_assert!(path == *scratch.segments().last().expect("some"));
            prop_assert!(assembled.done.len() + 3 >= source.len());
        }
    }

    /// Bytes that are no segment at all are refused or left alone; nothing panics.
    #[test]
    fn arbitrary_files_never_panic(bytes: Vec<u8>, keep in 0..200_usize) {
        let (scratch, files) = closed_files(&simple_transactions(3), 1 << 20);
        let (path, whole) = &files[0];
        let mixed = [&whole[..keep.min(whole.len())], &bytes[..]].concat();
        if let Ok(journal) = reopened_with(&scratch, path, &mixed)
            && journal.held().is_some()
        {
            let _ = read_from(&journal, START);
        }
    }
}

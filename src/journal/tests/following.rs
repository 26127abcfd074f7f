//! Followers read a journal from outside, whatever its writer does meanwhile.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::sync::atomic::AtomicBool;

use super::super::{Follower, Start, follow};
use super::*;

fn drain_follower(follower: &mut Follower, assembled: &mut Assembled) -> Result<(), JournalError> {
    while let Some(item) = follower.try_next()? {
        assembled.take(item);
    }
    Ok(())
}

fn followed_from(scratch: &Scratch, start: Start) -> Result<Assembled, JournalError> {
    let mut assembled = Assembled::default();
    drain_follower(&mut follow(&scratch.options().dir, start)?, &mut assembled)?;
    Ok(assembled)
}

#[test]
fn live_end_starts_after_what_is_there() {
    let scratch = Scratch::new();
    let source = simple_transactions(9);
    let journal = filled(scratch.options(), &source[..6], 300);
    let mut follower = follow(&scratch.options().dir, Start::End).expect("held");
    assert_eq!(follower.from(), source[5].end);
    append_all(&journal, &stream(&source, source[5].end), 300);
    let mut assembled = Assembled::default();
    drain_follower(&mut follower, &mut assembled).expect("readable");
    assert_eq!(assembled.after(follower.from()), source[6..]);
}

#[test]
fn writer_that_runs_is_followed_to_its_end() {
    let scratch = Scratch::new();
    let source = simple_transactions(3_000);
    let options = Options { segment_bytes: 20_000, ..scratch.options() };
    let journal = Journal::open(options).expect("open");
    journal.begin(START).expect("begin");
    let done = AtomicBool::new(false);
    let mut assembled = Assembled::default();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            append_all(&journal, &stream(&source, START), 900);
            done.store(true, Ordering::Release);
        });
        let mut follower = follow(&scratch.options().dir, Start::First).expect("held");
        loop {
            let last = done.load(Ordering::Acquire);
            drain_follower(&mut follower, &mut assembled).expect("readable");
            if last {
                break;
            }
        }
    });
    assert_eq!(assembled.done, source);
}

#[test]
fn what_was_cut_off_and_came_again_is_read_once() {
    let scratch = Scratch::new();
    let source = transactions(&vec![vec![(1, 1, 400); 10]; 3]);
    let journal = filled(Options { segment_bytes: 1 << 20, ..scratch.options() }, &source[..1], 600);
    let again = stream(&source, source[0].end);
    let open = next_block(&again, Boundary::new(source[0].end), 2_000);
    assert!(open.end.in_transaction);
    journal.append(open).expect("append");
    journal.begin(source[0].end).expect("the connection broke");
    append_all(&journal, &again, 600);
    let assembled = followed_from(&scratch, Start::First).expect("readable");
    assert_eq!((assembled.done, assembled.restarts), (source, 0));
}

#[test]
fn what_is_not_held_is_refused() {
    let scratch = Scratch::new();
    let Err(JournalError::NotHeld(none)) = follow(&scratch.options().dir, Start::End) else { panic!("there is none") };
    assert_eq!(none.held, None);
    let journal = filled(scratch.options(), &simple_transactions(5), 300);
    for lsn in [Lsn(START.0 - 1), Lsn(journal.held().expect("begun").end.end_lsn.0 + 1)] {
        let refused = follow(&scratch.options().dir, Start::At(lsn)).err().expect("outside");
        let JournalError::NotHeld(refused) = refused else { panic!("{refused}") };
        assert_eq!((refused.from, refused.held), (lsn, journal.held()));
    }
}

#[test]
fn gap_ends_a_follower_from_before_it() {
    let scratch = Scratch::new();
    let source = simple_transactions(5);
    let journal = filled(scratch.options(), &source, 300);
    let mut follower = follow(&scratch.options().dir, Start::First).expect("held");
    let mut assembled = Assembled::default();
    drain_follower(&mut follower, &mut assembled).expect("readable");
    journal.begin(Lsn(90_000)).expect("begin behind a gap");
    let error = drain_follower(&mut follower, &mut assembled).expect_err("a gap");
    assert!(matches!(error, JournalError::NotHeld(_)), "{error}");
    assert_eq!(assembled.done, source);
}

#[test]
fn torn_tail_is_not_read_and_damage_is_an_error() {
    let scratch = Scratch::new();
    let source = simple_transactions(8);
    drop(filled(Options { segment_bytes: 1 << 20, ..scratch.options() }, &source, 300));
    let path = scratch.segments().pop().expect("one");
    let whole = fs::read(&path).expect("readable");
    fs::write(&path, &whole[..whole.len() - 3]).expect("torn");
    let torn = followed_from(&scratch, Start::First).expect("the rest is good");
    assert_eq!(torn.done, source[..torn.done.len()]);
    assert!(torn.done.len() < source.len());

    let mut damaged = whole.clone();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    fs::write(&path, &damaged).expect("damaged");
    let error = followed_from(&scratch, Start::First).err().expect("what follows is whole");
    assert!(matches!(error, JournalError::Damaged { .. }), "{error}");
}

#[test]
fn block_in_the_middle_of_being_written_is_waited_for() {
    let scratch = Scratch::new();
    let source = simple_transactions(8);
    drop(filled(Options { segment_bytes: 1 << 20, ..scratch.options() }, &source, 300));
    let path = scratch.segments().pop().expect("one");
    let whole = fs::read(&path).expect("readable");
    fs::write(&path, &whole[..whole.len() - 150]).expect("a part");
    let mut follower = follow(&scratch.options().dir, Start::First).expect("held");
    let mut assembled = Assembled::default();
    let mut file = OpenOptions::new().append(true).open(&path).expect("open");
    for part in whole[whole.len() - 150..].chunks(50) {
        drain_follower(&mut follower, &mut assembled).expect("readable");
        assert!(assembled.done.len() < source.len());
        file.write_all(part).expect("append");
    }
    drain_follower(&mut follower, &mut assembled).expect("readable");
    assert_eq!(assembled.done, source);
}

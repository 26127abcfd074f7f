//! A test that hangs ends the whole run, and says where it hangs: a run that is cut off from outside says nothing.
//! `TAILWATER_TEST_SECONDS` is how long one test may take (default 1200).

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, Once};
use std::thread;
use std::time::{Duration, Instant};

use super::cluster::last_lines;
use super::process;

const SECONDS: u64 = 1200;
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What stands: each scratch directory with its test and when it was made.
static STANDING: Mutex<BTreeMap<PathBuf, (String, Instant)>> = Mutex::new(BTreeMap::new());
static WATCHING: Once = Once::new();

fn standing() -> MutexGuard<'static, BTreeMap<PathBuf, (String, Instant)>> {
    STANDING.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// From here on the directory's test has so long until it must be gone.
pub fn begin(scratch: &Path) {
    let test = thread::current().name().unwrap_or("a thread without a name").to_owned();
    standing().insert(scratch.to_owned(), (test, Instant::now()));
    WATCHING.call_once(|| {
        thread::spawn(watch);
    });
}

pub fn end(scratch: &Path) {
    standing().remove(scratch);
}

fn watch() {
    let seconds = std::env::var("TAILWATER_TEST_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(SECONDS);
    loop {
        thread::sleep(LOOK_EVERY);
        let late = standing().values().find(|(_, began)| began.elapsed() > Duration::from_secs(seconds)).cloned();
        if let Some((test, _)) = late {
            give_up(&test, seconds);
        }
    }
}

/// Tells all there is to tell of the test, ends every server of this run, and the run.
fn give_up(test: &str, seconds: u64) -> ! {
    let standing = standing().clone();
    let mut text = format!("\nwatchdog: {test} did not end within {seconds} s; what it left stands below\n");
    for (path, (_, began)) in standing.iter().filter(|(_, (of, _))| of == test) {
        let _ = writeln!(text, "--- {} for {} s", path.display(), began.elapsed().as_secs());
        for pid in process::standing_in(path) {
            let _ = writeln!(text, "    {pid} {}", process::title(pid));
        }
        for name in ["log", "command.out", "command.err"] {
            if let Ok(log) = fs::read_to_string(path.join(name)) {
                let _ = writeln!(text, "    {name}, its last lines:\n{}", last_lines(&log, 40));
            }
        }
    }
    text.push_str("--- threads of the test run\n");
    for (task, name, waits_in) in process::threads() {
        let _ = writeln!(text, "    {task} {name} {waits_in}");
    }
    // Not eprintln: that goes into the output of whichever test was the first, and nobody would see it.
    let _ = std::io::stderr().write_all(text.as_bytes());
    for path in standing.keys() {
        process::signal("KILL", &process::standing_in(path));
    }
    std::process::exit(101)
}

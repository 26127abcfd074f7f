//! What processes cost: CPU seconds and peak memory, from `/proc`.

use std::fs;

use crate::support::process;

/// Ticks of `utime` and `stime` a second. The kernel's interface to programs has had this value on every Linux.
const TICKS_PER_SECOND: f64 = 100.0;

/// CPU seconds of a process so far, all its threads together; also of one that ended and was not waited for. Zero if it
/// is gone.
pub fn seconds(pid: u32) -> f64 {
    of_stat(&format!("/proc/{pid}/stat"), OWN)
}

/// CPU seconds of a server's first process and of all that it started, those included that have ended.
pub fn family_seconds(pid: u32) -> f64 {
    of_stat(&format!("/proc/{pid}/stat"), OWN_AND_WAITED_FOR) + total(&process::children(pid))
}

/// CPU seconds of this process so far.
pub fn own_seconds() -> f64 {
    of_stat("/proc/self/stat", OWN)
}

/// How many fields from `utime` on: `utime` and `stime`, then those of children that ended.
const OWN: usize = 2;
const OWN_AND_WAITED_FOR: usize = 4;

/// proc(5): from the 14th field on; the second one may hold blanks and ends at the last parenthesis.
fn of_stat(path: &str, fields: usize) -> f64 {
    let text = fs::read_to_string(path).unwrap_or_default();
    let rest = text.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks = rest.split_whitespace().skip(11).take(fields).filter_map(|field| field.parse::<f64>().ok());
    ticks.sum::<f64>() / TICKS_PER_SECOND
}

pub fn total(pids: &[u32]) -> f64 {
    pids.iter().map(|pid| seconds(*pid)).sum()
}

/// The most memory that a process ever held.
pub fn peak_mib(pid: u32) -> f64 {
    process::resident_kilobytes(pid).map_or(0.0, |(_, peak)| peak as f64 / 1024.0)
}

//! Scratch directories that go away with their test, or, if the test run was killed, with the next one.

use std::fs;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};

use super::process as processes;
use super::wait::{Look, eventually_blocking};
use super::watchdog;

static COUNT: AtomicU32 = AtomicU32::new(0);
static SWEPT: Once = Once::new();

/// Below the system's temporary directory and not below `target`: the servers' user must be able to reach it, and a
/// unix socket's path has 107 bytes at most.
fn base() -> PathBuf {
    std::env::temp_dir().join(format!("tailwater-{}", processes::user_id()))
}

/// What outlives a run: the template data directories.
pub fn kept() -> Result<PathBuf> {
    let path = base().join("kept");
    fs::create_dir_all(&path).with_context(|| format!("create {}", path.display()))?;
    Ok(path)
}

/// A directory of one test; removed when dropped.
pub struct Scratch {
    path: PathBuf,
}

impl Scratch {
    /// `name` only helps whoever looks at what a test left while it ran.
    pub fn new(name: &str) -> Result<Scratch> {
        SWEPT.call_once(sweep);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = base().join(format!("{}-{number}-{name}", process::id()));
        fs::create_dir_all(&path).with_context(|| format!("create {}", path.display()))?;
        let started = processes::started_at(process::id()).unwrap_or_default();
        fs::write(path.join("owner"), format!("{} {started}", process::id()))?;
        watchdog::begin(&path);
        Ok(Scratch { path })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        watchdog::end(&self.path);
        // With TAILWATER_KEEP set, what a test left can be looked at; the next run removes it.
        if std::env::var_os("TAILWATER_KEEP").is_none() {
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

/// Ends and removes what test runs that were killed left behind: every process that stands in a scratch directory whose
/// owner is gone, then the directory.
fn sweep() {
    let Ok(entries) = fs::read_dir(base()) else { return };
    for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
        if path.ends_with("kept") || owner_lives(&path) {
            continue;
        }
        let inside = processes::standing_in(&path);
        processes::signal("KILL", &inside);
        let _ = eventually_blocking(Duration::from_secs(10), "what was left behind is gone", || {
            let left = inside.iter().filter(|pid| processes::is_alive(**pid)).count();
            Ok(if left == 0 { Look::Yes(()) } else { Look::NotYet(format!("{left} left")) })
        });
        if let Err(err) = fs::remove_dir_all(&path) {
            eprintln!("{} of an earlier run stays: {err}", path.display());
        }
    }
}

fn owner_lives(path: &Path) -> bool {
    // A directory just made by another run may not say yet whose it is.
    let Ok(owner) = fs::read_to_string(path.join("owner")) else {
        let age = fs::metadata(path).and_then(|meta| meta.modified()).ok().and_then(|made| made.elapsed().ok());
        return age.is_none_or(|age| age.as_secs() < 60);
    };
    let Some((pid, started)) = owner.split_once(' ') else { return true };
    match (pid.parse(), started.parse()) {
        (Ok(pid), Ok(started)) => processes::started_at(pid) == Some(started),
        _ => true,
    }
}

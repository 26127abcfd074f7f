//! The demo's directory: everything it makes is in there and goes away with it.

use std::fs;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::process::{kill_inside, started_at, user_id};

/// Removed when dropped. Its name says whose it is: user, process, and when that process started.
pub struct Scratch {
    path: PathBuf,
}

impl Scratch {
    /// A new directory; those of demos that were killed are removed first, with what still runs in them.
    pub fn new() -> Result<Scratch> {
        let (pid, prefix) = (std::process::id(), format!("tailwater-demo-{}-", user_id()?));
        sweep(&prefix)?;
        let started = started_at(pid).context("/proc is not mounted")?;
        let path = std::env::temp_dir().join(format!("{prefix}{pid}-{started}"));
        // Fails where the name exists: a directory that somebody else prepared is not taken.
        fs::DirBuilder::new().mode(0o700).create(&path).with_context(|| format!("create {}", path.display()))?;
        let scratch = Scratch { path };
        // The servers' user may pass through to what is theirs, and sees nothing else.
        fs::set_permissions(&scratch.path, fs::Permissions::from_mode(0o711))?;
        Ok(scratch)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn make_directory(&self, name: &str) -> Result<PathBuf> {
        let path = self.path.join(name);
        fs::DirBuilder::new().mode(0o700).create(&path).with_context(|| format!("create {}", path.display()))?;
        Ok(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // A child whose start was cut short may be in nobody's list.
        kill_inside(&self.path);
        let _ = fs::remove_dir_all(&self.path);
    }
}

fn sweep(prefix: &str) -> Result<()> {
    let uid = user_id()?;
    let Ok(entries) = fs::read_dir(std::env::temp_dir()) else { return Ok(()) };
    for entry in entries.flatten() {
        let ours = entry.metadata().is_ok_and(|metadata| metadata.is_dir() && metadata.uid() == uid);
        let name = entry.file_name();
        let owner = name.to_str().and_then(|name| name.strip_prefix(prefix)).filter(|_| ours);
        if owner.is_some_and(|owner| !lives(owner)) {
            kill_inside(&entry.path());
            let _ = fs::remove_dir_all(entry.path());
        }
    }
    Ok(())
}

/// Whether `pid-started` names a process that is there. What cannot be read is left alone.
fn lives(owner: &str) -> bool {
    let Some((Ok(pid), Ok(started))) = owner.split_once('-').map(|(pid, at)| (pid.parse(), at.parse::<u64>())) else {
        return true;
    };
    started_at(pid) == Some(started)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_directories_of_dead_demos_are_swept() {
        let pid = std::process::id();
        let started = started_at(pid).expect("this process runs");
        assert!(lives(&format!("{pid}-{started}")));
        assert!(!lives(&format!("{pid}-{}", started + 1)), "another process has our pid");
        assert!(lives("notes"), "what is not ours by its name stays");
    }
}

//! Where the Postgres servers of each major are, and an initialised data directory of each to copy.

use std::env;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use anyhow::{Context, Result, ensure};

use super::process::{give_to_unprivileged, is_root, run, unprivileged};
use super::scratch;

/// A Postgres major. 15 is Debian's, the others are what `tests/install.sh` puts below the target directory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Version {
    V14,
    V15,
    V16,
    V17,
    V18,
}

impl Version {
    pub const ALL: [Version; 5] = [Version::V14, Version::V15, Version::V16, Version::V17, Version::V18];

    pub fn major(self) -> u32 {
        match self {
            Version::V14 => 14,
            Version::V15 => 15,
            Version::V16 => 16,
            Version::V17 => 17,
            Version::V18 => 18,
        }
    }

    /// The directory of `postgres` and `initdb`.
    pub fn binaries(self) -> Result<PathBuf> {
        let installed = match self {
            Version::V15 => PathBuf::from("/usr/lib/postgresql/15"),
            _ => Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("postgres").join(self.major().to_string()),
        };
        ensure!(
            installed.join("bin/postgres").exists(),
            "PostgreSQL {} is not in {}: run \"make deps\"",
            self.major(),
            installed.display()
        );
        Ok(self.reachable(installed)?.join("bin"))
    }

    /// The servers do not run as root; where root's checkout stands in a place closed to others, they run from a copy.
    fn reachable(self, installed: PathBuf) -> Result<PathBuf> {
        let postgres = installed.join("bin/postgres");
        if !is_root() || unprivileged(&postgres).arg("--version").output().is_ok_and(|output| output.status.success()) {
            return Ok(installed);
        }
        let copy = scratch::kept()?.join(format!("postgres-{}", self.major()));
        if !copy.exists() {
            let partial = copy.with_extension(format!("{}", std::process::id()));
            run(Command::new("cp").arg("-a").arg(&installed).arg(&partial))?;
            settle(&partial, &copy)?;
        }
        Ok(copy)
    }

    /// Copies an initialised data directory to `data`. `initdb` takes seconds, a copy a tenth of one.
    pub fn fresh_data_directory(self, data: &Path) -> Result<()> {
        // One at a time within this process; between processes the last to finish wins, which is as good.
        static INITDB: Mutex<()> = Mutex::new(());
        let template = {
            let _one = INITDB.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            self.template()?
        };
        run(Command::new("cp").arg("-a").arg(&template).arg(data))?;
        Ok(())
    }

    /// `initdb` itself.
    pub fn initialise(self, data: &Path) -> Result<()> {
        fs::create_dir_all(data).with_context(|| format!("create {}", data.display()))?;
        give_to_unprivileged(data)?;
        run(unprivileged(&self.binaries()?.join("initdb"))
            .args(["--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync"])
            .arg("--pgdata")
            .arg(data)
            .current_dir("/"))?;
        Ok(())
    }

    fn template(self) -> Result<PathBuf> {
        let kept = scratch::kept()?;
        let template = kept.join(format!("data-{}", self.major()));
        if template.join("PG_VERSION").exists() {
            return Ok(template);
        }
        let partial = kept.join(format!("initdb-{}-{}", self.major(), std::process::id()));
        self.initialise(&partial)?;
        settle(&partial, &template)?;
        Ok(template)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PostgreSQL {}", self.major())
    }
}

/// Moves what is finished to its name, unless another process was first.
fn settle(partial: &Path, finished: &Path) -> Result<()> {
    if fs::rename(partial, finished).is_err() {
        ensure!(finished.exists(), "{} cannot be moved to {}", partial.display(), finished.display());
        let _ = fs::remove_dir_all(partial);
    }
    Ok(())
}

//! A stopped server's files, kept so that every measurement begins from the same ones.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use crate::support::process::run;

/// Keeps the directory beside itself.
pub fn keep(directory: &Path) -> Result<()> {
    copy(directory, &kept(directory))
}

/// Makes the directory what it was when it was kept.
pub fn restore(directory: &Path) -> Result<()> {
    std::fs::remove_dir_all(directory)?;
    copy(&kept(directory), directory)
}

fn kept(directory: &Path) -> PathBuf {
    directory.with_extension("kept")
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    run(Command::new("cp").arg("-a").arg(from).arg(to)).map(drop)
}

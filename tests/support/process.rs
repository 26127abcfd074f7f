//! Child processes and signals, by way of `sh` and `/proc`: no unsafe code, no crate.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// Runs a command to its end; its output is in the error if it fails.
pub fn run(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("start {command:?}"))?;
    ensure!(
        output.status.success(),
        "{command:?} ended with {}: {}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Sends a signal (`TERM`, `KILL`, `STOP`, …) to processes. One that is gone already is no error.
pub fn signal(name: &str, pids: &[u32]) {
    if pids.is_empty() {
        return;
    }
    let pids = pids.iter().map(u32::to_string).collect::<Vec<_>>().join(" ");
    let script = format!("for pid in {pids}; do kill -{name} $pid 2>/dev/null; done; true");
    Command::new("sh").arg("-c").arg(script).status().expect("sh can be started");
}

/// The fields of `/proc/PID/stat` from the third on: state, parent, … `None` if there is no such process.
fn stat(pid: u32) -> Option<Vec<String>> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field, the command's name in parentheses, may hold blanks and parentheses itself.
    let (_, rest) = text.rsplit_once(')')?;
    Some(rest.split_whitespace().map(str::to_owned).collect())
}

/// Whether a process runs; a zombie does not.
pub fn is_alive(pid: u32) -> bool {
    stat(pid).is_some_and(|fields| fields.first().is_some_and(|state| state != "Z" && state != "X"))
}

/// When a process started, in clock ticks since boot: with the pid it names a process for good.
pub fn started_at(pid: u32) -> Option<u64> {
    stat(pid)?.get(19)?.parse().ok()
}

/// The direct children of a process.
pub fn children(parent: u32) -> Vec<u32> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| stat(*pid).is_some_and(|fields| fields.get(1) == Some(&parent.to_string())))
        .collect()
}

/// The directory that a process stands in.
pub fn working_directory(pid: u32) -> Option<PathBuf> {
    std::fs::read_link(format!("/proc/{pid}/cwd")).ok()
}

/// Every process that stands in a directory or below it.
pub fn standing_in(directory: &Path) -> Vec<u32> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid| working_directory(*pid).is_some_and(|stands| stands.starts_with(directory)))
        .collect()
}

/// A process's command line; Postgres writes into it what a backend does.
pub fn title(pid: u32) -> String {
    let bytes = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).replace('\0', " ").trim_end().to_owned()
}

/// The threads of this process: number, name, and where in the kernel they wait, as far as the kernel tells.
pub fn threads() -> Vec<(String, String, String)> {
    let Ok(entries) = std::fs::read_dir("/proc/self/task") else { return Vec::new() };
    let read = |path: &Path, file: &str| std::fs::read_to_string(path.join(file)).unwrap_or_default().trim().to_owned();
    let tasks = entries.filter_map(|entry| Some(entry.ok()?.path()));
    tasks
        .map(|path| {
            let number = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            (number, read(&path, "comm"), format!("{} {}", read(&path, "wchan"), read(&path, "syscall")))
        })
        .collect()
}

/// Kilobytes that a process holds in memory: now (`VmRSS`) and at most so far (`VmHWM`).
pub fn resident_kilobytes(pid: u32) -> Option<(u64, u64)> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name))?;
        line.split_whitespace().nth(1)?.parse().ok()
    };
    Some((field("VmRSS:")?, field("VmHWM:")?))
}

/// The user whose process this is.
pub fn user_id() -> u32 {
    std::fs::metadata("/proc/self").expect("/proc is mounted").uid()
}

pub fn is_root() -> bool {
    user_id() == 0
}

/// A command as the user the servers run as: Postgres refuses root, so there it is Debian's `postgres`.
pub fn unprivileged(program: &Path) -> Command {
    if !is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]).arg(program);
    command
}

/// Gives a directory tree to that user.
pub fn give_to_unprivileged(path: &Path) -> Result<()> {
    if is_root() {
        run(Command::new("chown").arg("-R").arg("postgres:postgres").arg(path))?;
    }
    Ok(())
}

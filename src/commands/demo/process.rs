//! Child processes that do not outlive the demo, not even where it is killed.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// Between two looks at a condition that nothing announces.
pub const LOOK: Duration = Duration::from_millis(10);

/// Who a child runs as.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum RunAs {
    Ourselves,
    /// Postgres refuses root, so there it is Debian's `postgres`.
    ServerUser,
}

/// A command whose process gets `signal` when this one dies, however it dies. Start it from the main thread only: the
/// kernel takes the death of the thread that started it for the parent's.
///
/// It is in a process group of its own, so that Ctrl-C reaches this process alone, which then ends its children in order.
pub fn guarded(signal: &str, run_as: RunAs, program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", signal]);
    if run_as == RunAs::ServerUser && is_root() {
        command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]);
    }
    command.arg("--").arg(program).process_group(0).stdin(Stdio::null());
    command
}

/// Gives a directory to the user whom servers run as.
pub fn give_to_server_user(path: &Path) -> Result<()> {
    if is_root() {
        let output = Command::new("chown").arg("postgres:postgres").arg(path).output().context("start chown")?;
        if !output.status.success() {
            bail!("cannot give {} to user \"postgres\": {}", path.display(), String::from_utf8_lossy(&output.stderr));
        }
    }
    Ok(())
}

/// Waits until a child ends; `None` if it does not in time. May be dropped at any point.
pub async fn ended_within(child: &mut Child, patience: Duration) -> io::Result<Option<ExitStatus>> {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= deadline {
            return Ok(None);
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Asks a child to end by one signal after the other, each with its time; at last it is killed.
pub async fn end(mut child: Child, steps: &[(&str, Duration)]) {
    for (name, patience) in steps {
        signal(name, &[child.id()]);
        if let Ok(Some(_)) = ended_within(&mut child, *patience).await {
            return;
        }
    }
    let _ = child.kill();
    let _ = child.wait();
}

/// Sends a signal by name. A process that is gone already is no error.
pub fn signal(name: &str, pids: &[u32]) {
    for pid in pids {
        // The shell's own kill: the separate program need not be installed.
        let script = format!("kill -{name} {pid}");
        let _ = Command::new("sh").args(["-c", &script]).stderr(Stdio::null()).status();
    }
}

/// Ends every process that stands in a directory below `path`, at once.
pub fn kill_inside(path: &Path) {
    let Ok(all) = fs::read_dir("/proc") else { return };
    let pids = all.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    let inside: Vec<u32> =
        pids.filter(|pid| working_directory(*pid).is_some_and(|cwd| cwd.starts_with(path))).collect();
    signal("KILL", &inside);
    let deadline = Instant::now() + Duration::from_secs(5);
    while inside.iter().any(|pid| working_directory(*pid).is_some()) && Instant::now() < deadline {
        std::thread::sleep(LOOK);
    }
}

/// The directory that a living process stands in.
fn working_directory(pid: u32) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{pid}/cwd")).ok()
}

/// When a process started, in clock ticks since boot: with the pid it names a process for good. `None` if it is gone.
pub fn started_at(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field, the command's name in parentheses, may hold blanks and parentheses itself.
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

pub fn user_id() -> Result<u32> {
    Ok(fs::metadata("/proc/self").context("/proc is not mounted")?.uid())
}

fn is_root() -> bool {
    user_id().is_ok_and(|uid| uid == 0)
}

/// The last lines of a file that a child wrote, indented, for an error.
pub fn last_lines(path: &Path, line_count: usize) -> String {
    let text = String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    let last = lines.get(lines.len().saturating_sub(line_count)..).unwrap_or_default();
    last.iter().map(|line| format!("\n  {line}")).collect()
}

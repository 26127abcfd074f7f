//! A server as a child process, whatever it serves: what it says goes to a file; it is waited for, asked to end, killed with
//! whatever it was doing, frozen, and started again.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};

use super::cluster::last_lines;
use super::process;
use super::wait::{Look, eventually_blocking};

const STOP_WITHIN: Duration = Duration::from_secs(60);

/// A server that runs, or has run, or is to. Dropped, it is killed: before the directory goes that it stands in.
pub struct Server {
    name: &'static str,
    log_path: PathBuf,
    child: Option<Child>,
}

impl Server {
    /// Its log is to be in this directory.
    pub fn new(name: &'static str, directory: &Path) -> Server {
        Server { name, log_path: directory.join("log"), child: None }
    }

    /// Starts it, with something to read, and waits until a look finds that it serves.
    pub fn start(
        &mut self,
        command: &mut Command,
        input: &str,
        within: Duration,
        serves: impl FnMut() -> Result<Look<()>>,
    ) -> Result<()> {
        ensure!(self.child.is_none(), "{} runs already", self.name);
        let log = File::options().create(true).append(true).open(&self.log_path)?;
        let command = command.stdin(Stdio::piped()).stdout(log.try_clone()?).stderr(log);
        let mut child = command.spawn().with_context(|| format!("start {}", self.name))?;
        let stdin = child.stdin.take();
        self.child = Some(child);
        // Who ends at once reads nothing; why it did is told by its log.
        let _ = stdin.context("it is a pipe")?.write_all(input.as_bytes());
        let outcome = self.wait_until(within, serves);
        if outcome.is_err() {
            self.kill9();
        }
        outcome
    }

    fn wait_until(&mut self, within: Duration, mut serves: impl FnMut() -> Result<Look<()>>) -> Result<()> {
        let child = self.child.as_mut().context("it was not started")?;
        let ended = eventually_blocking(within, &format!("{} serves", self.name), || {
            if let Some(status) = child.try_wait()? {
                return Ok(Look::Yes(Some(status)));
            }
            Ok(match serves()? {
                Look::Yes(()) => Look::Yes(None),
                Look::NotYet(instead) => Look::NotYet(instead),
            })
        })?;
        match ended {
            None => Ok(()),
            Some(status) => Err(anyhow!("{} ended with {status}: {}", self.name, last_lines(&self.log(), 5))),
        }
    }

    /// Asks it to end, and waits.
    pub fn stop(&mut self) -> Result<()> {
        let Some(child) = &mut self.child else { return Ok(()) };
        process::signal("TERM", &[child.id()]);
        eventually_blocking(STOP_WITHIN, &format!("{} stops", self.name), || {
            Ok(if child.try_wait()?.is_some() { Look::Yes(()) } else { Look::NotYet("still there".to_owned()) })
        })?;
        self.child = None;
        Ok(())
    }

    /// SIGKILL, with whatever it was doing.
    pub fn kill9(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        process::signal("KILL", &[child.id()]);
        let _ = child.wait();
    }

    /// Freezes (`STOP`) or thaws (`CONT`) it.
    pub fn signal(&self, name: &str) {
        process::signal(name, &self.pid().into_iter().collect::<Vec<_>>());
    }

    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Everything it has said.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log_path).unwrap_or_default()).into_owned()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The test runner shows this only if the test failed.
        eprintln!("--- last lines of the log of {}\n{}", self.name, last_lines(&self.log(), 15));
        self.kill9();
    }
}

/// A file of what `tests/install.sh` puts below the target directory.
pub fn installed(path: &str) -> Result<PathBuf> {
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target"), PathBuf::from);
    let file = target.join(path);
    ensure!(file.exists(), "no {path} below {}: run tests/install.sh test", target.display());
    Ok(file)
}

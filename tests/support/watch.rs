//! Tasks that look for broken promises beside a test, until it stops them or one of them finds something.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, bail};
use tokio::task::JoinHandle;

/// What the tasks and the test share.
#[derive(Default)]
pub struct Findings {
    stop: AtomicBool,
    first: Mutex<Option<String>>,
}

impl Findings {
    fn first(&self) -> MutexGuard<'_, Option<String>> {
        self.first.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the first finding: later ones follow from it.
    pub fn find(&self, broken: String) {
        self.first().get_or_insert(broken);
    }

    /// Nothing is found, and nobody has had enough.
    pub fn go_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed) && self.first().is_none()
    }

    /// Fails if a promise was broken so far.
    pub fn verdict(&self) -> Result<()> {
        match &*self.first() {
            Some(broken) => bail!("{broken}"),
            None => Ok(()),
        }
    }
}

/// The tasks; they end with it.
pub struct Watch {
    findings: Arc<Findings>,
    tasks: Vec<JoinHandle<()>>,
}

impl Watch {
    pub fn new(findings: &Arc<Findings>, tasks: Vec<JoinHandle<()>>) -> Watch {
        Watch { findings: Arc::clone(findings), tasks }
    }

    /// Lets every task end its look. Fails if a promise was broken.
    pub async fn stop(mut self) -> Result<()> {
        self.findings.stop.store(true, Ordering::Relaxed);
        for task in self.tasks.drain(..) {
            task.await.context("a checker panicked")?;
        }
        self.findings.verdict()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

//! Waiting for a condition, with a deadline: what tests do instead of sleeping.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How long between two looks. Short beside what is waited for, long beside what a look costs.
pub const LOOK_EVERY: Duration = Duration::from_millis(20);

/// How long one look may take, beside its deadline.
const ONE_LOOK_WITHIN: Duration = Duration::from_secs(30);

/// What one look found.
pub enum Look<T> {
    Yes(T),
    /// Not yet, and what there was instead; it stands in the error if the deadline passes.
    NotYet(String),
}

/// Looks until the answer is yes. An error of `look` is a "not yet" too: servers that are just starting refuse.
pub async fn eventually<T>(
    deadline: Duration,
    what: &str,
    mut look: impl AsyncFnMut() -> Result<Look<T>>,
) -> Result<T> {
    let began = Instant::now();
    loop {
        // A look that never ends would be worse than one that fails.
        let instead = match tokio::time::timeout(deadline + ONE_LOOK_WITHIN, look()).await {
            Ok(Ok(Look::Yes(found))) => return Ok(found),
            Ok(Ok(Look::NotYet(instead))) => instead,
            Ok(Err(err)) => format!("{err:#}"),
            Err(_) => "nothing: it did not end".to_owned(),
        };
        if began.elapsed() > deadline {
            bail!("not within {deadline:?}: {what}; the last look found: {instead}");
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// The same where nothing is async.
pub fn eventually_blocking<T>(deadline: Duration, what: &str, mut look: impl FnMut() -> Result<Look<T>>) -> Result<T> {
    let began = Instant::now();
    loop {
        let instead = match look() {
            Ok(Look::Yes(found)) => return Ok(found),
            Ok(Look::NotYet(instead)) => instead,
            Err(err) => format!("{err:#}"),
        };
        if began.elapsed() > deadline {
            bail!("not within {deadline:?}: {what}; the last look found: {instead}");
        }
        std::thread::sleep(LOOK_EVERY / 4);
    }
}

//! The slot, taken for a moment: whoever streams from it is no dead daemon, so while it is in hand nobody living is fenced by
//! whoever ends what dead ones began.

use super::takeover::{Stuck, blocking};
use crate::config::SourceConfig;
use crate::lsn::Lsn;
use crate::postgres::url::PgUrl;
use crate::wire::{ReplicationConnection, ValueForm};

/// Has this done with the slot in hand, and lets go of it. `None`: nobody can take it, and why is told by the decision.
///
/// # Errors
/// [`Stuck::StandBy`]: somebody streams from it.
pub(in crate::pipeline) async fn with_slot<T>(
    url: &PgUrl,
    source: &SourceConfig,
    work: impl Future<Output = T>,
) -> Result<Option<T>, Stuck> {
    let Some(connection) = take(url, source).await? else { return Ok(None) };
    let done = work.await;
    // What the source sent meanwhile is of no use.
    blocking(|| connection.finish()).await?;
    Ok(Some(done))
}

/// Takes the slot without looking at what it sends, nor telling it anything.
async fn take(url: &PgUrl, source: &SourceConfig) -> Result<Option<ReplicationConnection>, Stuck> {
    let (url, slot, publication) = (url.clone(), source.slot.clone(), source.publication.clone());
    let mut connection = blocking(move || ReplicationConnection::connect(&url, "tailwater stream")).await?;
    let start =
        move || connection.start_replication(&slot, &publication, Lsn::ZERO, ValueForm::Text).map(|()| connection);
    match blocking(start).await {
        Ok(connection) => Ok(Some(connection)),
        Err(Stuck::End(_)) => Ok(None),
        Err(stuck) => Err(stuck),
    }
}

//! A refresher's session with its sink, whichever that is.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::RefreshError;
use super::clickhouse;
use super::graph::{View, ViewGraph, dependencies};
use super::round::{self, Round};
use crate::catalog::TableName;
use crate::lsn::Lsn;
use crate::mapping::plan::ViewPlan;
use crate::postgres::connect::{Connection, connect_with};
use crate::sink::any::SinkAddress;
use crate::sink::clickhouse::Server;

/// How long REFRESH waits for a view that somebody else refreshes or reads; then other views have their turn.
const LOCK_TIMEOUT: &str = "10s";

/// How long each step of leaving may take at shutdown: to ask for a running statement's end, and to see it.
const GOODBYE: Duration = Duration::from_millis(800);

/// Why a view of a round was left as it was. The round goes on.
pub(super) struct Refused(pub RefreshError);

pub(super) enum Session {
    Postgres(Connection),
    ClickHouse(Server),
}

/// Views that are refreshed together.
pub(super) enum AnyRound<'a> {
    Postgres(Round<'a>),
    ClickHouse(clickhouse::Round<'a>),
}

impl Session {
    pub async fn open(address: &SinkAddress, app_name: &str) -> Result<Session, RefreshError> {
        Ok(match address {
            SinkAddress::Postgres(url) => {
                Session::Postgres(connect_with(url, app_name, &[("lock_timeout", LOCK_TIMEOUT)]).await?)
            }
            SinkAddress::ClickHouse(address, topology) => {
                let server = Server::connect(address.clone(), topology.clone()).await?;
                Session::ClickHouse(server)
            }
            SinkAddress::Kafka(_) => return Err(RefreshError::NoViews),
        })
    }

    /// Of these views, those that do not show every source's checkpoint, by their place.
    pub async fn behind(&self, plans: &[ViewPlan]) -> Result<Vec<usize>, RefreshError> {
        match self {
            Session::Postgres(connection) => Ok(round::behind(&connection.client, plans).await?),
            Session::ClickHouse(server) => clickhouse::behind(&server.client, plans).await,
        }
    }

    pub async fn dependencies(&self, views: &[TableName]) -> Result<ViewGraph, RefreshError> {
        Ok(match self {
            Session::Postgres(connection) => dependencies(&connection.client, views).await?,
            Session::ClickHouse(server) => clickhouse::dependencies(&server.client, views).await?,
        })
    }

    /// # Errors
    /// Of the connection or of the state tables, after which the session is of no use.
    pub async fn begin(&self) -> Result<AnyRound<'_>, RefreshError> {
        Ok(match self {
            Session::Postgres(connection) => AnyRound::Postgres(Round::begin(&connection.client).await?),
            Session::ClickHouse(server) => AnyRound::ClickHouse(clickhouse::Round::begin(&server.client).await?),
        })
    }

    /// Ends what still runs, and the session.
    pub async fn leave(self) {
        // A refresh that ClickHouse has begun goes on without us, which does no harm.
        let Session::Postgres(connection) = self else { return };
        let canceller = connection.canceller();
        // Refused or too late, the server ends the statement when it finds the connection closed.
        let _ = tokio::time::timeout(GOODBYE, canceller.cancel()).await;
        let driver = connection.driver.abort_handle();
        if tokio::time::timeout(GOODBYE, connection.close()).await.is_err() {
            driver.abort();
        }
    }
}

impl AnyRound<'_> {
    /// Each source's checkpoint: its `end_lsn`.
    pub fn lsns(&self) -> &[(String, Lsn)] {
        match self {
            AnyRound::Postgres(round) => &round.lsns,
            AnyRound::ClickHouse(round) => &round.lsns,
        }
    }

    /// Tables that are held in part: they are being copied, or catch up with their copy.
    pub fn partial(&self) -> &BTreeSet<TableName> {
        match self {
            AnyRound::Postgres(round) => &round.partial,
            AnyRound::ClickHouse(round) => &round.partial,
        }
    }

    /// Refreshes one view; those it reads have been.
    ///
    /// # Errors
    /// The outer one ends the round and the session.
    pub async fn refresh(&self, plan: &ViewPlan, view: &View) -> Result<Result<Duration, Refused>, RefreshError> {
        match self {
            AnyRound::Postgres(round) => Ok(round.refresh(plan, view).await?),
            AnyRound::ClickHouse(round) => round.refresh(plan).await,
        }
    }

    /// Records what the refreshed views show, and ends the round.
    pub async fn commit(self, refreshed: &BTreeMap<&TableName, Duration>) -> Result<(), RefreshError> {
        match self {
            AnyRound::Postgres(round) => Ok(round.commit(refreshed).await?),
            AnyRound::ClickHouse(round) => Ok(round.commit(refreshed).await?),
        }
    }
}

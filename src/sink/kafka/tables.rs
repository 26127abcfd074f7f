//! A table's messages as its layout changes: made anew for each layout that the stream describes.

use std::collections::BTreeSet;
use std::sync::Arc;

use tracing::{info, warn};

use super::cluster::Cluster;
use super::encode::Messages;
use super::registry::{RegistryError, register_plan};
use crate::mapping::plan::{Plan, Topic};
use crate::sink::ApplyError;

/// One table of the sink, at the layout of the change that was last taken.
pub(super) struct Table {
    /// Or why the table has none: for whoever brings a row of it.
    messages: Result<Messages, String>,
    /// What the binding says.
    plan: Arc<Plan>,
    database: String,
    /// Columns that turned out to hold NULL where the catalog, read before or after that, said they cannot.
    nullable: BTreeSet<String>,
}

/// Why there are no messages.
enum Unmade {
    /// Of this table alone: the registry refuses its schema.
    Refused(String),
    /// Of this table alone: its columns cannot be messages.
    Plan(String),
    Sink(ApplyError),
}

impl Table {
    /// # Errors
    /// The registry does not answer, or the plan makes no messages.
    pub async fn new(cluster: &Cluster, plan: &Arc<Plan>, database: &str) -> Result<Table, ApplyError> {
        let messages = match made(cluster, plan, database).await {
            Ok(messages) => Ok(messages),
            Err(Unmade::Refused(message)) => Err(message),
            Err(Unmade::Plan(message)) => return Err(ApplyError::Fatal { message }),
            Err(Unmade::Sink(error)) => return Err(error),
        };
        Ok(Table { messages, plan: plan.clone(), database: database.to_owned(), nullable: BTreeSet::new() })
    }

    /// # Errors
    /// Why the table has none.
    #[inline]
    pub fn messages(&mut self) -> Result<&mut Messages, String> {
        self.messages.as_mut().map_err(|why| why.clone())
    }

    /// Whether the messages are those of this plan.
    #[inline]
    pub fn is_at(&self, plan: &Arc<Plan>) -> bool {
        Arc::ptr_eq(&self.plan, plan)
    }

    /// Messages have this plan's columns from here on.
    ///
    /// # Errors
    /// The registry does not answer.
    pub async fn follow(&mut self, cluster: &Cluster, plan: &Arc<Plan>) -> Result<(), ApplyError> {
        // The same layout may be described again.
        if *plan != self.plan {
            tell(&self.plan, plan);
            self.make(cluster, plan).await?;
        }
        self.plan = plan.clone();
        Ok(())
    }

    /// A NULL came where there was none to come: the column became nullable since the catalog was read, or it was so before.
    /// Answers whether that is news.
    ///
    /// # Errors
    /// The registry does not answer.
    pub async fn admit_null(&mut self, cluster: &Cluster, column: &str) -> Result<bool, ApplyError> {
        if !self.nullable.insert(column.to_owned()) {
            return Ok(false);
        }
        info!(table = %self.plan.from, column, "column holds NULL, and its schema says so from here on");
        let plan = self.plan.clone();
        self.make(cluster, &plan).await?;
        Ok(true)
    }

    async fn make(&mut self, cluster: &Cluster, plan: &Plan) -> Result<(), ApplyError> {
        let mut plan = plan.clone();
        for column in plan.topic.iter_mut().flat_map(|topic| &mut topic.columns) {
            column.nullable |= self.nullable.contains(&column.name);
        }
        self.messages = match made(cluster, &plan, &self.database).await {
            Ok(messages) => Ok(messages),
            Err(Unmade::Refused(message) | Unmade::Plan(message)) => Err(message),
            Err(Unmade::Sink(error)) => return Err(error),
        };
        Ok(())
    }
}

/// Registers the schemas of the messages, if they have any.
async fn made(cluster: &Cluster, plan: &Plan, database: &str) -> Result<Messages, Unmade> {
    let schemas = register_plan(cluster.registry(), plan, database).await.map_err(|error| match error {
        RegistryError::Passing { .. } => Unmade::Sink(ApplyError::Transient { message: error.to_string() }),
        RegistryError::Incompatible { .. } | RegistryError::Invalid { .. } => {
            warn!(table = %plan.target, %error, "schema is not registered");
            Unmade::Refused(error.to_string())
        }
        RegistryError::Denied { .. } | RegistryError::Unusable { .. } => {
            Unmade::Sink(ApplyError::Fatal { message: error.to_string() })
        }
        RegistryError::Plan(message) => Unmade::Plan(message),
    })?;
    Messages::new(plan, database, schemas).map_err(Unmade::Plan)
}

fn tell(before: &Plan, plan: &Plan) {
    let names = |plan: &Plan| plan.inputs.iter().map(|input| input.name.clone()).collect::<Vec<_>>().join(", ");
    let key: Vec<&str> = plan.key_inputs.iter().map(|&input| plan.inputs[input].name.as_str()).collect();
    let (table, key) = (&plan.from, key.join(", "));
    info!(%table, before = names(before), columns = names(plan), key, "the table changed, and so do its messages");
    for column in plan.topic.iter().flat_map(Topic::gone) {
        warn!(%table, column, "column is of a type that is gone from the source: messages leave it out");
    }
}

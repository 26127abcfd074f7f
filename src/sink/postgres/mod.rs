//! The Postgres sink: batches by pipelined statements, the checkpoint in the same transaction.

mod apply;
pub mod cursor;
pub mod encode;
pub mod load;
pub mod state;
pub mod statements;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Statement};

use crate::checkpoint::Checkpoint;
use crate::mapping::plan::Plan;
use crate::retry::Retry;
use crate::sink::SinkSetup;
use crate::sink::{ApplyError, Durable, TEXT_FORM};
use encode::EncodeError;
use statements::TableStatements;

fn passes(code: &SqlState) -> bool {
    crate::retry::by_sqlstate(code.code()) == Retry::Backoff
}

impl ApplyError {
    /// An error of a statement that concerns no table: BEGIN, COMMIT, the checkpoint, a stage.
    fn control(error: tokio_postgres::Error) -> Self {
        let message = crate::postgres::error::describe(&error);
        match error.code() {
            Some(code) if !passes(code) && code != &SqlState::IN_FAILED_SQL_TRANSACTION => {
                ApplyError::Fatal { message }
            }
            _ => ApplyError::Transient { message },
        }
    }

    fn at_table(plan_index: usize, error: &tokio_postgres::Error) -> Self {
        let message = crate::postgres::error::describe(error);
        match error.code() {
            Some(code) if code == &SqlState::DIVISION_BY_ZERO => ApplyError::Table {
                plan_index,
                code: Some(code.code().to_owned()),
                message: "a row that the source changed is missing in the target".to_owned(),
            },
            Some(code) if !passes(code) && code != &SqlState::IN_FAILED_SQL_TRANSACTION => {
                ApplyError::Table { plan_index, code: Some(code.code().to_owned()), message }
            }
            _ => ApplyError::Transient { message },
        }
    }

    fn encode(plan_index: usize, error: EncodeError) -> Self {
        let code = matches!(error, EncodeError::Form { .. }).then(|| TEXT_FORM.to_owned());
        ApplyError::Table { plan_index, code, message: error.to_string() }
    }
}

/// One connection that applies one source's batches.
pub struct PostgresSink {
    name: String,
    source: String,
    client: Client,
    plans: Vec<Arc<Plan>>,
    tables: Arc<Vec<TableStatements>>,
    /// Plans, parents before children.
    order: Vec<usize>,
    /// Each plan's place in `order`.
    rank: Vec<usize>,
    /// New rows of the table may be copied straight into it.
    is_direct: Vec<bool>,
    /// The table may hold rows newer than the changes that come: it catches up, or a range is replayed.
    is_tolerant: Vec<bool>,
    /// The target's rows may be written in any order and replaced in place; `None` before the session looked.
    is_plain: Vec<Option<bool>>,
    /// Rows are looked at for values that came as text.
    takes_text: bool,
    epoch: i64,
    checkpoint: Checkpoint,
    in_transaction: bool,
    statements: HashMap<String, Statement>,
    stages: HashSet<String>,
    mask_key: Arc<[u8]>,
}

impl PostgresSink {
    /// A sink over a fresh connection, standing at the checkpoint that was read over it.
    pub fn new(client: Client, setup: SinkSetup) -> Self {
        let tables: Vec<_> =
            setup.plans.iter().enumerate().map(|(number, plan)| TableStatements::new(plan, number)).collect();
        let order = parents_first(&setup.plans);
        let mut rank = vec![0; order.len()];
        for (place, &plan) in order.iter().enumerate() {
            rank[plan] = place;
        }
        PostgresSink {
            name: setup.name,
            source: setup.source,
            client,
            is_direct: tables.iter().map(|table| table.copy_into_target.is_some()).collect(),
            is_tolerant: vec![false; tables.len()],
            is_plain: vec![None; tables.len()],
            takes_text: false,
            tables: Arc::new(tables),
            plans: setup.plans,
            order,
            rank,
            epoch: setup.epoch,
            checkpoint: setup.checkpoint,
            in_transaction: false,
            statements: HashMap::new(),
            stages: HashSet::new(),
            mask_key: setup.mask_key,
        }
    }

    /// A COMMIT's error: deferred constraints name their table there.
    fn at_commit(&self, error: tokio_postgres::Error) -> ApplyError {
        let of_error = |plan: &Arc<Plan>| {
            error.as_db_error().is_some_and(|database| {
                database.code().code().starts_with("23")
                    && database.schema() == Some(&plan.target.schema)
                    && database.table() == Some(&plan.target.name)
            })
        };
        match self.plans.iter().position(of_error) {
            Some(plan_index) => ApplyError::at_table(plan_index, &error),
            None => ApplyError::control(error),
        }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn client(&self) -> &Client {
        &self.client
    }

    pub fn plans(&self) -> &[Arc<Plan>] {
        &self.plans
    }

    /// What the sink durably holds.
    pub fn durable(&self) -> Durable {
        Durable::new(&self.name, self.checkpoint)
    }

    /// New rows of this table go through the merge from now on: the target turned out to hold some of them.
    pub fn merge_inserts(&mut self, plan_index: usize) {
        self.is_direct[plan_index] = false;
    }

    /// Rows may hold values as text from now on: they go to the server as text, which costs more than passing on what came
    /// in binary form.
    pub fn take_text(&mut self) {
        self.takes_text = true;
    }

    /// The table may hold rows newer than the changes that come.
    pub fn set_tolerant(&mut self, plan_index: usize, tolerant: bool) {
        self.is_tolerant[plan_index] = tolerant;
        self.is_direct[plan_index] = !tolerant && self.tables[plan_index].copy_into_target.is_some();
    }
}

/// Plans in an order in which every table comes after those its foreign keys point to; cycles are cut anywhere.
pub fn parents_first(plans: &[Arc<Plan>]) -> Vec<usize> {
    fn visit(plans: &[Arc<Plan>], index: usize, seen: &mut [bool], order: &mut Vec<usize>) {
        if std::mem::replace(&mut seen[index], true) {
            return;
        }
        for parent in &plans[index].parents {
            for (other, plan) in plans.iter().enumerate() {
                if &plan.target == parent {
                    visit(plans, other, seen, order);
                }
            }
        }
        order.push(index);
    }
    let mut order = Vec::with_capacity(plans.len());
    let mut seen = vec![false; plans.len()];
    for index in 0..plans.len() {
        visit(plans, index, &mut seen, &mut order);
    }
    order
}

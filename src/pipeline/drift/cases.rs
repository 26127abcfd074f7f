//! Every mapped table of every sink, with what became of its source since the sink's rows were copied.

use std::collections::{BTreeMap, BTreeSet};

use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::added::{self, Older};
use super::edges::before_added;
use super::judge::{Judged, judge};
use super::rows::{holds_other, limited, unpublished, unpublished_rows};
use super::warehouse::{Warehouse, WarehouseError};
use super::{Ends, Unsettled, store};
use crate::catalog::{Table, TableName};
use crate::config::Config;
use crate::lsn::Lsn;
use crate::mapping::MappingFile;
use crate::mapping::desired::{DesiredColumn, Target, missing_columns};
use crate::mapping::resolve::Live;
use crate::mapping::syntax::TableMapping;
use crate::postgres::catalog::{Wanted, read_source};
use crate::postgres::error::SqlError;
use crate::sink::state::{StoredTable, TableState};
use crate::source::layout::{BeforeText, Layout, LayoutColumn, Storage, has_older_row, name_of, read_layouts};
use crate::source::probe::{PublicationRow, probe};
use crate::value::clickhouse::types::SourceType;

/// How long a table may be locked before its catalog is taken for unsettled.
const LOCK_TIMEOUT: &str = "10s";
/// Between two statements a table seldom changes.
const LOOKS_MAX: usize = 5;

/// What a sink remembers of a source: its tables' states, and what they were filled from.
type Known = (Vec<StoredTable>, BTreeMap<TableName, Layout>);

/// One source, looked at.
pub(super) struct SourceNow {
    /// The catalog knows what every transaction did that committed before this…
    pub settled: Lsn,
    /// … except to these tables.
    pub unsettled: BTreeSet<TableName>,
    pub layouts: BTreeMap<TableName, Layout>,
    pub publication: Option<PublicationRow>,
    /// Somebody streams from the slot.
    pub is_active: bool,
}

/// A column that the target is to get.
pub(super) struct Follow {
    pub column: LayoutColumn,
    /// `None` if the target has it already.
    pub desired: Option<DesiredColumn>,
    pub value: BeforeText,
    /// The same as SQL of ClickHouse, where that is the sink.
    pub literal: Option<String>,
}

/// One mapped table of one sink.
pub(super) struct Case {
    /// Its place in the files, which name one sink each.
    pub file: usize,
    pub table: usize,
    pub source: String,
    pub sink: String,
    pub from: TableName,
    pub target: TableName,
    pub state: Option<TableState>,
    pub stored: Option<Layout>,
    pub now: Option<Layout>,
    pub settled: Lsn,
    pub follow: Vec<Follow>,
    /// Columns that the mapping asks for and that cannot be followed, and what the target would get for them.
    pub left_out: Vec<(String, Option<DesiredColumn>)>,
    /// Those of them that only wait for something.
    pub awaited: Vec<String>,
    pub broken: Vec<String>,
    pub notes: Vec<String>,
}

impl Case {
    /// Its copy begins anew.
    pub fn is_copied_anew(&self) -> bool {
        matches!(self.state, None | Some(TableState::Pending | TableState::Copying))
    }
}

/// Looks at a source, and brings its catalog in `live` up to date.
pub(super) async fn look(
    config: &Config,
    name: &str,
    client: &Client,
    tables: &[TableName],
    live: &mut Live,
) -> Result<SourceNow, SqlError> {
    let source = &config.sources[name];
    let sql =
        "SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_insert_lsn() END::text";
    let row = client.query_one(sql, &[]).await?;
    let settled = row.try_get::<_, Option<&str>>(0)?.unwrap_or("0/0").parse();
    let settled = settled.map_err(|_| SqlError::unexpected("the source's position is no LSN"))?;
    let mut unsettled = BTreeSet::new();
    for table in tables {
        // An ALTER TABLE may be in the log already and not yet in the catalog; it holds a lock until it is.
        let sql =
            format!("BEGIN; SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'; SELECT FROM {} LIMIT 0; COMMIT", table.quoted());
        if let Err(error) = client.batch_execute(&sql).await {
            client.batch_execute("ROLLBACK").await?;
            if error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE) {
                unsettled.insert(table.clone());
            }
        }
    }
    let layouts = consistent(client, name, tables, live).await?;
    let found = probe(client, &source.slot, &source.publication).await?;
    let is_active = found.slot.as_ref().is_some_and(|slot| slot.active);
    Ok(SourceNow { settled, unsettled, layouts, publication: found.publication, is_active })
}

/// Layouts and catalog, read in statements of their own, that say the same.
async fn consistent(
    client: &Client,
    source: &str,
    tables: &[TableName],
    live: &mut Live,
) -> Result<BTreeMap<TableName, Layout>, SqlError> {
    for _ in 0..LOOKS_MAX {
        let layouts = read_layouts(client, tables).await?;
        let (catalog, types) = read_source(client, Wanted::All).await?;
        let is_same = |(name, layout): (&TableName, &Layout)| {
            let names = |table: &Table| {
                table.columns.iter().map(|column| &column.name).eq(layout.columns.iter().map(|column| &column.name))
            };
            catalog.table(name).is_some_and(|table| table.oid == layout.oid && names(table))
        };
        if layouts.iter().all(is_same) {
            if let Some(end) = live.sources.get_mut(source) {
                end.catalog = catalog;
                end.types = types.into();
            }
            return Ok(layouts);
        }
    }
    Err(SqlError::unexpected(format!("the tables of source \"{source}\" are being changed all the time")))
}

/// One file for each sink that it names, so that what is left out for one is not left out for all.
pub(super) fn by_sink(files: &[MappingFile]) -> Vec<MappingFile> {
    let one = |file: &MappingFile| {
        let file = file.clone();
        file.sinks.clone().into_iter().map(move |sink| MappingFile { sinks: vec![sink], ..file.clone() })
    };
    files.iter().flat_map(one).collect()
}

/// Every case of these files, each of which names one sink.
pub(super) async fn cases(
    files: &[MappingFile],
    live: &Live,
    ends: Ends<'_>,
    sources: &BTreeMap<String, SourceNow>,
) -> Result<Vec<Case>, Unsettled> {
    let mut cases = Vec::new();
    let mut known: BTreeMap<(String, String), Known> = BTreeMap::new();
    for (file_index, file) in files.iter().enumerate() {
        let Some(sink) = file.sinks.first().map(|sink| sink.value.clone()) else { continue };
        let Some(warehouse) = ends.warehouse(&sink) else { continue };
        for source in file.sources.iter().map(|source| source.value.clone()) {
            let Some(now) = sources.get(&source) else { continue };
            let key = (source.clone(), sink.clone());
            if !known.contains_key(&key) {
                let tables = warehouse.tables(&source).await?;
                known.insert(key.clone(), (tables, store::read(warehouse, &source).await?));
            }
            let (tables, stored) = &known[&key];
            for (table, mapping) in file.tables.iter().enumerate() {
                let (from, target) = (mapping.from.value.clone(), mapping.target.value.clone());
                let mut case = Case {
                    file: file_index,
                    table,
                    state: tables.iter().find(|table| table.target == target).map(|table| table.state),
                    stored: stored.get(&target).cloned(),
                    now: now.layouts.get(&from).cloned(),
                    settled: if now.unsettled.contains(&from) { Lsn::ZERO } else { now.settled },
                    source: source.clone(),
                    sink: sink.clone(),
                    from,
                    target,
                    follow: Vec::new(),
                    left_out: Vec::new(),
                    awaited: Vec::new(),
                    broken: Vec::new(),
                    notes: Vec::new(),
                };
                Assess { file, mapping, live, ends, now, case: &mut case }.run().await?;
                cases.push(case);
            }
        }
    }
    Ok(cases)
}

struct Assess<'a> {
    file: &'a MappingFile,
    mapping: &'a TableMapping,
    live: &'a Live,
    ends: Ends<'a>,
    now: &'a SourceNow,
    case: &'a mut Case,
}

impl Assess<'_> {
    async fn run(&mut self) -> Result<(), Unsettled> {
        let missing = self.missing();
        if self.case.is_copied_anew() {
            // A copy that was cut short takes the new column with it.
            if self.case.state.is_some()
                && let Some(now) = self.case.now.clone()
            {
                let columns = missing.into_iter().filter_map(|(name, desired)| {
                    let column = now.columns.iter().find(|column| column.name == name)?.clone();
                    Some(Follow { column, desired: Some(desired), value: None, literal: None })
                });
                self.case.follow = columns.collect();
            }
            return Ok(());
        }
        let Some(stored) = self.case.stored.clone() else { return Ok(()) };
        let Some(now) = self.case.now.clone() else {
            let name = name_of(&self.ends.sources[&self.case.source], stored.oid).await?;
            self.case.broken.push(match name {
                Some(name) => format!("the table is called \"{name}\" now: say so in the mapping, or rename it back"),
                None => "the table was dropped".to_owned(),
            });
            return Ok(());
        };
        let judged = judge(self.mapping, &now.since(&stored));
        if let Some(why) = self.now.publication.as_ref().and_then(|there| unpublished(there, &self.case.from)) {
            self.case.broken.push(why.to_owned());
        }
        if self.case.state == Some(TableState::Quarantined) {
            self.case.broken.clear();
            self.case.left_out.extend(missing.into_iter().map(|(name, desired)| (name, Some(desired))));
            return Ok(());
        }
        self.judged(judged, missing).await
    }

    fn missing(&self) -> Vec<(String, DesiredColumn)> {
        let source = self.live.sources.get(&self.case.source);
        let (sink, target) = (&self.case.sink, &self.case.target);
        let postgres = self.live.sinks.get(sink).and_then(|sink| sink.catalog.table(target)).map(Target::Postgres);
        let clickhouse = || self.live.clickhouse.get(sink)?.table(target).map(Target::ClickHouse);
        let target = postgres.or_else(clickhouse);
        let Some((source, target)) = source.zip(target) else { return Vec::new() };
        missing_columns(self.file, self.mapping, &self.case.source, source, target)
    }

    async fn judged(&mut self, judged: Judged, missing: Vec<(String, DesiredColumn)>) -> Result<(), Unsettled> {
        self.case.broken.extend(judged.broken);
        self.case.notes.extend(judged.notes);
        for storage in &judged.attached {
            self.attached(storage).await?;
        }
        for storage in &judged.refiled {
            self.refiled(storage).await?;
        }
        for (column, before) in judged.added {
            let desired = missing.iter().find(|(name, _)| *name == column.name).map(|(_, desired)| desired.clone());
            match self.added(&column, before, desired.as_ref()).await? {
                Ok((value, literal)) => self.case.follow.push(Follow { column, desired, value, literal }),
                Err(why) => {
                    self.case.left_out.push((column.name.clone(), desired));
                    self.case.broken.extend(why);
                }
            }
        }
        Ok(())
    }

    /// The value of rows that are older than an added column, or why it cannot be followed; no reason if it only waits.
    async fn added(
        &mut self,
        column: &LayoutColumn,
        before: Option<BeforeText>,
        desired: Option<&DesiredColumn>,
    ) -> Result<Result<(BeforeText, Option<String>), Option<String>>, Unsettled> {
        let name = &column.name;
        let Some(value) = before else {
            return Ok(Err(Some(format!(
                "column \"{name}\" was added with a default that each row computed for itself (or all rows were written \
                 anew since), and what they got was not sent"
            ))));
        };
        let masked = self.mapping.mask.iter().any(|(masked, _)| &masked.value == name);
        if value.is_some() && (masked || self.file.sources.len() > 1) {
            let why = if masked { "masked" } else { "shared by several sources" };
            return Ok(Err(Some(format!("column \"{name}\" was added with a default, and the target's is {why}"))));
        }
        if let Some(published) = self.column_list() {
            if !published.contains(name) {
                self.case.awaited.push(name.clone());
                let hint = "run `tailwater setup`, or what `tailwater setup --print` shows as the publication's owner";
                let note = format!(
                    "column \"{name}\" was added, and the publication's column list leaves it out: {hint}, before rows have \
                     other values in it than its default"
                );
                self.case.notes.push(note);
                return Ok(Err(None));
            }
            let client = &self.ends.sources[&self.case.source];
            if let Some(why) = unpublished_rows(client, &self.case.from, name, value.as_deref()).await? {
                return Ok(Err(Some(format!("column \"{name}\" was added, and was not published at first: {why}"))));
            }
        }
        let target = self.target_name(name);
        let literal = match self.literal(column, value.is_some(), desired, &target).await? {
            Ok(literal) => literal,
            Err(why) => {
                return Ok(Err(Some(format!(
                    "column \"{name}\" was added with a default that the target cannot hold: {why}"
                ))));
            }
        };
        if desired.is_none() && self.file.sources.len() == 1 {
            let table = &self.case.target;
            let holds_other = match self.ends.warehouse(&self.case.sink) {
                Some(Warehouse::Postgres(client)) => {
                    holds_other(client, table, &target, &column.type_name, value.as_deref()).await?
                }
                Some(Warehouse::ClickHouse(server)) => {
                    added::holds_other(server, table, &target, literal.as_deref()).await
                }
                None => true,
            };
            if holds_other {
                return Ok(Err(Some(format!(
                    "column \"{name}\" was added, and the target's column \"{target}\" holds other values already, as of one \
                     that was dropped: drop it there"
                ))));
            }
        }
        Ok(Ok((value, literal)))
    }

    /// The value of older rows as SQL, if the sink is ClickHouse and there is one.
    async fn literal(
        &self,
        column: &LayoutColumn,
        has_value: bool,
        desired: Option<&DesiredColumn>,
        target: &str,
    ) -> Result<Result<Option<String>, String>, Unsettled> {
        let (Some(warehouse @ Warehouse::ClickHouse(server)), true) = (self.ends.warehouse(&self.case.sink), has_value)
        else {
            return Ok(Ok(None));
        };
        let live = &self.live.clickhouse[&self.case.sink];
        let there = live.table(&self.case.target).and_then(|table| table.column(target));
        let source = self.live.sources[&self.case.source].catalog.table(&self.case.from);
        let Some(known) = source.and_then(|table| table.column(&column.name)) else { return Ok(Ok(None)) };
        let Some(target) = desired.map(|desired| &desired.type_name).or(there.map(|there| &there.type_name)) else {
            return Ok(Ok(None));
        };
        let policy = self.mapping.on_overflow.iter().find(|(name, _)| name.value == column.name);
        let older = Older {
            source: SourceType::of(known),
            target,
            on_overflow: policy.map(|(_, policy)| *policy).unwrap_or_default(),
            value: &before_added(&self.ends.sources[&self.case.source], warehouse, column).await?,
        };
        let literal = added::literal(server, &older).await.map_err(WarehouseError::from)?;
        Ok(literal.map(Some))
    }

    fn column_list(&self) -> Option<&Vec<String>> {
        let publication = self.now.publication.as_ref()?;
        publication.tables.iter().find(|table| table.name == self.case.from)?.columns.as_ref()
    }

    fn target_name(&self, column: &str) -> String {
        let renamed = self.mapping.rename.iter().find(|(from, _)| from.value == column);
        renamed.map_or(column.to_owned(), |(_, to)| to.value.clone())
    }

    /// A table became a partition: its rows were sent only if they came later.
    async fn attached(&mut self, storage: &Storage) -> Result<(), SqlError> {
        let Some(attached) = &storage.attached else { return Ok(()) };
        let table = storage.table();
        if self.older_row(&table, attached).await {
            self.case
                .broken
                .push(format!("table \"{table}\" was attached as a partition, and the rows in it were not sent"));
        }
        Ok(())
    }

    /// A partition's file is another one: after TRUNCATE no row is older than that, after VACUUM FULL all are.
    async fn refiled(&mut self, storage: &Storage) -> Result<(), SqlError> {
        let table = storage.table();
        let client = &self.ends.sources[&self.case.source];
        if !limited(client, has_older_row(client, &table, &storage.changed)).await.unwrap_or(false) {
            let note = format!(
                "partition \"{table}\" was truncated by itself; its rows stay in the target, for nothing was sent"
            );
            self.case.notes.push(note);
        }
        Ok(())
    }

    /// Where it cannot be told, there is one.
    async fn older_row(&self, table: &TableName, transaction: &str) -> bool {
        let client = &self.ends.sources[&self.case.source];
        limited(client, has_older_row(client, table, transaction)).await.unwrap_or(true)
    }
}

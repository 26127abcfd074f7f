//! Every mapped table of every sink, with what became of its source since the sink's rows were copied.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::judge::{Judged, judge};
use super::{Ends, store};
use crate::catalog::{Table, TableName, quote_ident, quote_literal};
use crate::config::{Config, SinkEnd};
use crate::lsn::Lsn;
use crate::mapping::MappingFile;
use crate::mapping::desired::{DesiredColumn, missing_columns};
use crate::mapping::resolve::Live;
use crate::mapping::syntax::TableMapping;
use crate::postgres::catalog::{Wanted, read_tables};
use crate::postgres::error::SqlError;
use crate::sink::postgres::state;
use crate::sink::state::{StoredTable, TableState};
use crate::source::layout::{BeforeText, Layout, LayoutColumn, Storage, has_older_row, name_of, read_layouts};
use crate::source::probe::{PublicationRow, probe};

/// How long a table may be locked before its catalog is taken for unsettled.
const LOCK_TIMEOUT: &str = "10s";
/// Between two statements a table seldom changes.
const LOOKS_MAX: usize = 5;
/// How long transactions are waited for that may have written before a publication was altered.
const WRITERS_TIMEOUT: Duration = Duration::from_secs(30);
/// A look at rows must not hold up a start.
const PROBE_TIMEOUT: &str = "60s";

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
        let catalog = read_tables(client, Wanted::All).await?;
        let is_same = |(name, layout): (&TableName, &Layout)| {
            let names = |table: &Table| {
                table.columns.iter().map(|column| &column.name).eq(layout.columns.iter().map(|column| &column.name))
            };
            catalog.table(name).is_some_and(|table| table.oid == layout.oid && names(table))
        };
        if layouts.iter().all(is_same) {
            if let Some(end) = live.sources.get_mut(source) {
                end.catalog = catalog;
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
    config: &Config,
    files: &[MappingFile],
    live: &Live,
    ends: Ends<'_>,
    sources: &BTreeMap<String, SourceNow>,
) -> Result<Vec<Case>, SqlError> {
    let mut cases = Vec::new();
    let mut known: BTreeMap<(String, String), Known> = BTreeMap::new();
    for (file_index, file) in files.iter().enumerate() {
        let Some(sink) = file.sinks.first().map(|sink| sink.value.clone()) else { continue };
        let Some(client) = ends.sinks.get(&sink) else { continue };
        if !config.sinks.get(&sink).is_some_and(|sink| matches!(sink.end, SinkEnd::Postgres(_))) {
            continue;
        }
        for source in file.sources.iter().map(|source| source.value.clone()) {
            let Some(now) = sources.get(&source) else { continue };
            let key = (source.clone(), sink.clone());
            if !known.contains_key(&key) {
                let has_schema = state::has_schema(client).await?;
                let tables = if has_schema { state::read_tables(client, &source).await? } else { Vec::new() };
                known.insert(key.clone(), (tables, store::read(client, &source).await?));
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
    async fn run(&mut self) -> Result<(), SqlError> {
        let missing = self.missing();
        if self.case.is_copied_anew() {
            // A copy that was cut short takes the new column with it.
            if self.case.state.is_some()
                && let Some(now) = self.case.now.clone()
            {
                let columns = missing.into_iter().filter_map(|(name, desired)| {
                    let column = now.columns.iter().find(|column| column.name == name)?.clone();
                    Some(Follow { column, desired: Some(desired), value: None })
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
        let sink = self.live.sinks.get(&self.case.sink);
        let target = sink.and_then(|sink| sink.catalog.table(&self.case.target));
        let Some((source, target)) = source.zip(target) else { return Vec::new() };
        missing_columns(self.file, self.mapping, &self.case.source, source, target)
    }

    async fn judged(&mut self, judged: Judged, missing: Vec<(String, DesiredColumn)>) -> Result<(), SqlError> {
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
                Ok(value) => self.case.follow.push(Follow { column, desired, value }),
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
    ) -> Result<Result<BeforeText, Option<String>>, SqlError> {
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
        if desired.is_none() && self.file.sources.len() == 1 {
            let target = self.target_name(name);
            let client = &self.ends.sinks[&self.case.sink];
            if holds_other(client, &self.case.target, &target, &column.type_name, value.as_deref()).await? {
                return Ok(Err(Some(format!(
                    "column \"{name}\" was added, and the target's column \"{target}\" holds other values already, as of one \
                     that was dropped: drop it there"
                ))));
            }
        }
        Ok(Ok(value))
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

/// Why a publication does not send all changes of a table.
pub(super) fn unpublished(publication: &PublicationRow, table: &TableName) -> Option<&'static str> {
    if publication.all_tables || publication.schemas {
        return None;
    }
    match publication.tables.iter().find(|published| &published.name == table) {
        None => Some("the table left the publication, and what was changed since was not sent"),
        Some(published) if published.filtered => {
            Some("the publication filters the table's rows now, and what was changed since was not all sent")
        }
        Some(_) => None,
    }
}

/// Runs a look at rows that must end soon.
async fn limited<T>(client: &Client, look: impl Future<Output = Result<T, SqlError>>) -> Result<T, SqlError> {
    client.batch_execute(&format!("SET statement_timeout = '{PROBE_TIMEOUT}'")).await?;
    let looked = look.await;
    client.batch_execute("RESET statement_timeout").await?;
    looked
}

/// Why rows may have been written with a column that was not published at the time.
async fn unpublished_rows(
    client: &Client,
    table: &TableName,
    column: &str,
    value: Option<&str>,
) -> Result<Option<String>, SqlError> {
    // Whoever writes now may have begun before the column was published.
    let begun: String =
        client.query_one("SELECT pg_snapshot_xmax(pg_current_snapshot())::text", &[]).await?.try_get(0)?;
    let ended = format!("SELECT pg_snapshot_xmin(pg_current_snapshot()) >= {}::xid8", quote_literal(&begun));
    let deadline = Instant::now() + WRITERS_TIMEOUT;
    while !client.query_one(&ended, &[]).await?.try_get::<_, bool>(0)? {
        if Instant::now() >= deadline {
            return Ok(Some("transactions of that time have not ended yet".to_owned()));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let column = quote_ident(column);
    let differs = match value {
        None => format!("{column} IS NOT NULL"),
        Some(value) => format!("{column}::text IS DISTINCT FROM {}", quote_literal(value)),
    };
    let sql = format!("SELECT EXISTS (SELECT FROM {} WHERE {differs})", table.quoted());
    let exists = async { Ok(client.query_one(&sql, &[]).await?.try_get::<_, bool>(0)?) };
    Ok(match limited(client, exists).await {
        Ok(false) => None,
        Ok(true) => Some("rows have values in it that may not have been sent".to_owned()),
        Err(error) => Some(format!("whether rows have values in it is not known ({error})")),
    })
}

/// Does the target hold anything but this value in the column?
async fn holds_other(
    client: &Client,
    target: &TableName,
    column: &str,
    type_name: &str,
    value: Option<&str>,
) -> Result<bool, SqlError> {
    let column = quote_ident(column);
    let differs = match value {
        None => format!("{column} IS NOT NULL"),
        Some(value) => format!("{column}::text IS DISTINCT FROM CAST({} AS {type_name})::text", quote_literal(value)),
    };
    let sql = format!("SELECT EXISTS (SELECT FROM {} WHERE {differs})", target.quoted());
    let exists = async { Ok(client.query_one(&sql, &[]).await?.try_get::<_, bool>(0)?) };
    // Where it cannot be told, it does.
    Ok(limited(client, exists).await.unwrap_or(true))
}

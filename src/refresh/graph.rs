//! What materialized views read, from the catalog: through plain views and other materialized views down to tables.
//!
//! A view's query is its `_RETURN` rule, and `pg_depend` holds every relation that the rule names. What a function called
//! by the query reads is in no catalog.

use std::collections::{BTreeMap, BTreeSet};

use tokio_postgres::{Client, Row};

use crate::catalog::{TableKind, TableName};
use crate::postgres::error::SqlError;

/// The listed views and what they depend on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ViewGraph {
    /// The role that asked, and would refresh.
    pub role: String,
    /// The server knows the MAINTAIN privilege: 17 and later.
    pub knows_maintain: bool,
    /// Every view after those it reads. Among views that do not need each other, those that can be refreshed concurrently
    /// stand first: a plain refresh locks readers out until the transaction that it shares with the others ends.
    pub views: Vec<View>,
}

impl ViewGraph {
    pub fn view(&self, name: &TableName) -> Option<&View> {
        self.views.iter().find(|view| &view.name == name)
    }
}

/// One listed view.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct View {
    pub name: TableName,
    /// `None` if there is nothing of this name.
    pub found: Option<Found>,
    /// Tables it reads in the end, with the partitions, parents and siblings of each.
    pub tables: BTreeSet<TableName>,
    /// Listed materialized views that it reads, directly or not.
    pub upstream: BTreeSet<TableName>,
    /// Materialized views that it reads and that are not listed, so that nobody here refreshes them.
    pub unlisted: BTreeSet<TableName>,
}

/// What the catalog says of a listed view.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Found {
    /// A view that is dropped and made anew has another.
    pub incarnation: u64,
    pub kind: TableKind,
    pub populated: bool,
    /// Has an index as REFRESH … CONCURRENTLY needs it: unique, valid, of plain columns, without a predicate.
    pub unique_index: bool,
    pub owner: String,
    /// The role that asked owns it, or may maintain it.
    pub may_refresh: bool,
}

/// The relations met on the way down from the listed views, by OID or another number.
#[derive(Default)]
pub(super) struct Reads {
    /// Name and `pg_class.relkind`.
    pub relations: BTreeMap<u32, (TableName, String)>,
    pub reads: BTreeMap<u32, BTreeSet<u32>>,
}

/// The listed views that exist, each with its number in [`Reads`].
pub(super) type Listed = BTreeMap<TableName, (u32, Found)>;

const LISTED: &str = "
SELECT n.nspname::text AS schema, c.relname::text AS name, c.oid, c.relkind::text AS kind, c.relispopulated AS populated,
       EXISTS (SELECT FROM pg_index AS i
               JOIN pg_class AS x ON x.oid = i.indexrelid
               JOIN pg_am AS a ON a.oid = x.relam
               WHERE i.indrelid = c.oid AND i.indisunique AND i.indimmediate AND i.indisvalid AND a.amname = 'btree'
                 AND i.indpred IS NULL AND i.indexprs IS NULL) AS unique_index,
       pg_get_userbyid(c.relowner)::text AS owner,
       pg_has_role(c.relowner, 'USAGE')
       OR CASE WHEN current_setting('server_version_num')::int >= 170000
               THEN has_table_privilege(c.oid, 'MAINTAIN') ELSE false END AS may_refresh
FROM unnest($1::text[], $2::text[]) AS wanted (schema, name)
JOIN pg_namespace AS n ON n.nspname = wanted.schema
JOIN pg_class AS c ON c.relnamespace = n.oid AND c.relname = wanted.name
WHERE c.relkind IN ('r', 'p', 'f', 'v', 'm')";

// Rows of a partitioned table are its partitions', and a change of a partition is one of its parents, so `reads` goes both
// ways there.
const READS: &str = "
WITH RECURSIVE walk (reader, read) AS (
    SELECT NULL::oid, wanted.oid FROM unnest($1::oid[]) AS wanted (oid)
    UNION
    SELECT walk.read, next.read
    FROM walk
    CROSS JOIN LATERAL (
        SELECT d.refobjid AS read
        FROM pg_rewrite AS w
        JOIN pg_depend AS d ON d.classid = 'pg_rewrite'::regclass AND d.objid = w.oid
        WHERE w.ev_class = walk.read AND w.ev_type = '1'
          AND d.refclassid = 'pg_class'::regclass AND d.refobjid <> walk.read
        UNION ALL
        SELECT inhrelid FROM pg_inherits WHERE inhparent = walk.read
        UNION ALL
        SELECT inhparent FROM pg_inherits WHERE inhrelid = walk.read
    ) AS next
)
SELECT walk.reader, walk.read, c.relkind::text AS kind, n.nspname::text AS schema, c.relname::text AS name
FROM walk
JOIN pg_class AS c ON c.oid = walk.read
JOIN pg_namespace AS n ON n.oid = c.relnamespace";

/// Reads what the listed views depend on; any role may.
pub async fn dependencies(client: &Client, views: &[TableName]) -> Result<ViewGraph, SqlError> {
    let asked = client
        .query_one("SELECT current_user::text, current_setting('server_version_num')::int >= 170000", &[])
        .await?;
    let schemas: Vec<_> = views.iter().map(|view| view.schema.as_str()).collect();
    let names: Vec<_> = views.iter().map(|view| view.name.as_str()).collect();
    let mut listed = Listed::new();
    for row in client.query(LISTED, &[&schemas, &names]).await? {
        listed.insert(name(&row)?, (row.try_get("oid")?, found(&row)?));
    }
    let oids: Vec<u32> = listed.values().map(|(oid, _)| *oid).collect();
    let mut met = Reads::default();
    for row in client.query(READS, &[&oids]).await? {
        let read: u32 = row.try_get("read")?;
        met.relations.insert(read, (name(&row)?, row.try_get("kind")?));
        if let Some(reader) = row.try_get::<_, Option<u32>>("reader")? {
            met.reads.entry(reader).or_default().insert(read);
        }
    }
    Ok(ViewGraph {
        role: asked.try_get(0)?,
        knows_maintain: asked.try_get(1)?,
        views: in_order(views.iter().map(|view| met.view(view, &listed)).collect()),
    })
}

fn name(row: &Row) -> Result<TableName, SqlError> {
    Ok(TableName::new(row.try_get::<_, &str>("schema")?, row.try_get::<_, &str>("name")?))
}

fn found(row: &Row) -> Result<Found, SqlError> {
    let kind = match row.try_get("kind")? {
        "r" => TableKind::Table,
        "p" => TableKind::Partitioned,
        "f" => TableKind::Foreign,
        "v" => TableKind::View,
        "m" => TableKind::MaterializedView,
        other => return Err(SqlError::unexpected(format!("a relation of the unknown kind \"{other}\""))),
    };
    Ok(Found {
        incarnation: u64::from(row.try_get::<_, u32>("oid")?),
        kind,
        populated: row.try_get("populated")?,
        unique_index: row.try_get("unique_index")?,
        owner: row.try_get("owner")?,
        may_refresh: row.try_get("may_refresh")?,
    })
}

impl Reads {
    pub fn view(&self, name: &TableName, listed: &Listed) -> View {
        let own = listed.get(name);
        let mut view = View {
            name: name.clone(),
            found: own.map(|(_, found)| found.clone()),
            tables: BTreeSet::new(),
            upstream: BTreeSet::new(),
            unlisted: BTreeSet::new(),
        };
        let Some((start, _)) = own else { return view };
        for (relation, kind) in self.reach(*start, |_| false) {
            match kind {
                "r" | "p" | "f" => view.tables.insert(relation.clone()),
                "m" if relation != name && listed.contains_key(relation) => view.upstream.insert(relation.clone()),
                _ => false,
            };
        }
        // What stands behind a listed view is that view's affair.
        let near = self.reach(*start, |relation| listed.contains_key(relation));
        view.unlisted = near
            .into_iter()
            .filter(|(relation, kind)| *kind == "m" && !listed.contains_key(*relation))
            .map(|(relation, _)| relation.clone())
            .collect();
        view
    }

    /// Every relation read from `start` on, except through materialized views at which to stop. Plain views may stand in a circle with
    /// materialized ones.
    fn reach(&self, start: u32, stops: impl Fn(&TableName) -> bool) -> Vec<(&TableName, &str)> {
        let mut seen = BTreeSet::from([start]);
        let mut pending = vec![start];
        let mut reached = Vec::new();
        while let Some(reader) = pending.pop() {
            for read in self.reads.get(&reader).into_iter().flatten() {
                let Some((name, kind)) = self.relations.get(read) else { continue };
                if !seen.insert(*read) {
                    continue;
                }
                reached.push((name, kind.as_str()));
                if kind != "m" || !stops(name) {
                    pending.push(*read);
                }
            }
        }
        reached
    }
}

/// Upstream first; see [`ViewGraph::views`]. A circle is cut where it is met first.
pub(super) fn in_order(mut views: Vec<View>) -> Vec<View> {
    let mut ordered: Vec<View> = Vec::with_capacity(views.len());
    while !views.is_empty() {
        let waits =
            |view: &View| views.iter().any(|other| other.name != view.name && view.upstream.contains(&other.name));
        let locks_out = |view: &View| !view.found.as_ref().is_some_and(|found| found.unique_index);
        let next = (0..views.len()).min_by_key(|&place| (waits(&views[place]), locks_out(&views[place])));
        ordered.push(views.remove(next.expect("there is at least one view")));
    }
    ordered
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A populated view with a unique index in schema `s`.
    pub fn view(name: &str, incarnation: u64, tables: &[&str], upstream: &[&str]) -> View {
        let names = |names: &[&str]| names.iter().map(|name| TableName::new("s", *name)).collect();
        View {
            name: TableName::new("s", name),
            found: Some(Found {
                incarnation,
                kind: TableKind::MaterializedView,
                populated: true,
                unique_index: true,
                owner: "owner".to_owned(),
                may_refresh: true,
            }),
            tables: names(tables),
            upstream: names(upstream),
            unlisted: BTreeSet::new(),
        }
    }

    pub fn graph(views: Vec<View>) -> ViewGraph {
        ViewGraph { role: "role".to_owned(), knows_maintain: false, views: in_order(views) }
    }

    fn order(views: Vec<View>) -> Vec<String> {
        in_order(views).into_iter().map(|view| view.name.name).collect()
    }

    #[test]
    fn upstream_stands_first_and_plain_refreshes_late() {
        let mut plain = view("plain", 1, &[], &[]);
        plain.found.as_mut().expect("made so").unique_index = false;
        let chain = [view("c", 4, &[], &["a", "b"]), view("b", 3, &[], &["a"]), view("a", 2, &[], &[])];
        assert_eq!(order([vec![plain], chain.to_vec()].concat()), ["a", "b", "c", "plain"]);
    }

    #[test]
    fn circle_is_cut() {
        let circle = vec![view("b", 1, &[], &["a", "b"]), view("a", 2, &[], &["a", "b"])];
        assert_eq!(order(circle), ["b", "a"]);
    }

    #[test]
    fn views_are_followed_through_views_and_unlisted_ones_named() {
        let relation = |oid, name: &str, kind: &str| (oid, (TableName::new("s", name), kind.to_owned()));
        let met = Reads {
            relations: BTreeMap::from([
                relation(1, "top", "m"),
                relation(2, "plain", "v"),
                relation(3, "middle", "m"),
                relation(4, "hidden", "m"),
                relation(5, "deep", "m"),
                relation(6, "a", "r"),
                relation(7, "b", "p"),
            ]),
            reads: [(1, 2), (1, 5), (2, 3), (3, 4), (3, 2), (4, 6), (5, 7)].into_iter().fold(
                BTreeMap::new(),
                |mut reads: BTreeMap<u32, BTreeSet<u32>>, (reader, read)| {
                    reads.entry(reader).or_default().insert(read);
                    reads
                },
            ),
        };
        let listed = [("top", 1), ("middle", 3)]
            .map(|(name, oid)| (TableName::new("s", name), (oid, view(name, 9, &[], &[]).found.expect("made so"))));
        let names = |names: &[&str]| names.iter().map(|name| TableName::new("s", *name)).collect::<BTreeSet<_>>();
        let top = met.view(&TableName::new("s", "top"), &BTreeMap::from(listed.clone()));
        assert_eq!((top.tables, top.upstream), (names(&["a", "b"]), names(&["middle"])));
        assert_eq!(top.unlisted, names(&["deep"]));
        let middle = met.view(&TableName::new("s", "middle"), &BTreeMap::from(listed));
        assert_eq!((middle.tables, middle.unlisted), (names(&["a"]), names(&["hidden"])));
    }
}

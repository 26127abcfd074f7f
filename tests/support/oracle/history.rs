//! The tables as they are after the last commit read, and their digests after every commit before.

use std::collections::{BTreeMap, HashMap};

use anyhow::{Context, Result, bail, ensure};
use tailwater::lsn::Lsn;

use super::digest::{Digest, Table, line};
use super::pgoutput::{Message, Tuple, Value};

pub struct History {
    tables: Vec<TableState>,
    /// By the stream's number for a relation.
    relations: HashMap<u32, usize>,
    /// The digests after the commit that ends at this LSN, for commits that changed something.
    digests: BTreeMap<Lsn, Vec<Digest>>,
    end: Lsn,
}

struct TableState {
    name: String,
    /// Which columns the stream sends of an old row.
    key: Vec<bool>,
    rows: HashMap<Tuple, Held>,
    digest: Digest,
}

/// A row, and how often the table has it: under REPLICA IDENTITY FULL the whole row is the key.
struct Held {
    row: Tuple,
    count: u64,
}

impl History {
    pub fn new(tables: &[Table], start: Lsn) -> History {
        let empty = |table: &Table| TableState {
            name: table.source.clone(),
            key: Vec::new(),
            rows: HashMap::new(),
            digest: Digest::default(),
        };
        History {
            tables: tables.iter().map(empty).collect(),
            relations: HashMap::new(),
            digests: BTreeMap::from([(start, vec![Digest::default(); tables.len()])]),
            end: start,
        }
    }

    /// The end of the last commit read.
    pub fn end(&self) -> Lsn {
        self.end
    }

    pub fn commits(&self) -> usize {
        self.digests.len() - 1
    }

    /// The digests when everything up to `end_lsn` had been committed.
    pub fn at(&self, end_lsn: Lsn) -> Vec<Digest> {
        let last = self.digests.range(..=end_lsn).next_back();
        last.map_or_else(|| vec![Digest::default(); self.tables.len()], |(_, digests)| digests.clone())
    }

    /// Takes a transaction's messages. One that was read before, on a connection that broke, changes nothing.
    pub fn commit(&mut self, end_lsn: Lsn, messages: Vec<Message>) -> Result<()> {
        let again = end_lsn <= self.end;
        for message in messages {
            match message {
                // Relations are described once per connection, whichever transaction comes first.
                Message::Relation { id, name, key } => self.describe(id, &name, key)?,
                _ if again => {}
                change => self.apply(change).with_context(|| format!("the transaction that ends at {end_lsn}"))?,
            }
        }
        if !again {
            self.end = end_lsn;
            let digests: Vec<Digest> = self.tables.iter().map(|table| table.digest).collect();
            if self.digests.values().next_back() != Some(&digests) {
                self.digests.insert(end_lsn, digests);
            }
        }
        Ok(())
    }

    fn describe(&mut self, id: u32, name: &str, key: Vec<bool>) -> Result<()> {
        let table = self.tables.iter().position(|table| table.name == name);
        let table = table.with_context(|| format!("{name} is not a table of this oracle"))?;
        self.tables[table].key = key;
        self.relations.insert(id, table);
        Ok(())
    }

    fn table(&mut self, relation: u32) -> Result<&mut TableState> {
        let table = self.relations.get(&relation).context("a change of a relation not described")?;
        Ok(&mut self.tables[*table])
    }

    fn apply(&mut self, change: Message) -> Result<()> {
        match change {
            Message::Insert { relation, new } => self.table(relation)?.add(new),
            Message::Update { relation, old, new } => {
                let table = self.table(relation)?;
                let before = table.remove(old.as_ref().unwrap_or(&new))?;
                table.add(filled(new, before)?)
            }
            Message::Delete { relation, old } => self.table(relation)?.remove(&old).map(drop),
            Message::Truncate { relations } => {
                for relation in relations {
                    let table = self.table(relation)?;
                    table.rows.clear();
                    table.digest = Digest::default();
                }
                Ok(())
            }
            Message::Relation { .. } | Message::Other => Ok(()),
        }
    }
}

impl TableState {
    fn key_of(&self, row: &Tuple) -> Tuple {
        row.iter().zip(&self.key).filter(|(_, in_key)| **in_key).map(|(value, _)| value.clone()).collect()
    }

    fn add(&mut self, row: Tuple) -> Result<()> {
        ensure!(row.len() == self.key.len(), "a row of {} has {} columns", self.name, row.len());
        self.digest.add(&line(&row)?);
        let whole = self.key.iter().all(|in_key| *in_key);
        let held = self.rows.entry(self.key_of(&row)).or_insert(Held { row, count: 0 });
        held.count += 1;
        ensure!(held.count == 1 || whole, "{} has a key twice", self.name);
        Ok(())
    }

    fn remove(&mut self, old: &Tuple) -> Result<Tuple> {
        let key = self.key_of(old);
        let Some(held) = self.rows.get_mut(&key) else { bail!("{} does not have the row that changes", self.name) };
        held.count -= 1;
        let row = held.row.clone();
        if held.count == 0 {
            self.rows.remove(&key);
        }
        self.digest.remove(&line(&row)?);
        Ok(row)
    }
}

/// Puts the values that were not sent because they did not change in their places.
fn filled(new: Tuple, before: Tuple) -> Result<Tuple> {
    ensure!(new.len() == before.len(), "an update changes the number of columns");
    let value = |(new, before)| if new == Value::Unchanged { before } else { new };
    Ok(new.into_iter().zip(before).map(value).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(value: &str) -> Value {
        Value::Text(value.to_owned().into())
    }

    fn history() -> Result<History> {
        let table =
            Table { source: "public.t".to_owned(), target: "mirror.t".to_owned(), columns: vec!["id".to_owned()] };
        let mut history = History::new(&[table], Lsn(10));
        let relation = Message::Relation { id: 1, name: "public.t".to_owned(), key: vec![true, false] };
        let insert = |id: &str| Message::Insert { relation: 1, new: vec![text(id), text("a\tb")] };
        history.commit(Lsn(20), vec![relation, insert("1"), insert("2")])?;
        Ok(history)
    }

    fn digest(rows: &[&str]) -> Vec<Digest> {
        let mut digest = Digest::default();
        rows.iter().for_each(|row| digest.add(row.as_bytes()));
        vec![digest]
    }

    #[test]
    fn key_change_keeps_the_value_that_was_not_sent() -> Result<()> {
        let mut history = history()?;
        let (old, new) = (vec![text("1"), Value::Null], vec![text("3"), Value::Unchanged]);
        history.commit(Lsn(30), vec![Message::Update { relation: 1, old: Some(old), new }])?;
        assert_eq!(history.at(Lsn(30)), digest(&["3\ta\\tb", "2\ta\\tb"]));
        assert_eq!(history.at(Lsn(29)), digest(&["1\ta\\tb", "2\ta\\tb"]));
        assert_eq!(history.at(Lsn(19)), digest(&[]));
        Ok(())
    }

    #[test]
    fn transaction_sent_again_counts_once() -> Result<()> {
        let mut history = history()?;
        let delete = vec![Message::Delete { relation: 1, old: vec![text("2"), Value::Null] }];
        history.commit(Lsn(30), delete.clone())?;
        history.commit(Lsn(30), delete)?;
        assert_eq!(history.at(Lsn(1000)), digest(&["1\ta\\tb"]));
        history.commit(Lsn(40), vec![Message::Truncate { relations: vec![1] }])?;
        assert_eq!(history.at(Lsn(1000)), digest(&[]));
        Ok(())
    }
}

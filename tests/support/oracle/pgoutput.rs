//! A decoder for pgoutput version 1 with text values, written for the oracle alone so that it cannot share a fault with
//! tailwater's. Postgres docs, "Logical Replication Message Formats".

use anyhow::{Result, bail, ensure};
use bytes::{Buf, Bytes};

/// A value as sent.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Value {
    Null,
    /// An unchanged value that was stored out of line and is therefore not sent.
    Unchanged,
    Text(Bytes),
}

pub type Tuple = Vec<Value>;

#[derive(Clone, Debug)]
pub enum Message {
    /// `key` says which columns are part of the replica identity.
    Relation {
        id: u32,
        name: String,
        key: Vec<bool>,
    },
    Insert {
        relation: u32,
        new: Tuple,
    },
    /// `old` is there if the key changed, or if the identity is the whole row.
    Update {
        relation: u32,
        old: Option<Tuple>,
        new: Tuple,
    },
    Delete {
        relation: u32,
        old: Tuple,
    },
    Truncate {
        relations: Vec<u32>,
    },
    /// Types and origins.
    Other,
}

pub fn decode(mut data: Bytes) -> Result<Message> {
    let data = &mut data;
    let message = match byte(data)? {
        b'R' => relation(data)?,
        b'I' => {
            let relation = int4(data)?;
            ensure!(byte(data)? == b'N', "an insert without a new row");
            Message::Insert { relation, new: tuple(data)? }
        }
        b'U' => {
            let relation = int4(data)?;
            match byte(data)? {
                b'N' => Message::Update { relation, old: None, new: tuple(data)? },
                b'K' | b'O' => {
                    let old = Some(tuple(data)?);
                    ensure!(byte(data)? == b'N', "an update without a new row");
                    Message::Update { relation, old, new: tuple(data)? }
                }
                other => bail!("an update with a part {other}"),
            }
        }
        b'D' => {
            let relation = int4(data)?;
            ensure!(matches!(byte(data)?, b'K' | b'O'), "a delete without an old row");
            Message::Delete { relation, old: tuple(data)? }
        }
        b'T' => {
            let count = int4(data)?;
            byte(data)?;
            Message::Truncate { relations: (0..count).map(|_| int4(data)).collect::<Result<_>>()? }
        }
        b'Y' | b'O' => return Ok(Message::Other),
        other => bail!("a message of kind {other}"),
    };
    ensure!(data.is_empty(), "{} bytes after a message", data.len());
    Ok(message)
}

fn relation(data: &mut Bytes) -> Result<Message> {
    let id = int4(data)?;
    let name = format!("{}.{}", string(data)?, string(data)?);
    byte(data)?;
    let count = int2(data)?;
    let mut key = Vec::new();
    for _ in 0..count {
        key.push(byte(data)? & 1 == 1);
        string(data)?;
        take(data, 8)?;
    }
    Ok(Message::Relation { id, name, key })
}

fn tuple(data: &mut Bytes) -> Result<Tuple> {
    let count = int2(data)?;
    let value = |_| {
        Ok(match byte(data)? {
            b'n' => Value::Null,
            b'u' => Value::Unchanged,
            b't' => {
                let length = int4(data)?;
                Value::Text(take(data, usize::try_from(length)?)?)
            }
            other => bail!("a value of kind {other}"),
        })
    };
    (0..count).map(value).collect()
}

fn take(data: &mut Bytes, length: usize) -> Result<Bytes> {
    ensure!(data.len() >= length, "a message ends early");
    Ok(data.split_to(length))
}

fn byte(data: &mut Bytes) -> Result<u8> {
    Ok(take(data, 1)?.get_u8())
}

fn int2(data: &mut Bytes) -> Result<u16> {
    Ok(take(data, 2)?.get_u16())
}

fn int4(data: &mut Bytes) -> Result<u32> {
    Ok(take(data, 4)?.get_u32())
}

fn string(data: &mut Bytes) -> Result<String> {
    let Some(length) = data.iter().position(|byte| *byte == 0) else { bail!("a name has no end") };
    let text = take(data, length)?;
    byte(data)?;
    Ok(String::from_utf8(text.to_vec())?)
}

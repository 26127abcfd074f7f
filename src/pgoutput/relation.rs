//! A table as the stream describes it: sent before its first row and again after every change of the table.

use std::fmt::Write as _;

use super::{Body, DecodeError};
use crate::catalog::{ReplicaIdentity, TableName};

/// One column of a [`Relation`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RelationColumn {
    pub name: String,
    pub type_oid: u32,
    pub type_modifier: i32,
    /// Part of the replica identity.
    pub is_identity: bool,
}

/// A table's layout as of the changes that follow.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Relation {
    pub oid: u32,
    pub name: TableName,
    pub replica_identity: ReplicaIdentity,
    pub columns: Vec<RelationColumn>,
}

impl Relation {
    pub(super) fn read(body: &mut Body<'_>) -> Result<Relation, DecodeError> {
        let oid = body.u32()?;
        let schema = match body.cstr()? {
            // An empty namespace means pg_catalog.
            b"" => "pg_catalog".to_owned(),
            schema => text(schema),
        };
        let name = text(body.cstr()?);
        let replica_identity = match body.u8()? {
            b'd' => ReplicaIdentity::Default,
            b'i' => ReplicaIdentity::Index,
            b'f' => ReplicaIdentity::Full,
            b'n' => ReplicaIdentity::Nothing,
            _ => return body.cut(),
        };
        let count = body.u16()?;
        let mut columns = Vec::new();
        for _ in 0..count {
            let is_identity = body.u8()? & 1 != 0;
            let name = text(body.cstr()?);
            let type_oid = body.u32()?;
            columns.push(RelationColumn { name, type_oid, type_modifier: body.i32()?, is_identity });
        }
        Ok(Relation { oid, name: TableName { schema, name }, replica_identity, columns })
    }
}

/// Names are UTF-8, since the session asked for it; a byte that is not is shown by its number rather than dropped.
fn text(bytes: &[u8]) -> String {
    bytes.utf8_chunks().fold(String::with_capacity(bytes.len()), |mut out, chunk| {
        out.push_str(chunk.valid());
        for byte in chunk.invalid() {
            write!(out, "\\x{byte:02x}").expect("writing to a string cannot fail");
        }
        out
    })
}

#[cfg(test)]
mod tests {
    use super::super::{Message, decode};

    #[test]
    fn relation_is_read_whole() {
        let message =
            b"R\0\0\0\x07public\0course\0d\0\x02\x01id\0\0\0\0\x17\xff\xff\xff\xff\0title\0\0\0\x04\x13\0\0\x01\x03";
        let Ok(Message::Relation(relation)) = decode(message) else { panic!("not a relation") };
        assert_eq!((relation.oid, relation.name.to_string().as_str()), (7, "public.course"));
        assert_eq!(relation.columns[0].type_oid, 23);
        assert!(relation.columns[0].is_identity && !relation.columns[1].is_identity);
        assert_eq!((relation.columns[1].name.as_str(), relation.columns[1].type_modifier), ("title", 259));
    }
}

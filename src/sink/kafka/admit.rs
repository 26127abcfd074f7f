//! Which changes have messages at all: those of rows for which `where` is true, as a row filter of Postgres's has it.
//!
//! | the old row matches | the new row matches | sent is |
//! |---|---|---|
//! | yes | yes | the change as it is |
//! | yes | no, or there is none | a delete of the old row |
//! | no, or there is none | yes | a create of the new row |
//! | no | no | nothing |

use super::encode::{Images, Messages};
use crate::tuple::Cell;
use crate::value::debezium::Old;
use crate::value::filter::{Filter, Undecided};

impl Messages {
    /// What is to be sent of a change; `None`: nothing.
    ///
    /// # Errors
    /// The condition cannot be decided: no side may be taken.
    pub fn admit<'r, 'a>(&self, images: Images<'r, 'a>) -> Result<Option<Images<'r, 'a>>, String> {
        match &self.topic.filter {
            None => Ok(Some(images)),
            Some(filter) => admitted(filter, images).map_err(|undecided| self.undecided(undecided)),
        }
    }

    /// Whether a row that was copied is sent.
    ///
    /// # Errors
    /// As [`Messages::admit`].
    pub fn takes(&self, row: &[Cell<'_>]) -> Result<bool, String> {
        match &self.topic.filter {
            None => Ok(true),
            Some(filter) => filter.matches(row).map_err(|undecided| self.undecided(undecided)),
        }
    }

    fn undecided(&self, undecided: Undecided) -> String {
        let column = self.topic.columns.get(undecided.input).map_or("", |column| column.name.as_str());
        format!("column \"{column}\", which \"where\" reads: {undecided}")
    }
}

/// Of an update that came without an old row the replica identity is the same before and after, and with it all that the
/// condition reads.
fn admitted<'r, 'a>(filter: &Filter, images: Images<'r, 'a>) -> Result<Option<Images<'r, 'a>>, Undecided> {
    Ok(match images {
        // That it is empty is true of the matching rows, too.
        Images::Truncate => Some(Images::Truncate),
        Images::Insert(row) => filter.matches(row)?.then_some(Images::Insert(row)),
        Images::Delete(old) => filter.matches(cells(&old))?.then_some(Images::Delete(old)),
        Images::Update(None, row) => filter.matches(row)?.then_some(Images::Update(None, row)),
        Images::Update(Some(old), row) => match (filter.matches(cells(&old))?, filter.matches(row)?) {
            (true, true) => Some(Images::Update(Some(old), row)),
            (true, false) => Some(Images::Delete(old)),
            (false, true) => Some(Images::Insert(row)),
            (false, false) => None,
        },
    })
}

/// Of a key-only row all but the replica identity are NULL; the condition reads nothing else.
fn cells<'r, 'a>(old: &Old<&'r [Cell<'a>]>) -> &'r [Cell<'a>] {
    match old {
        Old::Key(row) | Old::Full(row) => row,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value::filter::{Constant, Kind, Operator, Test, Why};

    const MATCHING: [Cell<'_>; 1] = [Cell::Text(b"open")];
    const OTHER: [Cell<'_>; 1] = [Cell::Text(b"draft")];
    const NULL: [Cell<'_>; 1] = [Cell::Null];

    fn sent(images: Images<'_, '_>) -> Option<String> {
        let constant = Constant::Bytes(b"open".to_vec());
        let test = Test::Compare { input: 0, kind: Kind::Text, operator: Operator::Equal, constant };
        let what = |row: &[Cell<'_>]| if row == MATCHING { "matching" } else { "other" };
        admitted(&Filter::new("", test), images).expect("it can be decided").map(|images| match images {
            Images::Truncate => "truncate".to_owned(),
            Images::Insert(row) => format!("create {}", what(row)),
            Images::Delete(old) => format!("delete {}", what(cells(&old))),
            Images::Update(old, row) => {
                format!("update {:?} {}", old.map(|old| what(cells(&old))), what(row))
            }
        })
    }

    #[test]
    fn rows_enter_leave_and_stay_as_a_row_filter_has_it() {
        let full = |row: &'static [Cell<'static>]| Some(Old::Full(row));
        assert_eq!(sent(Images::Insert(&MATCHING)).as_deref(), Some("create matching"));
        assert_eq!(sent(Images::Insert(&OTHER)), None);
        assert_eq!(sent(Images::Insert(&NULL)), None, "NULL is not true");
        assert_eq!(sent(Images::Delete(Old::Full(&MATCHING))).as_deref(), Some("delete matching"));
        assert_eq!(sent(Images::Delete(Old::Key(&OTHER))), None);
        assert_eq!(sent(Images::Update(None, &MATCHING)).as_deref(), Some("update None matching"));
        assert_eq!(sent(Images::Update(None, &OTHER)), None);
        let updated = sent(Images::Update(full(&MATCHING), &MATCHING));
        assert_eq!(updated.as_deref(), Some("update Some(\"matching\") matching"));
        assert_eq!(sent(Images::Update(full(&MATCHING), &OTHER)).as_deref(), Some("delete matching"));
        assert_eq!(sent(Images::Update(full(&MATCHING), &NULL)).as_deref(), Some("delete matching"));
        assert_eq!(sent(Images::Update(full(&OTHER), &MATCHING)).as_deref(), Some("create matching"));
        assert_eq!(sent(Images::Update(full(&NULL), &OTHER)), None);
        assert_eq!(sent(Images::Truncate).as_deref(), Some("truncate"));
    }

    #[test]
    fn what_was_not_sent_is_not_guessed() {
        let filter = Filter::new("", Test::IsNull(0));
        let refused = admitted(&filter, Images::Insert(&[Cell::Unchanged])).map(|images| images.is_some());
        assert_eq!(refused, Err(Undecided { input: 0, why: Why::Unsent }));
    }
}

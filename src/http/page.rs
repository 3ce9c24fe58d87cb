//! Lists: newest first, page by page, without counting. A cursor says after which row the next page starts.
//!
//! A cursor is opaque to the client and typed to us: one of another list, or a mistyped one, is a clear 400. It
//! holds no secret and grants nothing, because every query is bound to the caller's tenant by itself.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use poem_openapi::{
    Object,
    types::{ParseFromJSON, ToJSON},
};
use serde::{Serialize, de::DeserializeOwned};
use sha2::{Digest, Sha256};

use super::Problem;

/// Rows of a page when the client does not say.
pub const DEFAULT_LIMIT: u16 = 25;
/// Rows of a page at most.
pub const MAX_LIMIT: u16 = 100;

/// One page of a list.
#[derive(Debug, Clone, Object)]
#[oai(skip_serializing_if_is_none)]
pub struct Page<T: ParseFromJSON + ToJSON> {
    pub items: Vec<T>,
    /// Pass it as `cursor` to get the next page; absent on the last one.
    pub next_cursor: Option<String>,
}

impl<T: ParseFromJSON + ToJSON> Page<T> {
    /// From rows read with a limit of one more than the page holds: the extra row only tells that there is more.
    pub fn of<P: Serialize>(mut items: Vec<T>, limit: u16, list: &str, position: impl Fn(&T) -> P) -> Self {
        let more = items.len() > usize::from(limit);
        items.truncate(limit.into());
        let next_cursor = items.last().filter(|_| more).map(|last| encode(list, &position(last)));
        Self { items, next_cursor }
    }
}

/// The client's wish, or the default; a 400 naming `limit` when it is out of bounds.
pub fn limit(wish: Option<u16>) -> Result<u16, Problem> {
    match wish.unwrap_or(DEFAULT_LIMIT) {
        limit @ 1..=MAX_LIMIT => Ok(limit),
        _ => Err(Problem::bad_parameter("limit", "is out of bounds", format!("Send a number from 1 to {MAX_LIMIT}"))),
    }
}

const CHECK_BYTES: usize = 6;

/// `list` names the list and whatever filters its position depends on.
pub fn encode(list: &str, position: &impl Serialize) -> String {
    let mut bytes = serde_json::to_vec(position).expect("a position is plain data");
    let check = check(list, &bytes);
    bytes.extend(check);
    URL_SAFE_NO_PAD.encode(bytes)
}

/// The position in `cursor`, or a 400 that names it. `Ok(None)` without a cursor: the first page.
pub fn decode<P: DeserializeOwned>(list: &str, cursor: Option<&str>) -> Result<Option<P>, Problem> {
    cursor.map(|cursor| parse(list, cursor).ok_or_else(bad_cursor)).transpose()
}

fn parse<P: DeserializeOwned>(list: &str, cursor: &str) -> Option<P> {
    let bytes = URL_SAFE_NO_PAD.decode(cursor).ok()?;
    let (position, sum) = bytes.split_at_checked(bytes.len().checked_sub(CHECK_BYTES)?)?;
    if sum != check(list, position) {
        return None;
    }
    serde_json::from_slice(position).ok()
}

fn check(list: &str, position: &[u8]) -> [u8; CHECK_BYTES] {
    let hash = Sha256::new().chain_update(list).chain_update([0]).chain_update(position).finalize();
    hash[..CHECK_BYTES].try_into().expect("a hash is longer than its beginning")
}

fn bad_cursor() -> Problem {
    Problem::bad_parameter(
        "cursor",
        "is not a cursor of this list",
        "Send next_cursor of the page before unchanged, with the same filters, or leave it out for the first page",
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_cursor_survives_its_text_form(position in any::<(i64, String)>()) {
            let cursor = encode("posts", &position);
            prop_assert_eq!(decode::<(i64, String)>("posts", Some(&cursor)).unwrap(), Some(position));
        }

        #[test]
        fn no_text_makes_the_reading_of_a_cursor_panic(text in ".{0,64}") {
            let _outcome = decode::<(i64, String)>("posts", Some(&text));
        }
    }

    #[test]
    fn a_changed_cursor_or_one_of_another_list_is_a_clear_400() {
        let cursor = encode("posts", &7);
        let mut changed = cursor.clone().into_bytes();
        changed[0] = if changed[0] == b'A' { b'B' } else { b'A' };
        for (list, cursor) in
            [("media", cursor.as_str()), ("posts", std::str::from_utf8(&changed).unwrap()), ("posts", "")]
        {
            let problem = decode::<i32>(list, Some(cursor)).unwrap_err();
            assert_eq!((problem.status().as_u16(), problem.document().field.as_deref()), (400, Some("cursor")));
        }
    }

    #[test]
    fn the_last_page_has_no_cursor() {
        let more = Page::of(vec![3, 2, 1], 2, "numbers", |n| *n);
        assert_eq!(more.items, [3, 2]);
        assert_eq!(decode::<i32>("numbers", more.next_cursor.as_deref()).unwrap(), Some(2));
        assert_eq!(Page::of(vec![3, 2], 2, "numbers", |n| *n).next_cursor, None);
    }

    #[test]
    fn a_limit_out_of_bounds_names_the_parameter() {
        assert_eq!(limit(None).unwrap(), DEFAULT_LIMIT);
        assert_eq!(limit(Some(0)).unwrap_err().document().field.as_deref(), Some("limit"));
        assert!(limit(Some(101)).is_err());
    }
}

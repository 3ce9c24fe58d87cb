//! X's weighted length: what its composer counts towards 280.
//!
//! The text is brought to NFC; most Latin, Cyrillic, Greek, Arabic and similar code points weigh 1, all others 2; a
//! link weighs 23 whatever its length, an emoji 2 however many code points it is made of.

use unicode_normalization::UnicodeNormalization;

use super::{emoji, links};

/// What a link counts, since X replaces each by a short one.
pub const LINK_WEIGHT: usize = 23;
const EMOJI_WEIGHT: usize = 2;

/// The length of a text as X counts it.
pub fn weighted_length(text: &str) -> usize {
    let text: String = text.nfc().collect();
    let mut length = 0;
    let mut at = 0;
    for link in links::find(&text) {
        length += plain_length(&text[at..link.start]) + LINK_WEIGHT;
        at = link.end;
    }
    length + plain_length(&text[at..])
}

/// A code point that X refuses in a text: byte-order marks and non-characters.
pub fn invalid_code_point(text: &str) -> Option<char> {
    text.chars().find(|c| matches!(c, '\u{fffe}' | '\u{feff}' | '\u{ffff}'))
}

fn plain_length(text: &str) -> usize {
    let mut length = 0;
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let (bytes, weight) = match emoji::leading(rest) {
            Some(bytes) => (bytes, EMOJI_WEIGHT),
            None => (c.len_utf8(), code_point_weight(c)),
        };
        length += weight;
        rest = &rest[bytes..];
    }
    length
}

const fn code_point_weight(c: char) -> usize {
    match c as u32 {
        0..=4351 | 8192..=8205 | 8208..=8223 | 8242..=8247 => 1,
        _ => 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each computed with X's own published counter.
    const VECTORS: &[(&str, usize)] = &[
        ("", 0),
        ("café", 4),
        ("cafe\u{301}", 4),
        ("日本語", 6),
        ("👨‍👩‍👧‍👦", 2),
        ("❤️", 2),
        ("❤", 2),
        ("❤\u{fe0e}", 4),
        ("…", 2),
        ("€", 2),
        ("a—b", 3),
        ("Привет", 6),
        ("ﬁ", 2),
        ("½", 1),
        ("©", 1),
        ("©️", 2),
        ("ab©️cd", 6),
        ("™", 2),
        ("1️⃣", 2),
        ("#⃣", 2),
        ("2️", 3),
        ("🇩🇪", 2),
        ("🇩🇩", 4),
        ("🇩🇪🇫", 4),
        ("👍🏽", 2),
        ("👍🏽🏽", 4),
        ("a👍🏽\u{200d}", 4),
        ("👩🏽‍🚀", 2),
        ("👨‍🍆", 5),
        ("🫨", 2),
        ("🐦‍🔥", 5),
        ("🏴󠁧󠁢󠁥󠁮󠁧󠁿", 2),
        ("🏴󠁧󠁢󠁡󠁡󠁡󠁿", 14),
        ("see example.com now", 31),
        ("http://localhost:3000/x", 23),
        ("user@example.com", 16),
        ("test.zzz/foo", 12),
        ("例え.jp/a", 9),
        ("https://例え.jp/a", 23),
        ("https://example.com/日本", 27),
        ("x.com/a.", 24),
        ("日本x.com", 27),
    ];

    #[test]
    fn a_length_is_what_x_counts() {
        for (text, length) in VECTORS {
            assert_eq!(weighted_length(text), *length, "{text:?}");
        }
    }

    /// Odd texts, put together at random from what makes links and emoji, each with its length by the same counter.
    #[test]
    fn odd_texts_are_counted_as_x_counts_them() {
        let vectors: Vec<(String, usize)> = serde_json::from_str(include_str!("vectors.json")).unwrap();
        assert!(vectors.len() > 300);
        for (text, length) in vectors {
            assert_eq!(weighted_length(&text), length, "{text:?}");
        }
    }

    #[test]
    fn marks_that_x_refuses_are_found() {
        assert_eq!(invalid_code_point("a\u{feff}b"), Some('\u{feff}'));
        assert_eq!(invalid_code_point("a\u{ffff}"), Some('\u{ffff}'));
        assert_eq!(invalid_code_point("plain"), None);
    }

    proptest::proptest! {
        #[test]
        fn any_text_can_be_counted_and_joining_never_costs_more_than_a_link(a in "\\PC{0,40}", b in "\\PC{0,40}") {
            let (one, two) = (weighted_length(&a), weighted_length(&b));
            let joined = weighted_length(&format!("{a}\n{b}"));
            proptest::prop_assert_eq!(joined, one + two + 1);
        }
    }
}

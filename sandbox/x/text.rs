//! How long a text is for X (A5), and what stands in it.

use unicode_normalization::UnicodeNormalization;

use super::links;

/// A5: a post of an ordinary account, and of a Premium one.
pub const LIMIT: usize = 280;
pub const PREMIUM_LIMIT: usize = 25_000;
const LINK_WEIGHT: usize = 23;

/// The form X stores and counts.
pub fn normalised(text: &str) -> String {
    text.nfc().collect()
}

/// A5: characters no post may have.
pub fn forbidden_character(text: &str) -> Option<char> {
    text.chars().find(|c| matches!(c, '\u{fffe}' | '\u{feff}' | '\u{ffff}'))
}

/// The weighted length of a normalised text.
pub fn weight(text: &str) -> usize {
    let chars: Vec<char> = text.chars().collect();
    let mut total = 0;
    let mut at = 0;
    for link in links::find(&chars) {
        total += plain_weight(&chars[at..link.start]) + LINK_WEIGHT;
        at = link.end;
    }
    total + plain_weight(&chars[at..])
}

fn plain_weight(chars: &[char]) -> usize {
    let mut total = 0;
    let mut at = 0;
    while at < chars.len() {
        match emoji_at(&chars[at..]) {
            Some(length) => {
                total += 2;
                at += length;
            }
            None => {
                total += if is_light(chars[at]) { 1 } else { 2 };
                at += 1;
            }
        }
    }
    total
}

/// A5: the ranges that weigh one.
fn is_light(c: char) -> bool {
    matches!(u32::from(c), 0..=4351 | 8192..=8205 | 8208..=8223 | 8242..=8247)
}

/// How many code points the emoji that starts here has: pictographs joined by ZWJ, skin tones, keycaps, flags.
fn emoji_at(chars: &[char]) -> Option<usize> {
    let at = |index: usize| chars.get(index).copied();
    let first = at(0)?;
    if matches!(first, '0'..='9' | '#' | '*') {
        let mark = if at(1) == Some('\u{fe0f}') { 2 } else { 1 };
        return (at(mark) == Some('\u{20e3}')).then_some(mark + 1);
    }
    if is_regional(first) {
        return at(1).is_some_and(is_regional).then_some(2);
    }
    let mut length = pictograph_at(chars)?;
    if first == '\u{1f3f4}' && at(1).is_some_and(is_tag) {
        return Some(1 + chars[1..].iter().take_while(|c| is_tag(**c)).count());
    }
    while at(length) == Some('\u{200d}') {
        match pictograph_at(&chars[length + 1..]) {
            Some(more) => length += 1 + more,
            None => break,
        }
    }
    Some(length)
}

fn pictograph_at(chars: &[char]) -> Option<usize> {
    let first = *chars.first()?;
    let styled = chars.get(1) == Some(&'\u{fe0f}');
    let styled_letter = styled && matches!(first, '\u{a9}' | '\u{ae}');
    if !is_pictograph(first) && !styled_letter {
        return None;
    }
    if chars.get(1) == Some(&'\u{fe0e}') {
        return None;
    }
    let toned = |index: usize| chars.get(index).is_some_and(|c| matches!(c, '\u{1f3fb}'..='\u{1f3ff}'));
    let length = if styled { 2 } else { 1 };
    Some(if toned(length) { length + 1 } else { length })
}

fn is_pictograph(c: char) -> bool {
    matches!(u32::from(c),
        0x203c | 0x2049 | 0x2122 | 0x2139 | 0x2194..=0x21aa | 0x231a..=0x23ff | 0x24c2 | 0x25aa..=0x25fe
        | 0x2600..=0x27bf | 0x2934..=0x2935 | 0x2b05..=0x2b55 | 0x3030 | 0x303d | 0x3297 | 0x3299
        | 0x1f000..=0x1f1e5 | 0x1f200..=0x1faff)
}

fn is_regional(c: char) -> bool {
    matches!(c, '\u{1f1e6}'..='\u{1f1ff}')
}

fn is_tag(c: char) -> bool {
    matches!(c, '\u{e0020}'..='\u{e007f}')
}

/// A2: at most one cashtag a post.
pub fn cashtags(text: &str) -> usize {
    let chars: Vec<char> = text.chars().collect();
    (0..chars.len())
        .filter(|&at| {
            let starts = at == 0 || chars[at - 1].is_whitespace();
            let letters = chars[at + 1..].iter().take_while(|c| c.is_ascii_alphabetic()).count();
            let ends = !chars.get(at + 1 + letters).is_some_and(|c| c.is_ascii_digit() || *c == '_');
            chars[at] == '$' && starts && (1..=6).contains(&letters) && ends
        })
        .count()
}

/// The usernames mentioned, lower case.
pub fn mentions(text: &str) -> Vec<String> {
    let chars: Vec<char> = text.chars().collect();
    (0..chars.len())
        .filter(|&at| chars[at] == '@' && (at == 0 || !(chars[at - 1].is_alphanumeric() || chars[at - 1] == '_')))
        .map(|at| chars[at + 1..].iter().take_while(|c| c.is_ascii_alphanumeric() || **c == '_').collect::<String>())
        .filter(|name| !name.is_empty())
        .map(|name| name.to_ascii_lowercase())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_vectors_of_the_reference_library_hold() {
        let vectors = [
            ("café", 4),
            ("cafe\u{301}", 4),
            ("日本語", 6),
            ("👨‍👩‍👧‍👦", 2),
            ("❤️", 2),
            ("…", 2),
            ("€", 2),
            ("a—b", 3),
            ("Привет", 6),
            ("ﬁ", 2),
            ("½", 1),
            ("see example.com now", 31),
            ("http://localhost:3000/x", 23),
            ("user@example.com", 16),
            ("test.zzz/foo", 12),
        ];
        for (text, expected) in vectors {
            assert_eq!(weight(&normalised(text)), expected, "{text}");
        }
    }

    #[test]
    fn every_emoji_weighs_two() {
        for emoji in ["👍🏽", "🇩🇪", "1️⃣", "🏴󠁧󠁢󠁥󠁮󠁧󠁿", "👩🏽‍🚀", "☀️", "©️", "🫠"]
        {
            assert_eq!(weight(emoji), 2, "{emoji}");
        }
        assert_eq!(weight("©"), 1);
        assert_eq!(weight("1"), 1);
    }

    #[test]
    fn cashtags_and_mentions_are_counted_as_words() {
        assert_eq!(cashtags("$A and $TSLA but not a$B, $5 or $TOOLONGNAME"), 2);
        assert_eq!(mentions("hi @Ada_L, mail me@example.com @bob!"), ["ada_l", "bob"]);
    }
}

//! Which code points at the start of a text are one emoji to X.

/// Sequences newer than this are counted part by part, as X's published counter does: better three too many than a
/// post that is refused.
const NEWEST_SEQUENCE: u32 = 11;

/// Longest emoji of the standard, in code points, with room.
const LONGEST: usize = 12;

const EMOJI_STYLE: char = '\u{fe0f}';
const TEXT_STYLE: char = '\u{fe0e}';
const JOINER: char = '\u{200d}';

/// How many bytes at the start of `text` are one emoji, if it starts with one.
pub fn leading(text: &str) -> Option<usize> {
    let first = text.chars().next()?;
    if !can_start(first) {
        return None;
    }
    let run = run(text);
    for &end in run.iter().rev() {
        if text[end..].starts_with(TEXT_STYLE) {
            continue;
        }
        if is_one(&text[..end]) {
            return Some(end);
        }
    }
    None
}

const fn can_start(c: char) -> bool {
    matches!(c, '#' | '*' | '0'..='9') || c as u32 >= 0xa9
}

/// The ends of every prefix that could be one emoji.
fn run(text: &str) -> Vec<usize> {
    let mut ends = Vec::with_capacity(LONGEST);
    let mut before = None;
    for (at, c) in text.char_indices().take(LONGEST) {
        let goes_on = match before {
            None => true,
            Some(JOINER) => true,
            Some(before) => is_regional(before) && is_regional(c) && ends.len() == 1 || attaches(c),
        };
        if !goes_on {
            break;
        }
        ends.push(at + c.len_utf8());
        before = Some(c);
    }
    ends
}

const fn attaches(c: char) -> bool {
    matches!(c, JOINER | EMOJI_STYLE | '\u{20e3}' | '\u{1f3fb}'..='\u{1f3ff}' | '\u{e0020}'..='\u{e007f}')
}

const fn is_regional(c: char) -> bool {
    matches!(c, '\u{1f1e6}'..='\u{1f1ff}')
}

fn is_one(text: &str) -> bool {
    let mut chars = text.chars();
    let (first, second) = (chars.next(), chars.next());
    match (first, second) {
        (Some(c), None) => (c as u32) > 0xae && emojis::get(text).is_some(),
        (Some(c), Some(EMOJI_STYLE)) if chars.next().is_none() => {
            // Only where the mark is what makes it an emoji.
            let marked = emojis::get(&text[..c.len_utf8()]).is_some_and(|emoji| emoji.as_str().ends_with(EMOJI_STYLE));
            !c.is_ascii() && marked
        }
        _ => {
            // A raised hand may carry the style mark before its skin tone; the standard's list has it without.
            let found = emojis::get(text).or_else(|| toned_with_style(text).and_then(|plain| emojis::get(&plain)));
            found.is_some_and(|emoji| emoji.emoji_version().major() <= NEWEST_SEQUENCE)
        }
    }
}

fn toned_with_style(text: &str) -> Option<String> {
    let mut chars = text.chars();
    let (base, style, tone) = (chars.next()?, chars.next()?, chars.next()?);
    (style == EMOJI_STYLE && matches!(tone, '\u{1f3fb}'..='\u{1f3ff}') && chars.next().is_none())
        .then(|| [base, tone].iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_emoji_at_the_start_is_found() {
        let family = "👨‍👩‍👧‍👦";
        assert_eq!(leading(&format!("{family} and more")), Some(family.len()));
        assert_eq!(leading("👍🏽👍🏽"), Some("👍🏽".len()));
        assert_eq!(leading("☝️🏽"), Some("☝️🏽".len()));
    }

    #[test]
    fn digits_letters_and_plain_signs_are_none() {
        for text in ["1", "#tag", "a", "©", "é", "❤\u{fe0e}", ""] {
            assert_eq!(leading(text), None, "{text:?}");
        }
    }
}

//! Finds what X turns into a link (A5): with or without `http://`, when it ends in a real top-level domain.

use std::{collections::HashSet, ops::Range, sync::LazyLock};

static TOP_LEVEL: LazyLock<HashSet<&'static str>> = LazyLock::new(|| {
    let lines = include_str!("tlds.txt").lines().filter(|line| !line.starts_with('#'));
    lines.flat_map(str::split_whitespace).collect()
});

const LONGEST_LABEL: usize = 63;

/// The links of a text, in characters, in order, none overlapping.
pub fn find(text: &[char]) -> Vec<Range<usize>> {
    let mut links = Vec::new();
    let mut at = 0;
    while at < text.len() {
        match link_at(text, at) {
            Some(end) => {
                links.push(at..end);
                at = end;
            }
            None => at += 1,
        }
    }
    links
}

/// The end of the link that starts exactly here.
fn link_at(text: &[char], at: usize) -> Option<usize> {
    let before = at.checked_sub(1).map(|index| text[index]);
    if before.is_some_and(|c| c.is_ascii_alphanumeric() || "@\u{ff20}$#\u{ff03}\u{fffe}\u{feff}\u{ffff}".contains(c)) {
        return None;
    }
    for scheme in ["http://", "https://"] {
        if starts_with(text, at, scheme) {
            let host_end = host(text, at + scheme.len(), true)?;
            return Some(tail(text, host_end));
        }
    }
    let starts_word = text[at].is_ascii_alphanumeric() && !before.is_some_and(|c| "-_./".contains(c));
    if !starts_word {
        return None;
    }
    Some(tail(text, host(text, at, false)?))
}

fn starts_with(text: &[char], at: usize, word: &str) -> bool {
    let mut rest = text[at..].iter();
    word.chars().all(|wanted| rest.next().is_some_and(|c| c.eq_ignore_ascii_case(&wanted)))
}

/// The end of the longest host name from here; at least two labels, the last a top-level domain.
fn host(text: &[char], start: usize, any_script: bool) -> Option<usize> {
    let belongs = |c: char| {
        c.is_ascii_alphanumeric() || c == '-' || c == '_' || (any_script && !c.is_ascii() && c.is_alphanumeric())
    };
    let mut best = None;
    let mut labels: Vec<String> = Vec::new();
    let mut at = start;
    loop {
        let label_end = at + text[at..].iter().take_while(|c| belongs(**c)).count();
        let label: String = text[at..label_end].iter().collect();
        let well_formed = !label.is_empty()
            && label.len() <= LONGEST_LABEL
            && !label.starts_with(['-', '_'])
            && !label.ends_with(['-', '_']);
        if !well_formed {
            return best;
        }
        let follows_name = labels.last().is_some_and(|name| !name.contains('_'));
        let next = text.get(label_end).copied();
        let ends_here = !next.is_some_and(|c| c.is_ascii_alphanumeric() || "@+-".contains(c));
        if follows_name && ends_here && TOP_LEVEL.contains(label.to_lowercase().as_str()) {
            best = Some(label_end);
        }
        labels.push(label);
        if next != Some('.') || label_end + 1 >= text.len() {
            return best;
        }
        at = label_end + 1;
    }
}

/// Port, path and query after a host.
fn tail(text: &[char], host_end: usize) -> usize {
    let mut end = host_end;
    if text.get(end) == Some(&':') {
        let digits = text[end + 1..].iter().take_while(|c| c.is_ascii_digit()).count();
        if digits > 0 {
            end += 1 + digits;
        }
    }
    if text.get(end) == Some(&'/') {
        end = path(text, end);
    }
    if text.get(end) == Some(&'?') {
        end = query(text, end);
    }
    end
}

/// A path ends in a letter, a digit, one of `=_#/+-` or a closed bracket; punctuation after it is the sentence's.
fn path(text: &[char], slash: usize) -> usize {
    let general = |c: char| c.is_alphanumeric() || "!*';:=+,.$/%#[]-\u{2013}_~@|&".contains(c);
    let closes = |c: char| c.is_alphanumeric() || "=_#/+-".contains(c);
    let mut end = slash + 1;
    let mut at = slash + 1;
    while let Some(&c) = text.get(at) {
        if c == '(' {
            let inside = text[at + 1..].iter().take_while(|c| general(**c)).count();
            if inside == 0 || text.get(at + 1 + inside) != Some(&')') {
                break;
            }
            at += inside + 2;
            end = at;
        } else if general(c) {
            at += 1;
            if closes(c) {
                end = at;
            }
        } else {
            break;
        }
    }
    end
}

fn query(text: &[char], mark: usize) -> usize {
    let general = |c: char| c.is_ascii_alphanumeric() || "!?*'@();:&=+$/%#[]-_.,~|".contains(c);
    let closes = |c: char| c.is_ascii_alphanumeric() || "-_&=#/".contains(c);
    let run = text[mark + 1..].iter().take_while(|c| general(**c)).count();
    match text[mark + 1..mark + 1 + run].iter().rposition(|c| closes(*c)) {
        Some(last) => mark + 2 + last,
        None => mark,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn links(text: &str) -> Vec<String> {
        let chars: Vec<char> = text.chars().collect();
        find(&chars).into_iter().map(|range| chars[range].iter().collect()).collect()
    }

    #[test]
    fn links_are_found_with_and_without_a_scheme() {
        assert_eq!(links("see example.com now"), ["example.com"]);
        assert_eq!(links("x.com/a, and HTTPS://Example.org/b?c=d."), ["x.com/a", "HTTPS://Example.org/b?c=d"]);
        assert_eq!(links("(https://en.wikipedia.org/wiki/Rust_(film))"), ["https://en.wikipedia.org/wiki/Rust_(film)"]);
        assert_eq!(links("http://пример.рф/путь"), ["http://пример.рф/путь"]);
        assert_eq!(links("a.b.co.uk:8080/x!"), ["a.b.co.uk:8080/x"]);
    }

    #[test]
    fn what_only_looks_like_a_link_is_text() {
        for text in
            ["user@example.com", "test.zzz/foo", "http://localhost:3000/x", "v1.2.3", "end.Nothing", "$a.com", "-_.com"]
        {
            assert_eq!(links(text), Vec::<String>::new(), "{text}");
        }
    }

    #[test]
    fn a_host_may_be_followed_by_a_sentence() {
        assert_eq!(links("Read example.com. Then rest."), ["example.com"]);
        assert_eq!(links("example.com.zzz"), ["example.com"]);
    }
}

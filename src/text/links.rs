//! Where X sees a link in a text: with a scheme, or without one when the name ends in a top-level domain that exists.

use std::ops::Range;

use url::Url;

/// Longer than any host name; bounds the work on hostile texts.
const LONGEST_HOST: usize = 260;
/// Longest top-level domain in other letters, in characters, with room.
const LONGEST_FOREIGN: usize = 24;

/// The links of a text as byte ranges, in order, never overlapping.
pub fn find(text: &str) -> Vec<Range<usize>> {
    if !text.contains('.') {
        return Vec::new();
    }
    let text = Text { text, chars: text.char_indices().collect() };
    let mut links = Vec::new();
    let mut at = 0;
    while at < text.chars.len() {
        // What may stand before a link is part of its form: at the start of a text a foreign letter is taken for that.
        let found = if at == 0 && text.may_precede(0) { text.link_at(1) } else { None };
        match found.or_else(|| text.link_at(at)) {
            Some(found) => {
                links.extend(found.links.into_iter().map(|link| text.byte(link.start)..text.byte(link.end)));
                at = found.resume.max(at) + 1;
            }
            None => at += 1,
        }
    }
    links
}

struct Text<'a> {
    text: &'a str,
    chars: Vec<(usize, char)>,
}

/// Something of a link's form; `links` is empty where X then decides against it.
struct Found {
    links: Vec<Range<usize>>,
    resume: usize,
}

impl Text<'_> {
    fn byte(&self, index: usize) -> usize {
        self.chars.get(index).map_or(self.text.len(), |(at, _)| *at)
    }

    fn char(&self, index: usize) -> Option<char> {
        self.chars.get(index).map(|(_, c)| *c)
    }

    fn link_at(&self, start: usize) -> Option<Found> {
        let before = start.checked_sub(1).and_then(|index| self.char(index));
        if before
            .is_some_and(|c| c.is_ascii_alphanumeric() || matches!(c, '@' | '＠' | '$' | '#' | '＃') || is_invalid(c))
        {
            return None;
        }
        if let Some(host) = self.scheme_end(start)
            && let Some(host_end) = self.host_end(host, is_host_char, &['_', '-'])
        {
            let resume = self.tail_end(host_end);
            let end = if self.is_tco(host, host_end) { self.slug_end(host_end) } else { resume };
            return Some(Found { links: std::iter::once(start..end).collect(), resume });
        }
        let host_end = self.host_end(start, is_host_char, &['_', '-'])?;
        let end = self.tail_end(host_end);
        let within_word = matches!(before, Some('-' | '_' | '.' | '/'));
        let links = if within_word { Vec::new() } else { self.bare_links(start, host_end, end) };
        Some(Found { links, resume: end })
    }

    /// Without a scheme only the Latin names within the host are links, and the last one takes port and query along
    /// only where there is a path.
    fn bare_links(&self, start: usize, host_end: usize, end: usize) -> Vec<Range<usize>> {
        let mut links: Vec<Range<usize>> = Vec::new();
        let mut at = start;
        while at < host_end {
            match self.host_end(at, |c| is_latin(c) || c == '-', &[]) {
                Some(found) if found <= host_end => {
                    links.push(at..found);
                    at = found;
                }
                _ => at += 1,
            }
        }
        if let Some(last) = links.last_mut()
            && self.char(self.port_end(host_end)) == Some('/')
        {
            last.end = end;
        }
        links
    }

    fn may_precede(&self, index: usize) -> bool {
        self.char(index).is_some_and(|c| {
            !c.is_ascii_alphanumeric() && !matches!(c, '@' | '＠' | '$' | '#' | '＃') && !is_invalid(c)
        })
    }

    fn scheme_end(&self, start: usize) -> Option<usize> {
        let rest = &self.text[self.byte(start)..];
        ["https://", "http://"].iter().find_map(|scheme| {
            rest.get(..scheme.len()).filter(|head| head.eq_ignore_ascii_case(scheme)).map(|_| start + scheme.len())
        })
    }

    /// The end of the longest name from `start`, of characters that are `allowed`, whose last label is a top-level
    /// domain. `joiners` may stand within a label as well.
    fn host_end(&self, start: usize, allowed: impl Fn(char) -> bool, joiners: &[char]) -> Option<usize> {
        let mut end = None;
        let mut label_start = start;
        let mut index = start;
        while index < start + LONGEST_HOST {
            match self.char(index) {
                Some('.') if index > label_start && self.char(index - 1).is_some_and(&allowed) => {
                    let under_score = self.chars[label_start..index].iter().any(|(_, c)| *c == '_');
                    if !under_score && let Some(tld_end) = self.tld_end(index + 1) {
                        end = Some(tld_end);
                    }
                    label_start = index + 1;
                }
                Some(c) if index > label_start && joiners.contains(&c) => {}
                Some(c) if allowed(c) => {}
                _ => break,
            }
            index += 1;
        }
        end
    }

    /// The end of a top-level domain that starts here and is not part of a longer word.
    fn tld_end(&self, start: usize) -> Option<usize> {
        let ascii = self.run_end(start, |c| c.is_ascii_alphanumeric() || c == '-');
        if ascii > start {
            let label = &self.text[self.byte(start)..self.byte(ascii)];
            let follows = self.char(ascii);
            let label = label.to_ascii_lowercase();
            let encoded = label.strip_prefix("xn--").is_some_and(|rest| !rest.is_empty());
            let exists = tld::exist(&label) && !matches!(follows, Some('@' | '+'));
            return (encoded || exists).then_some(ascii);
        }
        let longest = self.run_end(start, |c| is_host_char(c) && !c.is_ascii()).min(start + LONGEST_FOREIGN);
        (start + 1..=longest).rev().find(|end| {
            let follows = self.char(*end);
            let goes_on = follows.is_some_and(|c| c.is_ascii_alphanumeric() || matches!(c, '@' | '+' | '-'));
            !goes_on && is_foreign_tld(&self.text[self.byte(start)..self.byte(*end)])
        })
    }

    fn run_end(&self, start: usize, of: impl Fn(char) -> bool) -> usize {
        (start..self.chars.len()).find(|index| !self.char(*index).is_some_and(&of)).unwrap_or(self.chars.len())
    }

    fn is_tco(&self, start: usize, end: usize) -> bool {
        self.text[self.byte(start)..self.byte(end)].eq_ignore_ascii_case("t.co") && self.char(end) == Some('/')
    }

    fn slug_end(&self, host_end: usize) -> usize {
        let slug = self.run_end(host_end + 1, |c| c.is_ascii_alphanumeric());
        if self.char(slug) == Some('?') { self.query_end(slug) } else { slug }
    }

    /// The end of port, path and query behind a host.
    fn tail_end(&self, host_end: usize) -> usize {
        let mut end = self.port_end(host_end);
        if self.char(end) == Some('/') {
            end = self.path_end(end + 1);
        }
        if self.char(end) == Some('?') {
            end = self.query_end(end);
        }
        end
    }

    fn port_end(&self, host_end: usize) -> usize {
        let end = self.run_end(host_end + 1, |c| c.is_ascii_digit());
        if self.char(host_end) == Some(':') && end > host_end + 1 { end } else { host_end }
    }

    fn path_end(&self, start: usize) -> usize {
        let (mut index, mut end) = (start, start);
        while let Some(c) = self.char(index) {
            if c == '(' {
                let Some(closed) = self.parentheses_end(index, 2) else { break };
                // They end a path only where it could have ended before them.
                end = if end == index { closed } else { end };
                index = closed;
                continue;
            }
            if !is_path_char(c) {
                break;
            }
            index += 1;
            if ends_path(c) {
                end = index;
            }
        }
        end
    }

    /// The end of a balanced pair of parentheses with something in it, as in an encyclopedia's addresses.
    fn parentheses_end(&self, open: usize, depth: usize) -> Option<usize> {
        let mut index = open + 1;
        loop {
            match self.char(index)? {
                ')' => return (index > open + 1).then_some(index + 1),
                '(' if depth > 1 => index = self.parentheses_end(index, depth - 1)?,
                c if is_path_char(c) => index += 1,
                _ => return None,
            }
        }
    }

    fn query_end(&self, question: usize) -> usize {
        let mut end = question;
        let mut index = question + 1;
        while let Some(c) = self.char(index).filter(|c| is_query_char(*c)) {
            index += 1;
            if c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '&' | '=' | '#' | '/') {
                end = index;
            }
        }
        end
    }
}

fn is_foreign_tld(label: &str) -> bool {
    // Marks that the encoding drops would make two spellings of one name.
    if label.contains(|c| matches!(c, '\u{fe00}'..='\u{fe0f}' | '\u{200b}'..='\u{200d}')) {
        return false;
    }
    let ascii = Url::parse(&format!("http://a.{label}")).ok();
    let host = ascii.as_ref().and_then(Url::host_str);
    host.and_then(|host| host.rsplit('.').next()).is_some_and(tld::exist)
}

const fn is_invalid(c: char) -> bool {
    matches!(c, '\u{fffe}' | '\u{feff}' | '\u{ffff}')
}

fn is_host_char(c: char) -> bool {
    let mark = matches!(
        c,
        '!' | '\''
            | '#'
            | '%'
            | '&'
            | '('
            | ')'
            | '*'
            | '+'
            | ','
            | '\\'
            | '-'
            | '.'
            | '/'
            | ':'
            | ';'
            | '<'
            | '='
            | '>'
            | '?'
            | '@'
            | '['
            | ']'
            | '^'
            | '_'
            | '{'
            | '|'
            | '}'
            | '~'
            | '$'
    );
    let direction =
        matches!(c, '\u{202a}'..='\u{202e}' | '\u{061c}' | '\u{200e}' | '\u{200f}' | '\u{2066}'..='\u{2069}');
    !mark && !direction && !is_invalid(c) && !c.is_whitespace() && !c.is_control()
}

const fn is_latin(c: char) -> bool {
    c.is_ascii_alphanumeric() || is_accented(c)
}

const fn is_accented(c: char) -> bool {
    matches!(
        c,
        '\u{c0}'..='\u{d6}' | '\u{d8}'..='\u{f6}' | '\u{f8}'..='\u{ff}' | '\u{100}'..='\u{24f}' | '\u{253}' | '\u{254}'
            | '\u{256}' | '\u{257}' | '\u{259}' | '\u{25b}' | '\u{263}' | '\u{268}' | '\u{26f}' | '\u{272}' | '\u{289}'
            | '\u{28b}' | '\u{2bb}' | '\u{300}'..='\u{36f}' | '\u{1e00}'..='\u{1eff}'
    )
}

const fn is_word(c: char) -> bool {
    is_latin(c) || matches!(c, '\u{400}'..='\u{4ff}')
}

const fn is_path_char(c: char) -> bool {
    is_word(c)
        || matches!(
            c,
            '!' | '*'
                | '\''
                | ';'
                | ':'
                | '='
                | '+'
                | ','
                | '.'
                | '$'
                | '/'
                | '%'
                | '#'
                | '['
                | ']'
                | '-'
                | '–'
                | '_'
                | '~'
                | '@'
                | '|'
                | '&'
        )
}

const fn ends_path(c: char) -> bool {
    is_word(c) || matches!(c, '+' | '-' | '=' | '_' | '#' | '/')
}

const fn is_query_char(c: char) -> bool {
    c.is_ascii_alphanumeric()
        || matches!(
            c,
            '!' | '?'
                | '*'
                | '\''
                | '@'
                | '('
                | ')'
                | ';'
                | ':'
                | '&'
                | '='
                | '+'
                | '$'
                | '/'
                | '%'
                | '#'
                | '['
                | ']'
                | '-'
                | '_'
                | '.'
                | ','
                | '~'
                | '|'
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each as X's own published extractor answers.
    const VECTORS: &[(&str, &[&str])] = &[
        ("see example.com now", &["example.com"]),
        ("x.com/a.", &["x.com/a"]),
        ("(x.com/a)", &["x.com/a"]),
        ("x.com/a(b)c", &["x.com/a(b)c"]),
        ("https://en.wikipedia.org/wiki/A_(b)", &["https://en.wikipedia.org/wiki/A_(b)"]),
        ("https://例え.jp/a", &["https://例え.jp/a"]),
        ("例え.jp/a", &[]),
        ("日本x.com", &["x.com"]),
        ("ax.comです", &["ax.com"]),
        ("#x.com @x.com $x.com .x.com -x.com /x.com", &[]),
        ("a_b.example.com", &["b.example.com"]),
        ("a.b_c.com", &[]),
        ("https://example.com/?q=a&b=c!", &["https://example.com/?q=a&b=c"]),
        ("https://example.com/a,b", &["https://example.com/a,b"]),
        ("EXAMPLE.COM", &["EXAMPLE.COM"]),
        ("foo.js readme.md e.g. x 3.14", &["readme.md"]),
        ("https://t.co/abcdef/zzz", &["https://t.co/abcdef"]),
        ("example.com:8080/x", &["example.com:8080/x"]),
        ("ftp://example.com/a", &[]),
        ("HTTPS://Example.com", &["HTTPS://Example.com"]),
        ("a@b.com/x", &[]),
        ("xn--fsq.xn--p1ai", &["xn--fsq.xn--p1ai"]),
        ("пример.рф", &[]),
        ("http://пример.рф/a", &["http://пример.рф/a"]),
        ("https://example.com#a", &["https://example.com"]),
        ("https://example.com?", &["https://example.com"]),
        ("example.comx example.com- example.com@ example.com_x", &["example.com"]),
        ("a.co, b.de; www.example.co.uk!", &["a.co", "b.de", "www.example.co.uk"]),
        ("localhost http://localhost:3000/x", &[]),
        ("t.co—bar.de t.coпx.co/a", &["t.co", "bar.de", "t.co", "x.co/a"]),
        ("t.co?q=1 t.co/?q=1 x.co:8080 ét.co/abc", &["t.co", "t.co/?q=1", "x.co", "ét.co/abc"]),
        ("ét.co/abc", &["t.co/abc"]),
    ];

    #[test]
    fn a_link_is_what_x_takes_for_one() {
        for (text, links) in VECTORS {
            let found: Vec<_> = find(text).into_iter().map(|range| &text[range]).collect();
            assert_eq!(found, *links, "{text:?}");
        }
    }

    #[test]
    fn a_hostile_text_is_read_in_bounded_time() {
        let text = "a.".repeat(12_500);
        assert!(find(&text).is_empty());
    }
}

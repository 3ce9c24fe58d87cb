//! The text limits of every platform, as data, and the one function that measures a text against them.
//!
//! Where a platform does not say in what it counts, the unit that never counts less is taken.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{links, weighted};
use crate::platforms::Platform;

/// What a platform allows for one of its text fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    pub platform: Platform,
    pub field: Field,
    pub limit: usize,
    pub unit: Unit,
    pub max_hashtags: Option<usize>,
    pub max_mentions: Option<usize>,
    pub max_links: Option<usize>,
    pub max_cashtags: Option<usize>,
    /// Characters that the platform refuses anywhere in the field.
    pub forbidden: &'static [char],
    /// Where the numbers come from.
    pub source: &'static str,
}

/// Which of a post's texts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Field {
    /// The post, caption, commentary or description.
    Text,
    Title,
}

/// In what a platform counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// X's weighted length.
    Weighted,
    /// UTF-16 code units, as JavaScript counts.
    Utf16,
    /// Bytes of UTF-8.
    Bytes,
    /// Code points, an emoji as its bytes of UTF-8.
    EmojiBytes,
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Weighted => "weighted characters",
            Self::Utf16 => "characters",
            Self::Bytes => "bytes",
            Self::EmojiBytes => "characters (an emoji counts its bytes)",
        })
    }
}

const PLAIN: Rule = Rule {
    platform: Platform::X,
    field: Field::Text,
    limit: 0,
    unit: Unit::Utf16,
    max_hashtags: None,
    max_mentions: None,
    max_links: None,
    max_cashtags: None,
    forbidden: &[],
    source: "",
};

/// Every rule, one line of facts each.
pub const RULES: &[Rule] = &[
    Rule { limit: 280, unit: Unit::Weighted, max_cashtags: Some(1), source: "X API: counting characters", ..PLAIN },
    Rule { platform: Platform::Facebook, limit: 63_206, source: "observed; not in Meta's documents", ..PLAIN },
    Rule {
        platform: Platform::Instagram,
        limit: 2_200,
        max_hashtags: Some(30),
        max_mentions: Some(20),
        source: "Instagram Graph API: media; error 36004",
        ..PLAIN
    },
    Rule { platform: Platform::LinkedIn, limit: 3_000, source: "LinkedIn Posts API: commentary", ..PLAIN },
    Rule {
        platform: Platform::YouTube,
        limit: 5_000,
        unit: Unit::Bytes,
        forbidden: &['<', '>'],
        source: "YouTube Data API: videos, snippet.description",
        ..PLAIN
    },
    Rule {
        platform: Platform::YouTube,
        field: Field::Title,
        limit: 100,
        forbidden: &['<', '>'],
        source: "YouTube Data API: videos, snippet.title",
        ..PLAIN
    },
    Rule { platform: Platform::TikTok, limit: 2_200, source: "TikTok Content Posting API: post_info.title", ..PLAIN },
    Rule {
        platform: Platform::Threads,
        limit: 500,
        unit: Unit::EmojiBytes,
        max_links: Some(5),
        source: "Threads API: posts, text",
        ..PLAIN
    },
];

/// For an account on X that pays.
pub const X_PREMIUM: Rule =
    Rule { limit: 25_000, unit: Unit::Weighted, max_cashtags: Some(1), source: "X API: changelog, 2024-08", ..PLAIN };

/// How long a text is to a platform, and everything the platform would refuse it for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Measure {
    pub used: usize,
    pub limit: usize,
    pub unit: Unit,
    pub problems: Vec<Problem>,
}

impl Measure {
    pub fn fits(&self) -> bool {
        self.problems.is_empty()
    }
}

/// One reason why a platform would refuse a text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// Stable, for programs.
    pub code: &'static str,
    /// What is wrong and what to do, for people.
    pub message: String,
}

/// The rule for a platform's field; only YouTube has a title.
pub fn rule(platform: Platform, field: Field) -> Option<&'static Rule> {
    RULES.iter().find(|rule| rule.platform == platform && rule.field == field)
}

/// Measures the main text of a post.
///
/// # Panics
/// Never: every platform has a rule for its text, which a test holds.
pub fn measure(platform: Platform, text: &str) -> Measure {
    rule(platform, Field::Text).expect("every platform has a rule for its text").measure(text)
}

/// Measures one field; `None` where the platform has no such field.
pub fn measure_field(platform: Platform, field: Field, text: &str) -> Option<Measure> {
    rule(platform, field).map(|rule| rule.measure(text))
}

impl Rule {
    pub fn count(&self, text: &str) -> usize {
        match self.unit {
            Unit::Weighted => weighted::weighted_length(text),
            Unit::Utf16 => text.encode_utf16().count(),
            Unit::Bytes => text.len(),
            Unit::EmojiBytes => emoji_bytes(text),
        }
    }

    pub fn measure(&self, text: &str) -> Measure {
        let used = self.count(text);
        let mut problems = Vec::new();
        let mut problem = |code, message| problems.push(Problem { code, message });
        let (platform, limit, unit) = (self.platform.title(), self.limit, self.unit);
        if used > limit {
            let over = used - limit;
            problem("too_long", format!("{used} of {limit} {unit} on {platform}: shorten it by at least {over}"));
        }
        if self.field == Field::Title && text.trim().is_empty() {
            problem("empty", format!("{platform} needs a title: write at least one character"));
        }
        if self.unit == Unit::Weighted
            && let Some(c) = weighted::invalid_code_point(text)
        {
            problem("invalid_character", format!("{platform} refuses the character U+{:04X}: remove it", c as u32));
        }
        if let Some(c) = text.chars().find(|c| self.forbidden.contains(c)) {
            problem("forbidden_character", format!("{platform} refuses the character \"{c}\": remove it"));
        }
        let counted = [
            ("too_many_hashtags", "hashtags", self.max_hashtags, hashtags(text).count()),
            ("too_many_mentions", "mentions", self.max_mentions, mentions(text).count()),
            ("too_many_links", "links", self.max_links, distinct_links(text)),
            ("too_many_cashtags", "cashtags", self.max_cashtags, cashtags(text).count()),
        ];
        for (code, what, max, count) in counted {
            if let Some(max) = max
                && count > max
            {
                problem(code, format!("{count} {what}, {platform} allows {max}: remove at least {}", count - max));
            }
        }
        Measure { used, limit, unit, problems }
    }
}

/// The hashtags of a text, with their sign.
pub fn hashtags(text: &str) -> impl Iterator<Item = &str> {
    marked(text, &['#', '＃']).filter(|tag| tag.chars().skip(1).any(char::is_alphabetic))
}

/// The mentions of a text, with their sign.
pub fn mentions(text: &str) -> impl Iterator<Item = &str> {
    marked(text, &['@', '＠'])
}

fn cashtags(text: &str) -> impl Iterator<Item = &str> {
    marked(text, &['$']).filter(|tag| {
        let letters = tag.len() - 1;
        (1..=6).contains(&letters) && tag[1..].chars().all(|c| c.is_ascii_alphabetic())
    })
}

fn distinct_links(text: &str) -> usize {
    let links: std::collections::BTreeSet<_> = links::find(text).into_iter().map(|link| &text[link]).collect();
    links.len()
}

/// Words that start with one of `signs`, where the sign does not stand within a word.
fn marked<'a>(text: &'a str, signs: &'static [char]) -> impl Iterator<Item = &'a str> {
    let mut before = None;
    text.char_indices().filter_map(move |(at, c)| {
        let preceded = before.replace(c);
        let free = preceded.is_none_or(|p: char| !p.is_alphanumeric() && !matches!(p, '_' | '&' | '/'));
        if !free || !signs.contains(&c) {
            return None;
        }
        let word = &text[at + c.len_utf8()..];
        let length = word.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(word.len());
        (length > 0).then(|| &text[at..at + c.len_utf8() + length])
    })
}

/// Threads counts code points, but an emoji as its bytes.
fn emoji_bytes(text: &str) -> usize {
    let mut length = 0;
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let bytes = super::emoji::leading(rest);
        length += bytes.unwrap_or(1);
        rest = &rest[bytes.unwrap_or(c.len_utf8())..];
    }
    length
}

#[cfg(test)]
mod tests {
    use super::*;

    fn codes(platform: Platform, text: &str) -> Vec<&'static str> {
        measure(platform, text).problems.into_iter().map(|problem| problem.code).collect()
    }

    #[test]
    fn every_platform_has_a_rule_for_its_text_and_names_its_source() {
        for platform in Platform::ALL {
            assert!(measure(*platform, "hello").fits(), "{platform}");
        }
        assert!(RULES.iter().all(|rule| rule.limit > 0 && !rule.source.is_empty()));
    }

    #[test]
    fn a_text_at_the_limit_fits_and_one_more_does_not() {
        for rule in RULES.iter().chain([&X_PREMIUM]) {
            let full = "a".repeat(rule.limit);
            assert!(rule.measure(&full).fits(), "{} {:?}", rule.platform, rule.field);
            let over = rule.measure(&format!("{full}b"));
            assert_eq!(over.problems[0].code, "too_long", "{} {:?}", rule.platform, rule.field);
            assert!(over.problems[0].message.contains("at least 1"));
        }
    }

    #[test]
    fn each_platform_counts_in_its_own_unit() {
        let text = "日🎉";
        assert_eq!(measure(Platform::X, text).used, 4);
        assert_eq!(measure(Platform::LinkedIn, text).used, 3);
        assert_eq!(measure(Platform::YouTube, text).used, 7);
        assert_eq!(measure(Platform::Threads, text).used, 5);
    }

    #[test]
    fn what_a_platform_refuses_beside_length_is_found() {
        let tags: String = (0..31).map(|n| format!("#tag{n} ")).collect();
        assert_eq!(codes(Platform::Instagram, &tags), ["too_many_hashtags"]);
        let mentions: String = (0..21).map(|n| format!("@name{n} ")).collect();
        assert_eq!(codes(Platform::Instagram, &mentions), ["too_many_mentions"]);
        let links: String = (0..6).map(|n| format!("https://example.com/{n} ")).collect();
        assert_eq!(codes(Platform::Threads, &links), ["too_many_links"]);
        assert_eq!(codes(Platform::X, "$ABC and $DEF"), ["too_many_cashtags"]);
        assert_eq!(codes(Platform::X, "a\u{feff}b"), ["invalid_character"]);
        assert_eq!(codes(Platform::YouTube, "a <b>"), ["forbidden_character"]);
        assert_eq!(measure_field(Platform::YouTube, Field::Title, " ").unwrap().problems[0].code, "empty");
        assert_eq!(measure_field(Platform::X, Field::Title, "a"), None);
    }

    #[test]
    fn signs_within_words_and_prices_are_no_tags() {
        assert_eq!(hashtags("#one a#two #3 /#four ＃fünf").collect::<Vec<_>>(), ["#one", "＃fünf"]);
        assert_eq!(mentions("me@example.com @you").collect::<Vec<_>>(), ["@you"]);
        assert_eq!(codes(Platform::X, "$5 and $10"), [""; 0]);
    }
}

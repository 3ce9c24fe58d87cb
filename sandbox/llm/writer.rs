//! Writes the reply: not clever, but made of the content it was given, within the limit, always the same.

use super::task::{Task, Verb};

/// What a task asks for, as plain text.
pub fn compose(task: &Task) -> String {
    let content = task.content.trim();
    if task.verb == Verb::Describe {
        let words = "A photo that shows the subject clearly in the middle, in daylight, with a calm background.";
        return fitted(words, limit(task, 1_000));
    }
    let length = measure(content);
    match task.verb {
        Verb::Shorten => fitted(content, limit(task, length).min(length * 3 / 4)),
        Verb::Summarize => fitted(content, limit(task, length).min(length / 2)),
        Verb::Title => fitted(&first_words(content, 8), limit(task, 100)),
        Verb::Hashtags => hashtags(content, 5, task.seed).join(" "),
        Verb::Expand => {
            let gist = first_words(content, 20);
            let more = format!("{content}\n\nWhy it matters: {}.", gist.trim_end_matches('.'));
            fitted(&more, limit(task, usize::MAX))
        }
        Verb::Optimize | Verb::Describe => optimized(content, limit(task, 600), task.seed),
    }
}

fn limit(task: &Task, otherwise: usize) -> usize {
    task.limit.unwrap_or(otherwise)
}

/// The content with a hashtag of its own where there is room.
fn optimized(content: &str, limit: usize, seed: u64) -> String {
    let tag = hashtags(content, 1, seed).concat();
    let room = limit.saturating_sub(measure(&tag) + 2);
    if tag.is_empty() || measure(content) > room {
        return fitted(content, limit);
    }
    format!("{content}\n\n{tag}")
}

/// As long as a strict platform could see it: wide characters count twice, a link at least 23.
pub fn measure(text: &str) -> usize {
    let word = |word: &str| {
        let chars: usize = word.chars().map(|c| if u32::from(c) > 0x10ff { 2 } else { 1 }).sum();
        if is_link(word) { chars.max(23) } else { chars }
    };
    let spaces = text.chars().filter(|c| c.is_whitespace()).count();
    text.split_whitespace().map(word).sum::<usize>() + spaces
}

/// The first sentences or words that fit, and every link of the text with them.
pub fn fitted(text: &str, limit: usize) -> String {
    if measure(text) <= limit {
        return String::from(text);
    }
    let links: Vec<&str> = text.split_whitespace().filter(|word| is_link(word)).collect();
    let reserved: usize = links.iter().map(|link| measure(link) + 1).sum();
    // Links that do not fit even alone cannot be kept.
    let (links, room) = if reserved < limit { (links, limit - reserved) } else { (Vec::new(), limit) };
    let mut kept = String::new();
    for word in text.split_whitespace().filter(|word| !is_link(word)) {
        let longer = if kept.is_empty() { String::from(word) } else { format!("{kept} {word}") };
        if measure(&longer) > room {
            break;
        }
        kept = longer;
    }
    if kept.is_empty() {
        // Not even one word fits: cut it. A letter is all that a text of one letter can become.
        kept = text.chars().take((room / 2).max(1)).collect();
    } else if let Some(end) = kept.rfind(['.', '!', '?']).filter(|end| end * 5 > kept.len() * 2) {
        kept.truncate(end + 1);
    }
    let kept = kept.trim_end_matches([',', ';', ':', '-', ' ']);
    let pieces = std::iter::once(kept).chain(links).filter(|piece| !piece.is_empty());
    pieces.collect::<Vec<_>>().join(" ")
}

/// A word that a platform would take for a link.
fn is_link(word: &str) -> bool {
    let word = word.trim_end_matches(['.', ',', ';', ':', '!', '?', ')']);
    let host = word.split_once("://").map_or(word, |(_, rest)| rest).split('/').next().unwrap_or_default();
    let letters = |label: &str| label.len() >= 2 && label.chars().all(char::is_alphabetic);
    !word.contains('@') && host.rsplit_once('.').is_some_and(|(name, end)| !name.is_empty() && letters(end))
}

pub fn first_words(text: &str, count: usize) -> String {
    text.split_whitespace().take(count).collect::<Vec<_>>().join(" ")
}

/// Hashtags from the longest words; which come first depends on the seed.
pub fn hashtags(text: &str, count: usize, seed: u64) -> Vec<String> {
    let letters = |word: &str| word.chars().filter(|c| c.is_alphanumeric()).collect::<String>();
    let is_plain = |word: &&str| !is_link(word) && !word.contains(['/', '@', '#']);
    let mut words: Vec<String> = text.split_whitespace().filter(is_plain).map(letters).collect();
    words.retain(|word| word.chars().count() >= 5 && !word.chars().all(|c| c.is_ascii_digit()));
    words.sort_by_key(|word| (std::cmp::Reverse(word.chars().count()), word.clone()));
    words.dedup();
    words.truncate(count.max(3));
    if !words.is_empty() {
        let turn = usize::try_from(seed % words.len() as u64).unwrap_or(0);
        words.rotate_left(turn);
    }
    words.into_iter().take(count).map(|word| format!("#{word}")).collect()
}

/// The content in parts that each fit, in order, nothing left out.
pub fn parts(content: &str, limit: usize) -> Vec<String> {
    let mut parts: Vec<String> = Vec::new();
    for word in content.split_whitespace() {
        match parts.last_mut() {
            Some(part) if measure(part) + 1 + measure(word) <= limit => {
                part.push(' ');
                part.push_str(word);
            }
            Some(_) | None => parts.push(String::from(word)),
        }
    }
    parts
}

/// A reply that ignores its limit: at least twice as long.
pub fn oversized(task: &Task) -> String {
    let words = if task.content.trim().is_empty() { "more and more" } else { task.content.trim() };
    let mut text = String::from(words);
    let least = limit(task, 280) * 2;
    while text.chars().count() <= least {
        text.push(' ');
        text.push_str(words);
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn task(instructions: &str, content: &str) -> Task {
        Task::of(&[json!({"role": "system", "content": instructions}), json!({"role": "user", "content": content})])
    }

    #[test]
    fn a_reply_fits_its_limit_whatever_the_content() {
        let contents = [
            "A long day at the harbour, and the boats come in one after another with the evening tide behind them.",
            "日本語の文章はとても長いですから短くしなければなりません",
            "Donaudampfschifffahrtsgesellschaftskapitänsmützenabzeichen",
            "see https://example.com/a/very/long/path?with=query and x.co or y.co for more of the same",
        ];
        for content in contents {
            for limit in [20, 60, 280] {
                for verb in ["Shorten", "Summarize", "Expand", "Improve"] {
                    let reply = compose(&task(&format!("{verb} it. At most {limit} characters."), content));
                    assert!(!reply.is_empty());
                    assert!(measure(&reply) <= limit, "{verb} {limit}: {reply}");
                }
            }
        }
    }

    #[test]
    fn what_cannot_become_shorter_stays_as_it_is() {
        for content in ["a", "語", "a b"] {
            for verb in ["Shorten", "Summarize", "Improve"] {
                let reply = compose(&task(&format!("{verb} the post."), content));
                assert!(!reply.trim().is_empty(), "{verb} {content}");
            }
        }
    }

    #[test]
    fn shortening_shortens_and_optimizing_adds_a_hashtag() {
        let content = "We repaired the harbour lighthouse this weekend and everybody helped";
        let short = compose(&task("Shorten the post.", content));
        let linked =
            compose(&task("Shorten the post.", &format!("{content}, see https://example.com/a for more of it.")));
        assert!(linked.contains("https://example.com/a"), "{linked}");
        assert!(short.chars().count() < content.chars().count(), "{short}");
        assert!(compose(&task("Optimize the post.", content)).contains('#'));
    }

    #[test]
    fn parts_lose_nothing() {
        let content = "one two three four five six seven eight nine ten";
        assert_eq!(parts(content, 12).join(" "), content);
    }
}

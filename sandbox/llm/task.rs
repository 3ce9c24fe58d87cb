//! Understands a prompt just enough to answer it plausibly: what content, what to do with it, how long at most.

use serde_json::Value;
use sha2::{Digest, Sha256};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    Shorten,
    Summarize,
    Expand,
    Hashtags,
    Title,
    Describe,
    Optimize,
}

#[derive(Clone, Debug)]
pub struct Task {
    pub verb: Verb,
    pub content: String,
    /// At most so many characters.
    pub limit: Option<usize>,
    /// A number that is the same for the same prompt.
    pub seed: u64,
}

impl Task {
    pub fn of(messages: &[Value]) -> Self {
        let system = said_by(messages, &["system", "developer"]);
        let users: Vec<&Value> = messages.iter().filter(|message| message["role"] == "user").collect();
        let user = users.last().map(|message| text_of(message)).unwrap_or_default();
        let content = content_of(&user);
        let around = user.replacen(&content, " ", 1);
        let has_image = users.last().is_some_and(|message| message["content"].to_string().contains("\"image_url\""));
        let instructions = format!("{system}\n{around}").to_lowercase();
        Self {
            verb: if has_image { Verb::Describe } else { verb_of(&instructions) },
            limit: limit_in(&instructions),
            seed: seed_of(&Value::from(messages.to_vec()).to_string()),
            content,
        }
    }
}

/// A number from a text, the same on every run.
pub fn seed_of(text: &str) -> u64 {
    let digest = Sha256::digest(text);
    digest.iter().take(8).fold(0, |seed, byte| seed << 8 | u64::from(*byte))
}

fn said_by(messages: &[Value], roles: &[&str]) -> String {
    let said = messages.iter().filter(|message| message["role"].as_str().is_some_and(|role| roles.contains(&role)));
    said.map(text_of).collect::<Vec<_>>().join("\n")
}

fn text_of(message: &Value) -> String {
    match &message["content"] {
        Value::String(text) => text.clone(),
        Value::Array(parts) => parts.iter().filter_map(|part| part["text"].as_str()).collect::<Vec<_>>().join("\n"),
        _ => String::new(),
    }
}

/// The user's own words inside a message: between tags, in quotes of three, in a JSON field, or all of it.
fn content_of(message: &str) -> String {
    for tag in ["content", "text", "post", "user_content", "input"] {
        let (open, close) = (format!("<{tag}>"), format!("</{tag}>"));
        if let Some((_, rest)) = message.split_once(&open)
            && let Some((inside, _)) = rest.rsplit_once(&close)
        {
            return String::from(inside.trim());
        }
    }
    for fence in ["\"\"\"", "```"] {
        let mut pieces = message.split(fence);
        if let (Some(_), Some(inside), Some(_)) = (pieces.next(), pieces.next(), pieces.next()) {
            return String::from(inside.trim());
        }
    }
    if let Ok(Value::Object(fields)) = serde_json::from_str(message) {
        let inside =
            ["content", "text", "universal_content", "input"].iter().find_map(|name| fields.get(*name)?.as_str());
        if let Some(inside) = inside {
            return String::from(inside.trim());
        }
    }
    String::from(message.trim())
}

fn verb_of(instructions: &str) -> Verb {
    let words = [
        ("shorten", Verb::Shorten),
        ("summar", Verb::Summarize),
        ("expand", Verb::Expand),
        ("hashtags only", Verb::Hashtags),
        ("suggest hashtags", Verb::Hashtags),
        ("alt text", Verb::Describe),
        ("write a title", Verb::Title),
    ];
    words.iter().find(|(word, _)| instructions.contains(word)).map_or(Verb::Optimize, |(_, verb)| *verb)
}

/// The smallest number of characters a text allows: "at most 280 characters", "a 100-character limit".
pub fn limit_in(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    let mut smallest = None;
    let mut at = 0;
    while at < bytes.len() {
        if !bytes[at].is_ascii_digit() {
            at += 1;
            continue;
        }
        let run = bytes[at..].iter().take_while(|byte| byte.is_ascii_digit() || **byte == b',').count();
        let number: String = text[at..at + run].chars().filter(char::is_ascii_digit).collect();
        let rest = text[at + run..].trim_start_matches([' ', '-', '\n']);
        let rest = rest.strip_prefix("weighted").map_or(rest, |rest| rest.trim_start());
        let lower: String = rest.chars().take(4).collect::<String>().to_lowercase();
        if lower == "char"
            && let Ok(limit) = number.parse::<usize>()
            && limit > 0
        {
            smallest = Some(smallest.map_or(limit, |known: usize| known.min(limit)));
        }
        at += run;
    }
    smallest
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_limit_is_read_from_the_instructions_and_not_from_the_content() {
        let task = Task::of(&[
            json!({"role": "system", "content": "Shorten the post. Use at most 1,200 characters, better 280 weighted characters."}),
            json!({"role": "user", "content": "<content>A tweet has 5 characters</content>"}),
        ]);
        assert_eq!(
            (task.verb, task.limit, task.content.as_str()),
            (Verb::Shorten, Some(280), "A tweet has 5 characters")
        );
        assert_eq!(limit_in("a 100-character limit"), Some(100));
        assert_eq!(limit_in("3 images, 20 words"), None);
    }

    #[test]
    fn the_same_prompt_has_the_same_seed() {
        let messages = [json!({"role": "user", "content": "hello"})];
        assert_eq!(Task::of(&messages).seed, Task::of(&messages).seed);
        assert_ne!(Task::of(&messages).seed, Task::of(&[json!({"role": "user", "content": "hullo"})]).seed);
    }

    #[test]
    fn content_is_found_in_tags_fences_and_json() {
        assert_eq!(content_of("Do it.\n\"\"\"\nHi there\n\"\"\"\nThanks"), "Hi there");
        assert_eq!(content_of("{\"content\": \"Hi\", \"tone\": \"warm\"}"), "Hi");
        assert_eq!(content_of("  Hi  "), "Hi");
    }
}

//! Understands a prompt just enough to answer it plausibly: what content, what to do with it, how long at most.

use std::collections::BTreeMap;

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
    /// The limits of a list like `- x: at most 280 characters; title at most 90`, by name.
    pub limits: BTreeMap<String, Limits>,
    /// A number that is the same for the same prompt.
    pub seed: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    pub text: usize,
    pub title: Option<usize>,
}

impl Task {
    pub fn of(messages: &[Value]) -> Self {
        let system = said_by(messages, &["system", "developer"]);
        let users: Vec<&Value> = messages.iter().filter(|message| message["role"] == "user").collect();
        // What the user wants is said first; later messages find fault with the answer.
        let said: Vec<String> = users.iter().map(|message| text_of(message)).collect();
        let marked = said.iter().rev().find(|text| marked_content(text).is_some());
        let user = marked.or(said.first()).cloned().unwrap_or_default();
        let content = marked_content(&user).unwrap_or_else(|| String::from(user.trim()));
        let around = user.replacen(&content, " ", 1);
        let has_image = users.last().is_some_and(|message| message["content"].to_string().contains("\"image_url\""));
        let instructions = format!("{system}\n{around}").to_lowercase();
        Self {
            verb: if has_image { Verb::Describe } else { verb_of(&instructions) },
            limit: limit_in(&instructions),
            limits: limits_in(&instructions),
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

/// The user's own words where a message marks them: between tags, in quotes of three, in a JSON field.
fn marked_content(message: &str) -> Option<String> {
    for tag in ["content", "text", "post", "user_content", "input"] {
        let (open, close) = (format!("<{tag}>"), format!("</{tag}>"));
        if let Some((_, rest)) = message.split_once(&open)
            && let Some((inside, _)) = rest.rsplit_once(&close)
        {
            return Some(String::from(inside.trim()));
        }
    }
    for fence in ["\"\"\"", "```"] {
        let mut pieces = message.split(fence);
        if let (Some(_), Some(inside), Some(_)) = (pieces.next(), pieces.next(), pieces.next()) {
            return Some(String::from(inside.trim()));
        }
    }
    let fields: Value = serde_json::from_str(message).ok()?;
    let names = ["content", "text", "universal_content", "input"];
    let inside = names.iter().find_map(|name| fields[name].as_str());
    inside.map(|inside| String::from(inside.trim()))
}

/// Lines like `- x: at most 280 characters, at most 2 hashtags; title at most 90 characters`.
fn limits_in(instructions: &str) -> BTreeMap<String, Limits> {
    let number_after = |text: &str, words: &str| {
        let (_, rest) = text.split_once(words)?;
        let digits: String = rest.trim_start().chars().take_while(char::is_ascii_digit).collect();
        digits.parse::<usize>().ok().filter(|limit| *limit > 0)
    };
    let named = instructions.lines().filter_map(|line| {
        let (name, rest) = line.trim().strip_prefix("- ")?.split_once(':')?;
        let is_name = !name.is_empty() && name.chars().all(|c| c.is_alphanumeric() || c == '_');
        let text = number_after(rest, "at most")?;
        is_name.then(|| (String::from(name), Limits { text, title: number_after(rest, "title at most") }))
    });
    named.collect()
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
        let found = |message: &str| marked_content(message);
        assert_eq!(found("Do it.\n\"\"\"\nHi there\n\"\"\"\nThanks").as_deref(), Some("Hi there"));
        assert_eq!(found("{\"content\": \"Hi\", \"tone\": \"warm\"}").as_deref(), Some("Hi"));
        assert_eq!(found("  Hi  "), None);
    }

    #[test]
    fn a_complaint_about_the_answer_is_not_the_content() {
        let task = Task::of(&[
            json!({"role": "user", "content": "{\"content\": \"The text\"}"}),
            json!({"role": "assistant", "content": "{}"}),
            json!({"role": "user", "content": "{\"faults\": [\"x: too long\"]}"}),
        ]);
        assert_eq!(task.content, "The text");
    }

    #[test]
    fn limits_are_read_by_name() {
        let limits = limits_in(
            "- x: at most 252 weighted characters (a link counts 23), at most 2 hashtags\n- youtube: at most 4500 bytes; title at most 90 characters\n- tone: warm",
        );
        assert_eq!(limits["x"], Limits { text: 252, title: None });
        assert_eq!(limits["youtube"], Limits { text: 4500, title: Some(90) });
        assert_eq!(limits.len(), 2);
    }
}

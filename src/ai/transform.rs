//! What can be asked of a language model, and what comes back.
//!
//! A transform is one row of [`SPECS`] and one prompt file; everything else (providers, checks, cache, job, API) is
//! shared.

use std::{fmt, str::FromStr, sync::LazyLock};

use serde::{Deserialize, Serialize};

use super::{prompt::Prompt, tries::Try, usage::Usage};
use crate::{
    jobs::job::stored_names,
    platforms::Platform,
    text::{Unit, limits},
};

/// Longest text to work on, in characters.
pub const LONGEST_CONTENT: usize = 50_000;
const LONGEST_TONE: usize = 100;

stored_names! {
    TransformationType {
        /// One text, rewritten for each platform.
        PlatformOptimize = "platform_optimize",
        /// The same in fewer words.
        Shorten = "shorten",
    }
}

/// What sets one transform apart.
pub struct Spec {
    pub kind: TransformationType,
    /// The prompt file.
    file: &'static str,
    pub temperature: f64,
    pub platforms_required: bool,
    /// The answer has to be shorter than the content.
    pub must_shrink: bool,
    /// Hashtags may be added that the content does not have.
    pub may_add_hashtags: bool,
}

pub const SPECS: &[Spec] = &[
    Spec {
        kind: TransformationType::PlatformOptimize,
        file: include_str!("../../prompts/platform_optimize.md"),
        temperature: 0.5,
        platforms_required: true,
        must_shrink: false,
        may_add_hashtags: true,
    },
    Spec {
        kind: TransformationType::Shorten,
        file: include_str!("../../prompts/shorten.md"),
        temperature: 0.2,
        platforms_required: false,
        must_shrink: true,
        may_add_hashtags: false,
    },
];

static PROMPTS: LazyLock<Vec<Prompt>> = LazyLock::new(|| SPECS.iter().map(|spec| Prompt::parse(spec.file)).collect());

impl TransformationType {
    /// # Panics
    /// Never: every type has a row, which a test holds.
    pub fn spec(self) -> &'static Spec {
        SPECS.iter().find(|spec| spec.kind == self).expect("every type has a row")
    }
}

impl Spec {
    /// # Panics
    /// Never: every row has its prompt, in the same order.
    pub fn prompt(&self) -> &'static Prompt {
        let row = SPECS.iter().position(|spec| spec.kind == self.kind).expect("a row is in its table");
        &PROMPTS[row]
    }
}

/// What is wanted. Also the arguments of the job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TransformRequest {
    pub content: String,
    pub transformation_type: TransformationType,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub platforms: Vec<Platform>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tone: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub language: Option<String>,
    /// In characters, where no platform sets the limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_length: Option<u32>,
    /// Sends the text piece by piece while it is written.
    #[serde(default = "yes")]
    pub stream: bool,
    /// Takes an earlier answer to the very same request.
    #[serde(default = "yes")]
    pub cache: bool,
}

const fn yes() -> bool {
    true
}

/// Where a variant is meant to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Target {
    Platform(Platform),
    /// No platform in particular.
    General,
}

/// A field that cannot be accepted, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invalid {
    pub field: &'static str,
    pub message: String,
    pub remedy: String,
}

impl TransformRequest {
    pub fn new(transformation_type: TransformationType, content: impl Into<String>) -> Self {
        Self {
            content: content.into(),
            transformation_type,
            platforms: Vec::new(),
            tone: None,
            language: None,
            max_length: None,
            stream: true,
            cache: true,
        }
    }

    /// What a variant is wanted for: each platform once, in the order given.
    pub fn targets(&self) -> Vec<Target> {
        let mut targets = Vec::new();
        for platform in &self.platforms {
            if !targets.contains(&Target::Platform(*platform)) {
                targets.push(Target::Platform(*platform));
            }
        }
        if targets.is_empty() {
            targets.push(Target::General);
        }
        targets
    }

    /// The limit where no platform sets one, in characters: what was asked for, else half of the content.
    pub fn general_limit(&self) -> usize {
        self.max_length.map_or_else(|| (general_length(&self.content) / 2).max(1), |max| max as usize)
    }

    /// Everything that is wrong with it.
    pub fn problems(&self) -> Vec<Invalid> {
        let mut problems = Vec::new();
        let mut invalid = |field, message: String, remedy: &str| {
            problems.push(Invalid { field, message, remedy: remedy.to_owned() });
        };
        let length = self.content.chars().count();
        if self.content.trim().is_empty() {
            invalid("content", "is empty".to_owned(), "Send the text to work on");
        } else if length > LONGEST_CONTENT {
            let message = format!("has {length} characters, {LONGEST_CONTENT} are allowed");
            invalid("content", message, "Send a shorter text");
        }
        for (field, text) in [("content", Some(&self.content)), ("tone", self.tone.as_ref())] {
            if let Some(c) = text.and_then(|text| text.chars().find(|c| is_forbidden(*c))) {
                let message = format!("contains the control character U+{:04X}", c as u32);
                invalid(field, message, "Remove control characters other than line breaks and tabs");
            }
        }
        if self.tone.as_ref().is_some_and(|tone| tone.trim().is_empty() || tone.chars().count() > LONGEST_TONE) {
            invalid(
                "tone",
                "is empty or too long".to_owned(),
                "Describe the tone in up to 100 characters, or leave it out",
            );
        }
        if self.language.as_ref().is_some_and(|language| !is_language_tag(language)) {
            invalid(
                "language",
                "is not a language tag".to_owned(),
                "Use a tag such as \"en\", \"pt-BR\" or \"zh-Hant\"",
            );
        }
        if self.platforms.is_empty() && self.transformation_type.spec().platforms_required {
            invalid("platforms", "is empty".to_owned(), "Name at least one platform, such as [\"x\", \"linkedin\"]");
        }
        if self.max_length.is_some() && !self.platforms.is_empty() {
            invalid("max_length", "goes with no platform".to_owned(), "Leave it out: each platform sets its own limit");
        }
        if self.max_length.is_some_and(|max| max == 0 || max as usize > LONGEST_CONTENT) {
            invalid("max_length", "is out of range".to_owned(), "Use a number from 1 to 50000, or leave it out");
        }
        problems
    }
}

/// Control characters harm databases, terminals and platforms alike.
pub fn is_forbidden(c: char) -> bool {
    c.is_control() && !matches!(c, '\n' | '\r' | '\t')
}

fn is_language_tag(tag: &str) -> bool {
    let mut parts = tag.split('-');
    let language = parts.next().unwrap_or_default();
    (2..=3).contains(&language.len())
        && language.chars().all(|c| c.is_ascii_alphabetic())
        && tag.len() <= 35
        && parts.all(|part| (1..=8).contains(&part.len()) && part.chars().all(|c| c.is_ascii_alphanumeric()))
}

impl Target {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Platform(platform) => platform.as_str(),
            Self::General => "general",
        }
    }

    pub const fn platform(self) -> Option<Platform> {
        match self {
            Self::Platform(platform) => Some(platform),
            Self::General => None,
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// One text that was written, proved to fit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Variant {
    /// `None`: for no platform in particular.
    pub platform: Option<Platform>,
    pub text: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    /// How much of the limit it uses, and in what it is counted.
    pub used: usize,
    pub limit: usize,
    pub unit: Unit,
    /// What a careful reader would want to know, such as a link that was left out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// What the job leaves in the ledger.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TransformOutput {
    pub transformation_type: TransformationType,
    pub variants: Vec<Variant>,
    pub provider: String,
    pub model_asked: String,
    pub model: String,
    /// Name and version of the prompt.
    pub prompt: String,
    /// Of all calls together.
    pub usage: Usage,
    pub cost_usd: f64,
    pub first_token_ms: Option<u64>,
    pub latency_ms: u64,
    /// An earlier answer: nothing was asked and nothing paid.
    pub cached: bool,
    pub tries: Vec<Try>,
}

/// The unit of a limit that no platform sets.
pub const GENERAL_UNIT: Unit = Unit::Utf16;

/// Counts as [`GENERAL_UNIT`] does.
pub fn general_length(text: &str) -> usize {
    text.encode_utf16().count()
}

/// The hashtags of a text, without regard to case.
pub fn hashtags(text: &str) -> Vec<String> {
    limits::hashtags(text).map(str::to_lowercase).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(request: &TransformRequest) -> Vec<&'static str> {
        request.problems().into_iter().map(|problem| problem.field).collect()
    }

    #[test]
    fn every_type_has_a_row_and_its_own_prompt() {
        for kind in TransformationType::ALL {
            assert_eq!(kind.spec().prompt().name, kind.as_str());
        }
    }

    #[test]
    fn all_problems_are_told_at_once() {
        let mut request = TransformRequest::new(TransformationType::PlatformOptimize, " ");
        request.tone = Some("t\u{0}".into());
        request.language = Some("not a tag".into());
        request.max_length = Some(0);
        assert_eq!(fields(&request), ["content", "tone", "language", "platforms", "max_length"]);
    }

    #[test]
    fn a_sound_request_has_no_problem() {
        let mut request = TransformRequest::new(TransformationType::Shorten, "line one\nline two\t🎉");
        for tag in ["en", "pt-BR", "zh-Hant", "de-CH-1996"] {
            request.language = Some(tag.into());
            assert_eq!(fields(&request), [""; 0], "{tag}");
        }
        request.content = "a".repeat(LONGEST_CONTENT + 1);
        assert_eq!(fields(&request), ["content"]);
    }

    #[test]
    fn a_platform_named_twice_is_written_for_once() {
        let mut request = TransformRequest::new(TransformationType::Shorten, "text");
        assert_eq!(request.targets(), [Target::General]);
        request.platforms = vec![Platform::X, Platform::Threads, Platform::X];
        assert_eq!(request.targets(), [Target::Platform(Platform::X), Target::Platform(Platform::Threads)]);
    }
}

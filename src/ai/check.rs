//! Whether an answer may be passed on: whole, for the right platforms, within their limits, inventing nothing.
//!
//! What can be mended without touching the meaning is mended (white space, control characters, trailing hashtags that
//! do not fit). Everything else becomes a fault in words that the model can act on; a text with a fault is never
//! passed on.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use super::transform::{GENERAL_UNIT, Target, TransformRequest, Variant, general_length, hashtags, is_forbidden};
use crate::{
    platforms::Platform,
    text::{self, Field, limits, links},
};

/// What is wrong with an answer, exactly enough to do better.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Faults(pub Vec<String>);

impl Faults {
    /// As data for the model, like everything else in the user's role.
    pub fn message(&self) -> String {
        serde_json::json!({ "faults": self.0 }).to_string()
    }
}

#[derive(Deserialize)]
struct RawVariant {
    text: String,
    #[serde(default)]
    title: Option<String>,
}

/// Checks a whole answer; the variants come in the order in which they were asked for.
pub fn check(request: &TransformRequest, answer: &str) -> Result<Vec<Variant>, Faults> {
    let raw: BTreeMap<String, RawVariant> = serde_json::from_str(bare_json(answer))
        .map_err(|error| Faults(vec![format!("the answer is not the JSON object of the schema: {error}")]))?;
    let mut faults = Vec::new();
    let mut variants = Vec::new();
    for target in request.targets() {
        match raw.get(target.as_str()) {
            Some(raw) => variants.extend(check_variant(request, target, raw, &mut faults)),
            None => faults.push(format!("{target}: there is no variant for it")),
        }
    }
    if faults.is_empty() { Ok(variants) } else { Err(Faults(faults)) }
}

/// The object within a fence or a sentence that some models put around it.
fn bare_json(answer: &str) -> &str {
    match (answer.find('{'), answer.rfind('}')) {
        (Some(start), Some(end)) if start < end => &answer[start..=end],
        _ => answer,
    }
}

fn check_variant(
    request: &TransformRequest,
    target: Target,
    raw: &RawVariant,
    faults: &mut Vec<String>,
) -> Option<Variant> {
    let before = faults.len();
    let mut fault = |fault: String| faults.push(format!("{target}: {fault}"));
    let content = &request.content;
    let text = mended(&raw.text, target);
    if text.is_empty() {
        fault("the text is empty".to_owned());
    }
    for link in links_of(&text).difference(&links_of(content)) {
        fault(format!("the link {link} is not in the content: remove it"));
    }
    for mention in mentions_of(&text).difference(&mentions_of(content)) {
        fault(format!("the mention {mention} is not in the content: remove it"));
    }
    let spec = request.transformation_type.spec();
    let own_tags = hashtags(content);
    if !spec.may_add_hashtags {
        for tag in hashtags(&text).iter().filter(|tag| !own_tags.contains(tag)) {
            fault(format!("the hashtag {tag} is not in the content: remove it"));
        }
    }
    if spec.must_shrink && general_length(&text) >= general_length(content.trim()) && general_length(content.trim()) > 1
    {
        fault(format!("the text has {} characters and is not shorter than the content", general_length(&text)));
    }
    let measure = match target {
        Target::Platform(platform) => text::measure(platform, &text),
        Target::General => general_measure(&text, request.general_limit()),
    };
    for problem in &measure.problems {
        fault(problem.message.clone());
    }
    let title = checked_title(target, raw, &mut fault);
    let notes = links_of(content)
        .difference(&links_of(&text))
        .map(|link| format!("the link {link} of the content was left out"))
        .collect();
    (faults.len() == before).then(|| Variant {
        platform: target.platform(),
        text,
        title,
        used: measure.used,
        limit: measure.limit,
        unit: measure.unit,
        notes,
    })
}

fn checked_title(target: Target, raw: &RawVariant, fault: &mut impl FnMut(String)) -> Option<String> {
    let rule = text::rule(target.platform()?, Field::Title)?;
    let title = mended(raw.title.as_deref().unwrap_or_default(), target).replace(['\n', '\r'], " ");
    for problem in rule.measure(&title).problems {
        fault(format!("title: {}", problem.message));
    }
    Some(title)
}

fn general_measure(text: &str, limit: usize) -> text::Measure {
    let used = general_length(text);
    let mut problems = Vec::new();
    if used > limit {
        let message = format!("{used} of {limit} characters: shorten it by at least {}", used - limit);
        problems.push(text::Problem { code: "too_long", message });
    }
    text::Measure { used, limit, unit: GENERAL_UNIT, problems }
}

/// What can be put right without touching the meaning.
fn mended(text: &str, target: Target) -> String {
    let text: String = text.replace("\r\n", "\n").chars().filter(|c| !is_forbidden(*c) && *c != '\u{feff}').collect();
    let lines: Vec<_> = text.trim().lines().map(str::trim_end).collect();
    let text = lines.join("\n");
    let Some(platform) = target.platform() else { return text };
    without_refused(without_excess_hashtags(text, platform), platform)
}

/// Hashtags at the end are taken away one by one while the text does not fit: they carry no sentence.
fn without_excess_hashtags(mut text: String, platform: Platform) -> String {
    let excess = |text: &str| {
        let problems = text::measure(platform, text).problems;
        problems.iter().any(|problem| matches!(problem.code, "too_long" | "too_many_hashtags"))
    };
    while excess(&text) {
        let Some(tag) = limits::hashtags(&text).last().filter(|tag| text.ends_with(*tag)).map(str::len) else { break };
        text.truncate(text.len() - tag);
        text.truncate(text.trim_end().len());
    }
    text
}

/// Angle brackets become the quotation marks that look like them.
fn without_refused(text: String, platform: Platform) -> String {
    let refused = text::rule(platform, Field::Text).is_some_and(|rule| !rule.forbidden.is_empty());
    if refused { text.replace('<', "‹").replace('>', "›") } else { text }
}

fn links_of(text: &str) -> BTreeSet<String> {
    links::find(text).into_iter().map(|link| text[link].trim_end_matches('/').to_owned()).collect()
}

fn mentions_of(text: &str) -> BTreeSet<String> {
    limits::mentions(text).map(str::to_lowercase).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::ai::transform::TransformationType;

    const LONG: &str = "A long text about the opening of our new shop on Monday, see https://example.com/shop";

    fn optimize(platforms: &[Platform]) -> TransformRequest {
        let request = TransformRequest::new(TransformationType::PlatformOptimize, LONG);
        TransformRequest { platforms: platforms.to_vec(), ..request }
    }

    fn answer(variants: &[(&str, &str)]) -> String {
        let variants: serde_json::Map<_, _> = variants
            .iter()
            .map(|(platform, text)| ((*platform).to_owned(), json!({ "text": text, "title": "A title" })))
            .collect();
        json!(variants).to_string()
    }

    fn faults(request: &TransformRequest, variants: &[(&str, &str)]) -> String {
        check(request, &answer(variants)).unwrap_err().0.join("; ")
    }

    #[test]
    fn a_sound_answer_passes_in_the_order_asked_for() {
        let request = optimize(&[Platform::X, Platform::LinkedIn]);
        let variants = check(&request, &answer(&[("linkedin", "Two"), ("x", "One"), ("tiktok", "unasked")])).unwrap();
        let texts: Vec<_> = variants.iter().map(|variant| (variant.platform.unwrap(), variant.text.as_str())).collect();
        assert_eq!(texts, [(Platform::X, "One"), (Platform::LinkedIn, "Two")]);
        assert_eq!((variants[0].used, variants[0].limit), (3, 280));
        assert_eq!(variants[0].notes, ["the link https://example.com/shop of the content was left out"]);
    }

    #[test]
    fn a_fence_around_the_answer_is_taken_off() {
        let fenced = format!("Here you are:\n```json\n{}\n```", answer(&[("x", "One")]));
        assert_eq!(check(&optimize(&[Platform::X]), &fenced).unwrap()[0].text, "One");
    }

    #[test]
    fn faults_name_the_platform_and_the_exact_excess() {
        let request = optimize(&[Platform::X, Platform::Threads]);
        let found = faults(&request, &[("x", &"a".repeat(312))]);
        assert!(found.contains("x: 312 of 280 weighted characters on X: shorten it by at least 32"), "{found}");
        assert!(found.contains("threads: there is no variant for it"), "{found}");
    }

    #[test]
    fn what_is_invented_is_a_fault() {
        let request = optimize(&[Platform::X]);
        assert!(faults(&request, &[("x", "See https://evil.example.com")]).contains("https://evil.example.com"));
        assert!(faults(&request, &[("x", "Thanks @someone")]).contains("@someone"));
        assert!(faults(&request, &[("x", " \n ")]).contains("empty"));
        let shorten = TransformRequest { transformation_type: TransformationType::Shorten, ..request };
        assert!(faults(&shorten, &[("x", "Shop #new")]).contains("#new"));
        assert!(faults(&shorten, &[("x", &format!("{LONG}!"))]).contains("not shorter"));
    }

    #[test]
    fn hashtags_at_the_end_that_do_not_fit_are_taken_away_and_sentences_never() {
        let request = optimize(&[Platform::X]);
        let text = format!("{} #one #two", "a".repeat(275));
        assert_eq!(check(&request, &answer(&[("x", &text)])).unwrap()[0].text, format!("{} #one", "a".repeat(275)));
        let tags: String = (0..35).map(|n| format!(" #tag{n}")).collect();
        let instagram = optimize(&[Platform::Instagram]);
        let text = check(&instagram, &answer(&[("instagram", &format!("Hello{tags}"))])).unwrap().remove(0).text;
        assert_eq!(limits::hashtags(&text).count(), 30);
    }

    #[test]
    fn characters_that_harm_or_are_refused_are_put_right() {
        let request = optimize(&[Platform::YouTube]);
        let variant = check(&request, &answer(&[("youtube", "\u{feff}a <b>\u{0}\r\nc  \n")])).unwrap().remove(0);
        assert_eq!(variant.text, "a ‹b›\nc");
        assert_eq!(variant.title.as_deref(), Some("A title"));
    }

    #[test]
    fn a_title_is_wanted_where_the_platform_has_one() {
        let raw = json!({ "youtube": { "text": "a" } }).to_string();
        assert!(check(&optimize(&[Platform::YouTube]), &raw).unwrap_err().message().contains("needs a title"));
    }

    #[test]
    fn without_a_platform_the_asked_length_holds() {
        let request =
            TransformRequest { max_length: Some(10), ..TransformRequest::new(TransformationType::Shorten, LONG) };
        assert!(faults(&request, &[("general", "more than ten")]).contains("13 of 10"));
        assert_eq!(check(&request, &answer(&[("general", "ten")])).unwrap()[0].platform, None);
    }

    proptest! {
        #[test]
        fn whatever_passes_fits_its_platform(text in "(\\PC|#[a-z]{1,9} |\n){0,400}", which in 0..Platform::ALL.len()) {
            let platform = Platform::ALL[which];
            let mut request = optimize(&[platform]);
            request.content.push_str(&text);
            if let Ok(variants) = check(&request, &answer(&[(platform.as_str(), &text)])) {
                prop_assert!(text::measure(platform, &variants[0].text).fits());
            }
        }

        #[test]
        fn no_answer_makes_it_fail(text in "\\PC{0,60}|[{}\\[\\]\",:]{0,40}") {
            let _ = check(&optimize(&[Platform::X]), &text);
        }
    }
}

//! Recognising one's own text after X has been at it.
//!
//! X turns links into `t.co` ones, appends one more for attached media, escapes `&`, `<` and `>`, and puts long
//! texts elsewhere. Both sides, what was sent and what X shows, are brought to one plain form: the same text always
//! gives the same form, and what a reader would call another text gives another one.

use serde::Deserialize;
use sha2::{Digest, Sha256};
use unicode_normalization::UnicodeNormalization;

/// A text in the plain form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Likeness {
    plain: String,
    /// The same without any link: X shows a link's target, and may write it another way.
    linkless: String,
    /// A shortened link whose target X did not tell: the text may be another one.
    opaque: bool,
}

/// A post as X lists it. Names that drifted between X's documents are read in either form.
#[derive(Debug, Deserialize)]
pub struct Listed {
    pub id: String,
    #[serde(default)]
    pub text: String,
    #[serde(default)]
    entities: Entities,
    #[serde(default)]
    attachments: Attachments,
    #[serde(default, alias = "note_post")]
    note_tweet: Option<Note>,
}

#[derive(Debug, Deserialize)]
struct Note {
    text: String,
    #[serde(default)]
    entities: Entities,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Entities {
    urls: Vec<Link>,
}

#[derive(Debug, Deserialize)]
struct Link {
    url: String,
    expanded_url: Option<String>,
    display_url: Option<String>,
    media_key: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Attachments {
    media_keys: Vec<String>,
}

impl Listed {
    pub fn media_count(&self) -> usize {
        self.attachments.media_keys.len()
    }

    pub fn likeness(&self) -> Likeness {
        let (text, entities) = match &self.note_tweet {
            Some(note) => (&note.text, &note.entities),
            None => (&self.text, &self.entities),
        };
        // X's links have a scheme, those of a media file too.
        let linkless = plain(&without_links(text));
        let mut text = text.clone();
        // Long texts carry their own list of links; the links of attached media stand in the outer one.
        for link in entities.urls.iter().chain(&self.entities.urls) {
            let target = if link.is_media() { "" } else { link.expanded_url.as_deref().unwrap_or(&link.url) };
            text = text.replace(&link.url, target);
        }
        if self.media_count() > 0 {
            text = without_trailing_short_link(&text).to_owned();
        }
        Likeness { linkless, ..Likeness::of(&text) }
    }

    /// Whether the post shows these files, where both sides name theirs. A key is a kind and the name of the upload.
    pub fn shows(&self, uploads: &[String]) -> bool {
        let shown = |upload: &String| {
            let keys = &self.attachments.media_keys;
            keys.iter().any(|key| key.split_once('_').map_or(key.as_str(), |(_, id)| id) == upload)
        };
        uploads.iter().all(shown)
    }
}

impl Link {
    /// The link that X appends for attached media leads to the post itself.
    fn is_media(&self) -> bool {
        let target = self.expanded_url.as_deref().unwrap_or_default();
        let display = self.display_url.as_deref().unwrap_or_default();
        self.media_key.is_some()
            || display.starts_with("pic.x.com/")
            || display.starts_with("pic.twitter.com/")
            || (target.contains("/status/") && (target.contains("/photo/") || target.contains("/video/")))
    }
}

impl Likeness {
    /// Whether this, as X shows it, may be the draft although they differ: in their links, or because X shows the
    /// beginning and a link to the rest.
    pub fn may_be(&self, draft: &Self) -> bool {
        if self.linkless == draft.linkless {
            return true;
        }
        let beginning = self.linkless.trim_end_matches('…').trim_end();
        self.opaque && !beginning.is_empty() && draft.linkless.starts_with(beginning)
    }

    fn of(text: &str) -> Self {
        let plain = plain(text);
        let opaque = plain.split(' ').any(|word| word.starts_with(SHORT_LINK));
        Self { plain, linkless: self::plain(&without_links(text)), opaque }
    }
}

pub fn of_draft(text: &str) -> Likeness {
    Likeness::of(text)
}

/// Without every word that holds a link, or what X may take for one: a scheme, or a name with a dot in it.
fn without_links(text: &str) -> String {
    text.split_whitespace().filter(|word| !may_hold_link(word)).collect::<Vec<_>>().join(" ")
}

fn may_hold_link(word: &str) -> bool {
    let dotted = || {
        word.split('.')
            .zip(word.split('.').skip(1))
            .any(|(before, after)| before.ends_with(char::is_alphanumeric) && after.starts_with(char::is_alphabetic))
    };
    word.contains("://") || dotted()
}

pub fn fingerprint(likeness: &Likeness) -> String {
    hex::encode(Sha256::digest(likeness.plain.as_bytes()))
}

const SHORT_LINK: &str = "t.co/";

fn plain(text: &str) -> String {
    let text = unescaped(text).nfc().collect::<String>().to_lowercase();
    let text = text.replace("https://", "").replace("http://", "");
    // X adds a slash to a bare host; white space at the ends and its amount elsewhere does not survive either.
    let words: Vec<&str> = text.split_whitespace().map(|word| word.trim_end_matches('/')).collect();
    words.join(" ")
}

/// Until nothing changes: whether X escapes is not documented, and a text may hold an escape of its own.
fn unescaped(text: &str) -> String {
    let mut text = text.to_owned();
    loop {
        let next = text
            .replace("&lt;", "<")
            .replace("&gt;", ">")
            .replace("&quot;", "\"")
            .replace("&#39;", "'")
            .replace("&amp;", "&");
        if next == text {
            return text;
        }
        text = next;
    }
}

fn without_trailing_short_link(text: &str) -> &str {
    let trimmed = text.trim_end();
    match trimmed.rfind(char::is_whitespace) {
        _ if trimmed.starts_with("https://t.co/") && !trimmed.contains(char::is_whitespace) => "",
        Some(at) if trimmed[at..].trim_start().starts_with("https://t.co/") => &trimmed[..at],
        Some(_) | None => trimmed,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn listed(value: Value) -> Likeness {
        serde_json::from_value::<Listed>(value).unwrap().likeness()
    }

    #[test]
    fn a_shortened_link_is_seen_through() {
        let remote = listed(json!({
            "id": "1", "text": "read https://t.co/abc now",
            "entities": { "urls": [{ "url": "https://t.co/abc", "expanded_url": "http://Example.com/" }] },
        }));
        assert_eq!(remote, of_draft("read example.com now"));
        assert_eq!(remote, of_draft("read https://example.com/ now"));
        assert_ne!(remote, of_draft("read example.org now"));
    }

    #[test]
    fn the_link_of_attached_media_is_left_out() {
        let with_entity = json!({
            "id": "1", "text": "look https://t.co/pic",
            "entities": { "urls": [{ "url": "https://t.co/pic", "expanded_url": "https://x.com/a/status/1/photo/1" }] },
        });
        assert_eq!(listed(with_entity), of_draft("look"));
        let without = json!({ "id": "1", "text": "look https://t.co/pic", "attachments": { "media_keys": ["3_1"] } });
        assert_eq!(listed(without), of_draft("look"));
        let alone = json!({ "id": "1", "text": "https://t.co/pic", "attachments": { "media_keys": ["3_1"] } });
        assert_eq!(listed(alone), of_draft(""));
    }

    #[test]
    fn escapes_are_undone_whoever_made_them() {
        assert_eq!(listed(json!({ "id": "1", "text": "a &lt;b&gt; &amp; c" })), of_draft("a <b> & c"));
        assert_eq!(listed(json!({ "id": "1", "text": "a &amp;amp; b" })), of_draft("a &amp; b"));
    }

    #[test]
    fn a_long_text_is_read_from_its_note() {
        let remote = listed(json!({
            "id": "1", "text": "the beginning of…",
            "note_tweet": {
                "text": "the beginning of a long text https://t.co/x",
                "entities": { "urls": [{ "url": "https://t.co/x", "expanded_url": "https://a.example/b" }] },
            },
        }));
        assert_eq!(remote, of_draft("the beginning of a long text https://a.example/b"));
        let drifted = listed(json!({ "id": "1", "text": "the…", "note_post": { "text": "the whole" } }));
        assert_eq!(drifted, of_draft("the whole"));
    }

    #[test]
    fn white_space_and_composition_do_not_make_another_text() {
        assert_eq!(of_draft(" cafe\u{301}\n\nau  lait "), of_draft("café au lait"));
    }

    #[test]
    fn a_link_that_cannot_be_seen_through_may_be_any_link() {
        let remote = listed(json!({ "id": "1", "text": "read https://t.co/abc now" }));
        assert!(remote.may_be(&of_draft("read example.com now")));
        assert!(!remote.may_be(&of_draft("something else example.com")));
        assert!(!of_draft("read this").may_be(&of_draft("read that")));
    }

    proptest! {
        #[test]
        fn what_x_escapes_is_always_recognised(text in "[a-z&<>; \n]{0,60}") {
            let escaped = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
            prop_assert_eq!(listed(json!({ "id": "1", "text": escaped })), of_draft(&text));
        }

        #[test]
        fn another_word_is_another_text(a in "[a-z]{1,12}", b in "[a-z]{1,12}") {
            prop_assume!(a != b);
            prop_assert_ne!(fingerprint(&of_draft(&a)), fingerprint(&of_draft(&b)));
        }
    }
}

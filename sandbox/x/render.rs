//! Posts as X shows them: links shortened to t.co, `& < >` escaped, long texts cut (A6), fields by name (A8).

use serde_json::{Map, Value, json};

use super::{
    settings::Naming,
    store::{Media, Post, World},
    text as lengths,
};
use crate::clock;

/// What a caller asked to see of each post.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    pub fields: Vec<String>,
    pub media_fields: Vec<String>,
    pub expansions: Vec<String>,
    /// The user who looks, for what only authors may see.
    pub viewer: Option<String>,
}

impl Wanted {
    fn has(&self, field: &str) -> bool {
        self.fields.iter().any(|known| known == field)
    }

    pub fn expands(&self, expansion: &str) -> bool {
        self.expansions.iter().any(|known| known == expansion)
    }
}

/// A piece of a text as shown, and where the links stand in it.
struct Shown {
    text: String,
    urls: Vec<Value>,
}

/// The answer to a create (A2).
pub fn created(world: &World, post: &Post) -> Value {
    let history: Vec<String> = post.history.iter().map(u64::to_string).collect();
    json!({
        "id": post.id.to_string(), "text": text(world, post), history_name(world.settings.naming): history,
    })
}

fn history_name(naming: Naming) -> &'static str {
    match naming {
        Naming::Tweet => "edit_history_tweet_ids",
        Naming::Post => "edit_history_post_ids",
    }
}

/// The text of a post as an API answer carries it.
pub fn text(world: &World, post: &Post) -> String {
    shown(world, post, true).text
}

/// A post with the fields that were asked for.
pub fn post(world: &World, post: &Post, wanted: &Wanted) -> Value {
    let naming = world.settings.naming;
    let Value::Object(mut fields) = created(world, post) else {
        return Value::Null;
    };
    let mut put = |name: &str, value: Value| {
        if wanted.has(name) {
            fields.insert(String::from(name), value);
        }
    };
    // X tells whole seconds only, so a post can seem older than the request that made it.
    put("created_at", json!(clock::iso(post.created_ms / 1000 * 1000)));
    put("author_id", json!(post.account));
    put("conversation_id", json!(post.conversation.to_string()));
    put("lang", json!("und"));
    put("possibly_sensitive", json!(false));
    put("reply_settings", json!(post.reply_settings.as_deref().unwrap_or("everyone")));
    put("public_metrics", metrics(naming));
    let entities = entities(world, post, true);
    if !entities.is_empty() {
        put("entities", Value::Object(entities));
    }
    if !post.media.is_empty() {
        let keys: Vec<String> = media_of(world, post).map(Media::key).collect();
        put("attachments", json!({"media_keys": keys}));
    }
    if let Some(parent) = post.reply_to {
        put("referenced_tweets", json!([{"type": "replied_to", "id": parent.to_string()}]));
        if let Some(parent) = world.posts.get(&parent) {
            put("in_reply_to_user_id", json!(parent.account));
        }
    }
    // A6: long posts put the full text into note_tweet.
    if is_long(post) {
        let full = shown(world, post, false);
        let (wanted_name, name) = match naming {
            Naming::Tweet => ("note_tweet", "note_tweet"),
            Naming::Post => ("note_post", "note_post"),
        };
        if wanted.has(wanted_name) {
            let mut note = json!({"text": full.text});
            if !full.urls.is_empty() {
                note["entities"] = json!({"urls": full.urls});
            }
            fields.insert(String::from(name), note);
        }
    }
    // A8: only the author, and only for 30 days.
    let own = wanted.viewer.as_deref() == Some(post.account.as_str());
    let fresh = clock::now_ms().saturating_sub(post.created_ms) < 30 * 86_400_000;
    if own && fresh && wanted.has("non_public_metrics") {
        let metrics = json!({"impression_count": 0, "url_link_clicks": 0, "user_profile_clicks": 0, "engagements": 0});
        fields.insert(String::from("non_public_metrics"), metrics);
    }
    Value::Object(fields)
}

fn metrics(naming: Naming) -> Value {
    let mut metrics = json!({
        "reply_count": 0, "like_count": 0, "quote_count": 0, "bookmark_count": 0, "impression_count": 0,
    });
    let name = match naming {
        Naming::Tweet => "retweet_count",
        Naming::Post => "repost_count",
    };
    metrics[name] = json!(0);
    metrics
}

fn entities(world: &World, post: &Post, cut: bool) -> Map<String, Value> {
    let mut entities = Map::new();
    let urls = shown(world, post, cut).urls;
    if !urls.is_empty() {
        entities.insert(String::from("urls"), Value::Array(urls));
    }
    entities
}

/// What `includes` carries for a page of posts.
pub fn includes(world: &World, posts: &[&Post], wanted: &Wanted) -> Option<Value> {
    let mut includes = Map::new();
    if wanted.expands("attachments.media_keys") {
        let media: Vec<Value> =
            posts.iter().flat_map(|post| media_of(world, post)).map(|one| media(one, wanted)).collect();
        if !media.is_empty() {
            includes.insert(String::from("media"), Value::Array(media));
        }
    }
    if wanted.expands("author_id") {
        let mut ids: Vec<&str> = posts.iter().map(|post| post.account.as_str()).collect();
        ids.sort_unstable();
        ids.dedup();
        let authors = ids.into_iter().filter_map(|id| world.accounts.get(id));
        let authors: Vec<Value> =
            authors.map(|user| json!({"id": user.id, "name": user.name, "username": user.username})).collect();
        includes.insert(String::from("users"), Value::Array(authors));
    }
    (!includes.is_empty()).then_some(Value::Object(includes))
}

fn media(media: &Media, wanted: &Wanted) -> Value {
    use super::store::Kind;
    let kind = match media.kind {
        Kind::Image | Kind::Subtitles => "photo",
        Kind::Gif => "animated_gif",
        Kind::Video => "video",
    };
    let mut fields = json!({"media_key": media.key(), "type": kind});
    let mut put = |name: &str, value: Value| {
        if wanted.media_fields.iter().any(|field| field == name) {
            fields[name] = value;
        }
    };
    put("width", json!(media.width));
    put("height", json!(media.height));
    if let Some(alt_text) = &media.alt_text {
        put("alt_text", json!(alt_text));
    }
    if media.kind == Kind::Video {
        put("duration_ms", json!(media.duration_ms));
    }
    fields
}

fn media_of<'a>(world: &'a World, post: &'a Post) -> impl Iterator<Item = &'a Media> {
    post.media.iter().filter_map(|id| world.media.get(id))
}

fn is_long(post: &Post) -> bool {
    lengths::weight(&post.text) > lengths::LIMIT
}

fn shown(world: &World, post: &Post, cut: bool) -> Shown {
    let chars: Vec<char> = post.text.chars().collect();
    let end = if cut && is_long(post) { cut_at(post, &chars) } else { chars.len() };
    let escape = world.settings.html_escape;
    let mut shown = Shown { text: String::new(), urls: Vec::new() };
    let mut length = 0;
    let mut at = 0;
    for link in post.links.iter().filter(|link| link.end <= end) {
        length += push(&mut shown.text, &chars[at..link.start], escape);
        let display: String =
            link.expanded.split_once("://").map_or("", |(_, rest)| rest).trim_start_matches("www.").into();
        let target = if world.settings.encode_links { encoded(&link.expanded) } else { link.expanded.clone() };
        shown.urls.push(url_entity(length, &link.short, &target, &shortened(&display)));
        shown.text.push_str(&link.short);
        length += link.short.chars().count();
        at = link.end;
    }
    length += push(&mut shown.text, &chars[at..end], escape);
    if end < chars.len() {
        shown.text.push('…');
        length += 1;
    }
    // A6: attached media appends one more t.co link.
    if let Some(link) = &post.media_link {
        if length > 0 {
            shown.text.push(' ');
            length += 1;
        }
        for media in media_of(world, post) {
            let mut entity = url_entity(length, link, &media_page(world, post, media), &picture_name(link));
            entity["media_key"] = json!(media.key());
            shown.urls.push(entity);
        }
        shown.text.push_str(link);
    }
    shown
}

/// The same address with everything but ASCII percent-encoded.
fn encoded(address: &str) -> String {
    address
        .bytes()
        .map(|byte| if byte.is_ascii() { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

/// Where a long text is cut: never inside a link, and short enough to be an ordinary post.
fn cut_at(post: &Post, chars: &[char]) -> usize {
    let mut end = chars.len().min(lengths::LIMIT - 1);
    while end > 0 && lengths::weight(&chars[..end].iter().collect::<String>()) > lengths::LIMIT - 2 {
        end -= 1;
    }
    post.links.iter().find(|link| link.start < end && link.end > end).map_or(end, |link| link.start)
}

/// Appends a piece of the author's text; gives how many characters it became.
fn push(text: &mut String, piece: &[char], escape: bool) -> usize {
    let mut length = 0;
    for c in piece {
        // A6: `& < >` come back HTML-escaped.
        let escaped = match c {
            '&' if escape => "&amp;",
            '<' if escape => "&lt;",
            '>' if escape => "&gt;",
            other => {
                text.push(*other);
                length += 1;
                continue;
            }
        };
        text.push_str(escaped);
        length += escaped.len();
    }
    length
}

fn url_entity(start: usize, short: &str, expanded: &str, display: &str) -> Value {
    let end = start + short.chars().count();
    json!({"start": start, "end": end, "url": short, "expanded_url": expanded, "display_url": display})
}

fn shortened(display: &str) -> String {
    match display.char_indices().nth(30) {
        Some((end, _)) => format!("{}…", &display[..end]),
        None => String::from(display),
    }
}

fn picture_name(link: &str) -> String {
    format!("pic.x.com/{}", link.rsplit('/').next().unwrap_or_default())
}

fn media_page(world: &World, post: &Post, media: &Media) -> String {
    use super::store::Kind;
    let username = world.accounts.get(&post.account).map_or("i", |account| account.username.as_str());
    let kind = if media.kind == Kind::Image { "photo" } else { "video" };
    format!("https://x.com/{username}/status/{}/{kind}/1", post.id)
}

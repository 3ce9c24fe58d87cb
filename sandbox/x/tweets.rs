//! Creating and deleting posts (A2, A6, A8).

use std::collections::HashMap;

use rand::seq::IndexedRandom;
use serde_json::{Value, json};

use super::{
    X,
    access::Caller,
    compose::{self, Draft},
    links, refusals, render,
    schema::is_id,
    settings::TooLong,
    store::{Account, Kind, Post, ShortLink, World},
    text,
};
use crate::{
    clock,
    exchange::{Answer, Call},
};

/// A2: prices in millionths of a dollar.
const COST: u64 = 15_000;
const COST_WITH_LINK: u64 = 200_000;

pub fn create(x: &X, call: &Call, caller: &Caller) -> Result<Answer, Answer> {
    let author = caller.user()?;
    let draft = compose::read(call)?;
    let chars: Vec<char> = draft.text.chars().collect();
    let found = links::find(&chars);
    check_text(x, author, &draft)?;

    let mut world = x.world();
    let media = attached(&world, author, &draft)?;
    let parent = parent(&world, author, &draft)?;
    let quoted = quoted(&world, &draft)?;
    let previous = previous_version(&world, author, &draft)?;
    let content = content_key(author, &draft, world.settings.duplicate_considers_media);
    check_duplicate(&world, content.as_deref())?;
    world.spend(if found.is_empty() { COST } else { COST_WITH_LINK })?;

    // From here on nothing can fail: the post exists.
    let now_ms = clock::now_ms();
    let id = world.snowflake();
    if let Some(content) = content {
        world.recent.insert(content, now_ms);
    }
    let mut history = previous.as_ref().map(|post| post.history.clone()).unwrap_or_default();
    history.push(id);
    if let Some(post) = previous.and_then(|post| world.posts.get_mut(&post.id)) {
        post.superseded = true;
    }
    let links = found.into_iter().map(|range| ShortLink {
        expanded: expanded(&chars[range.clone()].iter().collect::<String>()),
        start: range.start,
        end: range.end,
        short: short_link(),
    });
    let post = Post {
        id,
        account: author.id.clone(),
        text: draft.text,
        links: links.collect(),
        media_link: (!media.is_empty()).then(short_link),
        media,
        reply_to: parent.as_ref().map(|post| post.id),
        quote_of: quoted,
        conversation: parent.map_or(id, |post| post.conversation),
        reply_settings: draft.reply_settings,
        poll: draft.poll,
        history,
        created_ms: now_ms,
        deleted_ms: None,
        superseded: false,
    };
    let body = json!({"data": render::created(&world, &post)});
    world.insert_post(post);
    Ok(Answer::json(201, body).committing(id.to_string()))
}

/// A8: own posts only; deleting twice is not told apart.
pub fn delete(x: &X, caller: &Caller, id: &str) -> Result<Answer, Answer> {
    let user = caller.user()?;
    if !is_id(id) {
        return Err(refusals::invalid_one("id", id, format!("The `id` query parameter value [{id}] is not valid")));
    }
    let mut world = x.world();
    let post = id.parse().ok().and_then(|id: u64| world.posts.get_mut(&id));
    let Some(post) = post else {
        return Err(Answer::json(404, refusals::not_found("tweet", "id", id)));
    }; // A6: 404
    if post.account != user.id {
        return Err(refusals::forbidden("You are not authorized to delete this Tweet.")); // A8: own posts only
    }
    post.deleted_ms.get_or_insert(clock::now_ms());
    world.revision += 1;
    Ok(Answer::ok(json!({"data": {"deleted": true}})).committing(id))
}

fn check_text(x: &X, author: &Account, draft: &Draft) -> Result<(), Answer> {
    let limit = if author.premium { text::PREMIUM_LIMIT } else { text::LIMIT };
    if text::weight(&draft.text) > limit {
        // A5, A6: over-length, in one of the three answers seen.
        return Err(match x.world().settings.too_long {
            TooLong::Forbidden => refusals::too_long_forbidden(),
            TooLong::Invalid => refusals::too_long_invalid(),
            TooLong::Bare => refusals::bare(),
        });
    }
    if text::cashtags(&draft.text) > 1 {
        return Err(refusals::too_many_cashtags()); // A2, A6: one cashtag
    }
    Ok(())
}

/// The media of a draft, when all of it may be posted by this author.
fn attached(world: &World, author: &Account, draft: &Draft) -> Result<Vec<u64>, Answer> {
    let now_ms = clock::now_ms();
    let refused = || refusals::media_ids_invalid(&draft.media_ids); // A6: 400
    let mut media = Vec::new();
    for id in &draft.media_ids {
        let known = id.parse().ok().and_then(|id: u64| world.media.get(&id)).ok_or_else(refused)?;
        let usable = known.owned_by(&author.id) && known.is_ready(now_ms) && known.expires_ms > now_ms;
        if !usable || known.refused_at_post || known.category.starts_with("dm_") || known.kind == Kind::Subtitles {
            return Err(refused()); // A3: expired after 24 h, not ready, not one's own, or refused when posted
        }
        let longest_s = if author.premium { world.settings.premium_video_max_s } else { world.settings.video_max_s };
        if known.kind == Kind::Video && known.duration_ms > longest_s * 1000 {
            return Err(refusals::video_too_long(longest_s / 60)); // A6: 403, longer than N minutes
        }
        media.push(known);
    }
    let moving = media.iter().filter(|known| known.kind != Kind::Image).count();
    if moving > 0 && media.len() > 1 {
        return Err(refused()); // A2: 4 photos, or 1 GIF, or 1 video
    }
    Ok(media.into_iter().map(|known| known.id).collect())
}

/// A2: one may answer oneself, and those who mentioned or quoted one.
fn parent<'a>(world: &'a World, author: &Account, draft: &Draft) -> Result<Option<PostRef>, Answer> {
    let Some(id) = &draft.reply_to else {
        return Ok(None);
    };
    let post: Option<&'a Post> = id.parse().ok().and_then(|id: u64| world.posts.get(&id));
    let Some(post) = post.filter(|post| post.deleted_ms.is_none()) else {
        return Err(refusals::reply_parent_invalid(id)); // A6: parent gone
    };
    let mentioned = text::mentions(&post.text).contains(&author.username.to_ascii_lowercase());
    let quoted = post.quote_of.and_then(|id| world.posts.get(&id)).is_some_and(|quoted| quoted.account == author.id);
    if post.account != author.id && !mentioned && !quoted {
        return Err(refusals::reply_not_allowed()); // A2, A6: 403
    }
    Ok(Some(PostRef { id: post.id, conversation: post.conversation, history: post.history.clone() }))
}

/// What is needed of another post once the world is borrowed for writing.
struct PostRef {
    id: u64,
    conversation: u64,
    history: Vec<u64>,
}

fn quoted(world: &World, draft: &Draft) -> Result<Option<u64>, Answer> {
    let Some(id) = &draft.quote_of else {
        return Ok(None);
    };
    if !world.settings.enterprise {
        return Err(refusals::client_forbidden()); // A2: Enterprise only
    }
    let known = id.parse().ok().filter(|id| world.posts.contains_key(id));
    let message = "Your quote tweet ID is invalid.";
    known.map(Some).ok_or_else(|| refusals::invalid_one("quote_tweet_id", id.as_str(), message))
}

/// A2: edits are for Premium users and their own posts.
fn previous_version(world: &World, author: &Account, draft: &Draft) -> Result<Option<PostRef>, Answer> {
    let Some(id) = &draft.previous_post else {
        return Ok(None);
    };
    let post = id.parse().ok().and_then(|id: u64| world.posts.get(&id));
    let own = post.filter(|post| post.account == author.id && post.deleted_ms.is_none() && !post.superseded);
    match own {
        Some(post) if author.premium => {
            Ok(Some(PostRef { id: post.id, conversation: post.conversation, history: post.history.clone() }))
        }
        Some(_) | None => Err(refusals::bare()),
    }
}

/// What X compares to find duplicates; `None` when there is no text to compare.
fn content_key(author: &Account, draft: &Draft, considers_media: bool) -> Option<String> {
    let words = draft.text.split_whitespace().collect::<Vec<_>>().join(" ");
    if words.is_empty() || draft.previous_post.is_some() {
        return None;
    }
    let media = if considers_media { draft.media_ids.join(",") } else { String::new() };
    let reply = draft.reply_to.as_deref().unwrap_or_default();
    Some(format!("{} {reply} {media} {words}", author.id))
}

fn check_duplicate(world: &World, content: Option<&str>) -> Result<(), Answer> {
    let window_ms = world.settings.duplicate_window_s * 1000;
    let last_ms = content.and_then(|content| world.recent.get(content));
    if last_ms.is_some_and(|last_ms| last_ms + window_ms > clock::now_ms()) {
        return Err(refusals::duplicate_content()); // A6: 403 duplicate; deleting the first does not lift it
    }
    Ok(())
}

impl World {
    /// A2, A6: pays for a call from what credit there is.
    pub(super) fn spend(&mut self, micro_usd: u64) -> Result<(), Answer> {
        let Some(credits) = &mut self.settings.credits_micro_usd else {
            return Ok(());
        };
        match credits.checked_sub(micro_usd) {
            Some(left) => {
                *credits = left;
                Ok(())
            }
            None => Err(refusals::credits_depleted()), // A6: 402
        }
    }
}

/// A5: a link is 23 characters, always.
fn short_link() -> String {
    const LETTERS: &[u8] = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789";
    let mut rng = rand::rng();
    let slug = (0..10).filter_map(|_| LETTERS.choose(&mut rng)).map(|letter| char::from(*letter));
    format!("https://t.co/{}", slug.collect::<String>())
}

fn expanded(written: &str) -> String {
    let lower = written.to_ascii_lowercase();
    if lower.starts_with("http://") || lower.starts_with("https://") {
        return String::from(written);
    }
    format!("http://{written}")
}

/// How many posts each account has that are not deleted.
pub fn counts(world: &World) -> (usize, HashMap<&str, usize>) {
    let mut by_account: HashMap<&str, usize> = HashMap::new();
    let live = world.posts.values().filter(|post| post.is_live());
    let mut total = 0;
    for post in live {
        *by_account.entry(post.account.as_str()).or_default() += 1;
        total += 1;
    }
    (total, by_account)
}

/// A post as the control API shows it: what exists, not what the API would say of it.
pub fn as_seen(world: &World, post: &Post, origin: &str) -> Value {
    let account = world.accounts.get(&post.account);
    let username = account.map_or("i/web", |account| account.username.as_str());
    let media = post.media.iter().filter_map(|id| world.media.get(id)).map(|media| {
        json!({
            "id": media.id.to_string(), "kind": media.kind, "content_type": media.content_type, "bytes": media.total_bytes,
            "width": media.width, "height": media.height, "duration_ms": media.duration_ms, "alt_text": media.alt_text,
            "url": media.bytes.is_some().then(|| format!("{origin}/_sandbox/x/media/{}", media.id)),
        })
    });
    json!({
        "id": post.id.to_string(), "account": post.account, "username": username, "text": post.text,
        "rendered_text": render::text(world, post), "media": media.collect::<Vec<_>>(),
        "reply_to": post.reply_to.map(|id| id.to_string()), "conversation_id": post.conversation.to_string(),
        "created_at": clock::iso(post.created_ms), "created_ms": post.created_ms,
        "deleted": post.deleted_ms.is_some(), "superseded": post.superseded, "poll": post.poll,
        "permalink": format!("{origin}/{username}/status/{}", post.id),
    })
}

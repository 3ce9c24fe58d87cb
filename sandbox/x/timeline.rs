//! Reading posts back: a user's recent posts (A6), and posts by id (A8).

use serde_json::{Value, json};

use super::{
    X,
    access::Caller,
    refusals,
    render::{self, Wanted},
    schema::is_id,
    settings::Naming,
    store::{Post, World},
};
use crate::{
    clock,
    exchange::{Answer, Call},
};

/// A6: what a timeline reaches back to.
const DEPTH: usize = 3_200;
/// A2: a read of one's own posts, and of anyone's, in millionths of a dollar.
const OWN_READ: u64 = 1_000;
const READ: u64 = 5_000;

const TWEET_FIELDS: [&str; 24] = [
    "article",
    "attachments",
    "author_id",
    "card_uri",
    "community_id",
    "context_annotations",
    "conversation_id",
    "created_at",
    "display_text_range",
    "edit_controls",
    "edit_history_tweet_ids",
    "entities",
    "geo",
    "id",
    "in_reply_to_user_id",
    "lang",
    "non_public_metrics",
    "note_tweet",
    "organic_metrics",
    "possibly_sensitive",
    "public_metrics",
    "referenced_tweets",
    "reply_settings",
    "text",
];
const POST_FIELDS: [&str; 24] = [
    "article",
    "attachments",
    "author_id",
    "card_uri",
    "community_id",
    "context_annotations",
    "conversation_id",
    "created_at",
    "display_text_range",
    "edit_controls",
    "edit_history_post_ids",
    "entities",
    "geo",
    "id",
    "in_reply_to_user_id",
    "lang",
    "non_public_metrics",
    "note_post",
    "organic_metrics",
    "possibly_sensitive",
    "public_metrics",
    "referenced_tweets",
    "reply_settings",
    "text",
];
const MEDIA_FIELDS: [&str; 10] = [
    "alt_text",
    "duration_ms",
    "height",
    "media_key",
    "preview_image_url",
    "public_metrics",
    "type",
    "url",
    "variants",
    "width",
];
const USER_FIELDS: [&str; 5] = ["id", "name", "username", "verified", "profile_image_url"];
const EXPANSIONS: [&str; 5] =
    ["attachments.media_keys", "author_id", "in_reply_to_user_id", "referenced_tweets.id", "edit_history_tweet_ids"];

/// `GET /2/users/:id/tweets`
pub fn of_user(x: &X, call: &Call, id: &str) -> Result<Answer, Answer> {
    let mut world = x.world();
    let paging = [
        "max_results",
        "since_id",
        "until_id",
        "start_time",
        "end_time",
        "exclude",
        "pagination_token",
        "expansions",
        "media.fields",
        "user.fields",
    ];
    let wanted = wanted(call, &world, &paging)?;
    let page = Page::of(call)?;
    if !is_id(id) {
        return Err(refusals::invalid_one("id", id, format!("The `id` query parameter value [{id}] is not valid")));
    }
    if !world.accounts.contains_key(id) {
        return Ok(Answer::ok(json!({"errors": [refusals::not_found("user", "id", id)]}))); // A6: 404 as a 200
    }
    let found = page.select(&world, id);
    let more = found.len() > page.max_results;
    let posts: Vec<&Post> = found.into_iter().take(page.max_results).collect();
    let mut meta = json!({"result_count": posts.len()});
    if let (Some(newest), Some(oldest)) = (posts.first(), posts.last()) {
        meta["newest_id"] = json!(newest.id.to_string());
        meta["oldest_id"] = json!(oldest.id.to_string());
        if more {
            meta["next_token"] = json!(page_token(oldest.id));
        }
    }
    let mut body = json!({"meta": meta});
    if !posts.is_empty() {
        body["data"] = posts.iter().map(|post| render::post(&world, post, &wanted)).collect();
        if let Some(includes) = render::includes(&world, &posts, &wanted) {
            body["includes"] = includes;
        }
    }
    let count = posts.len() as u64;
    let own = call
        .bearer()
        .and_then(|token| world.access_tokens.get(token))
        .is_some_and(|g| g.account.as_deref() == Some(id));
    world.spend(count * if own { OWN_READ } else { READ })?;
    Ok(Answer::ok(body))
}

/// `GET /2/tweets?ids=`
pub fn lookup(x: &X, call: &Call, caller: &Caller) -> Result<Answer, Answer> {
    let mut world = x.world();
    let mut wanted = wanted(call, &world, &["ids", "expansions", "media.fields", "user.fields"])?;
    wanted.viewer = caller.account.as_ref().map(|account| account.id.clone());
    let ids: Vec<&str> = call.query("ids").unwrap_or_default().split(',').filter(|id| !id.is_empty()).collect();
    if ids.is_empty() || ids.len() > 100 {
        let message = format!("The `ids` query parameter must have from 1 to 100 values, it has {}", ids.len());
        return Err(refusals::invalid_one("ids", Value::Null, message)); // A8: at most 100
    }
    if let Some(wrong) = ids.iter().find(|id| !is_id(id)) {
        let message = format!("The `ids` query parameter value [{wrong}] does not match ^[0-9]{{1,19}}$");
        return Err(refusals::invalid_one("ids", *wrong, message));
    }
    let (mut posts, mut missing) = (Vec::new(), Vec::new());
    for id in ids {
        match existing(&world, id) {
            Some(post) => posts.push(post),
            None => missing.push(refusals::not_found("tweet", "ids", id)), // A6: 404 as a 200
        }
    }
    let mut body = json!({});
    if !posts.is_empty() {
        body["data"] = posts.iter().map(|post| render::post(&world, post, &wanted)).collect();
    }
    if let Some(includes) = render::includes(&world, &posts, &wanted) {
        body["includes"] = includes;
    }
    if !missing.is_empty() {
        body["errors"] = json!(missing);
    }
    let cost = posts.len() as u64 * READ;
    world.spend(cost)?;
    Ok(Answer::ok(body))
}

/// `GET /2/tweets/:id`
pub fn get(x: &X, call: &Call, caller: &Caller, id: &str) -> Result<Answer, Answer> {
    let mut world = x.world();
    let mut wanted = wanted(call, &world, &["expansions", "media.fields", "user.fields"])?;
    wanted.viewer = caller.account.as_ref().map(|account| account.id.clone());
    let body = match existing(&world, id) {
        Some(post) => {
            let mut body = json!({"data": render::post(&world, post, &wanted)});
            if let Some(includes) = render::includes(&world, &[post], &wanted) {
                body["includes"] = includes;
            }
            body
        }
        None => json!({"errors": [refusals::not_found("tweet", "id", id)]}), // A6: 404 as a 200
    };
    world.spend(READ)?;
    Ok(Answer::ok(body))
}

fn existing<'a>(world: &'a World, id: &str) -> Option<&'a Post> {
    let id: u64 = id.parse().ok()?;
    world.posts.get(&id).filter(|post| post.deleted_ms.is_none())
}

/// Which part of a timeline was asked for.
#[derive(Debug)]
struct Page {
    max_results: usize,
    above_id: u64,
    below_id: u64,
    from_ms: u64,
    until_ms: u64,
    without_replies: bool,
}

impl Page {
    fn of(call: &Call) -> Result<Self, Answer> {
        let bad = |name: &str, value: &str, why: &str| {
            refusals::invalid_one(name, value, format!("The `{name}` query parameter value [{value}] {why}"))
        };
        let max_results = match call.query("max_results") {
            None => 10,
            Some(value) => value
                .parse()
                .ok()
                .filter(|n| (5..=100).contains(n))
                .ok_or_else(|| bad("max_results", value, "is not between 5 and 100"))?,
        };
        let id = |name: &str| match call.query(name) {
            None => Ok(None),
            Some(value) if is_id(value) => Ok(value.parse::<u64>().ok()),
            Some(value) => Err(bad(name, value, "is not a valid id")),
        };
        let time = |name: &str| match call.query(name) {
            None => Ok(None),
            Some(value) => {
                clock::parse_iso(value).map(Some).ok_or_else(|| bad(name, value, "is not a valid RFC3339 timestamp"))
            }
        };
        let excluded: Vec<&str> = call.query("exclude").map(|list| list.split(',').collect()).unwrap_or_default();
        if let Some(wrong) = excluded.iter().find(|word| !["retweets", "replies"].contains(*word)) {
            return Err(bad("exclude", wrong, "is not one of [replies,retweets]"));
        }
        let token = match call.query("pagination_token") {
            None => None,
            Some(value) => Some(read_page_token(value).ok_or_else(|| bad("pagination_token", value, "is not valid"))?),
        };
        let until_id = id("until_id")?.unwrap_or(u64::MAX);
        Ok(Self {
            max_results,
            above_id: id("since_id")?.unwrap_or(0),
            below_id: until_id.min(token.unwrap_or(u64::MAX)),
            from_ms: time("start_time")?.unwrap_or(0),
            until_ms: time("end_time")?.unwrap_or(u64::MAX),
            without_replies: excluded.contains(&"replies"),
        })
    }

    /// The newest posts that fit, one more than a page holds so that the caller knows whether there are others.
    fn select<'a>(&self, world: &'a World, account: &str) -> Vec<&'a Post> {
        // A6: a new post may not be visible yet.
        let visible_ms = clock::now_ms().saturating_sub(world.settings.visibility_delay_ms);
        let ids = world.by_account.get(account).map(Vec::as_slice).unwrap_or_default();
        let posts = ids.iter().rev().take(DEPTH).filter_map(|id| world.posts.get(id));
        posts
            .filter(|post| post.deleted_ms.is_none() && !post.superseded && post.created_ms <= visible_ms)
            .filter(|post| post.id > self.above_id && post.id < self.below_id)
            .filter(|post| post.created_ms >= self.from_ms && post.created_ms < self.until_ms)
            .filter(|post| !self.without_replies || post.reply_to.is_none())
            .take(self.max_results + 1)
            .collect()
    }
}

fn page_token(oldest: u64) -> String {
    format!("7140{oldest:016x}")
}

fn read_page_token(token: &str) -> Option<u64> {
    let digits = token.strip_prefix("7140").filter(|digits| digits.len() == 16)?;
    u64::from_str_radix(digits, 16).ok()
}

/// Checks the query by name and value (A8: a name the server does not know gives 400 in shape (b)).
fn wanted(call: &Call, world: &World, also: &[&str]) -> Result<Wanted, Answer> {
    let naming = world.settings.naming;
    let fields_name = naming.fields_parameter();
    if let Some((unknown, value)) =
        call.query.iter().find(|(name, _)| name != fields_name && !also.contains(&name.as_str()))
    {
        let message = format!("The query parameter [{unknown}] is not one of [{},{fields_name}]", also.join(","));
        return Err(refusals::invalid_one(unknown, value.as_str(), message));
    }
    let fields: &[&str] = match naming {
        Naming::Tweet => &TWEET_FIELDS,
        Naming::Post => &POST_FIELDS,
    };
    words(call, "user.fields", &USER_FIELDS)?;
    Ok(Wanted {
        fields: words(call, fields_name, fields)?,
        media_fields: words(call, "media.fields", &MEDIA_FIELDS)?,
        expansions: words(call, "expansions", &EXPANSIONS)?,
        viewer: None,
    })
}

/// The words of a list parameter, each of which must be known.
pub fn words(call: &Call, name: &str, known: &[&str]) -> Result<Vec<String>, Answer> {
    let given: Vec<String> =
        call.query(name).map(|list| list.split(',').map(String::from).collect()).unwrap_or_default();
    match given.iter().find(|word| !known.contains(&word.as_str())) {
        Some(wrong) => {
            let message = format!("The `{name}` query parameter value [{wrong}] is not one of [{}]", known.join(","));
            Err(refusals::invalid_one(name, wrong.as_str(), message))
        }
        None => Ok(given),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_token_reads_back() {
        assert_eq!(read_page_token(&page_token(1_858_000_000_000_000_017)), Some(1_858_000_000_000_000_017));
        assert_eq!(read_page_token("7140"), None);
        assert_eq!(read_page_token("abc"), None);
    }
}

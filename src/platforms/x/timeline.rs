//! Looking for a post in its author's timeline.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::Deserialize;

use super::{
    answers::{self, Effect},
    exchange::Wire,
    is_id,
    likeness::{self, Listed},
    permalink,
};
use crate::platforms::{Call, ConnectorError, Platform, RemotePost, Search, Sighting};

/// Ids of X count milliseconds from here in their upper bits.
const EPOCH_MS: i64 = 1_288_834_974_657;
/// Below the milliseconds stand the machine and a counter.
const ID_SHIFT: u32 = 22;
/// How far our clock and X's may be apart. Wide, because a post outside is taken for absent; what else falls inside
/// is kept apart by its text and by the posts that other publications hold.
const CLOCK_SKEW: Duration = Duration::from_secs(10 * 60);
/// How far X's machines are apart among themselves, and the second that an answer's date is cut to.
const THEIR_SKEW: Duration = Duration::from_secs(30);
/// Ids are in order only roughly: one made later may be smaller by so much.
const DISORDER_MS: u64 = 5_000;
const PAGE_POSTS: &str = "100";
/// More posts than this since the intent, and the list counts as cut.
const PAGES: usize = 5;
const PAGE_DEADLINE: Duration = Duration::from_secs(15);

/// The newest id that is certainly older than the intent. `their_time` is X's own, where an answer told it lately.
pub fn baseline(intended_at: DateTime<Utc>, their_time: Option<DateTime<Utc>>, newest_known: Option<&str>) -> String {
    let since = their_time.map_or(intended_at - CLOCK_SKEW, |at| at - THEIR_SKEW);
    let by_time = u64::try_from(since.timestamp_millis() - EPOCH_MS).unwrap_or(0) << ID_SHIFT;
    let known = newest_known.and_then(|id| id.parse::<u64>().ok()).unwrap_or(0);
    by_time.max(known.saturating_sub(DISORDER_MS << ID_SHIFT)).to_string()
}

pub async fn find(wire: &Wire, call: &Call<'_>, search: &Search<'_>) -> Result<Sighting, ConnectorError> {
    if !is_id(&call.account.remote_id) {
        return Ok(Sighting::Unclear { why: "the account's id is not one of X" });
    }
    let mut names = Names::Tweet;
    let mut next: Option<String> = None;
    let mut posts = Vec::new();
    for _ in 0..PAGES {
        let page = match page(wire, call, search.baseline, next.as_deref(), names).await {
            // X's documents disagree about its names: once with the other ones.
            Err(ConnectorError::Refused { code: answers::INVALID_REQUEST, .. }) if names == Names::Tweet => {
                names = Names::Post;
                page(wire, call, search.baseline, next.as_deref(), names).await?
            }
            page => page?,
        };
        // A list that does not say how long it is may be a refusal in disguise.
        let Some(meta) = page.meta else { return Ok(Sighting::Unclear { why: "X did not say how long the list is" }) };
        if !page.errors.is_empty() || meta.result_count != page.data.len() {
            return Ok(Sighting::Unclear { why: "X left posts out of the list" });
        }
        posts.extend(page.data);
        next = meta.next_token;
        if next.is_none() {
            return Ok(judge(call, search, &posts));
        }
    }
    // What was read may hold the post; what was not read may too.
    match judge(call, search, &posts) {
        Sighting::Found(post) => Ok(Sighting::Found(post)),
        Sighting::Absent | Sighting::Unclear { .. } => Ok(Sighting::Unclear { why: "the list is longer than we read" }),
    }
}

fn judge(call: &Call<'_>, search: &Search<'_>, posts: &[Listed]) -> Sighting {
    let ours = likeness::of_draft(&search.draft.text);
    let mut doubtful = false;
    let mut matches = Vec::new();
    for post in posts.iter().filter(|post| is_id(&post.id) && !search.taken.contains(&post.id)) {
        let theirs = post.likeness();
        if likeness::fingerprint(&theirs) == search.fingerprint {
            if post.media_count() == search.draft.media.len() && post.shows(search.media) {
                matches.push(&post.id);
            } else {
                doubtful = true;
            }
        } else if theirs.may_be(&ours) {
            doubtful = true;
        }
    }
    // A text tells posts apart; without one, two posts with media cannot be told from each other.
    if search.draft.text.trim().is_empty() && matches.len() > 1 {
        return Sighting::Unclear { why: "several posts without text look like it" };
    }
    match matches.into_iter().min_by_key(|id| id.parse::<u64>().unwrap_or(u64::MAX)) {
        Some(id) => Sighting::Found(RemotePost { id: id.clone(), permalink: permalink(&call.account.username, id) }),
        None if doubtful => Sighting::Unclear { why: "a post looks like it, but not quite" },
        None => Sighting::Absent,
    }
}

#[derive(Deserialize)]
struct PageOfPosts {
    #[serde(default)]
    data: Vec<Listed>,
    meta: Option<Meta>,
    #[serde(default)]
    errors: Vec<serde_json::Value>,
}

#[derive(Deserialize)]
struct Meta {
    result_count: usize,
    next_token: Option<String>,
}

/// Which of X's two sets of names it is asked in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Names {
    Tweet,
    Post,
}

async fn page(
    wire: &Wire,
    call: &Call<'_>,
    since: &str,
    next: Option<&str>,
    names: Names,
) -> Result<PageOfPosts, ConnectorError> {
    let path = format!("/2/users/{}/tweets", call.account.remote_id);
    let fields = match names {
        Names::Tweet => ("tweet.fields", "created_at,entities,attachments,conversation_id,note_tweet"),
        Names::Post => ("post.fields", "created_at,entities,attachments,conversation_id,note_post"),
    };
    let mut query = vec![("max_results", PAGE_POSTS), ("exclude", "retweets"), ("since_id", since), fields];
    query.extend(next.map(|token| ("pagination_token", token)));
    let request = wire.get(&path, &query, call).timeout(PAGE_DEADLINE);
    let answer = wire.send("timeline", Effect::Repeatable, request, call.witness).await?;
    answer.json().ok_or(ConnectorError::Unreadable { platform: Platform::X, status: answer.status })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::{
        ids::ConnectionId,
        platforms::{Account, Draft, DraftMedia, MediaKind, account::Unwatched},
    };

    fn look(text: &str, media: usize, taken: &[String], posts: Value) -> Sighting {
        let account = Account {
            connection: ConnectionId::new(),
            remote_id: "7".into(),
            username: "me".into(),
            access_token: "t".into(),
            generation: 1,
        };
        let call = Call { account: &account, witness: &Unwatched };
        let file = DraftMedia { kind: MediaKind::Image, alt_text: None };
        let draft = Draft { text: text.into(), media: vec![file; media] };
        let fingerprint = likeness::fingerprint(&likeness::of_draft(text));
        let media: Vec<_> = (1..=media).map(|id| id.to_string()).collect();
        let search =
            Search { draft: &draft, fingerprint: &fingerprint, baseline: "1", handle: None, taken, media: &media };
        judge(&call, &search, &serde_json::from_value::<Vec<Listed>>(posts).unwrap())
    }

    fn found(id: &str) -> Sighting {
        Sighting::Found(RemotePost { id: id.into(), permalink: format!("https://x.com/me/status/{id}") })
    }

    #[test]
    fn the_oldest_post_with_the_same_text_is_adopted() {
        let posts =
            json!([{ "id": "30", "text": "hello" }, { "id": "9", "text": "hello" }, { "id": "8", "text": "no" }]);
        assert_eq!(look("hello", 0, &[], posts), found("9"));
    }

    #[test]
    fn a_post_of_another_publication_is_never_adopted() {
        let posts = json!([{ "id": "9", "text": "hello" }]);
        assert_eq!(look("hello", 0, &["9".into()], posts), Sighting::Absent);
    }

    #[test]
    fn the_same_text_with_other_media_is_unclear_and_not_absent() {
        let posts = json!([{ "id": "9", "text": "hello" }]);
        assert!(matches!(look("hello", 1, &[], posts), Sighting::Unclear { .. }));
        let theirs = |key: &str| json!([{ "id": "9", "text": "hello", "attachments": { "media_keys": [key] } }]);
        assert!(matches!(look("hello", 1, &[], theirs("3_77")), Sighting::Unclear { .. }));
        assert_eq!(look("hello", 1, &[], theirs("3_1")), found("9"));
    }

    #[test]
    fn the_same_text_with_another_link_is_unclear_and_not_absent() {
        let link = json!([{ "id": "9", "text": "read https://t.co/a", "entities": { "urls": [
            { "url": "https://t.co/a", "expanded_url": "https://example.com/caf%C3%A9" }] } }]);
        assert!(matches!(look("read https://example.com/café", 0, &[], link.clone()), Sighting::Unclear { .. }));
        assert_eq!(look("write https://example.com/café", 0, &[], link), Sighting::Absent);
    }

    #[test]
    fn a_draft_that_begins_with_a_short_link_is_not_like_everything() {
        let posts = json!([{ "id": "9", "text": "good morning" }]);
        assert_eq!(look("https://t.co/abc is what I meant", 0, &[], posts), Sighting::Absent);
    }

    #[test]
    fn posts_without_text_are_told_apart_only_when_there_is_one() {
        let picture =
            |id: &str| json!({ "id": id, "text": "https://t.co/p", "attachments": { "media_keys": ["3_1"] } });
        assert_eq!(look("", 1, &[], json!([picture("5")])), found("5"));
        assert!(matches!(look("", 1, &[], json!([picture("5"), picture("6")])), Sighting::Unclear { .. }));
    }

    #[test]
    fn a_baseline_is_older_than_the_intent_and_never_older_than_what_we_know() {
        let intended_at = DateTime::from_timestamp_millis(EPOCH_MS).unwrap() + CLOCK_SKEW + Duration::from_millis(1);
        assert_eq!(baseline(intended_at, None, None), (1u64 << 22).to_string());
        let known = |ms: u64| (ms << 22).to_string();
        assert_eq!(baseline(intended_at, None, Some(&known(9_000))), known(4_000));
        assert_eq!(baseline(intended_at, None, Some(&known(3_000))), known(1));
        assert_eq!(baseline(DateTime::from_timestamp_millis(0).unwrap(), None, None), "0");
    }

    #[test]
    fn xs_own_time_keeps_posts_by_hand_from_minutes_before_out() {
        let at = DateTime::from_timestamp_millis(EPOCH_MS).unwrap();
        let ours = at + Duration::from_secs(3_600);
        let theirs = at + Duration::from_secs(60);
        assert_eq!(baseline(ours, Some(theirs), None), (30_000u64 << 22).to_string());
    }
}

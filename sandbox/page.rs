//! The pages a person looks at: what is simulated, what was posted, what arrived. For looking only: nothing here
//! changes anything.

pub mod html;

use std::hash::{DefaultHasher, Hash, Hasher};

use serde_json::{Value, json};

use crate::{
    exchange::{Answer, Payload},
    llm::Provider,
    log::{Entry, Filter, State},
    state::Sandbox,
    x::{X, control, store::Kind},
};
use html::escaped;

const POSTS_SHOWN: usize = 50;
const LINES_SHOWN: usize = 60;

/// Keeps the front page fresh, unless nobody looks or a video is being watched.
const SCRIPT: &str = include_str!("page/refresh.js");

/// `GET /`
pub fn index(sandbox: &Sandbox, origin: &str) -> String {
    let card = |name: &str, base: &str, note: &str| {
        format!(
            "<div class=\"card\"><strong>{name}</strong><code>{base}</code><br><span class=\"muted\">{note}</span></div>"
        )
    };
    let mut services = card("X", "/x", "posts, timeline, media upload, OAuth 2");
    for provider in Provider::ALL {
        let (name, base) = match provider {
            Provider::Xai => ("xAI", "/xai/v1"),
            Provider::Together => ("Together AI", "/together/v1"),
            Provider::OpenAi => ("OpenAI", "/openai/v1"),
        };
        services.push_str(&card(name, base, "chat completions, plain and streamed"));
    }
    services.push_str(&card("Firebase", "/firebase", "the keys of ID tokens, and tokens that they sign"));
    services.push_str(&card("Patreon", "/patreon", "memberships, webhooks, OAuth 2"));
    let fresh = latest(sandbox);
    let body = format!(
        "<h1>Sandbox</h1><p class=\"muted\">Stand-ins for outside services. Nothing leaves this machine. Base address: <code>{}</code></p>\
         <div class=\"services\">{services}</div><div id=\"latest\" data-version=\"{}\">{fresh}</div>\
         <script>{SCRIPT}</script>",
        escaped(origin),
        version(&fresh),
    );
    html::document("What is simulated", &body)
}

/// The part of the front page that changes.
pub fn latest(sandbox: &Sandbox) -> String {
    let filter = control::Filter { limit: POSTS_SHOWN, ..control::Filter::default() };
    let posts = control::posts(&sandbox.x, &filter, "");
    let posts: Vec<&Value> = posts.as_array().into_iter().flatten().rev().collect();
    let total = control::count(&sandbox.x)["total"].as_u64().unwrap_or(0);
    let timeline = if posts.is_empty() {
        String::from("<p class=\"muted\">Nothing was posted yet.</p>")
    } else {
        posts.iter().map(|post| article(post)).collect()
    };
    let lines: String = sandbox.log.list(&Filter::default(), LINES_SHOWN).iter().rev().map(line).collect();
    let faults = sandbox.faults.list().iter().filter(|fault| !fault.is_used_up()).count();
    format!(
        "<div class=\"columns\"><section class=\"card\"><h2>Posts on X <span class=\"tag\">{total}</span></h2>{timeline}</section>\
         <section class=\"card\"><h2>Latest requests <span class=\"tag\">{faults} fault{}</span></h2><div class=\"scroll\"><table>\
         <tr><th>time</th><th>service</th><th>operation</th><th>answer</th><th>made</th></tr>{lines}</table></div></section></div>",
        if faults == 1 { "" } else { "s" },
    )
}

/// Tells two states of [`latest`] apart.
pub fn version(html: &str) -> String {
    let mut hasher = DefaultHasher::new();
    html.hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

/// `GET /{username}/status/{id}`: a post on a page of its own.
pub fn post(sandbox: &Sandbox, id: &str) -> Answer {
    let found = control::post(&sandbox.x, id, "");
    match found {
        Some(post) if post["deleted"] == json!(false) => {
            let name = post["username"].as_str().unwrap_or_default();
            let body =
                format!("<p><a href=\"/\">Sandbox</a></p><section class=\"card large\">{}</section>", article(&post));
            Answer::html(200, html::document(&format!("Post by @{name}"), &body))
        }
        Some(_) => Answer::html(404, html::notice("This post was deleted", "Its author took it back.")),
        None => Answer::html(
            404,
            html::notice("There is no such post", "It was never made here, or the sandbox was reset."),
        ),
    }
}

fn article(post: &Value) -> String {
    let text = |name: &str| post[name].as_str().unwrap_or_default();
    let username = escaped(text("username"));
    let time_ms = post["created_ms"].as_u64().unwrap_or(0);
    let media: String = post["media"].as_array().into_iter().flatten().map(figure).collect();
    let media = if media.is_empty() { media } else { format!("<div class=\"media\">{media}</div>") };
    let reply = match post["reply_to"].as_str() {
        Some(parent) => format!("<a class=\"tag\" href=\"/i/web/status/{parent}\">reply</a>"),
        None => String::new(),
    };
    let poll: String = post["poll"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .map(|o| format!("<li>{}</li>", escaped(o)))
        .collect();
    format!(
        "<article class=\"post\"><div class=\"who\"><img alt=\"\" src=\"/_sandbox/x/avatar/{username}\"><strong>@{username}</strong>\
         <a class=\"muted\" href=\"/{username}/status/{}\">{}</a>{reply}</div><p class=\"words\">{}</p>{}{media}</article>",
        escaped(text("id")),
        html::clock_time(time_ms),
        escaped(text("text")),
        if poll.is_empty() { poll } else { format!("<ul>{poll}</ul>") },
    )
}

fn figure(media: &Value) -> String {
    let alt = escaped(media["alt_text"].as_str().unwrap_or_default());
    let size = format!("{} x {}", media["width"], media["height"]);
    match (media["url"].as_str(), media["kind"].as_str()) {
        (Some(url), Some("video")) => {
            format!("<video controls playsinline preload=\"metadata\" src=\"{}\"></video>", escaped(url))
        }
        (Some(url), _) => format!("<img loading=\"lazy\" alt=\"{alt}\" title=\"{alt}\" src=\"{}\">", escaped(url)),
        (None, kind) => format!("<span class=\"tag\">{} {size}, bytes no longer kept</span>", kind.unwrap_or("media")),
    }
}

fn line(entry: &Entry) -> String {
    let (class, answer) = match (entry.state, entry.status) {
        (State::InFlight, _) => ("warn", String::from("...")),
        (State::Dropped, _) => ("bad", String::from("dropped")),
        (State::Answered, Some(status)) if status < 400 => ("good", status.to_string()),
        (State::Answered, status) => ("bad", status.map(|status| status.to_string()).unwrap_or_default()),
    };
    let fault = if entry.fault.is_some() { " <span class=\"tag\">fault</span>" } else { "" };
    let gone = if entry.caller_gone { " <span class=\"tag\">caller left</span>" } else { "" };
    let time = html::clock_time(entry.time_ms);
    let (service, operation) = (entry.service, entry.operation);
    let made = match entry.committed.as_deref() {
        Some(id) if operation == "tweets.create" => {
            format!("<a href=\"/i/web/status/{0}\">post</a>", escaped(id))
        }
        Some(_) => String::from("yes"),
        None => String::new(),
    };
    format!(
        "<tr><td class=\"muted\">{time}</td><td>{service}</td><td>{operation}</td>\
         <td class=\"{class}\">{answer}{fault}{gone}</td><td>{made}</td></tr>"
    )
}

/// The uploaded bytes; a part of them when the player asks for one.
pub fn media(x: &X, id: &str, range: Option<&str>) -> Answer {
    let world = x.world();
    let media = id.parse().ok().and_then(|id: u64| world.media.get(&id));
    let Some((media, bytes)) = media.and_then(|media| media.bytes.clone().map(|bytes| (media, bytes))) else {
        return Answer::json(404, json!({"error": format!("the bytes of media {id} are not kept")}));
    };
    // Uploaded by whoever calls the twin, so a browser may show it but never run it.
    let content_type = match media.kind {
        Kind::Image | Kind::Gif | Kind::Video => media.content_type.clone(),
        Kind::Subtitles => String::from("text/plain; charset=utf-8"),
    };
    let total = bytes.len();
    let (status, bytes, content_range) = match range.and_then(|range| part(range, total)) {
        Some((first, last)) => (206, bytes.slice(first..=last), Some(format!("bytes {first}-{last}/{total}"))),
        None => (200, bytes, None),
    };
    let mut answer = Answer::new(status, Payload::Bytes { content_type, bytes });
    answer = answer.with_header("accept-ranges", "bytes").with_header("x-content-type-options", "nosniff");
    match content_range {
        Some(content_range) => answer.with_header("content-range", content_range),
        None => answer,
    }
}

/// First and last byte of a `Range` header of one range; `None` when it asks for something else.
fn part(range: &str, total: usize) -> Option<(usize, usize)> {
    let (first, last) = range.strip_prefix("bytes=")?.split_once('-')?;
    let last_byte = total.checked_sub(1)?;
    if first.is_empty() {
        let count: usize = last.parse().ok()?;
        return (count > 0).then(|| (total.saturating_sub(count), last_byte));
    }
    let first: usize = first.parse().ok()?;
    let last = if last.is_empty() { last_byte } else { last.parse::<usize>().ok()?.min(last_byte) };
    (first <= last).then_some((first, last))
}

/// A round letter on a colour of its own.
pub fn avatar(username: &str) -> Answer {
    let hue = username.bytes().fold(0_u32, |hue, byte| (hue * 31 + u32::from(byte)) % 360);
    let letter = username.chars().next().filter(|c| c.is_ascii_alphanumeric()).unwrap_or('?').to_ascii_uppercase();
    let text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 40 40\"><circle cx=\"20\" cy=\"20\" r=\"20\" fill=\"hsl({hue} 55% 45%)\"/>\
         <text x=\"20\" y=\"27\" font-family=\"system-ui,sans-serif\" font-size=\"20\" fill=\"#fff\" text-anchor=\"middle\">{letter}</text></svg>"
    );
    let payload = Payload::Text { content_type: String::from("image/svg+xml"), text };
    Answer::new(200, payload)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_player_gets_the_part_it_asks_for() {
        assert_eq!(part("bytes=0-", 100), Some((0, 99)));
        assert_eq!(part("bytes=10-19", 100), Some((10, 19)));
        assert_eq!(part("bytes=90-500", 100), Some((90, 99)));
        assert_eq!(part("bytes=-10", 100), Some((90, 99)));
        for nonsense in ["bytes=100-", "bytes=5-4", "items=0-1", "bytes=-0", "bytes=a-b"] {
            assert_eq!(part(nonsense, 100), None, "{nonsense}");
        }
        assert_eq!(part("bytes=0-", 0), None);
    }
}

//! `GET /2/users/me` (A1).

use serde_json::json;

use super::{X, access::Caller, refusals, timeline};
use crate::{
    clock,
    exchange::{Answer, Call},
};

const FIELDS: [&str; 16] = [
    "created_at",
    "description",
    "entities",
    "id",
    "location",
    "name",
    "pinned_tweet_id",
    "profile_image_url",
    "protected",
    "public_metrics",
    "subscription_type",
    "url",
    "username",
    "verified",
    "verified_type",
    "withheld",
];

pub fn me(x: &X, call: &Call, caller: &Caller) -> Result<Answer, Answer> {
    let user = caller.user()?;
    if let Some((unknown, value)) = call.query.iter().find(|(name, _)| name != "user.fields") {
        let message = format!("The query parameter [{unknown}] is not one of [user.fields,expansions,tweet.fields]");
        return Err(refusals::invalid_one(unknown, value.as_str(), message));
    }
    let fields = timeline::words(call, "user.fields", &FIELDS)?;
    let mut data = json!({"id": user.id, "name": user.name, "username": user.username});
    for field in fields {
        // A5: what an account may post follows its Premium state.
        let value = match field.as_str() {
            "verified" => json!(user.premium),
            "verified_type" => json!(if user.premium { "blue" } else { "none" }),
            "subscription_type" => json!(if user.premium { "Premium" } else { "None" }),
            "created_at" => json!(clock::iso(user.created_ms)),
            "protected" => json!(false),
            "description" => json!("An account of the sandbox."),
            "profile_image_url" => json!(format!("{}/_sandbox/x/avatar/{}", call.origin, user.username)),
            "public_metrics" => {
                let posts = x.world().by_account.get(&user.id).map_or(0, Vec::len);
                json!({"followers_count": 0, "following_count": 0, "tweet_count": posts, "listed_count": 0})
            }
            _ => continue,
        };
        data[field] = value;
    }
    Ok(Answer::ok(json!({"data": data})))
}

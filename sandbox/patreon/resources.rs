//! What can be read: JSON:API, in which nothing comes that was not asked for by name.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Map, Value, json};

use super::{CAMPAIGN, Grant, Patron, TIERS, World, refusal};
use crate::{
    clock,
    exchange::{Answer, Call},
};

/// Of each type, the attributes that there are.
const ATTRIBUTES: [(&str, &[&str]); 3] = [
    ("user", &["full_name", "email"]),
    ("member", &["full_name", "patron_status", "currently_entitled_amount_cents", "last_charge_status"]),
    ("tier", &["title", "amount_cents"]),
];
/// Members on a page, at most and unless fewer are asked for.
const LARGEST_PAGE: usize = 1000;
/// The same when all that each of them ever paid comes along.
const LARGEST_PAGE_WITH_HISTORY: usize = 500;

pub fn identity(world: &World, call: &Call) -> Result<Answer, Answer> {
    let grant = reader(world, call, "identity")?;
    let include = included(call, &["memberships", "memberships.currently_entitled_tiers"])?;
    check_fields(call)?;
    let patron = world.patrons.get(&grant.patron).ok_or_else(|| refusal(404, "NotFound", "There is no such user."))?;
    let mut user = resource("user", &patron.id, call, &json!({"full_name": patron.full_name, "email": null}));
    let mut others = Vec::new();
    // Without the scope nothing is seen but the campaign of whoever holds the token, and patrons have none.
    let sees = grant.scopes.iter().any(|scope| scope == "identity.memberships") && patron.patron_status.is_some();
    if include.iter().any(|name| name == "memberships") {
        let members = if sees { vec![json!({"id": patron.member_id, "type": "member"})] } else { Vec::new() };
        user["relationships"] = json!({"memberships": {"data": members}});
        if sees {
            let with_tiers = include.iter().any(|name| name == "memberships.currently_entitled_tiers");
            others.push(member(patron, call, with_tiers));
            if with_tiers {
                others.extend(tiers_of(patron, call));
            }
        }
    }
    Ok(Answer::ok(json!({"data": user, "included": others, "links": {"self": "/api/oauth2/v2/identity"}})))
}

pub fn members(world: &World, call: &Call, campaign: &str) -> Result<Answer, Answer> {
    reader(world, call, "campaigns.members")?;
    let include = included(call, &["currently_entitled_tiers", "pledge_history", "user"])?;
    check_fields(call)?;
    if campaign != CAMPAIGN {
        return Err(refusal(404, "NotFound", "There is no such campaign."));
    }
    let asks_for = |relation: &str| include.iter().any(|name| name == relation);
    let largest = if asks_for("pledge_history") { LARGEST_PAGE_WITH_HISTORY } else { LARGEST_PAGE };
    let invalid = |detail: &str| refusal(400, "ParameterInvalidOnType", detail);
    let count = match call.query("page[count]").map(str::parse) {
        None => largest,
        Some(Ok(count)) if (1..=largest).contains(&count) => count,
        Some(_) => return Err(invalid(&format!("page[count] is 1 to {largest}."))),
    };
    let after = match call.query("page[cursor]") {
        None => String::new(),
        Some(given) => read_cursor(given).ok_or_else(|| invalid("page[cursor] is what the page before gave."))?,
    };
    let members = || world.patrons.values().filter(|patron| patron.patron_status.is_some());
    let mut rest = members().filter(|patron| patron.id > after).peekable();
    let page: Vec<&Patron> = rest.by_ref().take(count).collect();
    let next = page.last().filter(|_| rest.peek().is_some()).map(|last| cursor(&last.id));
    let shown = page.iter().map(|patron| {
        let mut shown = member(patron, call, asks_for("currently_entitled_tiers"));
        if asks_for("pledge_history") {
            shown["relationships"]["pledge_history"] = json!({"data": []});
        }
        shown
    });
    let pagination = json!({"total": members().count(), "cursors": {"next": next}});
    Ok(Answer::ok(json!({"data": shown.collect::<Vec<_>>(), "meta": {"pagination": pagination}})))
}

/// Where the next page begins: behind this patron, whoever comes or goes meanwhile. Means nothing to its reader.
fn cursor(last: &str) -> String {
    URL_SAFE_NO_PAD.encode(format!("after {last}"))
}

fn read_cursor(given: &str) -> Option<String> {
    let text = String::from_utf8(URL_SAFE_NO_PAD.decode(given).ok()?).ok()?;
    text.strip_prefix("after ").map(String::from)
}

/// Of a member, all that there is.
fn attributes(patron: &Patron) -> Value {
    json!({"full_name": patron.full_name, "patron_status": patron.patron_status,
        "currently_entitled_amount_cents": cents(patron), "last_charge_status": "Paid"})
}

/// A member as events tell of it: with everything, and nothing that would tell two events of one state apart.
pub fn whole_member(patron: &Patron) -> Value {
    json!({"data": {"id": patron.member_id, "type": "member", "attributes": attributes(patron),
        "relationships": relationships(patron, true)}})
}

fn member(patron: &Patron, call: &Call, with_tiers: bool) -> Value {
    let mut member = resource("member", &patron.member_id, call, &attributes(patron));
    member["relationships"] = relationships(patron, with_tiers);
    member
}

fn relationships(patron: &Patron, with_tiers: bool) -> Value {
    let mut all = json!({"user": {"data": {"id": patron.id, "type": "user"}},
        "campaign": {"data": {"id": CAMPAIGN, "type": "campaign"}}});
    if with_tiers {
        let tiers: Vec<Value> = patron.tiers.iter().map(|id| json!({"id": id, "type": "tier"})).collect();
        all["currently_entitled_tiers"] = json!({"data": tiers});
    }
    all
}

fn tiers_of(patron: &Patron, call: &Call) -> Vec<Value> {
    let theirs = TIERS.iter().filter(|(id, ..)| patron.tiers.contains(*id));
    theirs
        .map(|(id, title, cents)| resource("tier", id, call, &json!({"title": title, "amount_cents": cents})))
        .collect()
}

fn cents(patron: &Patron) -> u64 {
    TIERS.iter().filter(|(id, ..)| patron.tiers.contains(*id)).map(|(.., cents)| cents).sum()
}

/// Id and type, and of the attributes those that were asked for.
fn resource(kind: &str, id: &str, call: &Call, attributes: &Value) -> Value {
    let asked = call.query(&format!("fields[{kind}]")).unwrap_or_default();
    let shown: Map<String, Value> =
        asked.split(',').filter_map(|name| Some((String::from(name), attributes.get(name)?.clone()))).collect();
    json!({"id": id, "type": kind, "attributes": shown})
}

fn reader<'a>(world: &'a World, call: &Call, scope: &str) -> Result<&'a Grant, Answer> {
    let grant = call.bearer().and_then(|token| world.access_tokens.get(token));
    let grant = grant.filter(|grant| grant.expires_ms > clock::now_ms());
    let grant = grant.ok_or_else(|| refusal(401, "Unauthorized", "The access token is missing, ended or revoked."))?;
    let allows = grant.scopes.iter().any(|known| known == scope);
    if allows { Ok(grant) } else { Err(refusal(401, "Unauthorized", "The token lacks a scope.")) }
}

fn included(call: &Call, known: &[&str]) -> Result<Vec<String>, Answer> {
    let asked = call.query("include").unwrap_or_default().split(',').filter(|name| !name.is_empty());
    let asked: Vec<String> = asked.map(String::from).collect();
    match asked.iter().find(|name| !known.contains(&name.as_str())) {
        Some(unknown) => Err(refusal(400, "RelationshipInvalidOnType", &format!("{unknown} cannot be included."))),
        None => Ok(asked),
    }
}

fn check_fields(call: &Call) -> Result<(), Answer> {
    for (name, asked) in &call.query {
        let Some(kind) = name.strip_prefix("fields[").and_then(|rest| rest.strip_suffix(']')) else { continue };
        let known = ATTRIBUTES.iter().find(|(known, _)| *known == kind).map(|(_, attributes)| *attributes);
        let known = known.ok_or_else(|| refusal(400, "ResourceInvalid", &format!("There is no type {kind}.")))?;
        if let Some(unknown) = asked.split(',').find(|name| !known.contains(name)) {
            let detail = format!("{kind} has no attribute {unknown}.");
            return Err(refusal(400, "AttributeInvalidOnType", &detail));
        }
    }
    Ok(())
}

//! What can be read: JSON:API, in which nothing comes that was not asked for by name.

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
const LARGEST_PAGE: usize = 1000;

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
    let include = included(call, &["currently_entitled_tiers", "user"])?;
    check_fields(call)?;
    if campaign != CAMPAIGN {
        return Err(refusal(404, "NotFound", "There is no such campaign."));
    }
    let number = |name: &str| call.query(name).map(|text| text.parse::<usize>());
    let count = number("page[count]").unwrap_or(Ok(LARGEST_PAGE));
    let from = number("page[cursor]").unwrap_or(Ok(0));
    let (Ok(count @ 1..=LARGEST_PAGE), Ok(from)) = (count, from) else {
        return Err(refusal(400, "ParameterInvalidOnType", "page[count] is 1 to 1000, page[cursor] as it was given."));
    };
    let with_tiers = include.iter().any(|name| name == "currently_entitled_tiers");
    let all: Vec<&Patron> = world.patrons.values().filter(|patron| patron.patron_status.is_some()).collect();
    let page: Vec<Value> = all.iter().skip(from).take(count).map(|patron| member(patron, call, with_tiers)).collect();
    let next = from + page.len();
    let next = (next < all.len()).then(|| next.to_string());
    let pagination = json!({"total": all.len(), "cursors": {"next": next}});
    Ok(Answer::ok(json!({"data": page, "meta": {"pagination": pagination}})))
}

/// A member as events tell of it: with everything.
pub fn whole_member(patron: &Patron) -> Value {
    let attributes = json!({"full_name": patron.full_name, "patron_status": patron.patron_status,
        "currently_entitled_amount_cents": cents(patron), "last_charge_status": "Paid",
        "note": format!("revision {}", patron.revision)});
    json!({"data": {"id": patron.member_id, "type": "member", "attributes": attributes,
        "relationships": relationships(patron, true)}})
}

fn member(patron: &Patron, call: &Call, with_tiers: bool) -> Value {
    let attributes = json!({"full_name": patron.full_name, "patron_status": patron.patron_status,
        "currently_entitled_amount_cents": cents(patron), "last_charge_status": "Paid"});
    let mut member = resource("member", &patron.member_id, call, &attributes);
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

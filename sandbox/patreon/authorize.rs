//! The page where a user allows an app to read about them, or does not.

use super::{Grant, World, oauth};
use crate::{
    clock,
    exchange::{Answer, Call},
    page::html,
};

pub const SCOPES: [&str; 9] = [
    "identity",
    "identity[email]",
    "identity.memberships",
    "campaigns",
    "w:campaigns.webhook",
    "campaigns.members",
    "campaigns.members[email]",
    "campaigns.members.address",
    "campaigns.posts",
];

/// `sandbox_approve=<id or name>` allows, `sandbox_deny=1` does not; without either a person is asked.
pub fn page(world: &mut World, call: &Call) -> Answer {
    let (redirect_uri, scopes, state) = match read(world, call) {
        Ok(request) => request,
        // Never redirected to an address that is not the app's.
        Err(problem) => return Answer::html(400, html::notice("Something went wrong", &problem)),
    };
    if call.query("sandbox_deny").is_some() {
        return redirect(&redirect_uri, &[("error", "access_denied"), ("state", &state)]);
    }
    let Some(approved) = call.query("sandbox_approve") else {
        return Answer::html(200, choice(world, call, &scopes));
    };
    let found = world.patrons.values().find(|patron| patron.id == approved || patron.full_name == approved);
    let Some(patron) = found.map(|patron| patron.id.clone()) else {
        return Answer::html(400, html::notice("No such account", "Create one with POST /_sandbox/patreon/patrons."));
    };
    let code = oauth::secret("code");
    let expires_ms = clock::now_ms() + world.settings.code_lifetime_s * 1000;
    world.codes.insert(code.clone(), Grant { patron, scopes, redirect_uri: redirect_uri.clone(), expires_ms });
    redirect(&redirect_uri, &[("code", &code), ("state", &state)])
}

fn read(world: &World, call: &Call) -> Result<(String, Vec<String>, String), String> {
    let need = |name: &str| {
        let given = call.query(name).filter(|value| !value.is_empty());
        given.map(String::from).ok_or_else(|| format!("The parameter {name} is missing."))
    };
    if need("response_type")? != "code" {
        return Err(String::from("response_type must be \"code\"."));
    }
    if need("client_id")? != world.settings.client_id {
        return Err(String::from("There is no such client."));
    }
    let redirect_uri = need("redirect_uri")?;
    if !world.settings.redirect_uris.contains(&redirect_uri) {
        return Err(format!("\"{redirect_uri}\" is none of the client's redirect URIs, letter by letter."));
    }
    let scopes: Vec<String> = need("scope")?.split(' ').map(String::from).collect();
    match scopes.iter().find(|scope| !SCOPES.contains(&scope.as_str())) {
        Some(unknown) => Err(format!("There is no scope \"{unknown}\".")),
        None => Ok((redirect_uri, scopes, need("state")?)),
    }
}

fn redirect(to: &str, query: &[(&str, &str)]) -> Answer {
    match url::Url::parse(to) {
        Ok(mut target) => {
            target.query_pairs_mut().extend_pairs(query);
            Answer::redirect(target.as_str())
        }
        Err(_) => Answer::html(400, html::notice("Something went wrong", "The redirect URI is no address.")),
    }
}

fn choice(world: &World, call: &Call, scopes: &[String]) -> String {
    let link = |name: &str, value: &str| {
        let mut query = url::form_urlencoded::Serializer::new(String::new());
        query.extend_pairs(call.query.iter().map(|(name, value)| (name.as_str(), value.as_str())));
        query.append_pair(name, value);
        html::escaped(&format!("?{}", query.finish()))
    };
    let button =
        |to: String, text: &str, class: &str| format!("<a class=\"{class}\" href=\"{to}\">{}</a>", html::escaped(text));
    let patrons = world.patrons.values();
    let allow: String = patrons
        .map(|patron| button(link("sandbox_approve", &patron.id), &format!("Allow as {}", patron.full_name), "button"))
        .collect();
    let scopes: String = scopes.iter().map(|scope| format!("<li><code>{}</code></li>", html::escaped(scope))).collect();
    let deny = button(link("sandbox_deny", "1"), "Deny", "button quiet");
    let body = format!(
        "<section class=\"card\"><h1>An app wants to read your Patreon account</h1><ul>{scopes}</ul>\
         <div class=\"choices\">{allow}{deny}</div></section>"
    );
    html::document("Allow an app", &body)
}

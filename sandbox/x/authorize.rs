//! The page where a user allows an app to act for them (A1, step 1 and 2).

use super::{
    X,
    oauth::{self, SCOPES},
    store::{App, Challenge, Code, World},
};
use crate::{
    clock,
    exchange::{Answer, Call},
    page::html,
};

/// What the app asks for, once it is known to be right.
struct Request {
    client_id: String,
    redirect_uri: String,
    scopes: Vec<String>,
    state: String,
    challenge: String,
    method: Challenge,
}

pub fn page(x: &X, call: &Call) -> Answer {
    let mut world = x.world();
    let request = match read(&world, call) {
        Ok(request) => request,
        // A1: a wrong client or callback must never be redirected to; the real page shows its own error too.
        Err(problem) => return Answer::html(400, html::notice("Something went wrong", &problem)),
    };
    if call.query("sandbox_deny").is_some() {
        // A1: refusal.
        return redirect(&request.redirect_uri, &[("error", "access_denied"), ("state", &request.state)]);
    }
    let approved = call.query("sandbox_approve").map(String::from).or_else(|| world.settings.auto_approve.clone());
    let Some(approved) = approved else {
        return Answer::html(200, choice(&world, call, &request));
    };
    let account = match world.account_named(&approved) {
        Some(account) => Some(account.id.clone()),
        // `sandbox_approve=1` means: whoever is there.
        None if approved == "1" || approved == "true" => world.accounts.keys().next().cloned(),
        None => None,
    };
    let Some(account) = account else {
        let problem =
            format!("There is no account \"{approved}\" at this sandbox. Create one with POST /_sandbox/x/accounts.");
        return Answer::html(400, html::notice("No such account", &problem));
    };
    let code = oauth::secret("ac");
    let expires_ms = clock::now_ms() + world.settings.code_lifetime_s * 1000;
    let Request { client_id, redirect_uri, scopes, state, challenge, method } = request;
    let target = redirect_uri.clone();
    world.codes.insert(code.clone(), Code { account, client_id, scopes, redirect_uri, challenge, method, expires_ms });
    world.revision += 1;
    redirect(&target, &[("state", &state), ("code", &code)])
}

fn read(world: &World, call: &Call) -> Result<Request, String> {
    let given = |name: &str| call.query(name).filter(|value| !value.is_empty());
    let need = |name: &str| given(name).ok_or_else(|| format!("The parameter {name} is missing."));
    let client_id = need("client_id")?;
    let app =
        world.apps.get(client_id).ok_or_else(|| format!("There is no app with the client id \"{client_id}\"."))?;
    let redirect_uri = need("redirect_uri")?;
    if !app.allows_callback(redirect_uri) {
        // A1: exact match.
        return Err(format!("The callback \"{redirect_uri}\" is not one of this app's. Callbacks must match exactly."));
    }
    if need("response_type")? != "code" {
        return Err(String::from("response_type must be \"code\"."));
    }
    let state = need("state")?;
    if state.chars().count() > 500 {
        return Err(String::from("state must have at most 500 characters.")); // A1
    }
    let scopes: Vec<String> = need("scope")?.split_whitespace().map(String::from).collect();
    if let Some(unknown) = scopes.iter().find(|scope| !SCOPES.contains(&scope.as_str())) {
        return Err(format!("There is no scope \"{unknown}\"."));
    }
    // A1: lower-case s256 is accepted too.
    let method = match need("code_challenge_method")? {
        method if method.eq_ignore_ascii_case("s256") => Challenge::S256,
        "plain" => Challenge::Plain,
        other => {
            return Err(format!("code_challenge_method must be S256 or plain, not \"{other}\"."));
        }
    };
    Ok(Request {
        client_id: String::from(client_id),
        redirect_uri: String::from(redirect_uri),
        scopes,
        state: String::from(state),
        challenge: String::from(need("code_challenge")?),
        method,
    })
}

impl App {
    fn allows_callback(&self, uri: &str) -> bool {
        // A1: local development uses 127.0.0.1, not localhost.
        let loopback =
            url::Url::parse(uri).is_ok_and(|uri| uri.scheme() == "http" && uri.host_str() == Some("127.0.0.1"));
        self.callback_urls.iter().any(|known| known == uri) || (self.any_loopback_callback && loopback)
    }
}

fn redirect(to: &str, query: &[(&str, &str)]) -> Answer {
    match url::Url::parse(to) {
        Ok(mut target) => {
            target.query_pairs_mut().extend_pairs(query);
            Answer::redirect(target.as_str())
        }
        Err(_) => Answer::html(400, html::notice("Something went wrong", "The callback is not a URL.")),
    }
}

/// The page a person sees: who they are, what the app wants, yes or no.
fn choice(world: &World, call: &Call, request: &Request) -> String {
    let link = |name: &str, value: &str| {
        let mut query = url::form_urlencoded::Serializer::new(String::new());
        query.extend_pairs(call.query.iter().map(|(name, value)| (name.as_str(), value.as_str())));
        query.append_pair(name, value);
        html::escaped(&format!("?{}", query.finish()))
    };
    let accounts: String = world
        .accounts
        .values()
        .map(|account| {
            format!(
                "<a class=\"button\" href=\"{}\">Authorize as @{}</a>",
                link("sandbox_approve", &account.id),
                html::escaped(&account.username)
            )
        })
        .collect();
    let accounts = if accounts.is_empty() {
        String::from(
            "<p class=\"muted\">This sandbox has no account yet. Create one with <code>POST /_sandbox/x/accounts</code> and reload.</p>",
        )
    } else {
        accounts
    };
    let scopes: String =
        request.scopes.iter().map(|scope| format!("<li><code>{}</code></li>", html::escaped(scope))).collect();
    let body = format!(
        "<section class=\"card\"><h1>{} wants to access your account</h1><p>It would be able to use:</p><ul>{scopes}</ul>\
         <div class=\"choices\">{accounts}<a class=\"button quiet\" href=\"{}\">Cancel</a></div></section>",
        html::escaped(&request.client_id),
        link("sandbox_deny", "1"),
    );
    html::document("Authorize an app", &body)
}

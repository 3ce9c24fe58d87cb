//! The control API under `/_sandbox`: how tests and people make accounts, order faults and look at what arrived.
//! As strict as the twins: what it does not know, it refuses with a list of what it does know.

use std::{sync::Arc, time::Duration};

use poem::{Request, Response, http::Method};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::{
    exchange::{Answer, Payload},
    faults::{self, Complaint},
    firebase, gate, llm,
    log::Filter,
    page, patreon,
    state::Sandbox,
    x,
};

const BODY_LIMIT_BYTES: usize = 1024 * 1024;
const BODY_DEADLINE: Duration = Duration::from_secs(10);

const ROUTES: &[&str] = &[
    "GET /_sandbox/health",
    "GET /_sandbox/catalog",
    "GET /_sandbox/settings",
    "PATCH /_sandbox/settings",
    "GET /_sandbox/faults",
    "POST /_sandbox/faults",
    "DELETE /_sandbox/faults",
    "GET /_sandbox/faults/{id}",
    "DELETE /_sandbox/faults/{id}",
    "GET /_sandbox/log",
    "GET /_sandbox/log/count",
    "DELETE /_sandbox/log",
    "GET /_sandbox/x/accounts",
    "POST /_sandbox/x/accounts",
    "PATCH /_sandbox/x/accounts/{id}",
    "POST /_sandbox/x/accounts/{id}/tokens",
    "POST /_sandbox/x/accounts/{id}/revoke",
    "POST /_sandbox/x/accounts/{id}/expire",
    "POST /_sandbox/x/apps",
    "POST /_sandbox/x/apps/{client_id}/token",
    "GET /_sandbox/x/posts",
    "GET /_sandbox/x/posts/count",
    "GET /_sandbox/x/media/{id}",
    "GET /_sandbox/x/avatar/{username}",
    "GET /_sandbox/llm/calls",
    "POST /_sandbox/llm/keys",
    "POST /_sandbox/firebase/tokens",
    "POST /_sandbox/firebase/rotate",
    "POST /_sandbox/patreon/patrons",
    "PATCH /_sandbox/patreon/patrons/{id}",
    "POST /_sandbox/patreon/patrons/{id}/revoke",
    "POST /_sandbox/patreon/patrons/{id}/expire",
    "GET /_sandbox/patreon/webhook",
    "PATCH /_sandbox/patreon/webhook",
    "GET /_sandbox/latest",
    "GET /_sandbox/routes",
    "POST /_sandbox/reset",
];

/// Reads a body into a strict type.
pub fn read<T: DeserializeOwned>(body: &Value) -> Result<T, Complaint> {
    let object = if body.is_null() { json!({}) } else { body.clone() };
    serde_json::from_value(object).map_err(|error| Complaint::new(error.to_string()))
}

pub async fn answer(sandbox: &Arc<Sandbox>, mut request: Request) -> Response {
    let origin = format!("http://{}", request.header("host").unwrap_or("127.0.0.1"));
    let range = request.header("range").map(String::from);
    let body = request.take_body().into_bytes_limit(BODY_LIMIT_BYTES);
    let body = match tokio::time::timeout(BODY_DEADLINE, body).await {
        Ok(Ok(bytes)) if bytes.is_empty() => Ok(Value::Null),
        Ok(Ok(bytes)) => serde_json::from_slice(&bytes).map_err(|error| format!("the body is not JSON: {error}")),
        Ok(Err(error)) => Err(format!("the body cannot be read: {error}")),
        Err(_) => Err(String::from("the body did not arrive in time")),
    };
    let uri = request.original_uri();
    let query: Vec<(String, String)> =
        url::form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes()).into_owned().collect();
    let path = String::from(uri.path());
    let segments: Vec<&str> = path.trim_start_matches("/_sandbox").split('/').filter(|part| !part.is_empty()).collect();
    let asked = Asked { origin, range, query: Query(query) };
    let result = match body {
        Ok(body) => route(sandbox, request.method(), &segments, &asked, &body),
        Err(message) => Err(Complaint::new(message)),
    };
    let answer = result.unwrap_or_else(|complaint| {
        let mut body = json!({"error": complaint.message});
        if !complaint.valid.is_empty() {
            body["valid"] = json!(complaint.valid);
        }
        Answer::json(400, body)
    });
    gate::respond(answer, Vec::new(), None)
}

struct Asked {
    origin: String,
    range: Option<String>,
    query: Query,
}

fn route(
    sandbox: &Arc<Sandbox>,
    method: &Method,
    segments: &[&str],
    asked: &Asked,
    body: &Value,
) -> Result<Answer, Complaint> {
    let (x, query) = (&sandbox.x, &asked.query);
    let ok = |value: Value| Ok(Answer::ok(value));
    let made = |value: Value| Answer::json(201, value);
    match (method.as_str(), segments) {
        ("GET", ["health"]) => ok(health(sandbox)),
        ("GET", ["catalog"]) => ok(catalog(sandbox)),
        ("GET", ["routes"]) => ok(json!(ROUTES)),
        ("GET", ["settings"]) => ok(settings(sandbox)),
        ("PATCH", ["settings"]) => change_settings(sandbox, body).map(Answer::ok),
        ("GET", ["faults"]) => ok(json!(sandbox.faults.list())),
        ("POST", ["faults"]) => {
            let fault = faults::parse(body, &sandbox.twins)?;
            Ok(made(json!(sandbox.faults.add(fault))))
        }
        ("DELETE", ["faults"]) => {
            sandbox.faults.clear();
            Ok(Answer::empty(204))
        }
        ("GET", ["faults", id]) => {
            let fault = sandbox.faults.list().into_iter().find(|fault| fault.id.to_string() == *id);
            fault.map(|fault| Answer::ok(json!(fault))).ok_or_else(|| Complaint::new(format!("there is no fault {id}")))
        }
        ("DELETE", ["faults", id]) => match id.parse().is_ok_and(|id| sandbox.faults.remove(id)) {
            true => Ok(Answer::empty(204)),
            false => Err(Complaint::new(format!("there is no fault {id}"))),
        },
        ("GET", ["log"]) => {
            let filter = query.log_filter(sandbox)?;
            ok(json!(sandbox.log.list(&filter, query.whole("limit")?.unwrap_or(1_000))))
        }
        ("GET", ["log", "count"]) => ok(json!({"count": sandbox.log.count(&query.log_filter(sandbox)?)})),
        ("DELETE", ["log"]) => {
            sandbox.log.clear();
            Ok(Answer::empty(204))
        }
        ("GET", ["x", "accounts"]) => ok(x::control::list_accounts(x)),
        ("POST", ["x", "accounts"]) => x::control::create_account(x, body).map(made),
        ("PATCH", ["x", "accounts", id]) => x::control::change_account(x, id, body).map(Answer::ok),
        ("POST", ["x", "accounts", id, "tokens"]) => x::control::issue_tokens(x, id, body).map(made),
        ("POST", ["x", "accounts", id, "revoke"]) => x::control::revoke(x, id).map(Answer::ok),
        ("POST", ["x", "accounts", id, "expire"]) => x::control::expire(x, id).map(Answer::ok),
        ("POST", ["x", "apps"]) => x::control::create_app(x, body).map(made),
        ("POST", ["x", "apps", client_id, "token"]) => x::control::app_token(x, client_id).map(made),
        ("GET", ["x", "posts"]) => ok(x::control::posts(x, &query.post_filter()?, &asked.origin)),
        ("GET", ["x", "posts", "count"]) => ok(x::control::count(x)),
        ("GET", ["x", "media", id]) => Ok(page::media(x, id, asked.range.as_deref())),
        ("GET", ["x", "avatar", username]) => Ok(page::avatar(username)),
        ("GET", ["llm", "calls"]) => {
            query.only(&["provider", "limit"])?;
            let limit = query.whole("limit")?.unwrap_or(200);
            llm::control::calls(&sandbox.llms, query.text("provider"), limit).map(Answer::ok)
        }
        ("POST", ["llm", "keys"]) => llm::control::set_key(&sandbox.llms, body).map(made),
        ("POST", ["firebase", "tokens"]) => firebase::control::sign(&sandbox.firebase, body).map(made),
        ("POST", ["firebase", "rotate"]) => firebase::control::rotate(&sandbox.firebase, body).map(made),
        ("POST", ["patreon", "patrons"]) => patreon::control::create(&sandbox.patreon, body).map(made),
        ("PATCH", ["patreon", "patrons", id]) => patreon::control::change(&sandbox.patreon, id, body).map(Answer::ok),
        ("POST", ["patreon", "patrons", id, "revoke"]) => {
            patreon::control::revoke(&sandbox.patreon, id).map(Answer::ok)
        }
        ("POST", ["patreon", "patrons", id, "expire"]) => {
            patreon::control::expire(&sandbox.patreon, id).map(Answer::ok)
        }
        ("GET", ["patreon", "webhook"]) => ok(patreon::control::webhook(&sandbox.patreon)),
        ("PATCH", ["patreon", "webhook"]) => patreon::control::change_webhook(&sandbox.patreon, body).map(Answer::ok),
        ("GET", ["latest"]) => {
            let html = page::latest(sandbox);
            let version = page::version(&html);
            Ok(Answer::html(200, html).with_header("x-version", version))
        }
        ("POST", ["reset"]) => {
            sandbox.reset();
            Ok(Answer::empty(204))
        }
        _ => {
            let path = segments.join("/");
            let body = json!({"error": format!("there is no {method} /_sandbox/{path}"), "valid": ROUTES});
            Ok(Answer::json(404, body))
        }
    }
}

fn health(sandbox: &Sandbox) -> Value {
    let services: Vec<&str> = sandbox.twins.iter().map(|twin| twin.service()).collect();
    json!({"status": "ok", "services": services, "up_ms": u64::try_from(sandbox.started.elapsed().as_millis()).unwrap_or(u64::MAX)})
}

/// What can be asked of faults, service by service.
fn catalog(sandbox: &Sandbox) -> Value {
    sandbox
        .twins
        .iter()
        .map(|twin| {
            let operations: Vec<Value> = twin
                .operations()
                .iter()
                .map(|op| json!({"name": op.name, "method": op.method, "route": op.route}))
                .collect();
            let errors: Vec<Value> = twin
                .errors()
                .into_iter()
                .filter_map(|name| {
                    let answer = twin.error(name)?;
                    let body = match answer.payload {
                        Payload::Json(body) => body,
                        Payload::Text { text, .. } => Value::String(text),
                        Payload::Empty | Payload::Bytes { .. } | Payload::Events(_) => Value::Null,
                    };
                    Some(json!({"name": name, "status": answer.status, "body": body}))
                })
                .collect();
            let facts =
                json!({"operations": operations, "errors": errors, "effects": faults::effect_names(twin.as_ref())});
            (String::from(twin.service()), facts)
        })
        .collect()
}

fn settings(sandbox: &Sandbox) -> Value {
    let mut all = json!({"x": x::control::settings(&sandbox.x)});
    for llm in &sandbox.llms {
        all[llm.provider.name()] = llm::control::settings(llm);
    }
    all["firebase"] = firebase::control::settings(&sandbox.firebase);
    all["patreon"] = patreon::control::settings(&sandbox.patreon);
    all
}

fn change_settings(sandbox: &Sandbox, body: &Value) -> Result<Value, Complaint> {
    let changes = body.as_object().ok_or_else(|| Complaint::new("settings are a JSON object by service"))?;
    let services: Vec<&str> = sandbox.twins.iter().map(|twin| twin.service()).collect();
    if let Some(unknown) = changes.keys().find(|name| !services.contains(&name.as_str())) {
        return Err(Complaint::with_valid(format!("there is no service `{unknown}`"), services));
    }
    for (service, change) in changes {
        match sandbox.llms.iter().find(|llm| llm.provider.name() == service) {
            Some(llm) => llm::control::change_settings(llm, change)?,
            None if service == "firebase" => firebase::control::change_settings(&sandbox.firebase, change)?,
            None if service == "patreon" => patreon::control::change_settings(&sandbox.patreon, change)?,
            None => x::control::change_settings(&sandbox.x, change)?,
        };
    }
    Ok(settings(sandbox))
}

struct Query(Vec<(String, String)>);

impl Query {
    fn text(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    fn owned(&self, name: &str) -> Option<String> {
        self.text(name).map(String::from)
    }

    fn only(&self, known: &[&str]) -> Result<(), Complaint> {
        match self.0.iter().find(|(name, _)| !known.contains(&name.as_str())) {
            Some((unknown, _)) => {
                Err(Complaint::with_valid(format!("there is no query parameter `{unknown}`"), known.iter().copied()))
            }
            None => Ok(()),
        }
    }

    fn whole<T: std::str::FromStr>(&self, name: &str) -> Result<Option<T>, Complaint> {
        let value = self.text(name).map(str::parse).transpose();
        value.map_err(|_| Complaint::new(format!("`{name}` is a whole number")))
    }

    fn log_filter(&self, sandbox: &Sandbox) -> Result<Filter, Complaint> {
        self.only(&["after", "service", "operation", "account", "status", "state", "limit"])?;
        let services: Vec<&str> = sandbox.twins.iter().map(|twin| twin.service()).collect();
        if let Some(unknown) = self.text("service").filter(|service| !services.contains(service)) {
            return Err(Complaint::with_valid(format!("there is no service `{unknown}`"), services));
        }
        let operations = sandbox.twins.iter().flat_map(|twin| twin.operations()).map(|operation| operation.name);
        let operations: Vec<&str> = operations.chain(["unknown"]).collect();
        if let Some(unknown) = self.text("operation").filter(|operation| !operations.contains(operation)) {
            return Err(Complaint::with_valid(format!("there is no operation `{unknown}`"), operations));
        }
        let states = ["in_flight", "answered", "dropped"];
        if let Some(unknown) = self.text("state").filter(|state| !states.contains(state)) {
            return Err(Complaint::with_valid(format!("there is no state `{unknown}`"), states));
        }
        Ok(Filter {
            after_seq: self.whole("after")?,
            service: self.owned("service"),
            operation: self.owned("operation"),
            account: self.owned("account"),
            status: self.whole("status")?,
            state: self.owned("state"),
        })
    }

    fn post_filter(&self) -> Result<x::control::Filter, Complaint> {
        self.only(&["account", "text", "deleted", "limit"])?;
        Ok(x::control::Filter {
            account: self.owned("account"),
            text_contains: self.owned("text"),
            include_deleted: self.text("deleted") == Some("true"),
            limit: self.whole("limit")?.unwrap_or(usize::MAX),
        })
    }
}

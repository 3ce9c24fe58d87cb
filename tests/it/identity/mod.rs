//! Who gets in, and how far: the attacks that identity has to stand, one test for each.

mod audit;
mod firebase;
mod key_limits;
mod key_posts;
mod keys;
mod roles;
mod teams;

use std::time::Duration;

use multivio::{
    identity::Scope,
    ids::{TenantId, UserId},
};
use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::{Api, App};

pub const SOON: Duration = Duration::from_secs(30);

impl App {
    /// A token of somebody else, in a workspace of their own.
    pub fn token_of_another(&self) -> (UserId, String) {
        let user = UserId::new();
        (user, self.token_of(TenantId::new(), user, &[Scope::Workspace]))
    }
}

/// Calls as whoever has this credential, perhaps in another workspace.
pub async fn call(
    api: &Api,
    credential: &str,
    workspace: Option<&str>,
    method: Method,
    path: &str,
    body: Option<&Value>,
) -> (u16, Value) {
    let mut request = api.client.request(method.clone(), format!("{}{path}", api.url)).bearer_auth(credential);
    if let Some(workspace) = workspace {
        request = request.header("X-Workspace", workspace);
    }
    if let Some(body) = body {
        request = request.json(body);
    }
    let response = request.timeout(SOON).send().await.unwrap_or_else(|error| panic!("{method} {path}: {error}"));
    let status = response.status().as_u16();
    let text = response.text().await.unwrap();
    (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
}

pub async fn get(api: &Api, credential: &str, path: &str) -> (u16, Value) {
    call(api, credential, None, Method::GET, path, None).await
}

/// A new API key of the app's own workspace: its id and the key itself.
pub async fn new_key(api: &Api, wish: Value) -> (String, String) {
    let mut body = json!({"name": "test", "scopes": ["read", "publish", "connections"]});
    body.as_object_mut().unwrap().extend(wish.as_object().unwrap().clone());
    let (status, answer) = api.post("/api/v1/api-keys", body).await;
    assert_eq!(status, 201, "{answer}");
    (answer["id"].as_str().unwrap().to_owned(), answer["key"].as_str().unwrap().to_owned())
}

/// A connection row, as far as the API shows it: its tokens open nothing.
pub async fn connect(app: &App, tenant: TenantId, name: &str) -> String {
    let id = multivio::ids::ConnectionId::new();
    sqlx::query(
        "insert into connections (id, tenant_id, platform, remote_account_id, username, display_name, access_token) \
         values ($1, $2, 'x', $3, $3, $3, '\\x00')",
    )
    .bind(id)
    .bind(tenant)
    .bind(name)
    .execute(&app.pool)
    .await
    .unwrap();
    id.to_string()
}

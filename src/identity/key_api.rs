//! `/api/v1/api-keys`: keys with which programs call the API, for owners of a workspace.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use poem::web::Data;
use poem_openapi::{
    Enum, Object, OpenApi,
    param::{Path, Query},
    payload::Json,
    types::{MaybeUndefined, ParseFromJSON, ToJSON},
};
use secrecy::ExposeSecret;
use serde_json::{Value, json};

use super::{
    ApiKey, Caller, Scope, Scopes, api,
    key_store::{self, KeyRow, NewKey},
    store,
};
use crate::{
    audit::{self, Action},
    connections,
    crypto::Keyring,
    http::{
        App, Created, FieldError, Gone, IdempotencyKey, Input, Page, Problem, Tag, Tried, Turn, page,
        signed_in_recently,
    },
    ids::{ApiKeyId, ConnectionId, UserId},
};

#[derive(Clone)]
pub struct KeysApi;

/// What a key may be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Enum)]
#[oai(rename = "KeyScope", rename_all = "snake_case")]
enum KeyScope {
    /// See everything in the workspace.
    Read,
    /// Write, transform and publish, and steer what was started.
    Publish,
    /// Connect and disconnect accounts.
    Connections,
    /// Try failed jobs of everybody again, all at once; administrators can give it.
    Admin,
}

impl From<KeyScope> for Scope {
    fn from(scope: KeyScope) -> Self {
        match scope {
            KeyScope::Read => Self::Read,
            KeyScope::Publish => Self::Publish,
            KeyScope::Connections => Self::Connections,
            KeyScope::Admin => Self::Admin,
        }
    }
}

#[derive(Debug, Object)]
#[oai(deny_unknown_fields, skip_serializing_if_is_none)]
struct KeyInput {
    /// To know it by.
    #[oai(validator(min_length = 1, max_length = 100))]
    name: String,
    #[oai(validator(min_items = 1, max_items = 4))]
    scopes: Vec<KeyScope>,
    /// The only connections it may see and publish on; without it all, also those added later.
    #[oai(validator(min_items = 1, max_items = 100))]
    connections: Option<Vec<ConnectionId>>,
    /// Without it, never.
    expires_at: Option<DateTime<Utc>>,
    /// Requests that it may make in a window (`RateLimit-Policy` says how long one is), within what limits its maker
    /// and his address; without it, only those.
    #[oai(validator(minimum(value = "1"), maximum(value = "1000000000")))]
    rate_limit: Option<i32>,
}

/// What a key may be changed in.
#[derive(Debug, Object)]
#[oai(deny_unknown_fields)]
struct KeyChange {
    /// Requests that it may make in a window; null: no limit of its own.
    #[oai(validator(minimum(value = "1"), maximum(value = "1000000000")))]
    rate_limit: MaybeUndefined<i32>,
}

/// An API key.
// May hold the key itself, so it has no `Debug`.
#[derive(Clone, PartialEq, Object)]
#[oai(rename = "ApiKey", skip_serializing_if_is_none)]
struct KeyView {
    id: ApiKeyId,
    name: String,
    /// What it begins with.
    prefix: String,
    /// The key itself: only in the answer to its making.
    key: Option<String>,
    scopes: Vec<String>,
    connections: Option<Vec<ConnectionId>>,
    /// Requests that it may make in a window; absent: no limit of its own.
    rate_limit: Option<i32>,
    created_by: UserId,
    created_at: DateTime<Utc>,
    expires_at: Option<DateTime<Utc>>,
    /// To the minute.
    last_used_at: Option<DateTime<Utc>>,
    revoked_at: Option<DateTime<Utc>>,
}

/// A page of API keys.
#[derive(Object)]
#[oai(skip_serializing_if_is_none)]
struct KeyList {
    items: Vec<KeyView>,
    /// Pass it as `cursor` to get the next page; absent on the last one.
    next_cursor: Option<String>,
}

const LIST: &str = "api-keys";
/// As the document says.
const MOST_CONNECTIONS: usize = 100;

#[OpenApi(prefix_path = "/api/v1", tag = "Tag::Identity")]
impl KeysApi {
    /// Make an API key
    ///
    /// `key` is shown in this answer alone, and to its maker again who repeats the call with the same
    /// `Idempotency-Key`. A key can do no more than its maker can at the time of each call, and ends with their
    /// membership. Whoever signed in with Firebase must have done so a short time ago: it is a 403 `sign_in_again`
    /// otherwise.
    #[oai(path = "/api-keys", method = "post", operation_id = "createApiKey")]
    async fn create(
        &self,
        app: Data<&Arc<App>>,
        keyring: Data<&Keyring>,
        caller: Caller,
        #[oai(name = "Idempotency-Key")] key: IdempotencyKey,
        body: Tried<KeyInput>,
    ) -> Result<Created<KeyView>, Problem> {
        caller.require(Scope::Manage)?;
        signed_in_recently(&app, &caller)?;
        api::ensure(&app, &caller).await?;
        let mut tx = app.db.begin(&caller).await?;
        let input = match body.fit {
            Ok(input) => input,
            Err(mut errors) => {
                errors.extend(Meant::readable(&body.value).wrong(&mut tx, &caller).await?);
                return Err(Problem::invalid(errors));
            }
        };
        let key = key.of_person(&caller);
        let claim = match key.claim_sealed(&mut tx, &caller, input.to_json(), &keyring).await? {
            Turn::Replay(answer) => return Ok(answer),
            Turn::New(claim) => claim,
        };
        let errors = Meant::from(&input).wrong(&mut tx, &caller).await?;
        if !errors.is_empty() {
            return Err(Problem::invalid(errors));
        }
        let wish = NewKey::from(input);
        let made = ApiKey::generate();
        let id = key_store::insert(&mut tx, caller.tenant, caller.user, &made, &wish).await?;
        let details = json!({"name": wish.name, "prefix": made.prefix, "scopes": wish.scopes.words()});
        audit::record(&mut tx, &caller, Action::KeyCreated, id, details).await?;
        let row = key_store::get(&mut *tx, caller.tenant, id).await?.ok_or_else(|| Problem::not_found("API key"))?;
        let view = KeyView { key: Some(made.text.expose_secret().to_owned()), ..row.into() };
        let answer = Created::new(format!("/api/v1/api-keys/{id}"), view);
        let answer = claim.keep_sealed(&mut tx, &keyring, answer).await?;
        tx.commit().await?;
        Ok(answer)
    }

    /// List API keys
    ///
    /// Newest first, revoked ones too.
    #[oai(path = "/api-keys", method = "get", operation_id = "listApiKeys")]
    async fn list(
        &self,
        app: Data<&Arc<App>>,
        caller: Caller,
        /// `next_cursor` of the page before
        cursor: Query<Option<String>>,
        /// Keys on a page, 1 to 100; 25 without it
        limit: Query<Option<u16>>,
    ) -> Result<Json<KeyList>, Problem> {
        caller.require(Scope::Manage)?;
        let limit = page::limit(limit.0)?;
        let before = page::decode(LIST, cursor.0.as_deref())?;
        let rows =
            key_store::list(&mut *app.db.of(&caller).await?, caller.tenant, before, i64::from(limit) + 1).await?;
        let views = rows.into_iter().map(KeyView::from).collect();
        let Page { items, next_cursor } = Page::of(views, limit, LIST, |key: &KeyView| key.id);
        Ok(Json(KeyList { items, next_cursor }))
    }

    /// Get an API key
    #[oai(path = "/api-keys/:id", method = "get", operation_id = "getApiKey")]
    async fn get(&self, app: Data<&Arc<App>>, caller: Caller, id: Path<ApiKeyId>) -> Result<Json<KeyView>, Problem> {
        caller.require(Scope::Manage)?;
        let row = key_store::get(&mut *app.db.of(&caller).await?, caller.tenant, id.0).await?;
        Ok(Json(row.ok_or_else(|| Problem::not_found("API key"))?.into()))
    }

    /// Change an API key's limit
    ///
    /// It holds here at once, and in other processes within five seconds.
    #[oai(path = "/api-keys/:id", method = "patch", operation_id = "changeApiKey")]
    async fn change(
        &self,
        app: Data<&Arc<App>>,
        caller: Caller,
        id: Path<ApiKeyId>,
        #[oai(name = "Idempotency-Key")] key: IdempotencyKey,
        body: Input<KeyChange>,
    ) -> Result<Json<KeyView>, Problem> {
        caller.require(Scope::Manage)?;
        let rate_limit = match body.0.rate_limit {
            MaybeUndefined::Value(limit) => Some(limit),
            MaybeUndefined::Null => None,
            MaybeUndefined::Undefined => {
                let remedy = "Send requests per window, or null for no limit";
                return Err(Problem::invalid_field("rate_limit", "is missing", remedy));
            }
        };
        let mut tx = app.db.begin(&caller).await?;
        let claim = match key.claim(&mut tx, &caller, Some(json!(rate_limit))).await? {
            Turn::Replay(answer) => return Ok(answer),
            Turn::New(claim) => claim,
        };
        let row = key_store::limit(&mut tx, caller.tenant, id.0, rate_limit).await?;
        let row = row.ok_or_else(|| Problem::not_found("API key"))?;
        audit::record(&mut tx, &caller, Action::KeyChanged, id.0, json!({"rate_limit": rate_limit})).await?;
        let answer = claim.keep(&mut tx, Json(row.into())).await?;
        tx.commit().await?;
        app.auth.forget();
        Ok(answer)
    }

    /// Revoke an API key
    ///
    /// It is refused here at once, and by other processes within five seconds.
    #[oai(path = "/api-keys/:id", method = "delete", operation_id = "revokeApiKey")]
    async fn revoke(
        &self,
        app: Data<&Arc<App>>,
        caller: Caller,
        id: Path<ApiKeyId>,
        #[oai(name = "Idempotency-Key")] key: IdempotencyKey,
    ) -> Result<Gone, Problem> {
        caller.require(Scope::Manage)?;
        let mut tx = app.db.begin(&caller).await?;
        let claim = match key.claim(&mut tx, &caller, None).await? {
            Turn::Replay(answer) => return Ok(answer),
            Turn::New(claim) => claim,
        };
        let is_news = key_store::revoke(&mut tx, caller.tenant, id.0).await?;
        if is_news.ok_or_else(|| Problem::not_found("API key"))? {
            audit::record(&mut tx, &caller, Action::KeyRevoked, id.0, json!({})).await?;
        }
        let answer = claim.keep(&mut tx, Gone::default()).await?;
        tx.commit().await?;
        app.auth.forget();
        Ok(answer)
    }
}

/// What a new key is meant to be, as far as that can be read.
struct Meant {
    name: String,
    scopes: Scopes,
    expires_at: Option<DateTime<Utc>>,
    /// With their places.
    connections: Vec<(usize, ConnectionId)>,
}

impl From<&KeyInput> for Meant {
    fn from(input: &KeyInput) -> Self {
        Self {
            name: input.name.clone(),
            scopes: Scopes::of(input.scopes.iter().map(|scope| Scope::from(*scope))),
            expires_at: input.expires_at,
            connections: input.connections.iter().flatten().copied().enumerate().collect(),
        }
    }
}

impl Meant {
    /// Of a body that does not fit: what is wrong with its form is told already.
    fn readable(body: &Value) -> Self {
        Self {
            // An empty one is too short already.
            name: body["name"].as_str().filter(|name| !name.is_empty()).unwrap_or("-").to_owned(),
            scopes: Scopes::of(readable::<KeyScope>(&body["scopes"]).map(|(_, scope)| scope.into())),
            expires_at: DateTime::<Utc>::parse_from_json(Some(body["expires_at"].clone())).ok(),
            connections: readable(&body["connections"]).collect(),
        }
    }

    /// What is wrong with it.
    async fn wrong(&self, tx: &mut sqlx::PgConnection, caller: &Caller) -> Result<Vec<FieldError>, Problem> {
        let mut errors = Vec::new();
        if self.name.trim().is_empty() {
            errors.push(FieldError::new("name", "has nothing to be seen", "Send a name to know it by"));
        }
        if self.scopes.contain(Scope::Admin) {
            // A local token says so of whoever bears it; a key asks who its maker is each time.
            let user = store::access(&mut *tx, caller.user, Some(caller.tenant)).await?;
            if !caller.scopes.contain(Scope::Admin) {
                errors.push(FieldError::new("scopes", "holds admin, which you are not", "Leave it out"));
            } else if !user.is_some_and(|user| user.is_admin) {
                let remedy = "Leave it out, or have an operator make you one: multivio users role";
                errors.push(FieldError::new("scopes", "holds admin, which only your token says that you are", remedy));
            }
        }
        if self.expires_at.is_some_and(|at| at <= Utc::now()) {
            errors.push(FieldError::new("expires_at", "is past", "Send a time to come, or leave it out"));
        }
        for (index, id) in &self.connections {
            if connections::store::get(&mut *tx, caller.reach(), *id).await?.is_none() {
                let field = format!("connections[{index}]");
                errors.push(FieldError::new(field, "is no connection of yours", "List them: GET /api/v1/connections"));
            }
        }
        Ok(errors)
    }
}

/// The items of an array that are of this type, each with its place; of more than any array here may have, the first.
fn readable<T: ParseFromJSON>(array: &Value) -> impl Iterator<Item = (usize, T)> {
    let items = array.as_array().into_iter().flatten().take(MOST_CONNECTIONS).enumerate();
    items.filter_map(|(index, item)| Some((index, T::parse_from_json(Some(item.clone())).ok()?)))
}

impl From<KeyInput> for NewKey {
    fn from(input: KeyInput) -> Self {
        Self {
            name: input.name,
            scopes: Scopes::of(input.scopes.into_iter().map(Scope::from)),
            connections: input.connections,
            rate_limit: input.rate_limit,
            expires_at: input.expires_at,
        }
    }
}

impl From<KeyRow> for KeyView {
    fn from(row: KeyRow) -> Self {
        let KeyRow { id, created_by, name, prefix, scopes, connections, .. } = row;
        Self {
            id,
            name,
            prefix,
            key: None,
            scopes,
            connections,
            rate_limit: row.rate_limit,
            created_by,
            created_at: row.created_at,
            expires_at: row.expires_at,
            last_used_at: row.last_used_at,
            revoked_at: row.revoked_at,
        }
    }
}

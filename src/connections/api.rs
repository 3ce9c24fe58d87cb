//! `/api/v1/connections`: which accounts there are, adding one with its tokens, disconnecting one.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use poem::web::Data;
use poem_openapi::{
    Enum, Object, OpenApi,
    param::{Path, Query},
    payload::Json,
    types::{Password, ToJSON},
};
use secrecy::SecretString;
use serde_json::json;

use super::{
    Connection, ConnectionState, GiveBackTokens, RefreshToken,
    connect::{ConnectError, NewAccount},
    consent,
    job::Seen,
    proof,
    store::{self, Expires},
    wake_key,
};
use crate::{
    audit::{self, Action},
    http::{
        Accepted, App, Caller, Created, FieldError, Gone, IdempotencyKey, Input, Page, Problem, Scope, Tag, Turn, page,
    },
    identity::Forbidden,
    ids::{ConnectionId, JobId},
    jobs::{EnqueueError, NewJob},
    platforms::{Connector, Explanation, Platform},
    posts::input::PlatformName,
    publishing::{self, Publisher},
    telemetry::chain,
};

#[derive(Clone)]
pub struct ConnectionsApi;

/// How an account is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Enum)]
#[oai(rename = "ConnectionState", rename_all = "snake_case")]
pub enum StateName {
    Active,
    /// Its owner has to authorise it again.
    NeedsReconnect,
}

/// Why something waits or failed, and whose turn it is.
#[derive(Debug, Clone, PartialEq, Eq, Object)]
#[oai(rename = "Explanation")]
pub struct ExplanationView {
    /// Stable, for programs.
    pub code: String,
    pub message: String,
    /// `us`, `user`, `operator` or `platform`.
    pub turn: String,
}

impl From<Explanation> for ExplanationView {
    fn from(explanation: Explanation) -> Self {
        Self { code: explanation.code, message: explanation.message, turn: explanation.turn.to_string() }
    }
}

/// An account on a platform.
#[derive(Debug, Clone, PartialEq, Eq, Object)]
#[oai(rename = "Connection", skip_serializing_if_is_none)]
pub struct ConnectionView {
    id: ConnectionId,
    platform: PlatformName,
    /// The platform's own id of the account.
    remote_account_id: String,
    username: String,
    display_name: String,
    state: StateName,
    problem: Option<ExplanationView>,
    /// When our present access ends; it is refreshed before.
    access_expires_at: Option<DateTime<Utc>>,
    created_at: DateTime<Utc>,
}

/// A page of connections.
#[derive(Debug, Object)]
#[oai(skip_serializing_if_is_none)]
struct ConnectionList {
    items: Vec<ConnectionView>,
    /// Pass it as `cursor` to get the next page; absent on the last one.
    next_cursor: Option<String>,
}

/// An account with tokens that its owner has. They are encrypted at once and never shown again. The platform is asked
/// whose they are.
#[derive(Object)]
#[oai(deny_unknown_fields)]
struct ConnectionInput {
    platform: PlatformName,
    /// The platform's own id of the account that the tokens are for.
    #[oai(validator(min_length = 1, max_length = 200))]
    remote_account_id: String,
    /// Not needed: what the platform says is kept.
    #[oai(validator(min_length = 1, max_length = 200))]
    username: Option<String>,
    /// Without it, what the platform says.
    #[oai(validator(max_length = 200))]
    display_name: Option<String>,
    /// One that works now, of a user, with every scope that publishing needs.
    #[oai(validator(min_length = 1, max_length = 8192))]
    access_token: Password,
    #[oai(validator(min_length = 1, max_length = 8192))]
    refresh_token: Option<Password>,
    /// When the access token ends; without it, never.
    expires_at: Option<DateTime<Utc>>,
}

const LIST: &str = "connections";

#[OpenApi(prefix_path = "/api/v1", tag = "Tag::Connections")]
impl ConnectionsApi {
    /// List connections
    ///
    /// Newest first.
    #[oai(path = "/connections", method = "get", operation_id = "listConnections")]
    async fn list(
        &self,
        app: Data<&Arc<App>>,
        caller: Caller,
        /// Only those on this platform
        platform: Query<Option<PlatformName>>,
        /// `next_cursor` of the page before
        cursor: Query<Option<String>>,
        /// Connections on a page, 1 to 100; 25 without it
        limit: Query<Option<u16>>,
    ) -> Result<Json<ConnectionList>, Problem> {
        caller.require(Scope::Read)?;
        let limit = page::limit(limit.0)?;
        let before = page::decode(LIST, cursor.0.as_deref())?;
        let platform = platform.0.map(Platform::from);
        let rows = store::list(&mut *app.db.of(&caller).await?, caller.reach(), platform, before, i64::from(limit) + 1)
            .await?;
        let views = rows.into_iter().map(ConnectionView::from).collect();
        let Page { items, next_cursor } = Page::of(views, limit, LIST, |connection: &ConnectionView| connection.id);
        Ok(Json(ConnectionList { items, next_cursor }))
    }

    /// Connect an account with its tokens
    ///
    /// For development and for installations of one's own. The platform is asked whose the access token is: nothing is
    /// kept before it has named the account, nor where it names another. An account that is connected already gets the
    /// new tokens, what waited for them goes on, and those that it had are given back to the platform.
    #[oai(path = "/connections", method = "post", operation_id = "addConnection")]
    async fn add(
        &self,
        app: Data<&Arc<App>>,
        publisher: Data<&Publisher>,
        caller: Caller,
        #[oai(name = "Idempotency-Key")] key: IdempotencyKey,
        body: Input<ConnectionInput>,
    ) -> Result<Created<ConnectionView>, Problem> {
        caller.require(Scope::Connections)?;
        if caller.connections.is_some() {
            return Err(Forbidden::Limited.into());
        }
        let input = body.0;
        let connector = check(&publisher, &input)?;
        let platform = connector.platform();
        let request = fingerprint(&input);
        let access_token = SecretString::from(input.access_token.0);
        // Looked up now and kept at the end: between the two we speak with the platform, in no transaction.
        if let Turn::Replay(answer) =
            key.clone().claim(&mut *app.db.begin(&caller).await?, &caller, Some(request.clone())).await?
        {
            return Ok(answer);
        }
        let owner = proof::owner(&*connector, &access_token, &Seen::default()).await.map_err(|error| {
            tracing::info!(error = chain(&error), "tokens were typed in, and not kept");
            proof::not_proved(&*connector, &error)
        })?;
        if owner.remote_id != input.remote_account_id {
            return Err(proof::anothers(platform));
        }
        let (mut tx, claim) = match key.claim_at_last(&app.db, &caller, &request).await? {
            (tx, Turn::New(claim)) => (tx, claim),
            (_, Turn::Replay(answer)) => return Ok(answer),
        };
        if consent::is_held_elsewhere(&mut tx, platform, &owner.remote_id).await? {
            return Err(proof::held_elsewhere(platform));
        }
        let new = NewAccount {
            platform,
            remote_account_id: &owner.remote_id,
            username: &owner.username,
            display_name: input.display_name.as_deref().unwrap_or(&owner.display_name),
            access_token,
            refresh_token: input.refresh_token.map(|token| SecretString::from(token.0)),
            expires: input.expires_at.map_or(Expires::Never, Expires::At),
        };
        let connected = publisher.accounts.connect(&app.engine, &mut tx, caller.tenant, &new).await;
        let id = connected.map_err(not_connected)?;
        store::prove(&mut tx, caller.tenant, id).await?;
        let row = store::get(&mut *tx, caller.reach(), id).await?.ok_or_else(|| Problem::not_found("connection"))?;
        let details = json!({"platform": platform, "username": row.username});
        audit::record(&mut tx, &caller, Action::ConnectionAdded, id, details).await?;
        let location = format!("/api/v1/connections/{id}");
        let answer = claim.keep(&mut tx, Created::new(location, ConnectionView::from(row))).await?;
        tx.commit().await?;
        Ok(answer)
    }

    /// Get a connection
    #[oai(path = "/connections/:id", method = "get", operation_id = "getConnection")]
    async fn get(
        &self,
        app: Data<&Arc<App>>,
        caller: Caller,
        id: Path<ConnectionId>,
    ) -> Result<Json<ConnectionView>, Problem> {
        caller.require(Scope::Read)?;
        let row = store::get(&mut *app.db.of(&caller).await?, caller.reach(), id.0).await?;
        Ok(Json(row.ok_or_else(|| Problem::not_found("connection"))?.into()))
    }

    /// Disconnect an account
    ///
    /// Nothing uses its tokens from now on; a job gives them back to the platform, also those that you sent yourself,
    /// and forgets them. What was still to go out there is cancelled. What was published stays.
    #[oai(path = "/connections/:id", method = "delete", operation_id = "removeConnection")]
    async fn remove(
        &self,
        app: Data<&Arc<App>>,
        caller: Caller,
        id: Path<ConnectionId>,
        #[oai(name = "Idempotency-Key")] key: IdempotencyKey,
    ) -> Result<Gone, Problem> {
        caller.require(Scope::Connections)?;
        let mut tx = app.db.begin(&caller).await?;
        let claim = match key.claim(&mut tx, &caller, None).await? {
            Turn::Replay(answer) => return Ok(answer),
            Turn::New(claim) => claim,
        };
        if !caller.may_use(id.0) || !store::remove(&mut tx, caller.tenant, id.0).await? {
            return Err(Problem::not_found("connection"));
        }
        publishing::store::cancel_of_connection(&mut tx, id.0).await?;
        audit::record(&mut tx, &caller, Action::ConnectionRemoved, id.0, json!({})).await?;
        // What is parked on it runs, finds itself cancelled, and ends.
        app.engine.wake(&mut tx, &wake_key(id.0)).await?;
        let tickets = app.engine.enqueue_in(&mut tx, &[GiveBackTokens::new_job(id.0, caller.tenant)]).await?;
        let answer = claim.keep(&mut tx, Gone::default()).await?;
        tx.commit().await?;
        app.engine.ring(&tickets).await;
        Ok(answer)
    }

    /// Refresh an account's access now
    ///
    /// It is refreshed by itself before it ends; this is for whoever wants to see that it works. A job does it.
    #[oai(path = "/connections/:id/refresh", method = "post", operation_id = "refreshConnection")]
    async fn refresh(
        &self,
        app: Data<&Arc<App>>,
        caller: Caller,
        id: Path<ConnectionId>,
        #[oai(name = "Idempotency-Key")] key: IdempotencyKey,
    ) -> Result<Accepted<RefreshAccepted>, Problem> {
        caller.require(Scope::Connections)?;
        let mut tx = app.db.begin(&caller).await?;
        let claim = match key.claim(&mut tx, &caller, None).await? {
            Turn::Replay(answer) => return Ok(answer),
            Turn::New(claim) => claim,
        };
        let row = store::get(&mut *tx, caller.reach(), id.0).await?.ok_or_else(|| Problem::not_found("connection"))?;
        let pair = store::refreshable(&mut *tx, id.0).await?;
        let (ConnectionState::Active, Some(generation)) = (row.state, pair) else {
            let text = "There is nothing to refresh it with. Connect the account again.";
            return Err(Problem::conflict("needs_reconnect", text));
        };
        // Apart from the one that waits for the end of the present access.
        let job = NewJob::of(&RefreshToken { connection: id.0, generation }, caller.tenant)
            .unique(format!("{}:{generation}:now", id.0));
        let (job_id, tickets) = match app.engine.enqueue_in(&mut tx, std::slice::from_ref(&job)).await {
            Ok(tickets) => (job.id, tickets),
            Err(EnqueueError::Duplicate { existing }) => (existing, Vec::new()),
            Err(error) => return Err(error.into()),
        };
        audit::record(&mut tx, &caller, Action::ConnectionRefreshed, id.0, json!({})).await?;
        let answer = Accepted::new(format!("/api/v1/jobs/{job_id}"), RefreshAccepted { job_id });
        let answer = claim.keep(&mut tx, answer).await?;
        tx.commit().await?;
        app.engine.ring(&tickets).await;
        Ok(answer)
    }
}

/// Where to follow the refresh.
#[derive(Debug, Clone, PartialEq, Eq, Object)]
struct RefreshAccepted {
    job_id: JobId,
}

impl From<Connection> for ConnectionView {
    fn from(connection: Connection) -> Self {
        Self {
            id: connection.id,
            platform: connection.platform.into(),
            remote_account_id: connection.remote_account_id,
            username: connection.username,
            display_name: connection.display_name,
            state: match connection.state {
                ConnectionState::Active => StateName::Active,
                ConnectionState::NeedsReconnect | ConnectionState::Removed => StateName::NeedsReconnect,
            },
            problem: connection.problem.map(ExplanationView::from),
            access_expires_at: connection.access_expires_at,
            created_at: connection.created_at,
        }
    }
}

/// The platform's connector, when all that can be seen from here is as it has to be.
fn check(publisher: &Publisher, input: &ConnectionInput) -> Result<Arc<dyn Connector>, Problem> {
    let mut errors = Vec::new();
    let platform = Platform::from(input.platform);
    let connector = publisher.accounts.connectors().get(platform);
    if connector.is_none() {
        let names: Vec<_> = publisher.accounts.connectors().platforms().map(Platform::as_str).collect();
        let message = format!("this version cannot publish on {}", platform.title());
        errors.push(FieldError::new("platform", message, format!("Choose one of {}", names.join(", "))));
    }
    let tokens = [("access_token", Some(&input.access_token)), ("refresh_token", input.refresh_token.as_ref())];
    for (field, token) in tokens {
        // It goes into a header: what cannot stand there would fail every call.
        if token.is_some_and(|token| !token.0.bytes().all(|byte| byte.is_ascii_graphic())) {
            let message = "holds white space or characters that no token has";
            errors.push(FieldError::new(field, message, "Send the token alone, as the platform gave it"));
        }
    }
    if input.expires_at.is_some() && input.refresh_token.is_none() && input.expires_at < Some(Utc::now()) {
        errors.push(FieldError::new("expires_at", "is past", "Send a token that still works, or a refresh_token"));
    }
    match connector {
        Some(connector) if errors.is_empty() => Ok(connector),
        _ => Err(Problem::invalid(errors)),
    }
}

/// The request for its idempotency key; only its hash is kept, which tells nothing about the tokens in it.
fn fingerprint(input: &ConnectionInput) -> serde_json::Value {
    json!({
        "platform": input.platform.to_json(),
        "account": input.remote_account_id,
        "username": input.username,
        "display_name": input.display_name,
        "access": input.access_token.0,
        "refresh": input.refresh_token.as_ref().map(|token| &token.0),
        "expires_at": input.expires_at,
    })
}

pub fn not_connected(error: ConnectError) -> Problem {
    match error {
        ConnectError::Database(sqlx::Error::Database(error))
            if error.constraint() == Some("connections_account_key") =>
        {
            Problem::conflict(
                "connected_meanwhile",
                "The account was connected by another request. Send this one again.",
            )
        }
        ConnectError::Plan(error) => error.into(),
        ConnectError::Database(error) | ConnectError::Enqueue(EnqueueError::Ledger(error)) => error.into(),
        ConnectError::Enqueue(EnqueueError::Stopping) => Problem::unavailable(),
        ConnectError::Enqueue(
            error @ (EnqueueError::Duplicate { .. } | EnqueueError::Unstorable(_) | EnqueueError::Nobodys),
        ) => Problem::internal(&error),
    }
}

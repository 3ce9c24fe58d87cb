//! `/api/v1/connections/{platform}/authorize` and `/callback`: connecting an account by its owner's consent.
//!
//! Nothing here redirects anybody: the frontend sends its user to the platform's page, and brings what came back with
//! its own credential. Where the platform sends people is a setting, never a part of a request.

use std::{sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use poem::{http::StatusCode, web::Data};
use poem_openapi::{
    Object, OpenApi,
    param::Path,
    payload::Json,
    types::{Password, ToJSON},
};
use secrecy::SecretString;
use serde_json::json;

use super::{
    api::ConnectionView,
    arrival::{Arrival, Refused},
    consent::{self, Taken},
    proof,
};
use crate::{
    audit::{self, Action},
    http::{App, Caller, Created, FieldError, IdempotencyKey, Input, Problem, Scope, Tag, Turn},
    identity::{self, Forbidden},
    ids::ConsentId,
    platforms::{Connector, Platform},
    posts::input::PlatformName,
    publishing::Publisher,
};

#[derive(Clone)]
pub struct ConsentApi;

/// Where to send the account's owner.
// Holds the state, so it has no `Debug`.
#[derive(Clone, PartialEq, Object)]
#[oai(rename = "Consent")]
struct ConsentView {
    id: ConsentId,
    /// The platform's own page. Open it in the owner's browser.
    authorize_url: String,
    /// Until then the answer can be brought back.
    expires_at: DateTime<Utc>,
}

/// What the platform's answer has in its address: a code, or an error when its owner said no.
#[derive(Object)]
#[oai(deny_unknown_fields)]
struct CallbackInput {
    #[oai(validator(min_length = 1, max_length = 500))]
    state: Password,
    #[oai(validator(min_length = 1, max_length = 2048))]
    code: Option<Password>,
    /// `access_denied` when the owner said no.
    #[oai(validator(min_length = 1, max_length = 200))]
    error: Option<String>,
}

#[OpenApi(prefix_path = "/api/v1", tag = "Tag::Connections")]
impl ConsentApi {
    /// Ask for an account
    ///
    /// Answers with the platform's page where the account's owner allows it. The platform then sends them to the page
    /// of yours that this installation is set up with; bring what stands in its address to the callback within ten
    /// minutes, with the same user's credential and workspace.
    #[oai(path = "/connections/:platform/authorize", method = "post", operation_id = "askForConnection")]
    async fn authorize(
        &self,
        app: Data<&Arc<App>>,
        publisher: Data<&Publisher>,
        caller: Caller,
        platform: Path<PlatformName>,
        #[oai(name = "Idempotency-Key")] key: IdempotencyKey,
    ) -> Result<Json<ConsentView>, Problem> {
        let connector = allowed(&publisher, &caller, platform.0)?;
        identity::api::ensure(&app, &caller).await?;
        let keyring = publisher.accounts.keyring();
        let mut tx = app.db.begin(&caller).await?;
        // Also when it is over by then: what becomes of the answer that the page leads to is the callback's to say.
        let claim = match key.of_person(&caller).claim_sealed(&mut tx, &caller, None, keyring).await? {
            Turn::Replay(answer) => return Ok(answer),
            Turn::New(claim) => claim,
        };
        let asked = consent::ask(&mut tx, keyring, &caller, &*connector).await?;
        let asked = asked.ok_or_else(|| not_set_up(connector.platform()))?;
        let details = json!({"platform": connector.platform()});
        audit::record(&mut tx, &caller, Action::ConsentAsked, asked.id, details).await?;
        let answer = Json(ConsentView { id: asked.id, authorize_url: asked.page.into(), expires_at: asked.expires_at });
        let answer = claim.keep_sealed(&mut tx, keyring, answer).await?;
        tx.commit().await?;
        Ok(answer)
    }

    /// Bring back the answer
    ///
    /// Trades the code for tokens, which are encrypted at once, and connects the account. The state works once, for
    /// whoever asked. An account that is connected already gets the new tokens, and what waited for them goes on.
    #[oai(path = "/connections/:platform/callback", method = "post", operation_id = "connectAccount")]
    async fn callback(
        &self,
        app: Data<&Arc<App>>,
        publisher: Data<&Publisher>,
        caller: Caller,
        platform: Path<PlatformName>,
        #[oai(name = "Idempotency-Key")] key: IdempotencyKey,
        body: Input<CallbackInput>,
    ) -> Result<Created<ConnectionView>, Problem> {
        let connector = allowed(&publisher, &caller, platform.0)?;
        let input = body.0;
        let code = check(&input)?;
        let key = key.of_person(&caller);
        let request = json!({"state": input.state.to_json(), "code": input.code.to_json(), "error": input.error});
        let keyring = publisher.accounts.keyring();
        let mut tx = app.db.begin(&caller).await?;
        // Looked up now and kept at the end: between the two we speak with the platform, in no transaction.
        if let Turn::Replay(answer) = key.clone().claim(&mut tx, &caller, Some(request.clone())).await? {
            return Ok(answer);
        }
        let taken = consent::take(&mut tx, keyring, &caller, connector.platform(), &input.state.0).await?;
        let (id, secrets) = match taken {
            Taken::Now(id, secrets) => (id, secrets),
            refused => return Err(not_taken(&refused)),
        };
        let Some(code) = code else {
            consent::finish(&mut *tx, id).await?;
            audit::record(&mut tx, &caller, Action::ConsentDenied, id, json!({"platform": connector.platform()}))
                .await?;
            tx.commit().await?;
            return Err(denied(connector.platform()));
        };
        // What cannot be read stays open: nothing is committed.
        let verifier = secrets.map_err(|error| Problem::internal(&error))?.verifier;
        let arrival = Arrival {
            app: Arc::clone(&app),
            accounts: publisher.accounts.clone(),
            connector,
            caller,
            consent: id,
            key,
            request,
        };
        // On its own feet: a browser that leaves now must not cost the tokens that are on their way.
        let done = tokio::spawn(arrival.finish(tx, code, verifier)).await;
        done.map_err(|error| Problem::internal(&error))?.map_err(not_connected)
    }
}

/// The platform's connector, for those who may connect accounts.
fn allowed(publisher: &Publisher, caller: &Caller, name: PlatformName) -> Result<Arc<dyn Connector>, Problem> {
    caller.require(Scope::Connections)?;
    if caller.connections.is_some() {
        return Err(Forbidden::Limited.into());
    }
    let platform = Platform::from(name);
    publisher.accounts.connectors().get(platform).ok_or_else(|| not_set_up(platform))
}

/// The code, or none when the owner said no. It goes into a form: any visible characters will do.
fn check(input: &CallbackInput) -> Result<Option<SecretString>, Problem> {
    match (&input.code, &input.error) {
        (None, Some(_)) => Ok(None),
        (Some(code), None) if code.0.bytes().all(|byte| byte.is_ascii_graphic()) => {
            Ok(Some(SecretString::from(code.0.clone())))
        }
        (Some(_), None) => {
            let remedy = "Send it as it stands in the address, decoded once";
            Err(Problem::invalid_field("code", "holds white space or characters that no code has", remedy))
        }
        _ => {
            let remedy = "Send what the platform's answer has in its address: one of the two";
            Err(Problem::invalid(vec![FieldError::new("code", "or error is needed, one of the two", remedy)]))
        }
    }
}

fn not_set_up(platform: Platform) -> Problem {
    let text = format!(
        "This installation cannot ask for accounts on {}. Its operator sets up the app there (.env.sample says how).",
        platform.title()
    );
    Problem::conflict("platform_not_set_up", text)
}

fn not_taken(taken: &Taken) -> Problem {
    let problem = |code: &str, text: &str| Problem::conflict(code, text);
    match taken {
        Taken::Unknown => problem(
            "consent_unknown",
            "You have not asked for this here. Begin again, and bring the answer back with the same user's credential, \
             in the same workspace (X-Workspace), to the same platform.",
        ),
        Taken::Expired => problem("consent_expired", "More than ten minutes have passed. Begin again."),
        Taken::UnderWay => {
            problem("consent_under_way", "Another request is bringing this answer in. Look at your connections.")
                .with_retry_after(Duration::from_secs(1))
        }
        Taken::Used => problem("consent_used", "This answer was brought in before. Begin again to connect another."),
        Taken::Now(..) => Problem::internal_with("an answer that was taken is told as one that was not"),
    }
}

fn denied(platform: Platform) -> Problem {
    let text = format!(
        "The account's owner said no at {}. Nothing was connected; begin again if that was not meant.",
        platform.title()
    );
    Problem::conflict("consent_denied", text)
}

fn not_connected(refused: Refused) -> Problem {
    match refused {
        Refused::Problem(problem) => problem,
        Refused::Plan(refused) => (*refused).into(),
        Refused::Gone => {
            let text = "The workspace, or whoever asked, was deleted meanwhile. Nothing was connected, and the access \
                        was given back.";
            Problem::conflict("consent_over", text)
        }
        Refused::Elsewhere(platform) => proof::held_elsewhere(platform),
        // Its owner's, the app's or the platform's turn: what was asked for is spent in any case.
        Refused::Platform(error) => {
            let explanation = error.explain();
            if error.leaves_doubt() || matches!(error.class(), crate::platforms::Class::Retry { .. }) {
                let text = "The platform did not answer as it should, and a code works once. Begin again.";
                return Problem::new(StatusCode::SERVICE_UNAVAILABLE, "consent_interrupted", "Interrupted", text)
                    .with_retry_after(Duration::from_secs(1));
            }
            Problem::conflict(&explanation.code, explanation.message)
        }
    }
}

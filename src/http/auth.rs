//! Who is calling, at the door of HTTP: the headers that say so, and the [`Caller`] that handlers take.
//!
//! How a credential is proved is [`crate::identity`]'s; outside, every way in which one can be wrong is one 401. One that
//! is right, of a person who is to come in no more, is a 403: another would not help.

use std::time::{Duration, Instant};

use chrono::Utc;
use poem::{
    Request, RequestBody,
    http::{HeaderName, header::AUTHORIZATION},
};
use poem_openapi::{
    ApiExtractor, ApiExtractorType, ExtractParamOptions,
    registry::{MetaSecurityScheme, Registry},
};
use secrecy::{ExposeSecret, SecretString};

use super::{App, Problem};
pub use crate::identity::{Caller, Scope};
use crate::{
    identity::{AuthError, Authenticator, Forbidden},
    ids::TenantId,
};

/// Names the workspace that a call is about, for those who are in several.
pub const WORKSPACE: HeaderName = HeaderName::from_static("x-workspace");

/// The gate checked the credential once and left the caller in the request; here the handler picks it up.
impl<'a> ApiExtractor<'a> for Caller {
    const TYPES: &'static [ApiExtractorType] = &[ApiExtractorType::SecurityScheme];

    type ParamType = ();
    type ParamRawType = ();

    fn register(registry: &mut Registry) {
        registry.create_security_scheme(
            SCHEME,
            MetaSecurityScheme {
                ty: "http",
                description: Some(
                    "A Firebase ID token, an API key (`mvk_...`), or a local token: `multivio token` prints one for \
                     development. `X-Workspace: tnt_...` names the workspace, for those who are in several.",
                ),
                name: None,
                key_in: None,
                scheme: Some("bearer"),
                bearer_format: Some("JWT"),
                flows: None,
                openid_connect_url: None,
            },
        );
    }

    fn security_schemes() -> Vec<&'static str> {
        vec![SCHEME]
    }

    async fn from_request(
        request: &'a Request,
        _body: &mut RequestBody,
        _options: ExtractParamOptions<()>,
    ) -> poem::Result<Self> {
        Ok(request.extensions().get::<Self>().cloned().ok_or_else(Problem::unauthorized)?)
    }
}

const SCHEME: &str = "bearer";

/// The caller behind a request's headers; `Ok(None)` when it has no `Authorization`. `exhausted` says how long whoever
/// sends it has to wait because of wrong credentials before; it is asked only where checking this one costs something.
pub async fn caller_of(
    request: &Request,
    authenticator: &Authenticator,
    exhausted: impl FnOnce() -> Option<Duration> + Send,
) -> Result<Option<Caller>, Problem> {
    let mut credentials = request.headers().get_all(AUTHORIZATION).iter();
    let Some(authorization) = credentials.next() else { return Ok(None) };
    if credentials.next().is_some() {
        return Err(Problem::bad_parameter("Authorization", "is there more than once", "Send one credential"));
    }
    let workspace = workspace_of(request)?;
    match authenticator.caller(authorization.as_bytes(), workspace, exhausted).await {
        Ok(caller) => Ok(Some(caller)),
        Err(error) => Err(refused(&error)),
    }
}

/// A caller who is served for longer than one answer takes, by events or while they wait for news. What they may do is
/// asked again and again: who was removed, signed out or whose key was revoked does not listen on.
#[derive(Debug)]
pub struct Pass {
    caller: Caller,
    authorization: SecretString,
    workspace: Option<TenantId>,
    asked: Instant,
}

/// Between two looks, which cost nothing as long as what was found out last is believed.
const ASK_AGAIN: Duration = Duration::from_secs(1);

impl Pass {
    /// Of the request that this caller came with.
    pub fn of(request: &Request, caller: &Caller) -> Result<Self, Problem> {
        let authorization = request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok());
        Ok(Self {
            caller: caller.clone(),
            authorization: authorization.ok_or_else(Problem::unauthorized)?.into(),
            workspace: workspace_of(request)?,
            asked: Instant::now(),
        })
    }

    /// An error once they may not do this here any more, the one that they would meet at the door.
    pub async fn check(&mut self, authenticator: &Authenticator, scope: Scope) -> Result<(), Problem> {
        if self.asked.elapsed() < ASK_AGAIN {
            return Ok(());
        }
        self.asked = Instant::now();
        let authorization = self.authorization.expose_secret().as_bytes();
        // It was good a moment ago: no guess.
        let found = authenticator.caller(authorization, self.workspace, || None).await;
        let caller = match found.map_err(|error| refused(&error)) {
            // While that cannot be asked nobody can be put out either, and what they follow says itself that it is away.
            Err(problem) if problem.status().is_server_error() => return Ok(()),
            found => found?,
        };
        if (caller.tenant, caller.user) != (self.caller.tenant, self.caller.user) {
            return Err(Problem::unauthorized());
        }
        Ok(caller.require(scope)?)
    }
}

/// Before what cannot be undone, or what outlives a session: whoever came in with Firebase must have shown who they are
/// a short time ago, because a session there lasts for months. A local token is its operator's own word.
///
/// # Errors
/// 403 `sign_in_again` when that was longer ago than `FIREBASE_RECENT_SIGN_IN_SECONDS`.
pub fn signed_in_recently(app: &App, caller: &Caller) -> Result<(), Problem> {
    let (Some(firebase), Some(signed_in_at)) = (&app.config.firebase, caller.signed_in_at) else { return Ok(()) };
    let now = u64::try_from(Utc::now().timestamp()).unwrap_or(0);
    let limit = firebase.recent_sign_in;
    if now.saturating_sub(signed_in_at) <= limit.as_secs() { Ok(()) } else { Err(Problem::sign_in_again(limit)) }
}

fn workspace_of(request: &Request) -> Result<Option<TenantId>, Problem> {
    let mut named = request.headers().get_all(WORKSPACE).iter();
    let Some(first) = named.next() else { return Ok(None) };
    let id = first.to_str().ok().and_then(|text| text.parse().ok()).filter(|_| named.next().is_none());
    id.map(Some).ok_or_else(|| {
        let remedy = "Send the id of one workspace (GET /api/v1/workspaces), or leave it out";
        Problem::bad_parameter("X-Workspace", "is no id of a workspace", remedy)
    })
}

fn refused(error: &AuthError) -> Problem {
    match error {
        AuthError::TooManyGuesses { retry_in } => Problem::too_many_requests(*retry_in),
        AuthError::NoSuchWorkspace => Problem::no_such_workspace(),
        AuthError::Disabled => Problem::user_disabled(),
        AuthError::Away(_) | AuthError::KeysAway => {
            tracing::warn!(cause = crate::telemetry::chain(error), "a credential could not be checked");
            Problem::unavailable()
        }
        _ => {
            tracing::debug!(cause = crate::telemetry::chain(error), "a credential was refused");
            Problem::unauthorized()
        }
    }
}

impl From<Forbidden> for Problem {
    fn from(forbidden: Forbidden) -> Self {
        Self::forbidden(forbidden.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_workspace_is_named_once_and_rightly_or_not_at_all() {
        let id = TenantId::new();
        let read = |values: &[String]| {
            let request = values.iter().fold(Request::builder(), |request, value| request.header(WORKSPACE, value));
            workspace_of(&request.finish())
        };
        assert_eq!(read(&[]).unwrap(), None);
        assert_eq!(read(&[id.to_string()]).unwrap(), Some(id));
        for wrong in [vec![id.to_string(), id.to_string()], vec!["mine".to_owned()], vec![String::new()]] {
            assert_eq!(read(&wrong).unwrap_err().document().field.as_deref(), Some("X-Workspace"), "{wrong:?}");
        }
    }
}

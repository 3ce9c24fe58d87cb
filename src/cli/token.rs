//! `multivio token`: a signed token on standard output, and nothing else there, so that `$(multivio token)` works.

use std::time::Duration;

use clap::{Args, ValueEnum};
use secrecy::ExposeSecret;
use serde::Serialize;
use uuid::Uuid;

use super::{Failure, Screen};
use crate::{
    identity::{Caller, LocalTokens, Scope, Scopes},
    ids::{TenantId, UserId},
};

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  curl -H \"Authorization: Bearer $(multivio token)\" localhost:8080/api/v1/jobs\n  multivio token --scope admin --minutes 10"
)]
pub struct Arguments {
    /// The user it is for; without it the developer, always the same
    #[arg(long, value_name = "usr_...")]
    user: Option<UserId>,
    /// The workspace it opens; without it the developer's, always the same
    #[arg(long, value_name = "tnt_...")]
    tenant: Option<TenantId>,
    /// What it may be used for; may be given more than once
    #[arg(long, value_enum, default_values_t = [ScopeName::Workspace])]
    scope: Vec<ScopeName>,
    /// How long it is valid [default: JWT_ACCESS_TOKEN_EXPIRE_MINUTES]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    minutes: Option<u32>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum ScopeName {
    /// Everything of the caller's own workspace
    Workspace,
    /// Try failed jobs of everybody again, and read every audit log
    Admin,
}

/// The same in every development database, so that yesterday's posts are there today.
const DEVELOPER: Uuid = Uuid::from_u128(0x0000_0000_0000_7000_8000_0000_0000_0001);

#[derive(Serialize)]
struct Shown<'a> {
    token: &'a str,
    user: UserId,
    tenant: TenantId,
}

pub async fn run(arguments: Arguments, screen: Screen) -> Result<(), Failure> {
    let config = super::config()?;
    let Some(jwt) = &config.jwt else {
        return Err(Failure::usage("local tokens are off: JWT_SECRET_KEY is not set")
            .remedy("Set it to a random text: `openssl rand -base64 48` makes one."));
    };
    let tokens = LocalTokens::new(jwt).map_err(|weak| Failure::usage(weak.to_string()))?;
    let developer = developer(arguments.scope.iter().map(|scope| match scope {
        ScopeName::Workspace => Scope::Workspace,
        ScopeName::Admin => Scope::Admin,
    }));
    let caller = Caller {
        tenant: arguments.tenant.unwrap_or(developer.tenant),
        user: arguments.user.unwrap_or(developer.user),
        ..developer
    };
    let lifetime = arguments.minutes.map(|minutes| Duration::from_secs(60 * u64::from(minutes)));
    let token = tokens.issue(&caller, lifetime);
    let token = token.expose_secret();
    screen.show(&Shown { token, user: caller.user, tenant: caller.tenant }, || token.to_owned())
}

/// Whoever develops with this installation.
pub(super) fn developer(scopes: impl IntoIterator<Item = Scope>) -> Caller {
    Caller::new(TenantId::from_uuid(DEVELOPER), UserId::from_uuid(DEVELOPER), Scopes::of(scopes))
}

//! Tenants are kept apart by the database itself, and Postgres is reached as it has to be for that.

mod accounts;
mod authorities;
mod endpoints;
mod entry;
mod logins;
mod poolers;
mod supabase;
mod tables;
mod tls;

use multivio::ids::{TenantId, UserId};
use sqlx::{Connection, PgConnection};

use crate::harness::App;

/// A session of the API's role, as the API opens it for a call of this workspace and user.
pub async fn api_session(app: &App, whose: Option<(TenantId, UserId)>) -> PgConnection {
    let url = secrecy::ExposeSecret::expose_secret(app.db.url()).to_owned();
    let mut session = PgConnection::connect(&url).await.expect("the database answers");
    sqlx::raw_sql("set role multivio_api").execute(&mut session).await.expect("the login may become it");
    if let Some((tenant, user)) = whose {
        sqlx::query(
            "select set_config('multivio.tenant', $1, false), \
             set_config('request.jwt.claims', json_build_object('sub', $2)::text, false)",
        )
        .bind(tenant.uuid().to_string())
        .bind(user.uuid().to_string())
        .execute(&mut session)
        .await
        .expect("settings are free");
    }
    session
}

/// The code of a refusal.
pub fn code<T>(outcome: sqlx::Result<T>) -> Option<String> {
    outcome.err()?.as_database_error()?.code().map(|code| code.into_owned())
}

/// What a role that may not gets.
pub const DENIED: &str = "42501";

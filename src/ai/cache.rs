//! Earlier answers, by the hash of everything that went into them; never shared between tenants.
//!
//! Also what keeps a repeated run from paying twice: an answer is stored before its job completes.

use std::time::Duration;

use serde_json::Value;
use sha2::{Digest, Sha256};
use sqlx::{PgExecutor, PgPool};

use super::{prompt, transform::TransformRequest};
use crate::ids::TenantId;

/// How long an answer may be given again.
pub const LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);

/// Everything that decides the answer, except who is asked.
pub fn key(request: &TransformRequest) -> Vec<u8> {
    let ask = prompt::ask(request, String::new(), 0);
    let parts = serde_json::json!({
        "prompt": request.transformation_type.spec().prompt().id(),
        "system": ask.system,
        "user": ask.user,
        "schema": ask.schema.schema,
        "temperature": ask.temperature,
        "max_length": request.max_length,
    });
    Sha256::digest(parts.to_string()).to_vec()
}

pub async fn fetch(db: impl PgExecutor<'_>, tenant: TenantId, key: &[u8]) -> sqlx::Result<Option<Value>> {
    sqlx::query_scalar("select answer from ai_cache where tenant_id = $1 and key = $2 and expires_at > now()")
        .bind(tenant)
        .bind(key)
        .fetch_optional(db)
        .await
}

/// Keeps an answer for [`LIFETIME`]; a newer one takes the place of an older one.
pub async fn store(db: impl PgExecutor<'_>, tenant: TenantId, key: &[u8], answer: &Value) -> sqlx::Result<()> {
    sqlx::query(
        "insert into ai_cache (tenant_id, key, answer, expires_at)
         values ($1, $2, $3, now() + $4 * interval '1 second')
         on conflict (tenant_id, key) do update
         set answer = excluded.answer, created_at = now(), expires_at = excluded.expires_at",
    )
    .bind(tenant)
    .bind(key)
    .bind(answer)
    .bind(LIFETIME.as_secs_f64())
    .execute(db)
    .await?;
    Ok(())
}

/// Forgets what is out of date. Returns how many.
pub async fn prune(db: &PgPool) -> sqlx::Result<u64> {
    let done = sqlx::query(
        "delete from ai_cache where (tenant_id, key) in (
             select tenant_id, key from ai_cache where expires_at < now() limit 1000
         )",
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ai::transform::TransformationType, platforms::Platform};

    #[test]
    fn whatever_changes_the_answer_changes_the_key() {
        let base = TransformRequest::new(TransformationType::Shorten, "text");
        let changed = [
            TransformRequest { content: "other".into(), ..base.clone() },
            TransformRequest { transformation_type: TransformationType::PlatformOptimize, ..base.clone() },
            TransformRequest { platforms: vec![Platform::X], ..base.clone() },
            TransformRequest { tone: Some("warm".into()), ..base.clone() },
            TransformRequest { language: Some("de".into()), ..base.clone() },
            TransformRequest { max_length: Some(3), ..base.clone() },
        ];
        let keys: std::collections::BTreeSet<_> = changed.iter().chain([&base]).map(key).collect();
        assert_eq!(keys.len(), changed.len() + 1);
    }

    #[test]
    fn how_an_answer_is_delivered_does_not_change_the_key() {
        let base = TransformRequest::new(TransformationType::Shorten, "text");
        assert_eq!(key(&base), key(&TransformRequest { stream: false, cache: false, ..base.clone() }));
    }
}

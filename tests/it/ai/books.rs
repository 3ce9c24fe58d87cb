//! Money and earlier answers in Postgres.

use std::{sync::Arc, time::Duration};

use multivio::{
    ai::{
        billing::{self, Billing, BillingError, PgBilling, Reservation, Settlement},
        cache,
        provider::ProviderName,
        store,
        usage::Usage,
    },
    ids::TenantId,
};
use serde_json::json;
use uuid::Uuid;

use super::fake::request;
use crate::harness::App;

fn billing(app: &App, tenant: TenantId) -> PgBilling {
    PgBilling { db: app.pool.clone(), tenant, job: None, expires_after: Duration::from_secs(60) }
}

fn reservation(ticks: i64) -> Reservation {
    Reservation { provider: ProviderName::Grok, model: "grok-4.3".into(), attempt: 1, ticks }
}

fn settlement(cost_ticks: i64) -> Settlement {
    Settlement {
        model_answered: Some("grok-4.3".into()),
        class: "answered",
        status: Some(200),
        request_id: None,
        usage: Usage { prompt_tokens: 10, completion_tokens: 5, ..Usage::default() },
        cost_ticks,
        first_token: Some(Duration::from_millis(5)),
        latency: Duration::from_millis(50),
    }
}

async fn budget(app: &App, subject: &str, limit_ticks: i64) {
    sqlx::query("insert into ai_budgets (subject, period, limit_ticks) values ($1, 'month', $2)")
        .bind(subject)
        .bind(limit_ticks)
        .execute(&app.pool)
        .await
        .unwrap();
}

async fn used(app: &App, subject: &str) -> i64 {
    sqlx::query_scalar("select used_ticks from ai_budgets where subject = $1")
        .bind(subject)
        .fetch_one(&app.pool)
        .await
        .unwrap()
}

async fn state(app: &App, id: Uuid) -> (String, Option<i64>) {
    sqlx::query_as("select state, cost_ticks from ai_usage where id = $1").bind(id).fetch_one(&app.pool).await.unwrap()
}

#[tokio::test]
async fn what_is_reserved_counts_until_the_true_cost_takes_its_place() {
    let app = App::new().await;
    let subject = format!("tenant:{}", app.tenant.uuid());
    budget(&app, &subject, 1000).await;
    let billing = billing(&app, app.tenant);
    let id = billing.reserve(&reservation(900)).await.unwrap();
    assert_eq!(used(&app, &subject).await, 900);
    let refused = billing.reserve(&reservation(200)).await.unwrap_err();
    assert!(matches!(refused, BillingError::Spent(ref spent) if spent.subject == subject), "{refused}");
    billing.settle(id, &settlement(100)).await.unwrap();
    billing.settle(id, &settlement(100)).await.unwrap();
    assert_eq!(used(&app, &subject).await, 100, "a settlement that comes twice counts once");
    billing.reserve(&reservation(200)).await.unwrap();
    let month = store::month(&app.pool, app.tenant).await.unwrap();
    assert_eq!((month[0].calls, month[0].cost_ticks, month[0].reserved_ticks), (2, 100, 200));
    let left = store::budget(&app.pool, app.tenant).await.unwrap().unwrap();
    assert_eq!((left.used_ticks, left.limit_ticks), (300, 1000));
}

#[tokio::test]
async fn a_crash_between_the_call_and_its_bill_leaves_the_reservation_until_it_is_written_off() {
    let app = App::new().await;
    let subject = format!("tenant:{}", app.tenant.uuid());
    budget(&app, &subject, 1000).await;
    let billing = billing(&app, app.tenant);
    let id = billing.reserve(&reservation(700)).await.unwrap();
    // The process dies here: nobody settles.
    assert_eq!(billing::write_off_expired(&app.pool).await.unwrap(), 0, "it has not expired yet");
    assert!(billing.reserve(&reservation(400)).await.is_err(), "what may have been spent is not spent again");
    sqlx::query("update ai_usage set expires_at = now() - interval '1 second'").execute(&app.pool).await.unwrap();
    assert_eq!(billing::write_off_expired(&app.pool).await.unwrap(), 1);
    assert_eq!(state(&app, id).await, ("lost".into(), Some(700)));
    assert_eq!(used(&app, &subject).await, 700);
    // A bill that comes late after all is better than the guess.
    billing.settle(id, &settlement(50)).await.unwrap();
    assert_eq!(state(&app, id).await, ("settled".into(), Some(50)));
    assert_eq!(used(&app, &subject).await, 50);
}

#[tokio::test]
async fn two_processes_cannot_both_spend_the_last_of_a_budget() {
    let app = App::new().await;
    budget(&app, "global", 1000).await;
    budget(&app, "provider:grok", 10_000).await;
    let tries = (0..20).map(|_| {
        let billing = billing(&app, TenantId::new());
        async move { billing.reserve(&reservation(100)).await.is_ok() }
    });
    let granted = futures::future::join_all(tries).await.into_iter().filter(|granted| *granted).count();
    assert_eq!((granted, used(&app, "global").await, used(&app, "provider:grok").await), (10, 1000, 1000));
}

#[tokio::test]
async fn a_budget_starts_anew_with_its_period() {
    let app = App::new().await;
    budget(&app, "global", 1000).await;
    let old = "update ai_budgets set used_ticks = 1000, period_start = now() - interval '40 days'";
    sqlx::query(old).execute(&app.pool).await.unwrap();
    billing(&app, app.tenant).reserve(&reservation(600)).await.unwrap();
    assert_eq!(used(&app, "global").await, 600);
}

#[tokio::test]
async fn another_workspaces_budget_and_usage_are_its_own() {
    let app = App::new().await;
    budget(&app, &format!("tenant:{}", TenantId::new().uuid()), 0).await;
    let billing = billing(&app, app.tenant);
    let id = billing.reserve(&reservation(100)).await.unwrap();
    billing.settle(id, &settlement(10)).await.unwrap();
    assert_eq!(store::month(&app.pool, TenantId::new()).await.unwrap(), []);
    assert_eq!(store::budget(&app.pool, app.tenant).await.unwrap(), None);
}

#[tokio::test]
async fn an_earlier_answer_belongs_to_its_workspace_and_has_its_day() {
    let app = App::new().await;
    let (key, other) = (cache::key(&request()), TenantId::new());
    cache::store(&app.pool, app.tenant, &key, &json!({ "a": 1 })).await.unwrap();
    cache::store(&app.pool, app.tenant, &key, &json!({ "a": 2 })).await.unwrap();
    assert_eq!(cache::fetch(&app.pool, app.tenant, &key).await.unwrap(), Some(json!({ "a": 2 })));
    assert_eq!(cache::fetch(&app.pool, other, &key).await.unwrap(), None);
    sqlx::query("update ai_cache set expires_at = now() - interval '1 second'").execute(&app.pool).await.unwrap();
    assert_eq!(cache::fetch(&app.pool, app.tenant, &key).await.unwrap(), None);
    assert_eq!(cache::prune(&app.pool).await.unwrap(), 1);
}

#[tokio::test]
async fn real_traffic_is_summed_up_by_provider() {
    let app = App::new().await;
    let billing: Arc<dyn Billing> = Arc::new(billing(&app, app.tenant));
    for class in ["answered", "transient", "cancelled", "caller"] {
        let id = billing.reserve(&reservation(1)).await.unwrap();
        billing.settle(id, &Settlement { class, ..settlement(1) }).await.unwrap();
    }
    let traffic = store::recent_traffic(&app.pool).await.unwrap().remove(0);
    assert_eq!((traffic.calls, traffic.answered), (2, 1), "a dropped or refused request says nothing of the provider");
    assert_eq!((traffic.last_failure.as_deref(), traffic.latency_ms), (Some("transient"), Some(50.0)));
}

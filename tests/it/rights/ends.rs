//! The end of a person and of a workspace.

use multivio::{
    ids::{TenantId, UserId},
    jobs::{Engine, NewJob, Queue, belt::Belt},
    rights::{RightsUpkeep, erasures},
};
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::PgConnection;

use super::{Life, SOON, delete, finished, rows, tables};
use crate::{
    harness::{App, eventually},
    identity::{call, get},
    publish::Stage,
    tenancy::api_session,
};

#[tokio::test]
async fn whoever_deletes_themselves_leaves_nothing_but_a_line_in_the_audit_log() {
    let life = Life::new().await;
    let (stage, pool) = (&life.stage, &life.stage.app.pool);
    let tenant = life.tenant();
    let mut had = Vec::new();
    for table in tables(pool).await {
        had.push((rows(pool, &table, tenant).await, table));
    }
    let empty: Vec<_> = had.iter().filter(|(rows, _)| *rows == 0).map(|(_, table)| table.as_str()).collect();
    // Those that only a race or a worker fills.
    assert!(empty.len() <= 8, "too little to erase: {empty:?} are empty");
    assert!(life.files(tenant) > 0);
    let token = stage.api.token.clone();
    let (_, key) = crate::identity::new_key(&stage.api, json!({})).await;
    let me = format!("/api/v1/me?confirm={}", stage.app.user);

    assert_eq!(delete(&stage.api, &token, None, "/api/v1/me?confirm=me").await.0, 422, "not confirmed");
    assert_eq!(delete(&stage.api, &key, None, &me).await.0, 403, "a program ends nobody");
    let (status, answer) = delete(&stage.api, &token, None, &me).await;
    assert_eq!((status, &answer["workspaces"]), (202, &json!([stage.app.tenant])), "{answer}");
    // At once, in this process; nothing goes out any more that has not left.
    for credential in [&token, &key] {
        assert_eq!(get(&stage.api, credential, "/api/v1/posts").await.0, 401);
    }
    let open: i64 =
        sqlx::query_scalar("select count(*) from publications where phase = 'planned'").fetch_one(pool).await.unwrap();
    assert_eq!(open, 0);
    let users: i64 = sqlx::query_scalar("select count(*) from users where id = $1")
        .bind(stage.app.user)
        .fetch_one(pool)
        .await
        .unwrap();
    assert_eq!(users, 0, "name and address go with the answer");

    let _ops = stage.app.worker(Queue::Ops).await;
    finished(pool, 2).await;
    for table in tables(pool).await {
        let left = rows(pool, &table, tenant).await;
        assert!(if table == "audit_log" { left > 0 } else { left == 0 }, "{table} has {left} rows left");
    }
    for statement in [
        "select count(*) from workspaces where id = $1",
        "select count(*) from media_references where $1 is not null",
        "select count(*) from workspace_members where user_id = $1 or tenant_id = $1",
    ] {
        let left: i64 = sqlx::query_scalar(statement).bind(tenant).fetch_one(pool).await.unwrap();
        assert_eq!(left, 0, "{statement}");
    }
    assert_eq!(life.files(tenant), 0, "bytes");
    // The platform has its tokens back.
    assert_eq!(stage.calls("oauth2.revoke").await, 2);
    for name in ["access_token", "refresh_token"] {
        let dead = stage.account[name].as_str().unwrap();
        let url = format!("{}/x/2/users/me", stage.sandbox.url());
        assert_eq!(stage.api.client.get(url).bearer_auth(dead).send().await.unwrap().status(), 401, "{name}");
    }
    // Nobody else has noticed.
    assert_eq!((rows(pool, "posts", life.neighbour).await, rows(pool, "connections", life.neighbour).await), (1, 1));
    assert_eq!(get(&stage.api, &life.of_neighbour, "/api/v1/posts").await.0, 200);
    let said: Vec<(String, Value)> =
        sqlx::query_as("select action, details from audit_log where tenant_id = $1 and action like 'user.%'")
            .bind(tenant)
            .fetch_all(pool)
            .await
            .unwrap();
    assert_eq!(said[0].0, "user.erased");
    assert!(!said[0].1.to_string().contains("post"), "{said:?}");
    // The old token opens nothing for ever; the operator may make another, and it begins anew.
    assert_eq!(get(&stage.api, &token, "/api/v1/posts").await.0, 401);
    eventually(SOON, "the erasure's end to be known", || async {
        // One that is issued in the second of the erasure is of before it.
        let fresh = stage.app.token_of(stage.app.tenant, stage.app.user, &[multivio::identity::Scope::Workspace]);
        (get(&stage.api, &fresh, "/api/v1/posts").await == (200, json!({"items": []}))).then_some(())
    })
    .await;
}

#[tokio::test]
async fn an_erasure_goes_on_where_its_worker_was_killed() {
    let stage = Stage::new().await;
    sqlx::query("insert into posts (id, tenant_id, universal_content) select gen_random_uuid(), $1, 'x' from generate_series(1, 3500)")
        .bind(stage.app.tenant)
        .execute(&stage.app.pool)
        .await
        .unwrap();
    // It is killed while the platform is asked, with all of it still to do.
    stage.fault("oauth2.revoke", json!({ "accept_then_delay_ms": 3000 })).await;
    let me = format!("/api/v1/me?confirm={}", stage.app.user);
    assert_eq!(delete(&stage.api, &stage.api.token, None, &me).await.0, 202);
    let mut ops = stage.app.worker(Queue::Ops).await;
    eventually(SOON, "the first token to be given back", || async {
        (stage.calls("oauth2.revoke").await >= 1).then_some(())
    })
    .await;
    ops.crash();
    finished(&stage.app.pool, 2).await;
    assert_eq!(rows(&stage.app.pool, "posts", stage.app.tenant.uuid()).await, 0);
    let not_revoked: i64 =
        sqlx::query_scalar("select sum(not_revoked)::bigint from erasures").fetch_one(&stage.app.pool).await.unwrap();
    assert_eq!(not_revoked, 0, "a token that is dead already counts as given back");
}

#[tokio::test]
async fn a_platform_in_trouble_is_asked_again_before_its_tokens_are_forgotten() {
    let stage = Stage::new().await;
    let fault = json!({"service": "x", "operation": "oauth2.revoke", "times": "always", "effect": {"refuse": "temporarily_unavailable"}});
    stage.sandbox.fault(fault).await;
    let me = format!("/api/v1/me?confirm={}", stage.app.user);
    assert_eq!(delete(&stage.api, &stage.api.token, None, &me).await.0, 202);
    let _ops = stage.app.worker(Queue::Ops).await;
    eventually(SOON, "the erasure to wait for the platform", || async {
        let code: Option<String> = sqlx::query_scalar(
            "select why ->> 'code' from jobs where kind = 'erase' and state = 'scheduled' and why ->> 'code' = 'platform_in_trouble'",
        )
        .fetch_optional(&stage.app.pool)
        .await
        .ok()?;
        code
    })
    .await;
    assert_eq!(rows(&stage.app.pool, "connections", stage.app.tenant.uuid()).await, 1, "its tokens are not lost yet");
    // A day later it is let go, and that is on record.
    sqlx::query("update erasures set requested_at = now() - interval '25 hours'")
        .execute(&stage.app.pool)
        .await
        .unwrap();
    sqlx::query("update jobs set run_at = now() where kind = 'erase' and state = 'scheduled'")
        .execute(&stage.app.pool)
        .await
        .unwrap();
    finished(&stage.app.pool, 2).await;
    let not_revoked: i64 =
        sqlx::query_scalar("select sum(not_revoked)::bigint from erasures").fetch_one(&stage.app.pool).await.unwrap();
    assert_eq!((not_revoked, rows(&stage.app.pool, "connections", stage.app.tenant.uuid()).await), (1, 0));
}

/// A refresh that was under way at the end brings a new pair while the old one is on its way back.
#[tokio::test]
async fn a_pair_that_comes_while_the_one_before_goes_back_is_given_back_as_well() {
    let stage = Stage::new().await;
    stage.fault("oauth2.revoke", json!({"accept_then_delay_ms": 2000})).await;
    let me = format!("/api/v1/me?confirm={}", stage.app.user);
    assert_eq!(delete(&stage.api, &stage.api.token, None, &me).await.0, 202);
    let _ops = stage.app.worker(Queue::Ops).await;
    eventually(SOON, "the first pair to be on its way", || async {
        (stage.calls("oauth2.revoke").await == 1).then_some(())
    })
    .await;
    sqlx::query("update connections set generation = generation + 1").execute(&stage.app.pool).await.unwrap();
    eventually(SOON, "both pairs to be back", || async {
        let sooner = "update jobs set run_at = now() where kind = 'erase' and state = 'scheduled'";
        sqlx::query(sooner).execute(&stage.app.pool).await.ok()?;
        (stage.calls("oauth2.revoke").await == 4).then_some(())
    })
    .await;
    finished(&stage.app.pool, 2).await;
    assert_eq!(rows(&stage.app.pool, "connections", stage.app.tenant.uuid()).await, 0);
}

#[tokio::test]
async fn a_workspace_ends_by_an_owner_who_names_it_and_for_all_its_members_at_once() {
    let app = App::new().await;
    let api = app.api().await;
    let (editor, of_editor) = app.token_of_another();
    let (_, of_stranger) = app.token_of_another();
    assert_eq!(get(&api, &of_editor, "/api/v1/me").await.0, 200);
    let (_, team) = api.post("/api/v1/workspaces", json!({"name": "Our team"})).await;
    let team = team["id"].as_str().unwrap();
    let invite = json!({"user_id": editor, "role": "editor"});
    let members = format!("/api/v1/workspaces/{team}/members");
    assert_eq!(call(&api, &api.token, Some(team), Method::POST, &members, Some(&invite)).await.0, 201);
    let post = json!({"universal_content": "ours"});
    assert_eq!(call(&api, &of_editor, Some(team), Method::POST, "/api/v1/posts", Some(&post)).await.0, 201);

    let end = format!("/api/v1/workspaces/{team}?confirm=Our%20team");
    assert_eq!(delete(&api, &of_editor, Some(team), &end).await.0, 403);
    assert_eq!(delete(&api, &of_stranger, Some(team), &end).await.0, 403);
    let wrong = format!("/api/v1/workspaces/{team}?confirm=Another");
    assert_eq!(delete(&api, &api.token, Some(team), &wrong).await.1["field"], "confirm");
    let own = format!("/api/v1/workspaces/{}?confirm=Personal", app.tenant);
    let (status, problem) = delete(&api, &api.token, None, &own).await;
    assert_eq!((status, &problem["code"]), (409, &json!("personal_workspace")), "{problem}");
    // The last owner cannot leave the others behind.
    let (status, problem) = delete(&api, &api.token, None, &format!("/api/v1/me?confirm={}", app.user)).await;
    assert_eq!((status, &problem["code"]), (409, &json!("last_owner")), "{problem}");

    let (status, answer) = delete(&api, &api.token, Some(team), &end).await;
    assert_eq!((status, &answer["workspaces"]), (202, &json!([team])), "{answer}");
    for token in [&api.token, &of_editor] {
        assert_eq!(call(&api, token, Some(team), Method::GET, "/api/v1/posts", None).await.0, 403);
        assert_eq!(get(&api, token, "/api/v1/posts").await.0, 200, "their own is untouched");
    }
    let _ops = app.worker(Queue::Ops).await;
    finished(&app.pool, 1).await;
    let left = rows(&app.pool, "posts", team.parse::<TenantId>().unwrap().uuid()).await;
    assert_eq!(left, 0);
}

/// A workspace that is made while its maker ends would be nobody's, and stay for ever.
#[tokio::test]
async fn a_workspace_that_is_made_while_its_maker_ends_is_not_made() {
    let app = App::new().await;
    let api = app.api().await;
    assert_eq!(api.get("/api/v1/me").await.0, 200);
    let mut ending = api_session(&app, Some((app.tenant, app.user))).await;
    sqlx::raw_sql("begin; select * from app.own_memberships()").execute(&mut ending).await.unwrap();
    let team = api.request(Method::POST, "/api/v1/workspaces").json(&json!({"name": "Team"}));
    let made = tokio::spawn(team.send());
    eventually(SOON, "the making to wait for the end", || async {
        let waits =
            "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and query like '%create_workspace%'";
        let waits: i64 = sqlx::query_scalar(waits).fetch_one(&app.pool).await.ok()?;
        (waits == 1).then_some(())
    })
    .await;
    for step in ["app.end_workspace(gen_random_uuid(), app.tenant())", "app.end_user(gen_random_uuid(), null)"] {
        sqlx::raw_sql(sqlx::AssertSqlSafe(format!("select {step}"))).execute(&mut ending).await.unwrap();
    }
    sqlx::raw_sql("select app.forget_user(); commit").execute(&mut ending).await.unwrap();
    let status = made.await.unwrap().unwrap().status().as_u16();
    assert!((400..500).contains(&status), "{status}");
    let nobodys = "select count(*) from workspaces w where not exists (select from workspace_members m where m.tenant_id = w.id) \
         and not exists (select from erasures e where e.subject = w.id)";
    assert_eq!(sqlx::query_scalar::<_, i64>(nobodys).fetch_one(&app.pool).await.unwrap(), 0);
}

#[tokio::test]
async fn an_erasure_whose_job_is_gone_is_begun_again_and_one_that_was_written_into_is_opened_again() {
    let app = App::new().await;
    let api = app.api().await;
    assert_eq!(api.post("/api/v1/posts", json!({"universal_content": "mine"})).await.0, 201);
    let me = format!("/api/v1/me?confirm={}", app.user);
    assert_eq!(api.delete(&me).await.0, 202);
    // An operator has cancelled what they did not know.
    let cancelled = "update jobs set state = 'cancelled', finished_at = now() where kind = 'erase'";
    assert_eq!(sqlx::query(cancelled).execute(&app.pool).await.unwrap().rows_affected(), 2);
    let _ops = app.worker(Queue::Ops).await;
    look_after(&app).await;
    finished(&app.pool, 2).await;
    let posts = async || rows(&app.pool, "posts", app.tenant.uuid()).await;
    assert_eq!(posts().await, 0);

    // A request of before the end that only now comes to its own.
    let late = "insert into posts (id, tenant_id, universal_content) values (gen_random_uuid(), $1, 'late')";
    sqlx::query(late).bind(app.tenant).execute(&app.pool).await.unwrap();
    look_after(&app).await;
    eventually(SOON, "what came late to be erased", || async { (posts().await == 0).then_some(()) }).await;
    finished(&app.pool, 2).await;

    // Whoever has begun anew in the same place keeps what is theirs.
    sqlx::query("insert into workspaces (id, name) values ($1, 'Anew')")
        .bind(app.tenant)
        .execute(&app.pool)
        .await
        .unwrap();
    sqlx::query(late).bind(app.tenant).execute(&app.pool).await.unwrap();
    assert_eq!(erasures::reopen_unclean(&app.pool).await.unwrap(), 0);
    assert_eq!(posts().await, 1);
}

/// What the clock does every hour.
async fn look_after(app: &App) {
    let belt = Belt::new(&app.config().redis, app.pool.clone()).unwrap();
    let engine = Engine::new(app.pool.clone(), app.session(), belt);
    engine.enqueue(NewJob::of(&RightsUpkeep {}, TenantId::SYSTEM)).await.unwrap();
}

/// A frontend that still has a token must not bring its user back, with their address, a moment later.
#[tokio::test]
async fn a_sign_in_of_before_the_end_makes_nobody_anew() {
    let mut app = App::new().await;
    let sandbox = app.sandbox().await;
    let (api, other) = (app.api().await, app.api().await);
    let token = async |claims: Value| {
        let signed = sandbox.post("/_sandbox/firebase/tokens", json!({"uid": "ada", "claims": claims})).await;
        signed["token"].as_str().unwrap().to_owned()
    };
    let before = token(json!({})).await;
    let (_, me) = get(&api, &before, "/api/v1/me").await;
    let path = format!("/api/v1/me?confirm={}", me["user_id"].as_str().unwrap());
    assert_eq!(delete(&api, &before, None, &path).await.0, 202);
    // This process has seen the token; the other one has not.
    assert_eq!(get(&api, &before, "/api/v1/me").await.0, 401);
    let there = call(&api, &before, me["workspace_id"].as_str(), Method::GET, "/api/v1/me", None).await;
    assert_eq!(there.0, 401, "{}", there.1);
    assert_eq!(get(&other, &before, "/api/v1/me").await.0, 401);
    // Nor does the open tab that is given a new token for the old sign-in.
    let now = chrono::Utc::now().timestamp();
    let renewed = token(json!({"iat": now + 20, "auth_time": now - 60})).await;
    assert_eq!(get(&other, &renewed, "/api/v1/me").await.0, 401);
    let users: i64 = sqlx::query_scalar("select count(*) from users where provider = 'firebase'")
        .fetch_one(&app.pool)
        .await
        .unwrap();
    assert_eq!(users, 0);
    // Who signs in again is somebody new.
    sqlx::query("update erasures set requested_at = now() - interval '10 seconds'").execute(&app.pool).await.unwrap();
    let again = token(json!({})).await;
    let (status, anew) = get(&other, &again, "/api/v1/me").await;
    assert_eq!(status, 200, "{anew}");
    assert_ne!((&anew["user_id"], &anew["workspace_id"]), (&me["user_id"], &me["workspace_id"]));
}

/// A second click, served by another process that has not heard of the first.
#[tokio::test]
async fn who_deletes_themselves_twice_is_gone_as_after_once() {
    let mut app = App::new().await;
    let sandbox = app.sandbox().await;
    let (api, other) = (app.api().await, app.api().await);
    let signed = sandbox.post("/_sandbox/firebase/tokens", json!({"uid": "ada"})).await;
    let token = signed["token"].as_str().unwrap().to_owned();
    let (_, me) = get(&api, &token, "/api/v1/me").await;
    assert_eq!(get(&other, &token, "/api/v1/me").await.0, 200);
    let path = format!("/api/v1/me?confirm={}", me["user_id"].as_str().unwrap());
    for process in [&api, &other] {
        assert_eq!(delete(process, &token, None, &path).await.0, 202);
    }
    let fresh = app.api().await;
    assert_eq!(get(&fresh, &token, "/api/v1/me").await.0, 401);
    let users: i64 = sqlx::query_scalar("select count(*) from users").fetch_one(&app.pool).await.unwrap();
    assert_eq!(users, 0);
}

/// The sign-in finds no end when it looks, and then waits for the very transaction that ends its user.
#[tokio::test]
async fn a_sign_in_that_waits_for_the_end_makes_nobody_anew() {
    let app = App::new().await;
    let (workspace, hash) = (TenantId::new(), vec![7_u8; 32]);
    let firebase = async |mut session: PgConnection| -> Option<uuid::Uuid> {
        let user = "select app.firebase_user('ada', 'ada@a.example', 'Ada', $1, $2, $3, 1700000000)";
        let user = sqlx::query_scalar(user).bind(UserId::new()).bind(TenantId::new()).bind(&hash);
        user.fetch_one(&mut session).await.unwrap()
    };
    let local = async |mut session: PgConnection| {
        let user = sqlx::query("select app.ensure_local($1, $2)").bind(workspace).bind(app.user);
        user.execute(&mut session).await.unwrap();
    };
    let ada = firebase(api_session(&app, None).await).await.expect("she is new");
    local(api_session(&app, None).await).await;
    let mut end = app.pool.begin().await.unwrap();
    for (user, hash) in [(ada, Some(&hash)), (app.user.uuid(), None)] {
        sqlx::query(
            "insert into erasures (id, kind, subject, identity_hash) values (gen_random_uuid(), 'user', $1, $2)",
        )
        .bind(user)
        .bind(hash)
        .execute(&mut *end)
        .await
        .unwrap();
    }
    for statement in ["delete from workspace_members", "delete from workspaces", "delete from users"] {
        sqlx::query(statement).execute(&mut *end).await.unwrap();
    }
    let commit = async {
        eventually(SOON, "both sign-ins to wait", || async {
            let waiting: i64 = sqlx::query_scalar(
                "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'",
            )
            .fetch_one(&app.pool)
            .await
            .ok()?;
            (waiting == 2).then_some(())
        })
        .await;
        end.commit().await.unwrap();
    };
    let (one, two) = (api_session(&app, None).await, api_session(&app, None).await);
    let (user, (), ()) = tokio::join!(firebase(one), local(two), commit);
    assert_eq!(user, None);
    for table in ["users", "workspace_members"] {
        let left: i64 = sqlx::query_scalar(sqlx::AssertSqlSafe(format!("select count(*) from {table}")))
            .fetch_one(&app.pool)
            .await
            .unwrap();
        assert_eq!(left, 0, "{table}");
    }
}

/// What may never fit into the session's limit must not be tried for ever without anybody noticing.
#[tokio::test]
async fn a_statement_that_meets_its_limit_uses_an_attempt_of_an_erasure() {
    let app = App::new().await;
    let api = app.api().await;
    let slow = "create function slow() returns trigger language plpgsql as $$ begin perform pg_sleep(6); return null; end $$; \
        create trigger slow before delete on posts execute function slow()";
    sqlx::raw_sql(slow).execute(&app.pool).await.unwrap();
    assert_eq!(delete(&api, &api.token, None, &format!("/api/v1/me?confirm={}", app.user)).await.0, 202);
    let _ops = app.worker(Queue::Ops).await;
    let code = eventually(SOON, "an attempt to be used", || async {
        let used = "select why ->> 'code' from jobs where kind = 'erase' and attempt > 0";
        sqlx::query_scalar::<_, String>(used).fetch_optional(&app.pool).await.ok()?
    })
    .await;
    assert_eq!(code, "statement_limit");
    sqlx::raw_sql("drop trigger slow on posts").execute(&app.pool).await.unwrap();
    sqlx::query("update jobs set run_at = now() where kind = 'erase' and state = 'scheduled'")
        .execute(&app.pool)
        .await
        .unwrap();
    finished(&app.pool, 2).await;
}

/// The very first calls of a process come while it does not know yet who was erased.
#[tokio::test]
async fn a_process_that_does_not_know_yet_who_was_erased_lets_nobody_in() {
    let app = App::new().await;
    let api = app.api().await;
    let me = format!("/api/v1/me?confirm={}", app.user);
    assert_eq!(api.delete(&me).await.0, 202);
    let other = app.api().await;
    // Whoever looks is held up: nobody else may go by a list that is empty because nobody has read it.
    let mut held = app.pool.begin().await.unwrap();
    sqlx::raw_sql("lock table erasures in access exclusive mode").execute(&mut *held).await.unwrap();
    let crowd: Vec<_> = (0..6).map(|_| tokio::spawn(other.request(Method::GET, "/api/v1/jobs").send())).collect();
    eventually(SOON, "the list to be asked for", || async {
        let waits =
            "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and query like '%app.erased(%'";
        let waits: i64 = sqlx::query_scalar(waits).fetch_one(&app.pool).await.ok()?;
        (waits >= 1).then_some(())
    })
    .await;
    held.commit().await.unwrap();
    for answer in crowd {
        assert_eq!(answer.await.unwrap().unwrap().status(), 401);
    }
}

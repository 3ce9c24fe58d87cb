//! What a wish to publish says, checked as a whole before anything is queued.

use std::time::Duration;

use chrono::{DateTime, Utc};
use poem_openapi::Object;

use super::{
    LatePolicy, Phase, Publisher, check,
    late::{self, Verdict},
    plan::{self, Optimize, PlanError, Wish, transform_request},
    schedule,
    view::LatePolicyName,
};
use crate::{
    connections::{self, Connection},
    http::{App, Caller, FieldError, Problem},
    ids::ConnectionId,
    jobs::EnqueueError,
    platforms::{ContentProblem, Platform},
    posts::input::{Examined, PlatformName},
    publishing::MediaTrouble,
};

/// Where and when.
#[derive(Debug, Clone, Default, Object)]
#[oai(rename = "PublishOptions", deny_unknown_fields, skip_serializing_if_is_none)]
pub struct Options {
    /// Every account connected on these platforms.
    #[oai(default, validator(max_items = 7))]
    pub platforms: Vec<PlatformName>,
    /// These accounts.
    #[oai(default, validator(max_items = 100))]
    pub connections: Vec<ConnectionId>,
    /// Without it: now. A wall time with `time_zone`, or an instant with an offset.
    #[oai(validator(max_length = 64))]
    pub scheduled_at: Option<String>,
    /// Name of an IANA time zone, such as `Europe/Berlin`.
    #[oai(validator(max_length = 64))]
    pub time_zone: Option<String>,
    /// What becomes of it when it could not go out in time; `ask` without it.
    pub late_policy: Option<LatePolicyName>,
    /// How late it may go out without anybody's word; a day without it.
    #[oai(validator(maximum(value = "2592000")))]
    pub max_lateness_seconds: Option<u32>,
    /// Let a language model rewrite the text for each platform first. A variant of one's own is then not used.
    #[oai(default)]
    pub optimize: bool,
    /// For `optimize`: how it should sound.
    #[oai(validator(max_length = 100))]
    pub tone: Option<String>,
    /// Publish a second time where the post is out already.
    #[oai(default)]
    pub republish: bool,
}

/// Checks everything and says all that is wrong at once.
pub async fn wish(
    app: &App,
    publisher: &Publisher,
    caller: &Caller,
    content: Examined,
    options: Options,
) -> Result<Wish, Problem> {
    let Examined { post, fields, mut errors } = content;
    let connections = chosen(app, caller, &options, &mut errors).await?;
    let schedule = options.scheduled_at.as_deref().map(|at| schedule::resolve(at, options.time_zone.as_deref()));
    let schedule = schedule.transpose().unwrap_or_else(|error| {
        errors.push(FieldError::new(error.field(), error.to_string(), error.remedy()));
        None
    });
    if options.time_zone.is_some() && options.scheduled_at.is_none() {
        errors.push(FieldError::new("time_zone", "goes with scheduled_at", "Send both, or neither to publish now"));
    }
    if options.tone.is_some() && !options.optimize {
        errors.push(FieldError::new("tone", "goes with optimize", "Add \"optimize\": true, or leave it out"));
    }
    if options.optimize && !app.config.ai.is_on() {
        let message = "this installation has no language model";
        errors.push(FieldError::new("optimize", message, "Leave it out, or ask the operator to set one up"));
    }
    let max_lateness =
        options.max_lateness_seconds.map_or(late::DEFAULT_MAX_LATENESS, |seconds| Duration::from_secs(seconds.into()));
    let late_policy = options.late_policy.map_or(LatePolicy::Ask, LatePolicy::from);
    if let Some(schedule) = &schedule
        && late::judge(late_policy, schedule.at, max_lateness, false, now(app, caller).await?) != Verdict::Go
    {
        let message = format!("has passed, by more than the {} s it may go out late", max_lateness.as_secs());
        let remedy = "Send a time to come, leave it out to publish now, or add \"late_policy\": \"publish\"";
        errors.push(FieldError::new("scheduled_at", message, remedy));
    }
    let mut platforms: Vec<Platform> = connections.iter().map(|connection| connection.platform).collect();
    platforms.sort_unstable();
    platforms.dedup();
    // What is wrong everywhere is not said again for each platform.
    let said: Vec<String> = errors.iter().map(|error| error.field.clone()).collect();
    let reports = check::check(publisher, caller.tenant, &post, &platforms, options.optimize).await;
    for report in reports.map_err(media_problem)? {
        let text_field = fields.name_for(report.platform);
        let found = report.problems.into_iter().map(|problem| content_error(report.platform, problem, &text_field));
        errors.extend(found.filter(|error| !said.contains(&error.field)));
    }
    let mut wish = Wish {
        post,
        connections,
        schedule,
        late_policy,
        max_lateness,
        optimize: options.optimize.then_some(Optimize { tone: options.tone }),
        renditions: Vec::new(),
        republish: options.republish,
    };
    if let Some(optimize) = wish.optimize.as_ref().filter(|_| !wish.connections.is_empty()) {
        let problems = transform_request(&wish, optimize).problems();
        errors.extend(problems.into_iter().map(|problem| {
            // One text is rewritten for all platforms: the one for everywhere.
            let field = if problem.field == "content" { fields.universal() } else { problem.field };
            FieldError::new(field, problem.message, problem.remedy)
        }));
    }
    if !errors.is_empty() {
        return Err(Problem::invalid(errors));
    }
    wish.renditions =
        plan::renditions(publisher, caller.tenant, &wish.post, &platforms).await.map_err(media_problem)?;
    Ok(wish)
}

/// The time by which it will be judged whether a post is late.
async fn now(app: &App, caller: &Caller) -> sqlx::Result<DateTime<Utc>> {
    sqlx::query_scalar("select now()").fetch_one(&mut *app.db.of(caller).await?).await
}

/// The accounts that were named, each once.
async fn chosen(
    app: &App,
    caller: &Caller,
    options: &Options,
    errors: &mut Vec<FieldError>,
) -> Result<Vec<Connection>, Problem> {
    let mut chosen: Vec<Connection> = Vec::new();
    let mut db = app.db.of(caller).await?;
    for (index, id) in options.connections.iter().enumerate() {
        match connections::store::get(&mut *db, caller.reach(), *id).await? {
            Some(connection) => chosen.push(connection),
            None => {
                let field = format!("connections[{index}]");
                errors.push(FieldError::new(field, "is no connection of yours", "List them: GET /api/v1/connections"));
            }
        }
    }
    let platforms: Vec<Platform> = options.platforms.iter().copied().map(Platform::from).collect();
    let on_platforms = connections::store::on_platforms(&mut *db, caller.reach(), &platforms).await?;
    for (index, platform) in platforms.iter().enumerate() {
        if !on_platforms.iter().any(|connection| connection.platform == *platform) {
            let message = format!("no account is connected on {}", platform.title());
            let remedy = "Connect one first: POST /api/v1/connections";
            errors.push(FieldError::new(format!("platforms[{index}]"), message, remedy));
        }
    }
    chosen.extend(on_platforms);
    let mut seen = std::collections::BTreeSet::new();
    chosen.retain(|connection| seen.insert(connection.id));
    if chosen.is_empty() && errors.is_empty() {
        errors.push(FieldError::new("platforms", "is empty", "Name platforms, or connections, to publish on"));
    }
    Ok(chosen)
}

fn content_error(platform: Platform, problem: ContentProblem, text_field: &str) -> FieldError {
    let field = if problem.field == "text" { text_field.to_owned() } else { problem.field };
    FieldError::new(field, format!("{}: {}", platform.title(), problem.message), problem.remedy)
}

pub fn media_problem(trouble: MediaTrouble) -> Problem {
    match trouble {
        MediaTrouble::Gone => {
            Problem::invalid_field("media", "names a file that is no upload of yours", "Upload it: POST /api/v1/media")
        }
        MediaTrouble::Unusable(why) => Problem::invalid_field("media", why, "Use another file"),
        MediaTrouble::NotReady => {
            Problem::conflict("media_not_ready", "A file is not ready yet. Try again in a moment.")
        }
        MediaTrouble::Database(error) => error.into(),
        error @ MediaTrouble::Storage(_) => Problem::internal(&error),
    }
}

pub fn plan_problem(error: PlanError) -> Problem {
    match error {
        PlanError::Database(error) | PlanError::Enqueue(EnqueueError::Ledger(error)) => error.into(),
        PlanError::Enqueue(EnqueueError::Stopping) => Problem::unavailable(),
        PlanError::Enqueue(EnqueueError::Unstorable(what)) => {
            Problem::invalid_field("text", format!("cannot be stored: {what}"), "Remove unusual characters")
        }
        PlanError::Enqueue(error @ (EnqueueError::Duplicate { .. } | EnqueueError::Nobodys)) => {
            Problem::internal(&error)
        }
        PlanError::PostGone => Problem::not_found("post"),
        PlanError::PostChanged => {
            let text = "The post was changed while it was checked. Read it again and repeat your wish.";
            Problem::conflict("changed_meanwhile", text)
        }
        PlanError::Rival { platform, rival } if rival.phase == Phase::Sent => {
            let text = format!(
                "The post is out on {} already, as {}. Send \"republish\": true to publish it there once more.",
                platform.title(),
                rival.id
            );
            Problem::conflict("already_published", text)
        }
        PlanError::Rival { platform, rival } => {
            let text = format!(
                "The post is on its way to this account on {} already: {} is {}. Wait for its end, or cancel it: \
                 GET /api/v1/publications/{}",
                platform.title(),
                rival.id,
                rival.phase,
                rival.id
            );
            Problem::conflict("unsettled", text)
        }
    }
}

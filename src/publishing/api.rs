//! Publishing over HTTP: a stored post, or all in one call; then following and steering each publication.

use std::sync::Arc;

use poem::web::Data;
use poem_openapi::{
    Object, OpenApi,
    param::{Path, Query},
    payload::Json,
    types::ToJSON,
};
use serde_json::json;

pub use super::request::media_problem;
use super::{
    Phase, Publication, Publisher, RemovePost, plan,
    request::{self, Options, plan_problem},
    settle::{self, Settled},
    store::{self, Cancel},
    view::{AcceptedView, LatePolicyName, PublicationView},
    wake_key,
};
use crate::{
    audit::{self, Action},
    connections,
    http::{Accepted, App, Caller, IdempotencyKey, Input, Page, Problem, Scope, Tag, Turn, page},
    ids::{ConnectionId, JobId, PostId, PublicationId},
    jobs::{EnqueueError, NewJob, ledger},
    plans::{self, Counted},
    platforms::RemotePost,
    posts::{
        self,
        input::{Examined, File, PlatformName, PostInput, Variant},
    },
};

#[derive(Clone)]
pub struct PublishingApi;

/// Everything in one request.
#[derive(Debug, Object)]
#[oai(deny_unknown_fields)]
struct PublishInput {
    /// What is said everywhere, unless a variant says otherwise.
    #[oai(default, validator(max_length = 100000))]
    text: String,
    #[oai(default, validator(max_items = 7))]
    variants: Vec<Variant>,
    #[oai(default, validator(max_items = 20))]
    media: Vec<File>,
    /// Every account connected on these platforms.
    #[oai(default, validator(max_items = 7))]
    platforms: Vec<PlatformName>,
    /// These accounts.
    #[oai(default, validator(max_items = 100))]
    connections: Vec<ConnectionId>,
    /// Without it: now. A wall time with `time_zone`, or an instant with an offset.
    #[oai(validator(max_length = 64))]
    scheduled_at: Option<String>,
    /// Name of an IANA time zone, such as `Europe/Berlin`.
    #[oai(validator(max_length = 64))]
    time_zone: Option<String>,
    /// What becomes of it when it could not go out in time; `ask` without it.
    late_policy: Option<LatePolicyName>,
    /// How late it may go out without anybody's word; a day without it.
    #[oai(validator(maximum(value = "2592000")))]
    max_lateness_seconds: Option<u32>,
    /// Let a language model rewrite the text for each platform first. A variant of one's own is then not used.
    #[oai(default)]
    optimize: bool,
    /// For `optimize`: how it should sound.
    #[oai(validator(max_length = 100))]
    tone: Option<String>,
}

/// A page of publications.
#[derive(Debug, Object)]
#[oai(skip_serializing_if_is_none)]
struct PublicationList {
    items: Vec<PublicationView>,
    /// Pass it as `cursor` to get the next page; absent on the last one.
    next_cursor: Option<String>,
}

const LIST: &str = "publications";

#[OpenApi(prefix_path = "/api/v1", tag = "Tag::Publish")]
impl PublishingApi {
    /// Publish in one call
    ///
    /// Writes the post, checks it for every platform, and puts it on its way: what has to be transformed or
    /// transcoded first is done first. Everything that is wrong is said at once, and then nothing is queued.
    #[oai(path = "/publish", method = "post", operation_id = "publish")]
    async fn publish(
        &self,
        app: Data<&Arc<App>>,
        publisher: Data<&Publisher>,
        caller: Caller,
        #[oai(name = "Idempotency-Key")] key: IdempotencyKey,
        body: Input<PublishInput>,
    ) -> Result<Accepted<AcceptedView>, Problem> {
        caller.require(Scope::Publish)?;
        let request = body.0.to_json();
        let (content, options) = body.0.parts();
        let content = NewOrStored::New(content.examine(PostId::new(), caller.tenant, "text"));
        put_on_its_way(&app, &publisher, &caller, key, request, content, options).await
    }

    /// Publish a post
    #[oai(path = "/posts/:id/publish", method = "post", operation_id = "publishPost")]
    async fn publish_post(
        &self,
        app: Data<&Arc<App>>,
        publisher: Data<&Publisher>,
        caller: Caller,
        id: Path<PostId>,
        #[oai(name = "Idempotency-Key")] key: IdempotencyKey,
        body: Input<Options>,
    ) -> Result<Accepted<AcceptedView>, Problem> {
        caller.require(Scope::Publish)?;
        let request = body.0.to_json();
        let post = posts::store::get(&mut *app.db.of(&caller).await?, caller.tenant, id.0).await?;
        let post = post.ok_or_else(|| Problem::not_found("post"))?;
        let content = NewOrStored::Stored(Examined::stored(post));
        put_on_its_way(&app, &publisher, &caller, key, request, content, body.0).await
    }

    /// List a post's publications
    ///
    /// Newest first.
    #[oai(path = "/posts/:id/publications", method = "get", operation_id = "listPublications")]
    async fn list(
        &self,
        app: Data<&Arc<App>>,
        publisher: Data<&Publisher>,
        caller: Caller,
        id: Path<PostId>,
        /// `next_cursor` of the page before
        cursor: Query<Option<String>>,
        /// Publications on a page, 1 to 100; 25 without it
        limit: Query<Option<u16>>,
    ) -> Result<Json<PublicationList>, Problem> {
        caller.require(Scope::Read)?;
        let limit = page::limit(limit.0)?;
        let before = page::decode(LIST, cursor.0.as_deref())?;
        let rows =
            store::of_post(&mut *app.db.of(&caller).await?, caller.reach(), id.0, before, i64::from(limit) + 1).await?;
        if rows.is_empty() {
            posts::store::get(&mut *app.db.of(&caller).await?, caller.tenant, id.0)
                .await?
                .ok_or_else(|| Problem::not_found("post"))?;
        }
        let mut views = Vec::with_capacity(rows.len());
        for row in rows {
            views.push(view(&app, &publisher, &caller, row).await?);
        }
        let Page { items, next_cursor } = Page::of(views, limit, LIST, |publication: &PublicationView| publication.id);
        Ok(Json(PublicationList { items, next_cursor }))
    }

    /// Get a publication
    #[oai(path = "/publications/:id", method = "get", operation_id = "getPublication")]
    async fn get(
        &self,
        app: Data<&Arc<App>>,
        publisher: Data<&Publisher>,
        caller: Caller,
        id: Path<PublicationId>,
    ) -> Result<Json<PublicationView>, Problem> {
        caller.require(Scope::Read)?;
        Ok(Json(view(&app, &publisher, &caller, find(&app, &caller, id.0).await?).await?))
    }

    /// Cancel a publication
    ///
    /// Possible until the request that creates the post may have left; from then on the outcome is found out first.
    #[oai(path = "/publications/:id/cancel", method = "post", operation_id = "cancelPublication")]
    async fn cancel(
        &self,
        app: Data<&Arc<App>>,
        caller: Caller,
        id: Path<PublicationId>,
        #[oai(name = "Idempotency-Key")] key: IdempotencyKey,
    ) -> Result<Json<PublicationView>, Problem> {
        caller.require(Scope::Publish)?;
        let job = find(&app, &caller, id.0).await?.job;
        let mut tx = app.db.begin(&caller).await?;
        let claim = match key.claim(&mut tx, &caller, None).await? {
            Turn::Replay(answer) => return Ok(answer),
            Turn::New(claim) => claim,
        };
        let outcome = store::cancel(&mut tx, caller.tenant, id.0).await?;
        if matches!(outcome, Some(Cancel::Cancelled)) {
            audit::record(&mut tx, &caller, Action::PublicationCancelled, id.0, json!({})).await?;
        }
        match outcome {
            None => return Err(Problem::not_found("publication")),
            Some(Cancel::TooLate(phase)) => return Err(too_late(phase)),
            Some(Cancel::Cancelled) => {}
        }
        let publication = store::get(&mut *tx, caller.reach(), id.0).await?;
        let publication = publication.ok_or_else(|| Problem::not_found("publication"))?;
        // Neither it nor a late one is in doubt, which alone has a link to look at.
        let answer = claim.keep(&mut tx, Json(PublicationView::new(publication, None))).await?;
        tx.commit().await?;
        // The publication decides; its job only ends sooner for this.
        let outcome = ledger::cancel(&mut *app.db.of(&caller).await?, Some(caller.tenant), job, &caller.who()).await?;
        app.engine.cancelled(job, outcome).await?;
        Ok(answer)
    }

    /// Send a late publication all the same
    ///
    /// The answer to the question of `late_policy: ask`.
    #[oai(path = "/publications/:id/send-late", method = "post", operation_id = "sendLatePublication")]
    async fn send_late(
        &self,
        app: Data<&Arc<App>>,
        caller: Caller,
        id: Path<PublicationId>,
        #[oai(name = "Idempotency-Key")] key: IdempotencyKey,
    ) -> Result<Json<PublicationView>, Problem> {
        caller.require(Scope::Publish)?;
        find(&app, &caller, id.0).await?;
        let mut tx = app.db.begin(&caller).await?;
        let claim = match key.claim(&mut tx, &caller, None).await? {
            Turn::Replay(answer) => return Ok(answer),
            Turn::New(claim) => claim,
        };
        let accepted = store::accept_lateness(&mut tx, caller.tenant, id.0).await?;
        if accepted {
            audit::record(&mut tx, &caller, Action::PublicationSentLate, id.0, json!({})).await?;
        }
        let publication = store::get(&mut *tx, caller.reach(), id.0).await?;
        let publication = publication.ok_or_else(|| Problem::not_found("publication"))?;
        if !accepted {
            let text = format!("The publication is {}; it no longer waits for that word.", publication.phase);
            return Err(Problem::conflict("not_waiting", text));
        }
        app.engine.wake(&mut tx, &wake_key(id.0)).await?;
        let answer = claim.keep(&mut tx, Json(PublicationView::new(publication, None))).await?;
        tx.commit().await?;
        Ok(answer)
    }

    /// Settle a publication
    ///
    /// For one that is `unconfirmed`: you looked at the account (`look_at`) and say whether the post is there. Then
    /// nobody looks for it any more; one that is not there can be published again.
    #[oai(path = "/publications/:id/settle", method = "post", operation_id = "settlePublication")]
    async fn settle(
        &self,
        app: Data<&Arc<App>>,
        publisher: Data<&Publisher>,
        caller: Caller,
        id: Path<PublicationId>,
        #[oai(name = "Idempotency-Key")] key: IdempotencyKey,
        body: Input<SettleInput>,
    ) -> Result<Json<PublicationView>, Problem> {
        caller.require(Scope::Publish)?;
        let publication = find(&app, &caller, id.0).await?;
        let request = body.0.to_json();
        let post = named(&app, &publisher, &caller, &publication, body.0).await?;
        let mut tx = app.db.begin(&caller).await?;
        let claim = match key.claim(&mut tx, &caller, request).await? {
            Turn::Replay(answer) => return Ok(answer),
            Turn::New(claim) => claim,
        };
        match settle::settle(&mut tx, &publication, post.as_ref()).await? {
            Settled::Done => {
                let details = json!({"exists": post.is_some(), "remote_id": post.map(|post| post.id)});
                audit::record(&mut tx, &caller, Action::PublicationSettled, id.0, details).await?;
            }
            Settled::NotInDoubt(phase) => {
                let text = format!("The publication is {phase}; only an unconfirmed one is settled by your word.");
                return Err(Problem::conflict("not_unconfirmed", text));
            }
            Settled::TooEarly(at) => {
                let text = format!("The post may still be on its way. Look at the account again after {at}.");
                return Err(Problem::conflict("too_early", text));
            }
            Settled::Taken => {
                let text = "That post belongs to another publication of yours. Look for another one, or say that \
                            there is none.";
                return Err(Problem::conflict("remote_post_taken", text));
            }
        }
        let publication = store::get(&mut *tx, caller.reach(), id.0).await?;
        let publication = publication.ok_or_else(|| Problem::not_found("publication"))?;
        // It is in doubt no more, so there is nothing to look at.
        let answer = claim.keep(&mut tx, Json(PublicationView::new(publication, None))).await?;
        tx.commit().await?;
        Ok(answer)
    }

    /// Remove the post from its platform
    ///
    /// For a publication that is out. A job does it; follow it to its end.
    #[oai(path = "/publications/:id/remote-post", method = "delete", operation_id = "removeRemotePost")]
    async fn remove(
        &self,
        app: Data<&Arc<App>>,
        caller: Caller,
        id: Path<PublicationId>,
        #[oai(name = "Idempotency-Key")] key: IdempotencyKey,
    ) -> Result<Accepted<RemovalAccepted>, Problem> {
        caller.require(Scope::Publish)?;
        let publication = find(&app, &caller, id.0).await?;
        let mut tx = app.db.begin(&caller).await?;
        let claim = match key.claim(&mut tx, &caller, None).await? {
            Turn::Replay(answer) => return Ok(answer),
            Turn::New(claim) => claim,
        };
        if publication.phase != Phase::Sent {
            let text = format!("The publication is {}; there is no post to remove.", publication.phase);
            return Err(Problem::conflict("not_out", text));
        }
        let job = NewJob::of(&RemovePost { publication: id.0 }, caller.tenant).unique(id.0.uuid().to_string());
        let (job_id, tickets) = match app.engine.enqueue_in(&mut tx, std::slice::from_ref(&job)).await {
            Ok(tickets) => {
                let details = json!({"remote_id": publication.remote.map(|post| post.id)});
                audit::record(&mut tx, &caller, Action::RemotePostRemoved, id.0, details).await?;
                (job.id, tickets)
            }
            // It was asked for before: that is the job to follow.
            Err(EnqueueError::Duplicate { existing }) => (existing, Vec::new()),
            Err(error) => return Err(error.into()),
        };
        let answer = Accepted::new(format!("/api/v1/jobs/{job_id}"), RemovalAccepted { job_id });
        let answer = claim.keep(&mut tx, answer).await?;
        tx.commit().await?;
        app.engine.ring(&tickets).await;
        Ok(answer)
    }
}

/// What a person found who looked at the account.
#[derive(Debug, Object)]
#[oai(deny_unknown_fields)]
struct SettleInput {
    /// Whether the post is there.
    exists: bool,
    /// The platform's own id of the post; goes with `exists`.
    #[oai(validator(max_length = 200))]
    remote_id: Option<String>,
}

/// Where to follow the removal.
#[derive(Debug, Clone, PartialEq, Eq, Object)]
struct RemovalAccepted {
    job_id: JobId,
}

impl PublishInput {
    fn parts(self) -> (PostInput, Options) {
        let content = PostInput { universal_content: self.text, variants: self.variants, media: self.media };
        let options = Options {
            platforms: self.platforms,
            connections: self.connections,
            scheduled_at: self.scheduled_at,
            time_zone: self.time_zone,
            late_policy: self.late_policy,
            max_lateness_seconds: self.max_lateness_seconds,
            optimize: self.optimize,
            tone: self.tone,
            republish: false,
        };
        (content, options)
    }
}

enum NewOrStored {
    New(Examined),
    Stored(Examined),
}

async fn put_on_its_way(
    app: &App,
    publisher: &Publisher,
    caller: &Caller,
    key: IdempotencyKey,
    request: Option<serde_json::Value>,
    content: NewOrStored,
    options: Options,
) -> Result<Accepted<AcceptedView>, Problem> {
    // A repeat is answered before anything is checked: what it asked for may have changed since.
    if key.is_given() {
        let mut tx = app.db.begin(caller).await?;
        if let Turn::Replay(answer) = key.clone().claim(&mut tx, caller, request.clone()).await? {
            return Ok(answer);
        }
        // Waited for: a transaction that is only dropped may still hold the key's lock when we come for it again.
        tx.rollback().await?;
    }
    let (content, is_new) = match content {
        NewOrStored::New(content) => (content, true),
        NewOrStored::Stored(content) => (content, false),
    };
    let mut wish = request::wish(app, publisher, caller, content, options).await?;
    let mut tx = app.db.begin(caller).await?;
    let claim = match key.claim(&mut tx, caller, request).await? {
        Turn::Replay(answer) => return Ok(answer),
        Turn::New(claim) => claim,
    };
    if is_new {
        posts::api::write(&mut tx, &mut wish.post).await?;
    }
    let planned = plan::plan(&mut tx, &app.engine, caller.tenant, &wish).await.map_err(plan_problem)?;
    let connections: Vec<_> = planned.publications.iter().map(|publication| publication.connection.id).collect();
    let details = json!({"group": planned.group, "connections": connections});
    audit::record(&mut tx, caller, Action::Published, wish.post.id, details).await?;
    let location = format!("/api/v1/groups/{}", planned.group);
    plans::allow(&mut tx, caller.tenant, Counted::Posts).await?;
    let answer = claim.keep(&mut tx, Accepted::new(location, AcceptedView::new(wish.post.id, &planned))).await?;
    tx.commit().await?;
    app.engine.ring(&planned.tickets).await;
    Ok(answer)
}

/// The post that a person names, if one is said to be there.
async fn named(
    app: &App,
    publisher: &Publisher,
    caller: &Caller,
    publication: &Publication,
    word: SettleInput,
) -> Result<Option<RemotePost>, Problem> {
    match (word.exists, word.remote_id) {
        (false, None) => Ok(None),
        (false, Some(_)) => {
            Err(Problem::invalid_field("remote_id", "goes with exists", "Leave it out, or send \"exists\": true"))
        }
        (true, None) => {
            Err(Problem::invalid_field("remote_id", "is missing", "Send the post's id: it ends the post's address"))
        }
        (true, Some(id)) => {
            let username = connections::store::username(&mut *app.db.of(caller).await?, publication.connection).await?;
            let connector = publisher.accounts.connectors().get(publication.platform);
            let post = connector.and_then(|connector| connector.post_named(&username, &id));
            let remedy = "Send the post's id: it ends the post's address";
            post.map(Some).ok_or_else(|| Problem::invalid_field("remote_id", "is no id of a post", remedy))
        }
    }
}

async fn find(app: &App, caller: &Caller, id: PublicationId) -> Result<Publication, Problem> {
    store::get(&mut *app.db.of(caller).await?, caller.reach(), id)
        .await?
        .ok_or_else(|| Problem::not_found("publication"))
}

async fn view(
    app: &App,
    publisher: &Publisher,
    caller: &Caller,
    publication: Publication,
) -> Result<PublicationView, Problem> {
    let mut look_at = None;
    if publication.phase.is_in_doubt()
        && let Some(connector) = publisher.accounts.connectors().get(publication.platform)
    {
        let username = connections::store::username(&mut *app.db.of(caller).await?, publication.connection).await?;
        look_at = Some(connector.profile(&username));
    }
    Ok(PublicationView::new(publication, look_at))
}

fn too_late(phase: Phase) -> Problem {
    Problem::too_late(match phase {
        Phase::Sent => "The post is out. Delete it on its platform if you do not want it there.",
        Phase::Sending => "The post is being sent. Its outcome is found out first; what is out can be deleted then.",
        Phase::Unconfirmed => "Whether the post is out is being found out. Look at the account before you decide.",
        Phase::Failed => "The post did not go out, and will not by itself. There is nothing to cancel.",
        Phase::Planned | Phase::Prepared | Phase::Uploaded | Phase::NeedsReconnect | Phase::Cancelled => {
            "The publication changed at this very moment. Look at it again."
        }
    })
}

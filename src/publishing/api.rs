//! Publishing over HTTP: a stored post, or all in one call; then following and steering each publication.

use std::sync::Arc;

use poem::web::Data;
use poem_openapi::{
    Object, OpenApi,
    param::{Path, Query},
    payload::Json,
    types::ToJSON,
};

pub use super::request::media_problem;
use super::{
    Phase, Publication, Publisher, plan,
    request::{self, Options, plan_problem},
    store::{self, Cancel},
    view::{AcceptedView, LatePolicyName, PublicationView},
    wake_key,
};
use crate::{
    connections,
    http::{Accepted, App, Caller, IdempotencyKey, Input, Page, Problem, Scope, Tag, Turn, page},
    ids::{ConnectionId, PostId, PublicationId},
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
        caller.require(Scope::Workspace)?;
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
        caller.require(Scope::Workspace)?;
        let request = body.0.to_json();
        let post = posts::store::get(&app.db, caller.tenant, id.0).await?;
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
        caller.require(Scope::Workspace)?;
        let limit = page::limit(limit.0)?;
        let before = page::decode(LIST, cursor.0.as_deref())?;
        let rows = store::of_post(&app.db, caller.tenant, id.0, before, i64::from(limit) + 1).await?;
        if rows.is_empty() {
            posts::store::get(&app.db, caller.tenant, id.0).await?.ok_or_else(|| Problem::not_found("post"))?;
        }
        let mut views = Vec::with_capacity(rows.len());
        for row in rows {
            views.push(view(&app, &publisher, row).await?);
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
        caller.require(Scope::Workspace)?;
        Ok(Json(view(&app, &publisher, find(&app, &caller, id.0).await?).await?))
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
        caller.require(Scope::Workspace)?;
        let mut tx = app.db.begin().await?;
        let claim = match key.claim(&mut tx, &caller, None).await? {
            Turn::Replay(answer) => return Ok(answer),
            Turn::New(claim) => claim,
        };
        match store::cancel(&mut tx, caller.tenant, id.0).await? {
            None => return Err(Problem::not_found("publication")),
            Some(Cancel::TooLate(phase)) => return Err(too_late(phase)),
            Some(Cancel::Cancelled) => {}
        }
        let publication = store::get(&mut *tx, caller.tenant, id.0).await?;
        let publication = publication.ok_or_else(|| Problem::not_found("publication"))?;
        let job = publication.job;
        // Neither it nor a late one is in doubt, which alone has a link to look at.
        let answer = claim.keep(&mut tx, Json(PublicationView::new(publication, None))).await?;
        tx.commit().await?;
        // The publication decides; its job only ends sooner for this.
        app.engine.cancel(Some(caller.tenant), job).await?;
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
        caller.require(Scope::Workspace)?;
        let mut tx = app.db.begin().await?;
        let claim = match key.claim(&mut tx, &caller, None).await? {
            Turn::Replay(answer) => return Ok(answer),
            Turn::New(claim) => claim,
        };
        let accepted = store::accept_lateness(&mut tx, caller.tenant, id.0).await?;
        let publication = store::get(&mut *tx, caller.tenant, id.0).await?;
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
        let mut tx = app.db.begin().await?;
        if let Turn::Replay(answer) = key.clone().claim(&mut tx, caller, request.clone()).await? {
            return Ok(answer);
        }
    }
    let (content, is_new) = match content {
        NewOrStored::New(content) => (content, true),
        NewOrStored::Stored(content) => (content, false),
    };
    let mut wish = request::wish(app, publisher, caller, content, options).await?;
    let mut tx = app.db.begin().await?;
    let claim = match key.claim(&mut tx, caller, request).await? {
        Turn::Replay(answer) => return Ok(answer),
        Turn::New(claim) => claim,
    };
    if is_new {
        posts::api::write(&mut tx, &mut wish.post).await?;
    }
    let planned = plan::plan(&mut tx, &app.engine, caller.tenant, &wish).await.map_err(plan_problem)?;
    let location = format!("/api/v1/groups/{}", planned.group);
    let answer = claim.keep(&mut tx, Accepted::new(location, AcceptedView::new(wish.post.id, &planned))).await?;
    tx.commit().await?;
    app.engine.ring(&planned.tickets).await;
    Ok(answer)
}

async fn find(app: &App, caller: &Caller, id: PublicationId) -> Result<Publication, Problem> {
    store::get(&app.db, caller.tenant, id).await?.ok_or_else(|| Problem::not_found("publication"))
}

async fn view(app: &App, publisher: &Publisher, publication: Publication) -> Result<PublicationView, Problem> {
    let mut look_at = None;
    if publication.phase.is_in_doubt()
        && let Some(connector) = publisher.accounts.connectors().get(publication.platform)
        && let Some(connection) = connections::store::get(&app.db, publication.tenant, publication.connection).await?
    {
        look_at = Some(connector.profile(&connection.username));
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

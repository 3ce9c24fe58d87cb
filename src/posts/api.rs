//! `/api/v1/posts`: write, read, change and delete posts, and ask whether they would be accepted.

use std::{collections::BTreeSet, sync::Arc};

use poem::{http::StatusCode, web::Data};
use poem_openapi::{
    Object, OpenApi,
    param::{Path, Query},
    payload::Json,
};
use serde_json::json;

use super::{
    input::{File, PlatformName, PostInput, PostView, TextFields, Variant},
    store,
};
use crate::{
    audit::{self, Action},
    http::{App, Caller, Created, Gone, IdempotencyKey, Input, Page, Problem, Scope, Tag, Turn, page},
    ids::PostId,
    platforms::Platform,
    publishing::{Publisher, api::media_problem, check, rivals},
};

#[derive(Clone)]
pub struct PostsApi;

/// A page of posts.
#[derive(Debug, Object)]
#[oai(skip_serializing_if_is_none)]
struct PostList {
    items: Vec<PostView>,
    /// Pass it as `cursor` to get the next page; absent on the last one.
    next_cursor: Option<String>,
}

/// A changed post.
#[derive(Debug, Object)]
#[oai(deny_unknown_fields)]
struct PostChange {
    /// What is said everywhere, unless a variant says otherwise.
    #[oai(default, validator(max_length = 100000))]
    universal_content: String,
    #[oai(default, validator(max_items = 7))]
    variants: Vec<Variant>,
    #[oai(default, validator(max_items = 20))]
    media: Vec<File>,
    /// The version this change was made on; without it the last writer wins.
    version: Option<i32>,
}

/// Content to be checked.
#[derive(Debug, Object)]
#[oai(deny_unknown_fields)]
struct ValidateInput {
    /// What is said everywhere, unless a variant says otherwise.
    #[oai(default, validator(max_length = 100000))]
    universal_content: String,
    #[oai(default, validator(max_items = 7))]
    variants: Vec<Variant>,
    #[oai(default, validator(max_items = 20))]
    media: Vec<File>,
    /// Where it is meant to go; without any, everywhere this installation can publish.
    #[oai(default, validator(max_items = 7))]
    platforms: Vec<PlatformName>,
}

/// One thing that a platform would refuse.
#[derive(Debug, Clone, Object)]
#[oai(rename = "ContentProblem")]
struct ProblemView {
    code: String,
    field: String,
    message: String,
    remedy: String,
}

/// What one platform would say.
#[derive(Debug, Object)]
struct PlatformReport {
    platform: PlatformName,
    valid: bool,
    /// How long the text is, as the platform counts.
    used: u64,
    limit: u64,
    unit: String,
    problems: Vec<ProblemView>,
}

/// What all of them would say.
#[derive(Debug, Object)]
struct Validation {
    /// Whether every platform would accept it.
    valid: bool,
    platforms: Vec<PlatformReport>,
}

const LIST: &str = "posts";
/// What the text for everywhere is called here.
const UNIVERSAL: &str = "universal_content";

#[OpenApi(prefix_path = "/api/v1", tag = "Tag::Posts")]
impl PostsApi {
    /// Write a post
    ///
    /// Nothing is published by this: see `POST /api/v1/posts/{id}/publish`.
    #[oai(path = "/posts", method = "post", operation_id = "createPost")]
    async fn create(
        &self,
        app: Data<&Arc<App>>,
        caller: Caller,
        #[oai(name = "Idempotency-Key")] key: IdempotencyKey,
        body: Input<PostInput>,
    ) -> Result<Created<PostView>, Problem> {
        caller.require(Scope::Publish)?;
        let mut tx = app.db.begin(&caller).await?;
        let request = poem_openapi::types::ToJSON::to_json(&body.0);
        let claim = match key.claim(&mut tx, &caller, request).await? {
            Turn::Replay(answer) => return Ok(answer),
            Turn::New(claim) => claim,
        };
        let (mut post, _) = body.0.examine(PostId::new(), caller.tenant, UNIVERSAL).accepted()?;
        write(&mut tx, &mut post).await?;
        let location = format!("/api/v1/posts/{}", post.id);
        let answer = claim.keep(&mut tx, Created::new(location, PostView::from(post))).await?;
        tx.commit().await?;
        Ok(answer)
    }

    /// List posts
    ///
    /// Newest first.
    #[oai(path = "/posts", method = "get", operation_id = "listPosts")]
    async fn list(
        &self,
        app: Data<&Arc<App>>,
        caller: Caller,
        /// `next_cursor` of the page before
        cursor: Query<Option<String>>,
        /// Posts on a page, 1 to 100; 25 without it
        limit: Query<Option<u16>>,
    ) -> Result<Json<PostList>, Problem> {
        caller.require(Scope::Read)?;
        let limit = page::limit(limit.0)?;
        let before = page::decode(LIST, cursor.0.as_deref())?;
        let posts = store::list(&mut *app.db.of(&caller).await?, caller.tenant, before, i64::from(limit) + 1).await?;
        let views = posts.into_iter().map(PostView::from).collect();
        let Page { items, next_cursor } = Page::of(views, limit, LIST, |post: &PostView| post.id);
        Ok(Json(PostList { items, next_cursor }))
    }

    /// Get a post
    #[oai(path = "/posts/:id", method = "get", operation_id = "getPost")]
    async fn get(&self, app: Data<&Arc<App>>, caller: Caller, id: Path<PostId>) -> Result<Json<PostView>, Problem> {
        caller.require(Scope::Read)?;
        let post = store::get(&mut *app.db.of(&caller).await?, caller.tenant, id.0).await?;
        Ok(Json(post.ok_or_else(|| Problem::not_found("post"))?.into()))
    }

    /// Change a post
    ///
    /// Replaces all of it. Publications whose content is frozen already go out as they were. With a key that is limited
    /// to connections it is a 403 `not_for_this_key` while the post is to go out, or may be tried again, on another one.
    #[oai(path = "/posts/:id", method = "put", operation_id = "changePost")]
    async fn change(
        &self,
        app: Data<&Arc<App>>,
        caller: Caller,
        id: Path<PostId>,
        #[oai(name = "Idempotency-Key")] key: IdempotencyKey,
        body: Input<PostChange>,
    ) -> Result<Json<PostView>, Problem> {
        caller.require(Scope::Publish)?;
        let mut tx = app.db.begin(&caller).await?;
        let request = poem_openapi::types::ToJSON::to_json(&body.0);
        let claim = match key.claim::<Json<PostView>>(&mut tx, &caller, request).await? {
            Turn::Replay(answer) => return Ok(answer),
            Turn::New(claim) => claim,
        };
        let PostChange { universal_content, variants, media, version } = body.0;
        let post = PostInput { universal_content, variants, media };
        let (post, _) = post.examine(id.0, caller.tenant, UNIVERSAL).accepted()?;
        let before = hold(&mut tx, &caller, id.0).await?;
        if version.is_some_and(|version| version != before.version) {
            let text = "The post was changed since the version you name. Read it again and repeat your change.";
            return Err(Problem::conflict("changed_meanwhile", text));
        }
        store::update(&mut tx, caller.tenant, id.0, &post.universal_content, &post.variants, &post.media)
            .await
            .map_err(unknown_media)?;
        let post = store::get(&mut *tx, caller.tenant, id.0).await?;
        let post = post.ok_or_else(|| Problem::not_found("post"))?;
        let details = json!({"fields": before.changes(&post), "version": post.version});
        audit::record(&mut tx, &caller, Action::PostChanged, id.0, details).await?;
        let answer = claim.keep(&mut tx, Json(PostView::from(post))).await?;
        tx.commit().await?;
        Ok(answer)
    }

    /// Delete a post
    ///
    /// What was published stays on its platforms. With a key that is limited to connections it is a 403
    /// `not_for_this_key` while the post is to go out, or may be tried again, on another one.
    #[oai(path = "/posts/:id", method = "delete", operation_id = "deletePost")]
    async fn delete(
        &self,
        app: Data<&Arc<App>>,
        caller: Caller,
        id: Path<PostId>,
        #[oai(name = "Idempotency-Key")] key: IdempotencyKey,
    ) -> Result<Gone, Problem> {
        caller.require(Scope::Publish)?;
        let mut tx = app.db.begin(&caller).await?;
        let claim = match key.claim(&mut tx, &caller, None).await? {
            Turn::Replay(answer) => return Ok(answer),
            Turn::New(claim) => claim,
        };
        hold(&mut tx, &caller, id.0).await?;
        if !store::remove(&mut tx, caller.tenant, id.0).await? {
            let text = "Publications of this post are still to go out. Cancel them first.";
            return Err(Problem::conflict("publications_open", text));
        }
        audit::record(&mut tx, &caller, Action::PostDeleted, id.0, json!({})).await?;
        let answer = claim.keep(&mut tx, Gone::default()).await?;
        tx.commit().await?;
        Ok(answer)
    }

    /// Ask whether content would be accepted
    ///
    /// Everything that is wrong for every platform at once. Nothing is stored.
    #[oai(path = "/posts/validate", method = "post", operation_id = "validatePost")]
    async fn validate(
        &self,
        publisher: Data<&Publisher>,
        caller: Caller,
        body: Input<ValidateInput>,
    ) -> Result<Json<Validation>, Problem> {
        caller.require(Scope::Read)?;
        let ValidateInput { universal_content, variants, media, platforms } = body.0;
        let post = PostInput { universal_content, variants, media };
        let (post, fields) = post.examine(PostId::new(), caller.tenant, UNIVERSAL).accepted()?;
        let mut wanted: Vec<Platform> = platforms.into_iter().map(Platform::from).collect();
        if wanted.is_empty() {
            wanted.extend(publisher.accounts.connectors().platforms());
        }
        let mut seen = BTreeSet::new();
        wanted.retain(|platform| seen.insert(*platform));
        let reports = check::check(&publisher, caller.tenant, &post, &wanted, false).await.map_err(media_problem)?;
        let platforms: Vec<_> = reports.into_iter().map(|of_one| report(of_one, &fields)).collect();
        Ok(Json(Validation { valid: platforms.iter().all(|report| report.valid), platforms }))
    }
}

/// The post as it is until the transaction ends, for whoever may change what it says wherever that may still go out: no
/// publication is made of it meanwhile.
async fn hold(tx: &mut sqlx::PgConnection, caller: &Caller, id: PostId) -> Result<super::Post, Problem> {
    store::lock(tx, caller.tenant, id).await?;
    let post = store::get(&mut *tx, caller.tenant, id).await?.ok_or_else(|| Problem::not_found("post"))?;
    if rivals::beyond_reach(tx, caller.reach(), id).await? {
        let text = "The post is to go out, or may be tried again, on a connection that this API key is not for. Use a \
                    key that may use all of its connections, or your own token.";
        return Err(Problem::new(StatusCode::FORBIDDEN, "not_for_this_key", "Not for this key", text));
    }
    Ok(post)
}

/// Stores a post in the caller's transaction.
pub async fn write(tx: &mut sqlx::PgConnection, post: &mut super::Post) -> Result<(), Problem> {
    let insert = store::insert(tx, post.id, post.tenant, &post.universal_content, &post.variants, &post.media);
    post.created_at = insert.await.map_err(unknown_media)?;
    post.updated_at = post.created_at;
    Ok(())
}

fn unknown_media(error: sqlx::Error) -> Problem {
    match error {
        sqlx::Error::RowNotFound => unknown(),
        // The file does not exist at all: its foreign key says so before we look whose it is.
        sqlx::Error::Database(error) if error.constraint() == Some("post_media_media_id_fkey") => unknown(),
        error => error.into(),
    }
}

fn unknown() -> Problem {
    Problem::invalid_field("media", "names a file that is no upload of yours", "Upload it first: POST /api/v1/media")
}

fn report(report: check::Report, fields: &TextFields) -> PlatformReport {
    let text_field = fields.name_for(report.platform);
    let problems: Vec<_> = report
        .problems
        .into_iter()
        .map(|problem| ProblemView {
            code: problem.code.to_owned(),
            field: if problem.field == "text" { text_field.clone() } else { problem.field },
            message: problem.message,
            remedy: problem.remedy,
        })
        .collect();
    PlatformReport {
        platform: report.platform.into(),
        valid: problems.is_empty(),
        used: report.length.used as u64,
        limit: report.length.limit as u64,
        unit: report.length.unit.to_string(),
        problems,
    }
}

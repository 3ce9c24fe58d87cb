//! The chapters of the API document.

use poem_openapi::Tags;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Tags)]
pub enum Tag {
    /// What is published: a post is written once, for all platforms.
    Posts,
    /// One call that does it all: text, media and platforms in one request.
    Publish,
    /// Text transforms by language models.
    Ai,
    /// Files: uploads and what is made of them.
    Media,
    /// Background work: follow it, cancel it, retry it.
    Jobs,
    /// Accounts on platforms.
    Connections,
    /// Who one is, workspaces and their members, API keys, the audit log.
    Identity,
    /// Health and figures of the service itself.
    Service,
}

//! The description of what is answered beside the calls: by an endpoint that takes a request as it comes (a webhook, whose
//! signature is of its bytes) or gives bytes of its own (the document itself, its page, the figures).

use poem::http::Method;
use poem_openapi::{
    Tags,
    registry::{MetaMediaType, MetaOperation, MetaPath, MetaRequest, MetaResponse, MetaResponses, MetaSchemaRef},
};

use super::{Tag, refusals};

/// The beginning of a description; answers are added to it.
pub fn operation(
    method: Method,
    operation_id: &'static str,
    summary: &'static str,
    description: &'static str,
) -> MetaOperation {
    MetaOperation {
        method,
        tags: vec![Tag::Service.name()],
        summary: Some(summary),
        description: Some(description).filter(|text| !text.is_empty()),
        external_docs: None,
        params: Vec::new(),
        request: None,
        responses: MetaResponses { responses: Vec::new() },
        deprecated: false,
        security: Vec::new(),
        operation_id: Some(operation_id),
        code_samples: Vec::new(),
    }
}

/// The path of one call.
pub fn path(path: &str, operation: MetaOperation) -> MetaPath {
    MetaPath { path: path.to_owned(), operations: vec![operation] }
}

/// One answer, with a body of this kind or none.
pub fn answer(status: u16, description: &'static str, body: Option<(&'static str, MetaSchemaRef)>) -> MetaResponse {
    let content = body.map(|(content_type, schema)| MetaMediaType { content_type, schema });
    MetaResponse {
        description,
        status: Some(status),
        status_range: None,
        content: content.into_iter().collect(),
        headers: Vec::new(),
    }
}

/// One answer with a problem document.
pub fn refusal(status: u16, description: &'static str) -> MetaResponse {
    refusals::refusal(status, description)
}

/// A body that has to come with it.
pub fn body(content_type: &'static str, schema: MetaSchemaRef) -> MetaRequest {
    MetaRequest { description: None, content: vec![MetaMediaType { content_type, schema }], required: true }
}

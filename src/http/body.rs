//! A JSON body: [`Input<T>`] reads like poem-openapi's `Json<T>`, but when the body does not fit it says everything
//! that is wrong at once, each with its place and its remedy.
//!
//! The long way is taken only for a body that was refused; a good one costs one parse.

use poem::{FromRequest, Request, RequestBody, Result};
use poem_openapi::{
    impl_apirequest_for_payload,
    payload::{ParsePayload, Payload},
    registry::{MetaSchemaRef, Registry},
    types::{ParseFromJSON, Type},
};
use serde_json::Value;

use super::{FieldError, Problem, schema, shape::Shape};

/// The body of a request as JSON.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Input<T>(pub T);

impl<T: Type> Payload for Input<T> {
    const CONTENT_TYPE: &'static str = "application/json";

    fn check_content_type(content_type: &str) -> bool {
        let essence = content_type.split(';').next().unwrap_or_default().trim();
        essence.eq_ignore_ascii_case("application/json")
    }

    fn schema_ref() -> MetaSchemaRef {
        T::schema_ref()
    }

    fn register(registry: &mut Registry) {
        T::register(registry);
    }
}

/// A body as JSON that may not fit, for a call that knows more of its fields than their form: it tells both at once.
/// For a type that takes no unknown fields.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tried<T> {
    /// As it came.
    pub value: Value,
    /// What it holds, or everything that is wrong with its form.
    pub fit: Result<T, Vec<FieldError>>,
}

impl<T: Type> Payload for Tried<T> {
    const CONTENT_TYPE: &'static str = Input::<T>::CONTENT_TYPE;

    fn check_content_type(content_type: &str) -> bool {
        Input::<T>::check_content_type(content_type)
    }

    fn schema_ref() -> MetaSchemaRef {
        T::schema_ref()
    }

    fn register(registry: &mut Registry) {
        T::register(registry);
    }
}

impl<T: ParseFromJSON + 'static> ParsePayload for Tried<T> {
    const IS_REQUIRED: bool = T::IS_REQUIRED;

    async fn from_request(request: &Request, body: &mut RequestBody) -> Result<Self> {
        let bytes = Vec::<u8>::from_request(request, body).await?;
        let value = read(&bytes)?;
        let fit = fit(value.clone(), &bytes).map_err(|mut errors| {
            let mut registry = Registry::new();
            T::register(&mut registry);
            schema::find_unknown_fields(&value, &T::schema_ref(), &registry, &mut errors);
            errors
        });
        Ok(Self { value, fit })
    }
}

impl_apirequest_for_payload!(Tried<T>, T: ParseFromJSON + 'static);

impl<T: ParseFromJSON + 'static> ParsePayload for Input<T> {
    const IS_REQUIRED: bool = T::IS_REQUIRED;

    async fn from_request(request: &Request, body: &mut RequestBody) -> Result<Self> {
        let bytes = Vec::<u8>::from_request(request, body).await?;
        Ok(Self(parse(&bytes)?))
    }
}

impl_apirequest_for_payload!(Input<T>, T: ParseFromJSON + 'static);

fn parse<T: ParseFromJSON + 'static>(bytes: &[u8]) -> Result<T, Problem> {
    fit(read(bytes)?, bytes).map_err(Problem::invalid)
}

fn read(bytes: &[u8]) -> Result<Value, Problem> {
    match bytes {
        [] => Ok(Value::Null),
        bytes => serde_json::from_slice(bytes).map_err(|error| malformed(&error)),
    }
}

/// `value` is what was read from `bytes`.
fn fit<T: ParseFromJSON + 'static>(value: Value, bytes: &[u8]) -> Result<T, Vec<FieldError>> {
    // Postgres stores no NUL; refused here, where its field can be named (E9).
    if memmem(bytes, b"\\u0000") {
        let mut errors = Vec::new();
        schema::find_nul(&value, "", &mut errors);
        if !errors.is_empty() {
            return Err(errors);
        }
    }
    if !Shape::of::<T>().holds(&value) {
        return Err(refused::<T>(bytes, "is not of the type it has to be"));
    }
    T::parse_from_json(Some(value)).map_err(|error| refused::<T>(bytes, error.message()))
}

fn memmem(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

fn malformed(error: &serde_json::Error) -> Problem {
    // The category and the place, not the text around it, which may hold anything.
    Problem::bad_request(
        "malformed_json",
        format!("The body is not valid JSON: {error}. Send one JSON object in UTF-8."),
    )
}

fn refused<T: ParseFromJSON>(bytes: &[u8], message: &str) -> Vec<FieldError> {
    // Read a second time rather than cloned beforehand: a good body should not pay for a bad one.
    let value = serde_json::from_slice(bytes).unwrap_or_default();
    let mut registry = Registry::new();
    T::register(&mut registry);
    let mut errors = Vec::new();
    schema::explain(&value, &T::schema_ref(), &registry, "", &mut errors);
    schema::find_unknown(message, &mut errors);
    if errors.is_empty() {
        let field = schema::field_in(message).unwrap_or("body");
        errors.push(FieldError::new(field, message.trim_end_matches('.'), "See the schema of this call at /docs"));
    }
    errors
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use poem_openapi::{Enum, Object};

    use super::*;
    use crate::ids::PostId;

    #[derive(Debug, PartialEq, Object)]
    #[oai(deny_unknown_fields)]
    struct Order {
        #[oai(validator(min_length = 1, max_length = 5))]
        content: String,
        tone: Option<Tone>,
        post: Option<PostId>,
        #[oai(default)]
        media: Vec<Picture>,
        #[oai(validator(minimum(value = "1")))]
        count: Option<u8>,
        length: Option<u32>,
        #[oai(default)]
        labels: BTreeMap<String, String>,
        #[oai(default)]
        tags: Vec<String>,
    }

    #[derive(Debug, PartialEq, Object)]
    struct Picture {
        alt_text: String,
    }

    #[derive(Debug, PartialEq, Enum)]
    #[oai(rename_all = "snake_case")]
    enum Tone {
        Formal,
        Playful,
    }

    fn problem(body: &str) -> Problem {
        parse::<Order>(body.as_bytes()).unwrap_err()
    }

    fn fields(body: &str) -> Vec<String> {
        problem(body).document().errors.iter().map(|error| error.field.clone()).collect()
    }

    #[test]
    fn a_good_body_is_read() {
        let order: Order = parse(br#"{"content": "hi", "tone": "formal", "media": [{"alt_text": "x"}]}"#).unwrap();
        assert_eq!((order.content.as_str(), order.tone, order.media.len()), ("hi", Some(Tone::Formal), 1));
    }

    #[test]
    fn everything_that_is_wrong_is_said_at_once_and_in_its_place() {
        let body =
            r#"{"tone": "grim", "post": "job_1", "media": [{"alt_text": "x"}, {"alt_text": {}}, {}], "count": 0}"#;
        assert_eq!(fields(body), ["content", "tone", "post", "media[1].alt_text", "media[2].alt_text", "count"]);
        let errors = &problem(body).document().errors.clone();
        assert_eq!(
            (errors[0].message.as_str(), errors[1].remedy.as_str()),
            ("is missing", "Send one of formal, playful")
        );
        assert!(errors.iter().all(|error| !error.message.is_empty() && !error.remedy.is_empty()));
    }

    #[test]
    fn a_length_out_of_bounds_says_the_bounds() {
        let problem = problem(r#"{"content": "too long"}"#);
        assert_eq!(problem.document().errors[0].message, "has 8 characters");
        assert_eq!(problem.document().errors[0].remedy, "Send a string of 1 to 5 characters");
        assert_eq!(fields(r#"{"content": ""}"#), ["content"]);
    }

    #[test]
    fn an_unknown_field_is_named() {
        assert_eq!(fields(r#"{"content": "hi", "contnet": "x"}"#), ["contnet"]);
    }

    #[test]
    fn a_nul_is_refused_where_it_stands() {
        assert_eq!(fields(r#"{"content": "a\u0000"}"#), ["content"]);
        // An escaped backslash before u0000 is no NUL.
        assert!(parse::<Order>(br#"{"content": "\\u00"}"#).is_ok());
    }

    #[test]
    fn a_number_or_a_switch_is_no_text() {
        for (body, wrong) in [
            (r#"{"content": true}"#, "content"),
            (r#"{"content": 7}"#, "content"),
            (r#"{"content": "hi", "media": [{"alt_text": "x"}, {"alt_text": 1.5}]}"#, "media[1].alt_text"),
            (r#"{"content": "hi", "labels": {"a": "b", "c": false}}"#, "labels.c"),
            (r#"{"content": "hi", "tags": ["a", 2]}"#, "tags[1]"),
            (r#"{"content": "hi", "tone": 3}"#, "tone"),
        ] {
            assert_eq!(fields(body), [wrong], "{body}");
            assert_eq!(problem(body).status(), 422, "{body}");
        }
        assert_eq!(problem(r#"{"content": true}"#).document().errors[0].message, "is a boolean");
        let order: Order = parse(br#"{"content": "true", "tone": null, "labels": {"a": "7"}}"#).unwrap();
        assert_eq!((order.content.as_str(), order.labels["a"].as_str()), ("true", "7"));
    }

    #[test]
    fn a_number_out_of_its_types_range_is_named() {
        for (body, remedy) in [
            (r#"{"content": "hi", "length": -1}"#, "Send a whole number from 0 to 4294967295"),
            (r#"{"content": "hi", "count": 256}"#, "Send a whole number from 1 to 255"),
            (r#"{"content": "hi", "length": 4294967296}"#, "Send a whole number from 0 to 4294967295"),
        ] {
            let document = problem(body).document().clone();
            assert_ne!(document.errors[0].field, "body", "{body}");
            assert_eq!(document.errors[0].remedy, remedy, "{body}");
        }
    }

    #[test]
    fn what_is_no_json_is_a_400_and_what_is_no_object_a_422() {
        for body in ["{", "{\"content\": \"\u{1}\"}", "nope", "[1,", "\"\\ud800\""] {
            assert_eq!(problem(body).status(), 400, "{body}");
        }
        for body in ["", "null", "[]", "7", "\"text\""] {
            assert_eq!((problem(body).status().as_u16(), fields(body)), (422, vec!["body".to_owned()]), "{body}");
        }
    }
}

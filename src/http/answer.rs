//! What a write answers: `201 Created` or `202 Accepted` with a `Location`, or `204` when nothing is left, kept so that
//! a repeat with the same `Idempotency-Key` gets the same answer again.

use poem::{
    IntoResponse, Response,
    http::{HeaderName, HeaderValue, StatusCode, header},
};
use poem_openapi::{
    ApiResponse,
    payload::{Json, Payload},
    registry::{MetaHeader, MetaMediaType, MetaResponse, MetaResponses, Registry},
    types::{ParseFromJSON, ToJSON, Type},
};
use serde_json::Value;

/// Says that this answer was given before.
pub const REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");

macro_rules! answers {
    ($($(#[$doc:meta])* $name:ident = $status:ident $code:literal $description:literal;)+) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub struct $name<T> {
            /// Path of what was made, such as `/api/v1/jobs/job_...`.
            pub location: String,
            pub body: T,
            replayed: bool,
        }

        impl<T> $name<T> {
            pub fn new(location: impl Into<String>, body: T) -> Self {
                Self { location: location.into(), body, replayed: false }
            }
        }

        impl<T: ToJSON> IntoResponse for $name<T> {
            fn into_response(self) -> Response {
                respond(StatusCode::$status, &self.location, self.replayed, Json(self.body))
            }
        }

        impl<T: ToJSON> ApiResponse for $name<T> {
            fn meta() -> MetaResponses {
                describe::<T>($code, $description)
            }

            fn register(registry: &mut Registry) {
                T::register(registry);
            }
        }

        impl<T: ToJSON + ParseFromJSON> Answer for $name<T> {
            fn kept(&self) -> Kept {
                Kept { status: $code, location: Some(self.location.clone()), body: self.body.to_json() }
            }

            fn replay(kept: Kept) -> Option<Self> {
                let body = T::parse_from_json(kept.body).ok()?;
                Some(Self { location: kept.location?, body, replayed: true })
            }
        }
    )+};
}

answers! {
    /// Something new exists now.
    Created = CREATED 201 "It exists now; `Location` says where";
    /// The work is in the ledger and will be done; `Location` says where to follow it.
    Accepted = ACCEPTED 202 "The work is on record and will be done; `Location` is the job or group to follow";
}

/// Nothing is left of it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Gone {
    replayed: bool,
}

impl IntoResponse for Gone {
    fn into_response(self) -> Response {
        let mut response = StatusCode::NO_CONTENT.into_response();
        mark(&mut response, self.replayed);
        response
    }
}

impl ApiResponse for Gone {
    fn meta() -> MetaResponses {
        let response = MetaResponse {
            description: "It is gone",
            status: Some(204),
            status_range: None,
            content: Vec::new(),
            headers: vec![replayed_header()],
        };
        MetaResponses { responses: vec![response] }
    }

    fn register(_registry: &mut Registry) {}
}

impl Answer for Gone {
    fn kept(&self) -> Kept {
        Kept { status: 204, location: None, body: None }
    }

    fn replay(kept: Kept) -> Option<Self> {
        (kept.status == 204).then_some(Self { replayed: true })
    }
}

/// An answer that can be kept with its `Idempotency-Key` and given again.
pub trait Answer: Sized {
    fn kept(&self) -> Kept;

    /// `None` when what was kept is not of this form.
    fn replay(kept: Kept) -> Option<Self>;
}

#[derive(Debug, Clone, PartialEq)]
pub struct Kept {
    pub status: u16,
    pub location: Option<String>,
    pub body: Option<Value>,
}

impl<T: ToJSON + ParseFromJSON> Answer for Json<T> {
    fn kept(&self) -> Kept {
        Kept { status: 200, location: None, body: self.0.to_json() }
    }

    fn replay(kept: Kept) -> Option<Self> {
        T::parse_from_json(kept.body).ok().map(Self)
    }
}

fn respond(status: StatusCode, location: &str, replayed: bool, body: impl IntoResponse) -> Response {
    let mut response = body.into_response();
    response.set_status(status);
    // Locations are made of our own paths and ids, which are always valid.
    response
        .headers_mut()
        .insert(header::LOCATION, HeaderValue::from_str(location).expect("a path of ours is a valid header"));
    mark(&mut response, replayed);
    response
}

fn mark(response: &mut Response, replayed: bool) {
    if replayed {
        response.headers_mut().insert(REPLAYED, HeaderValue::from_static("true"));
    }
}

fn describe<T: Type>(status: u16, description: &'static str) -> MetaResponses {
    let location = MetaHeader {
        name: "Location".to_owned(),
        description: Some("Where it is".to_owned()),
        required: true,
        deprecated: false,
        schema: String::schema_ref(),
    };
    MetaResponses {
        responses: vec![MetaResponse {
            description,
            status: Some(status),
            status_range: None,
            content: vec![MetaMediaType { content_type: Json::<T>::CONTENT_TYPE, schema: T::schema_ref() }],
            headers: vec![location, replayed_header()],
        }],
    }
}

fn replayed_header() -> MetaHeader {
    MetaHeader {
        name: "Idempotent-Replayed".to_owned(),
        description: Some("\"true\" when this answer was given before for the same key".to_owned()),
        required: false,
        deprecated: false,
        schema: String::schema_ref(),
    }
}

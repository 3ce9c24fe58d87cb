//! Every identifier of the product: a UUIDv7 that knows what it names.
//!
//! Outside it reads `job_01988f6e...` (prefix and 32 hex digits), in Postgres it is a plain `uuid`, so a job's id
//! can never be passed where a connection's is meant and a log line says what it talks about.

use std::{borrow::Cow, fmt, str::FromStr};

use poem::{http::HeaderValue, web::Field};
use poem_openapi::{
    registry::{MetaSchema, MetaSchemaRef},
    types::{
        ParseError, ParseFromJSON, ParseFromMultipartField, ParseFromParameter, ParseResult, ToHeader, ToJSON, Type,
    },
};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use uuid::Uuid;

/// A text that is not the id it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not the id of {of}: one looks like \"{prefix}_\" and 32 hexadecimal digits")]
pub struct ParseIdError {
    of: &'static str,
    prefix: &'static str,
}

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident = $prefix:literal, $of:literal;)+) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, sqlx::Type)]
        #[sqlx(transparent)]
        pub struct $name(Uuid);

        impl $name {
            /// What the text form starts with, before the underscore.
            pub const PREFIX: &'static str = $prefix;

            /// A new id; ids made later sort later.
            #[expect(clippy::new_without_default, reason = "a default id would be a surprise: each call makes another")]
            pub fn new() -> Self {
                Self(Uuid::now_v7())
            }

            pub const fn from_uuid(uuid: Uuid) -> Self {
                Self(uuid)
            }

            pub const fn uuid(self) -> Uuid {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "_{}"), self.0.simple())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                text.strip_prefix(concat!($prefix, "_"))
                    .filter(|hex| hex.len() == 32)
                    .and_then(|hex| Uuid::try_parse(hex).ok())
                    .map(Self)
                    .ok_or(ParseIdError { of: $of, prefix: $prefix })
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
            }
        }

        // The same text form in the API, where the document shows what it looks like.
        impl Type for $name {
            const IS_REQUIRED: bool = true;

            type RawValueType = Self;
            type RawElementValueType = Self;

            fn name() -> Cow<'static, str> {
                concat!("string_", $prefix, "_id").into()
            }

            fn schema_ref() -> MetaSchemaRef {
                MetaSchemaRef::Inline(Box::new(MetaSchema {
                    pattern: Some(concat!("^", $prefix, "_[0-9a-f]{32}$").to_owned()),
                    example: Some(concat!($prefix, "_01988f6e5d3a7c41b2f09e6d8a417c35").into()),
                    ..MetaSchema::new_with_format("string", concat!($prefix, "_id"))
                }))
            }

            fn as_raw_value(&self) -> Option<&Self> {
                Some(self)
            }

            fn raw_element_iter<'a>(&'a self) -> Box<dyn Iterator<Item = &'a Self> + 'a> {
                Box::new(std::iter::once(self))
            }
        }

        impl ParseFromJSON for $name {
            fn parse_from_json(value: Option<serde_json::Value>) -> ParseResult<Self> {
                match value.unwrap_or_default() {
                    serde_json::Value::String(text) => text.parse().map_err(ParseError::custom),
                    value => Err(ParseError::expected_type(value)),
                }
            }
        }

        impl ParseFromParameter for $name {
            fn parse_from_parameter(text: &str) -> ParseResult<Self> {
                text.parse().map_err(ParseError::custom)
            }
        }

        impl ParseFromMultipartField for $name {
            async fn parse_from_multipart(field: Option<Field>) -> ParseResult<Self> {
                let field = field.ok_or_else(ParseError::expected_input)?;
                field.text().await.map_err(ParseError::custom)?.parse().map_err(ParseError::custom)
            }
        }

        impl ToJSON for $name {
            fn to_json(&self) -> Option<serde_json::Value> {
                Some(self.to_string().into())
            }
        }

        impl ToHeader for $name {
            fn to_header(&self) -> Option<HeaderValue> {
                HeaderValue::from_str(&self.to_string()).ok()
            }
        }
    )+};
}

ids! {
    /// Whose data a row is: the workspace that owns it.
    TenantId = "tnt", "a workspace";
    /// A person.
    UserId = "usr", "a user";
    /// One unit of background work.
    JobId = "job", "a job";
    /// Jobs that are one piece of work to the person who asked for it.
    GroupId = "grp", "a group";
    /// One start of one worker process; never reused.
    WorkerId = "wrk", "a worker";
    /// What a user wrote once.
    PostId = "post", "a post";
    /// A user's authorised account on a platform.
    ConnectionId = "conn", "a connection";
    /// One time that an account's owner is asked for it.
    ConsentId = "cns", "a consent";
    /// One post on one connection.
    PublicationId = "pub", "a publication";
    /// An uploaded file.
    MediaId = "med", "an upload";
    /// A file that is to be fetched from an address.
    ImportId = "imp", "an import";
    /// Media transcoded to one preset.
    RenditionId = "rend", "a rendition";
    /// A key with which a program calls the API.
    ApiKeyId = "key", "an API key";
    /// A copy of somebody's data.
    ExportId = "exp", "an export";
    /// The end of a workspace, or of a user.
    ErasureId = "era", "an erasure";
    /// A workspace's link to an account on Patreon.
    PatreonLinkId = "plink", "a link to Patreon";
    /// One line of the audit log.
    AuditId = "aud", "a line of the audit log";
}

impl TenantId {
    /// Owner of the product's own upkeep jobs.
    pub const SYSTEM: Self = Self(Uuid::nil());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_survives_its_text_form() {
        let id = JobId::new();
        assert_eq!(id.to_string().parse::<JobId>(), Ok(id));
    }

    #[test]
    fn an_id_of_another_thing_is_refused() {
        assert!(ConnectionId::new().to_string().parse::<JobId>().is_err());
        let error = "job_".parse::<JobId>().unwrap_err().to_string();
        assert_eq!(error, "not the id of a job: one looks like \"job_\" and 32 hexadecimal digits");
        assert!("job_{01988f6e-0000-7000-8000-000000000000}".parse::<JobId>().is_err());
    }

    #[test]
    fn later_ids_sort_later() {
        let ids: Vec<_> = (0..100).map(|_| JobId::new()).collect();
        assert!(ids.is_sorted());
    }
}

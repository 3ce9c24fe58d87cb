//! How posts come in and go out.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use poem_openapi::{Enum, Object};

use super::{Attached, Post};
use crate::{
    http::{FieldError, Problem},
    ids::{MediaId, PostId, TenantId},
    platforms::Platform,
};

/// Where a post can appear.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Enum)]
#[oai(rename = "Platform", rename_all = "lowercase")]
pub enum PlatformName {
    X,
    Facebook,
    Instagram,
    LinkedIn,
    YouTube,
    TikTok,
    Threads,
}

impl From<PlatformName> for Platform {
    fn from(name: PlatformName) -> Self {
        match name {
            PlatformName::X => Self::X,
            PlatformName::Facebook => Self::Facebook,
            PlatformName::Instagram => Self::Instagram,
            PlatformName::LinkedIn => Self::LinkedIn,
            PlatformName::YouTube => Self::YouTube,
            PlatformName::TikTok => Self::TikTok,
            PlatformName::Threads => Self::Threads,
        }
    }
}

impl From<Platform> for PlatformName {
    fn from(platform: Platform) -> Self {
        match platform {
            Platform::X => Self::X,
            Platform::Facebook => Self::Facebook,
            Platform::Instagram => Self::Instagram,
            Platform::LinkedIn => Self::LinkedIn,
            Platform::YouTube => Self::YouTube,
            Platform::TikTok => Self::TikTok,
            Platform::Threads => Self::Threads,
        }
    }
}

/// A text that stands in for the universal one on a platform.
#[derive(Debug, Clone, PartialEq, Eq, Object)]
#[oai(rename = "PostVariant", deny_unknown_fields)]
pub struct Variant {
    pub platform: PlatformName,
    #[oai(validator(max_length = 100000))]
    pub text: String,
}

/// A file of a post, in the order in which files are given.
#[derive(Debug, Clone, PartialEq, Eq, Object)]
#[oai(rename = "PostMedia", deny_unknown_fields, skip_serializing_if_is_none)]
pub struct File {
    pub media_id: MediaId,
    /// What it shows, for those who cannot see it.
    #[oai(validator(max_length = 10000))]
    pub alt_text: Option<String>,
}

/// What is said, and shown.
#[derive(Debug, Clone, PartialEq, Eq, Object)]
#[oai(rename = "PostInput", deny_unknown_fields)]
pub struct PostInput {
    /// What is said everywhere, unless a variant says otherwise.
    #[oai(default, validator(max_length = 100000))]
    pub universal_content: String,
    #[oai(default, validator(max_items = 7))]
    pub variants: Vec<Variant>,
    #[oai(default, validator(max_items = 20))]
    pub media: Vec<File>,
}

/// What a user wrote once.
#[derive(Debug, Clone, PartialEq, Eq, Object)]
#[oai(rename = "Post")]
pub struct PostView {
    pub id: PostId,
    pub universal_content: String,
    pub variants: Vec<Variant>,
    pub media: Vec<File>,
    /// Raised by every change.
    pub version: i32,
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
}

impl From<Post> for PostView {
    fn from(post: Post) -> Self {
        let variant = |(platform, text): (Platform, String)| Variant { platform: platform.into(), text };
        let file = |file: Attached| File { media_id: file.media, alt_text: file.alt_text };
        Self {
            id: post.id,
            universal_content: post.universal_content,
            variants: post.variants.into_iter().map(variant).collect(),
            media: post.media.into_iter().map(file).collect(),
            version: post.version,
            created_at: post.created_at,
            updated_at: post.updated_at,
        }
    }
}

impl PostInput {
    /// The post as it would be, or everything that no post may be.
    pub fn checked(self, id: PostId, tenant: TenantId) -> Result<Post, Problem> {
        let mut errors = Vec::new();
        let mut variants = BTreeMap::new();
        for (index, variant) in self.variants.into_iter().enumerate() {
            if variants.insert(Platform::from(variant.platform), variant.text).is_some() {
                let field = format!("variants[{index}].platform");
                errors.push(FieldError::new(field, "is there twice", "Send one variant for each platform"));
            }
        }
        let mut media: Vec<Attached> = Vec::new();
        for (index, file) in self.media.into_iter().enumerate() {
            if media.iter().any(|other| other.media == file.media_id) {
                let field = format!("media[{index}].media_id");
                errors.push(FieldError::new(field, "is there twice", "Name each file once"));
            }
            media.push(Attached { media: file.media_id, alt_text: file.alt_text.filter(|text| !text.is_empty()) });
        }
        let says_something =
            !self.universal_content.trim().is_empty() || variants.values().any(|text| !text.trim().is_empty());
        if !says_something && media.is_empty() {
            errors.push(FieldError::new("universal_content", "is empty", "Write something, or add media"));
        }
        if !errors.is_empty() {
            return Err(Problem::invalid(errors));
        }
        let now = Utc::now();
        Ok(Post {
            id,
            tenant,
            universal_content: self.universal_content,
            variants,
            media,
            version: 1,
            created_at: now,
            updated_at: now,
        })
    }
}

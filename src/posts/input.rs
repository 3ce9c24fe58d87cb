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

/// Where the texts of a post stand in what a caller sent, so that an error names a field that the caller knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextFields {
    universal: &'static str,
    /// In the caller's order.
    variants: Vec<Platform>,
}

impl TextFields {
    /// Of a post that is stored, as it is read back.
    pub fn of(post: &Post) -> Self {
        Self { universal: "universal_content", variants: post.variants.keys().copied().collect() }
    }

    /// The field with the text for everywhere.
    pub fn universal(&self) -> &'static str {
        self.universal
    }

    /// The field that holds what is said on a platform.
    pub fn name_for(&self, platform: Platform) -> String {
        match self.variants.iter().position(|variant| *variant == platform) {
            Some(index) => format!("variants[{index}].text"),
            None => self.universal.to_owned(),
        }
    }
}

/// A post as it would be, and everything about it that no post may be.
#[derive(Debug, Clone)]
pub struct Examined {
    pub post: Post,
    pub fields: TextFields,
    pub errors: Vec<FieldError>,
}

impl Examined {
    /// One that was examined before it was stored.
    pub fn stored(post: Post) -> Self {
        Self { fields: TextFields::of(&post), post, errors: Vec::new() }
    }

    /// For callers that have nothing to add to the errors.
    pub fn accepted(self) -> Result<(Post, TextFields), Problem> {
        if self.errors.is_empty() { Ok((self.post, self.fields)) } else { Err(Problem::invalid(self.errors)) }
    }
}

impl PostInput {
    /// `universal`: what the field with the text for everywhere is called in the caller's request.
    pub fn examine(self, id: PostId, tenant: TenantId, universal: &'static str) -> Examined {
        let platforms = self.variants.iter().map(|variant| Platform::from(variant.platform));
        let fields = TextFields { universal, variants: platforms.collect() };
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
            errors.push(FieldError::new(universal, "is empty", "Write something, or add media"));
        }
        // Until it is stored, and the database says when.
        let now = Utc::now();
        let post = Post {
            id,
            tenant,
            universal_content: self.universal_content,
            variants,
            media,
            version: 1,
            created_at: now,
            updated_at: now,
        };
        Examined { post, fields, errors }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn input(text: &str, variants: &[(PlatformName, &str)]) -> PostInput {
        let variant = |(platform, text): &(PlatformName, &str)| Variant { platform: *platform, text: (*text).into() };
        PostInput {
            universal_content: text.into(),
            variants: variants.iter().map(variant).collect(),
            media: Vec::new(),
        }
    }

    #[test]
    fn an_error_about_a_text_names_the_field_that_the_caller_sent() {
        let variants = [(PlatformName::Threads, "a"), (PlatformName::X, "b")];
        let examined = input("c", &variants).examine(PostId::new(), TenantId::new(), "text");
        assert_eq!(examined.fields.name_for(Platform::Threads), "variants[0].text");
        assert_eq!(examined.fields.name_for(Platform::X), "variants[1].text");
        assert_eq!(examined.fields.name_for(Platform::Facebook), "text");
        let stored = Examined::stored(examined.post);
        assert_eq!(stored.fields.name_for(Platform::Facebook), "universal_content");
        let empty = input(" ", &[]).examine(PostId::new(), TenantId::new(), "text");
        assert_eq!(empty.errors[0].field, "text");
        assert!(empty.accepted().is_err());
    }
}

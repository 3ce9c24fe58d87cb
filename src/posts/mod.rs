//! What a user wrote once: a text, variants for single platforms, files.

pub mod api;
pub mod input;
pub mod store;

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};

use crate::{
    ids::{MediaId, PostId, TenantId},
    platforms::Platform,
};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Post {
    pub id: PostId,
    pub tenant: TenantId,
    pub universal_content: String,
    pub variants: BTreeMap<Platform, String>,
    pub media: Vec<Attached>,
    pub version: i32,
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
}

/// A file of a post.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attached {
    pub media: MediaId,
    pub alt_text: Option<String>,
}

impl Post {
    /// What is said on a platform: its own variant, or what is said everywhere.
    pub fn text_for(&self, platform: Platform) -> &str {
        self.variants.get(&platform).unwrap_or(&self.universal_content)
    }

    /// What differs in another version of it, by the names that callers know.
    pub fn changes(&self, later: &Self) -> Vec<&'static str> {
        let fields = [
            ("universal_content", self.universal_content != later.universal_content),
            ("variants", self.variants != later.variants),
            ("media", self.media != later.media),
        ];
        fields.into_iter().filter_map(|(field, differs)| differs.then_some(field)).collect()
    }
}

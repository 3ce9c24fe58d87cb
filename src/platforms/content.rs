//! What goes to a platform: text and media, and what may be wrong with them.

use std::{fmt, io, str::FromStr};

use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::jobs::job::stored_names;

stored_names! {
    /// What a platform's rules tell apart.
    MediaKind {
        Image = "image",
        /// An image that moves (GIF): shown in a loop, without sound.
        Animation = "animation",
        Video = "video",
    }
}

/// What is known of a file that may go to a platform.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MediaFacts {
    pub kind: MediaKind,
    /// Of the bytes themselves, not of a name: `image/png`.
    pub content_type: String,
    pub size_bytes: u64,
    pub width: u32,
    pub height: u32,
    pub duration_ms: Option<u64>,
    pub frames: Option<u32>,
}

/// A file on its way to a platform.
pub struct MediaFile<'a> {
    pub facts: &'a MediaFacts,
    pub alt_text: Option<&'a str>,
    pub bytes: &'a dyn MediaBytes,
}

/// Reads any part of a file: an upload that goes on after a crash starts in the middle.
#[async_trait]
pub trait MediaBytes: Send + Sync {
    /// Exactly `length` bytes from `start`, or fewer where the file ends.
    async fn read(&self, start: u64, length: usize) -> io::Result<Bytes>;
}

/// Content before anything is queued.
pub struct Content<'a> {
    pub text: &'a str,
    pub media: &'a [ContentMedia],
}

#[derive(Debug, Clone)]
pub struct ContentMedia {
    pub facts: MediaFacts,
    /// The facts of an upload that a preset is going to make fit; what it mends is no problem.
    pub will_be_made: bool,
    pub alt_text: Option<String>,
}

/// One thing a platform would refuse, in words for the person who wrote the post.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ContentProblem {
    pub code: &'static str,
    /// `text`, `media`, `media[2]`.
    pub field: String,
    pub message: String,
    pub remedy: String,
}

/// Content as it will be sent: frozen when the publication was prepared, never changed after.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Draft {
    pub text: String,
    pub media: Vec<DraftMedia>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DraftMedia {
    pub kind: MediaKind,
    pub alt_text: Option<String>,
}

//! The platforms a post can go to. Stored by name: never rename, only add.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::jobs::job::stored_names;

stored_names! {
    /// Where a post can appear.
    Platform {
        X = "x",
        Facebook = "facebook",
        Instagram = "instagram",
        LinkedIn = "linkedin",
        YouTube = "youtube",
        TikTok = "tiktok",
        Threads = "threads",
    }
}

impl Platform {
    /// As its owner writes it, for sentences that a user reads.
    pub const fn title(self) -> &'static str {
        match self {
            Self::X => "X",
            Self::Facebook => "Facebook",
            Self::Instagram => "Instagram",
            Self::LinkedIn => "LinkedIn",
            Self::YouTube => "YouTube",
            Self::TikTok => "TikTok",
            Self::Threads => "Threads",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_platform_survives_its_stored_name() {
        for platform in Platform::ALL {
            assert_eq!(platform.as_str().parse(), Ok(*platform));
            assert_eq!(serde_json::to_value(platform).unwrap(), platform.as_str());
        }
        assert!("twitter".parse::<Platform>().is_err());
    }
}

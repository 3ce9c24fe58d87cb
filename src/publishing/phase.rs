//! Where a publication is, and where it may go from there.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::jobs::job::stored_names;

stored_names! {
    Phase {
        /// Its content may still change.
        Planned = "planned",
        /// Its content is frozen; editing the post no longer reaches it.
        Prepared = "prepared",
        /// The platform has its media.
        Uploaded = "uploaded",
        /// A creating request may have left: whether the post exists has to be found out.
        Sending = "sending",
        /// It exists; its remote id is kept.
        Sent = "sent",
        /// It does not exist, and will not without somebody's doing.
        Failed = "failed",
        /// It does not exist, and waits for its account's owner.
        NeedsReconnect = "needs_reconnect",
        /// Whether it exists could not be found out; never sent again by itself.
        Unconfirmed = "unconfirmed",
        Cancelled = "cancelled",
    }
}

impl Phase {
    /// The only ways. `Sent` is reached from an intent alone, and an intent from uploaded media alone.
    pub const fn may_become(self, next: Self) -> bool {
        use Phase::{Cancelled, Failed, NeedsReconnect, Planned, Prepared, Sending, Sent, Unconfirmed, Uploaded};
        match self {
            Planned => matches!(next, Prepared | Failed | NeedsReconnect | Cancelled),
            Prepared => matches!(next, Uploaded | Failed | NeedsReconnect | Cancelled),
            // Back to prepared: the platform has forgotten the media.
            Uploaded => matches!(next, Sending | Prepared | Failed | NeedsReconnect | Cancelled),
            // Back to uploaded: certainly nothing was created. Never straight to cancelled: it may exist (P4).
            Sending => matches!(next, Sent | Uploaded | Failed | Unconfirmed),
            NeedsReconnect => matches!(next, Planned | Prepared | Failed | Cancelled),
            // A second chance, asked for by a person.
            Failed => matches!(next, Planned),
            Unconfirmed => matches!(next, Sent | Failed | Cancelled),
            Sent | Cancelled => false,
        }
    }

    /// Whether a creating request may be under way or its outcome unknown.
    pub const fn is_in_doubt(self) -> bool {
        matches!(self, Self::Sending | Self::Unconfirmed)
    }

    /// Whether nothing more happens by itself.
    pub const fn is_settled(self) -> bool {
        matches!(self, Self::Sent | Self::Failed | Self::Cancelled)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_sent_or_cancelled_stays_so() {
        for next in Phase::ALL {
            assert!(!Phase::Sent.may_become(*next));
            assert!(!Phase::Cancelled.may_become(*next));
        }
    }

    #[test]
    fn nothing_in_doubt_is_ever_sent_again_or_cancelled_without_being_settled() {
        assert!(!Phase::Sending.may_become(Phase::Cancelled));
        for next in [Phase::Planned, Phase::Prepared, Phase::Uploaded, Phase::Sending] {
            assert!(!Phase::Unconfirmed.may_become(next));
        }
    }

    proptest! {
        /// Whatever path is taken, `sent` has an intent before it, the intent has uploaded media before it, and those
        /// have frozen content before them.
        #[test]
        fn phases_never_skip(choices in prop::collection::vec(any::<prop::sample::Index>(), 0..40)) {
            let mut path = vec![Phase::Planned];
            for choice in choices {
                let now = *path.last().unwrap();
                let ways: Vec<_> = Phase::ALL.iter().copied().filter(|next| now.may_become(*next)).collect();
                if ways.is_empty() { break }
                path.push(ways[choice.index(ways.len())]);
            }
            let first = |phase| path.iter().position(|seen| *seen == phase);
            let order = [Phase::Planned, Phase::Prepared, Phase::Uploaded, Phase::Sending, Phase::Sent];
            for pair in order.windows(2) {
                if let Some(at) = first(pair[1]) {
                    prop_assert!(first(pair[0]).is_some_and(|before| before < at), "{path:?}");
                }
            }
        }
    }
}

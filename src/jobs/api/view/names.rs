//! The engine's words as the API says them.

use poem_openapi::Enum;

use crate::jobs::{Priority, Queue, State};

macro_rules! mirrored {
    ($(#[$doc:meta])* $name:ident of $inner:ident { $($(#[$variant_doc:meta])* $variant:ident,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Enum)]
        #[oai(rename_all = "lowercase")]
        pub enum $name { $($(#[$variant_doc])* $variant,)+ }

        impl From<$inner> for $name {
            fn from(inner: $inner) -> Self {
                match inner { $($inner::$variant => Self::$variant,)+ }
            }
        }

        impl From<$name> for $inner {
            fn from(name: $name) -> Self {
                match name { $($name::$variant => Self::$variant,)+ }
            }
        }
    };
}

mirrored! {
    /// Where a job is in its life.
    JobState of State {
        /// For other jobs.
        Waiting,
        /// For a time, or for an event with a deadline.
        Scheduled,
        /// For a worker.
        Queued,
        Running,
        Succeeded,
        Failed,
        Cancelled,
    }
}

mirrored! {
    /// Which of two jobs of a queue goes first. Low is slow, never starved.
    JobPriority of Priority {
        High,
        Normal,
        Low,
    }
}

mirrored! {
    QueueName of Queue {
        Publish,
        Ai,
        Media,
        /// Tokens, webhooks, mail, upkeep.
        Ops,
    }
}

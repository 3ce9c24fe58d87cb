//! What becomes of each table when a workspace is exported or erased. A test compares this with the schema: every table is
//! in one of the lists.

/// A table of rows with a `tenant_id`.
#[derive(Debug, Clone, Copy)]
pub struct Exported {
    pub table: &'static str,
    /// Columns that no copy has: secrets, and what means nothing outside.
    pub without: &'static [&'static str],
}

const fn whole(table: &'static str) -> Exported {
    Exported { table, without: &[] }
}

const fn without(table: &'static str, without: &'static [&'static str]) -> Exported {
    Exported { table, without }
}

/// What a copy of a workspace has, in this order.
pub const EXPORTED: [Exported; 19] = [
    whole("workspace_members"),
    without("api_keys", &["secret_hash"]),
    without("connections", &["access_token", "refresh_token"]),
    whole("posts"),
    whole("post_media"),
    without("publications", &["fence"]),
    without("publication_media", &["upload_state"]),
    whole("publication_intents"),
    whole("media"),
    without("media_objects", &["storage_key"]),
    whole("renditions"),
    without("media_imports", &["sealed"]),
    without("jobs", &["worker_id", "seq", "trace_id"]),
    whole("job_groups"),
    whole("ai_usage"),
    without("exports", &["storage_key", "runs", "file_run"]),
    whole("workspace_plans"),
    without("patreon_links", &["access_token", "refresh_token"]),
    whole("audit_log"),
];

/// What a copy has besides: tables whose rows are their jobs' (`job_id`), and go with them.
pub const EXPORTED_OF_JOBS: [Exported; 2] = [without("job_attempts", &["worker_id"]), whole("job_notes")];

/// What a copy of a person has besides, of whatever workspace they are in: by the column that names them.
pub const EXPORTED_OF_PERSONS: [(&str, &str, Exported); 2] = [
    ("own_audit_lines", "user_id", whole("audit_log")),
    ("own_patreon_links", "linked_by", without("patreon_links", &["access_token", "refresh_token"])),
];

/// Tables of rows that are a workspace's by what they belong to. No copy has them: they say nothing that is not elsewhere
/// in it. They are erased with what they belong to.
pub const BELONGING: [&str; 3] = [
    // Which job waits for which.
    "job_edges",
    // What holds a file: the posts in the copy name it.
    "media_references",
    // What was spent in a day or a month: the sum of `ai_usage`.
    "ai_budgets",
];

/// Tables of the installation's own. Of people they hold ids at most, and for a while.
pub const NOBODYS: [&str; 14] = [
    "budget_windows",
    "erasures",
    "installation",
    "job_wakes",
    "patreon_hints",
    "patreon_tiers",
    "plans",
    "platform_circuits",
    "queue_canaries",
    "queue_controls",
    "relay_leader",
    "schedule_fires",
    "schedules",
    "workers",
];

/// People and workspaces themselves: exported by `app.export_people`, erased by `app.forget_user` and
/// `app.erase_workspace`.
pub const THEMSELVES: [&str; 2] = ["users", "workspaces"];

/// What a copy does not have: the product's own bookkeeping, which says nothing that is not elsewhere in it.
pub const NOT_EXPORTED: [&str; 6] = [
    // The answers to requests, for a week: what they tell of is exported.
    "idempotency_keys",
    "token_flights",
    "budget_grants",
    // Answers of language models, kept to be given again: they are among the jobs' results.
    "ai_cache",
    // Askings for an account, for ten minutes, made of secrets.
    "account_consents",
    // Linkings under way, of the same kind.
    "patreon_flows",
];

/// Of these, what is closed to workers: functions of the schema `app` give and erase it.
pub const PEOPLE: [&str; 2] = ["api_keys", "workspace_members"];

/// What is erased row by row, dependants before what they depend on. Bytes in storage are removed before.
pub const ERASED: [&str; 24] = [
    "account_consents",
    "api_keys",
    "ai_cache",
    "ai_usage",
    "token_flights",
    "budget_grants",
    "publication_intents",
    "publication_media",
    "publications",
    "post_media",
    "posts",
    "media_imports",
    "renditions",
    "media",
    "media_objects",
    "exports",
    "connections",
    "patreon_flows",
    "patreon_links",
    "workspace_plans",
    "idempotency_keys",
    "jobs",
    "job_groups",
    "workspace_members",
];

/// What stays, and why.
pub const KEPT: [&str; 1] = [
    // Who did what, for a year, also that they erased it. Refuses to be changed by anybody.
    "audit_log",
];

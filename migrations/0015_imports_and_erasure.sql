-- Files that are fetched for a user, and people's rights over their data.

-- An address that a job fetches a file from. It may hold a key (a signed link), so it is not among the job's
-- arguments, which operators see, and it goes when the file has come or never will.
create table media_imports (
    id uuid primary key,
    tenant_id uuid not null,
    -- Encrypted, bound to this row.
    sealed bytea,
    -- The name the user gave; without one it is the last part of the address.
    name text constraint media_imports_name_length check (length(name) between 1 and 255),
    -- What came of it. Kept for a while, so that a job that is repeated finds what it has made.
    media_id uuid references media (id) on delete set null,
    created_at timestamptz not null default now(),
    finished_at timestamptz,
    constraint media_imports_finished_keeps_no_address check ((finished_at is null) = (sealed is not null))
);
create index media_imports_oldest on media_imports (tenant_id, created_at);
create index media_imports_media on media_imports (media_id);

-- What was asked to be erased: the work to do, and for ever after the reason why credentials of before open nothing.
-- Ids and times; nothing of what was erased.
create table erasures (
    id uuid primary key,
    kind text not null constraint erasures_kind_known check (kind in ('workspace', 'user')),
    -- The workspace's id, or the user's.
    subject uuid not null,
    -- SHA-256 of what the provider calls the user: tokens from before the erasure must not make them anew.
    identity_hash bytea constraint erasures_identity_hash_is_sha256 check (octet_length(identity_hash) = 32),
    requested_at timestamptz not null default now(),
    finished_at timestamptz,
    -- Accounts whose platform did not take their tokens back; they were forgotten here all the same.
    not_revoked integer not null default 0,
    constraint erasures_subject_key unique (kind, subject)
);
create index erasures_identity on erasures (identity_hash) where identity_hash is not null;

-- A file with somebody's data, for them alone, for a week.
create table exports (
    id uuid primary key,
    tenant_id uuid not null,
    -- Whoever asked: nobody else gets it.
    user_id uuid not null,
    kind text not null constraint exports_kind_known check (kind in ('workspace', 'user')),
    -- Written before the first byte, so that no file is without a row.
    storage_key text not null,
    size_bytes bigint,
    created_at timestamptz not null default now(),
    ready_at timestamptz,
    expires_at timestamptz not null default now() + interval '7 days',
    constraint exports_storage_key_key unique (storage_key),
    constraint exports_ready_has_size check ((ready_at is null) = (size_bytes is null))
);
create index exports_tenant on exports (tenant_id, id);
create index exports_user on exports (user_id);
create index exports_expired on exports (expires_at);

-- Publishing: accounts, posts, and what becomes of one post on one account. Guarantees: docs/hazards.md, P1-P11.

create table connections (
    id uuid primary key,
    tenant_id uuid not null,
    platform text not null,
    -- The platform's own id of the account: names change, ids do not.
    remote_account_id text not null,
    username text not null,
    display_name text not null,
    state text not null default 'active'
        constraint connections_state_known check (state in ('active', 'needs_reconnect', 'removed')),
    -- {"code", "message", "turn"}: why it needs its owner.
    problem jsonb,
    -- Encrypted, bound to this row and column.
    access_token bytea,
    refresh_token bytea,
    access_expires_at timestamptz,
    -- Raised with every new pair of tokens.
    generation integer not null default 1,
    refreshed_at timestamptz not null default now(),
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now(),
    constraint connections_removed_holds_no_token
        check (state <> 'removed' or (access_token is null and refresh_token is null)),
    constraint connections_kept_holds_a_token check (state = 'removed' or access_token is not null)
);
create unique index connections_account_key on connections (tenant_id, platform, remote_account_id)
    where state <> 'removed';
create index connections_tenant on connections (tenant_id, id);

-- Who is trading a connection's refresh token right now (P8).
create table token_flights (
    connection_id uuid primary key references connections (id) on delete cascade,
    tenant_id uuid not null,
    -- The holder's mark: whoever takes the flight over changes it.
    fence uuid not null,
    -- Which pair is being traded, and how many requests with it may have reached the platform.
    generation integer not null,
    sent smallint not null default 0,
    expires_at timestamptz not null
);

create table posts (
    id uuid primary key,
    tenant_id uuid not null,
    universal_content text not null,
    -- Texts that stand in for the universal one: {"x": "..."}.
    variants jsonb not null default '{}',
    version integer not null default 1,
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now(),
    -- A post stays as long as publications speak of it; removed ones are no longer listed.
    removed_at timestamptz,
    constraint posts_variants_by_platform check (jsonb_typeof(variants) = 'object')
);
create index posts_tenant_newest on posts (tenant_id, id) where removed_at is null;

create table post_media (
    post_id uuid not null references posts (id) on delete cascade,
    position smallint not null,
    tenant_id uuid not null,
    media_id uuid not null references media (id) on delete restrict,
    alt_text text,
    primary key (post_id, position)
);
create index post_media_media on post_media (media_id);

-- One post on one connection: the unit that succeeds or fails.
create table publications (
    id uuid primary key,
    tenant_id uuid not null,
    post_id uuid not null references posts (id) on delete restrict,
    connection_id uuid not null references connections (id) on delete restrict,
    platform text not null,
    group_id uuid,
    job_id uuid not null,
    phase text not null default 'planned'
        constraint publications_phase_known check (phase in ('planned', 'prepared', 'uploaded', 'sending', 'sent',
            'failed', 'needs_reconnect', 'unconfirmed', 'cancelled')),
    -- Raised by every run that takes it up; every change names it.
    fence integer not null default 0,
    -- What was asked for, as it was asked: the wall time and its zone, and the instant they meant then.
    due_at timestamptz not null,
    wall_time timestamp,
    time_zone text,
    late_policy text not null
        constraint publications_late_policy_known check (late_policy in ('publish', 'skip', 'ask')),
    max_lateness_s integer not null constraint publications_lateness_positive check (max_lateness_s >= 0),
    -- The user said "send it all the same" after it was late.
    lateness_accepted boolean not null default false,
    -- The job whose result holds the text to use, where one was asked for.
    variant_job_id uuid,
    -- Frozen at 'prepared'.
    content jsonb,
    fingerprint text,
    -- Creating requests that were meant to leave.
    attempt smallint not null default 0,
    -- Times that its media had to be uploaded again.
    restages smallint not null default 0,
    remote_id text,
    permalink text,
    -- {"code", "message", "turn"}: why it waits or why it ended as it did.
    problem jsonb,
    sent_at timestamptz,
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now(),
    constraint publications_sent_has_remote check ((phase = 'sent') = (remote_id is not null)),
    constraint publications_prepared_is_frozen
        check (phase in ('planned', 'failed', 'cancelled', 'needs_reconnect')
            or (content is not null and fingerprint is not null)),
    constraint publications_schedule_complete check ((wall_time is null) = (time_zone is null)),
    -- No two publications can be the same post (P5).
    constraint publications_remote_post_key unique (connection_id, remote_id)
);
create index publications_post on publications (post_id);
create index publications_tenant_newest on publications (tenant_id, id);
create index publications_connection_sent on publications (connection_id, sent_at) where phase = 'sent';
create index publications_open on publications (connection_id)
    where phase in ('planned', 'prepared', 'uploaded', 'sending', 'needs_reconnect', 'unconfirmed');
create index publications_job on publications (job_id);
create index publications_group on publications (group_id) where group_id is not null;

-- The files of a publication and how far each is on its way to the platform.
create table publication_media (
    publication_id uuid not null references publications (id) on delete cascade,
    position smallint not null,
    tenant_id uuid not null,
    media_id uuid not null references media (id) on delete restrict,
    kind text not null constraint publication_media_kind_known check (kind in ('image', 'animation', 'video')),
    -- The rendition that is sent; none: the file as it is.
    preset text,
    alt_text text,
    -- A half-done upload in the connector's words, encrypted: it may hold addresses that need no password (P11).
    upload_state bytea,
    upload_started_at timestamptz,
    remote_id text,
    expires_at timestamptz,
    primary key (publication_id, position)
);
create index publication_media_media on publication_media (media_id);

-- Written before every creating request, with all that is needed to find out later what it did.
create table publication_intents (
    publication_id uuid not null references publications (id) on delete cascade,
    attempt smallint not null,
    tenant_id uuid not null,
    fingerprint text not null,
    -- Where the account's list ended before it, and the platform's own name for the post to come.
    baseline text not null,
    native_handle text,
    intended_at timestamptz not null,
    -- A look after this that sees nothing proves that nothing is there (P2).
    certain_after timestamptz not null,
    looks smallint not null default 0,
    last_look_at timestamptz,
    outcome text not null default 'open'
        constraint publication_intents_outcome_known
        check (outcome in ('open', 'created', 'adopted', 'refused', 'not_sent', 'absent', 'unknown')),
    -- Stable code of the refusal.
    code text,
    settled_at timestamptz,
    primary key (publication_id, attempt),
    constraint publication_intents_settled_has_outcome check ((outcome = 'open') = (settled_at is null))
);

-- Slots in a platform's limits, now or to come; one that is not used in its time frees itself (E17).
create table budget_grants (
    budget text not null,
    publication_id uuid not null references publications (id) on delete cascade,
    tenant_id uuid not null,
    slot_at timestamptz not null,
    expires_at timestamptz not null,
    used_at timestamptz,
    -- One grant for each creating request.
    attempt smallint not null,
    primary key (budget, publication_id, attempt)
);
create index budget_grants_slots on budget_grants (budget, slot_at desc);
create index budget_grants_publication on budget_grants (publication_id);

-- What a platform itself last said about a limit.
create table budget_windows (
    budget text primary key,
    limit_count integer not null,
    remaining integer not null,
    reset_at timestamptz not null,
    observed_at timestamptz not null default now()
);

-- Outage mode: a platform in trouble holds its publications and lets them go one by one.
create table platform_circuits (
    platform text primary key,
    -- Failures since the last success.
    failures integer not null default 0,
    last_failure_at timestamptz,
    -- While in the future nothing is sent; then one publication tries for all.
    open_until timestamptz,
    opened_at timestamptz,
    -- Openings in a row: each waits longer.
    openings smallint not null default 0,
    trying_until timestamptz,
    -- Publications held since it opened: each resumes a little after the one before.
    held integer not null default 0,
    problem jsonb
);

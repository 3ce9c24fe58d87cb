-- How much each workspace may do, and by whose word; memberships on Patreon that give plans; a limit for each key.

alter table api_keys
    -- Requests per window of the rate limits; null: only what limits its maker.
    add column rate_limit integer constraint api_keys_rate_limit_positive check (rate_limit > 0);

create table plans (
    name text primary key constraint plans_name_is_a_word check (name ~ '^[a-z0-9][a-z0-9_-]{0,39}$'),
    -- The plan of every workspace that was given none.
    is_default boolean not null default false,
    -- Of the plans that the tiers of one membership give, the one with the highest rank counts.
    rank integer not null default 0,
    -- Null: no limit. Months are calendar months in UTC.
    connections bigint,
    posts_per_month bigint,
    -- Of all uploads together, and of one.
    media_bytes bigint,
    upload_bytes bigint,
    upload_seconds bigint,
    -- In ticks, as ai_usage counts.
    ai_ticks_per_month bigint,
    created_at timestamptz not null default now(),
    constraint plans_limits_are_amounts
        check (least(connections, posts_per_month, media_bytes, upload_bytes, upload_seconds, ai_ticks_per_month) >= 0)
);
create unique index plans_one_default on plans (is_default) where is_default;

-- Whoever runs it for themselves has no limits and nothing to set up.
insert into plans (name, is_default) values ('unlimited', true);

-- What a workspace was given; one that the operator gave counts before one from a membership.
create table workspace_plans (
    tenant_id uuid not null references workspaces (id) on delete cascade,
    source text not null constraint workspace_plans_source_known check (source in ('operator', 'patreon')),
    plan text not null references plans (name) on update cascade on delete restrict,
    -- It ends by itself; null: when it is taken back.
    until timestamptz,
    given_at timestamptz not null default now(),
    primary key (tenant_id, source)
);
create index workspace_plans_plan on workspace_plans (plan);

-- What each tier of the installation's own campaign on Patreon is worth here.
create table patreon_tiers (
    tier_id text primary key,
    plan text not null references plans (name) on update cascade on delete restrict
);
create index patreon_tiers_plan on patreon_tiers (plan);

-- Linkings under way: each is good once, for a while, and for whoever began it.
create table patreon_flows (
    -- SHA-256 of the state: the state itself is known to the browser that went to Patreon alone.
    state_hash bytea primary key constraint patreon_flows_state_is_sha256 check (octet_length(state_hash) = 32),
    tenant_id uuid not null references workspaces (id) on delete cascade,
    user_id uuid not null references users (id) on delete cascade,
    -- SHA-256 of a secret that whoever began keeps, and shows at the end.
    challenge bytea not null constraint patreon_flows_challenge_is_sha256 check (octet_length(challenge) = 32),
    expires_at timestamptz not null,
    constraint patreon_flows_one_each unique (tenant_id, user_id)
);
create index patreon_flows_user on patreon_flows (user_id);
create index patreon_flows_expired on patreon_flows (expires_at);

create table patreon_links (
    id uuid primary key,
    tenant_id uuid not null references workspaces (id) on delete cascade,
    linked_by uuid not null references users (id) on delete cascade,
    patreon_user_id text not null,
    -- Encrypted, bound to this row and column.
    access_token bytea not null,
    refresh_token bytea not null,
    access_expires_at timestamptz not null,
    -- Raised with every new pair of tokens.
    generation integer not null default 1,
    -- Broken: Patreon refuses the tokens, and its owner has to link it again.
    state text not null default 'active' constraint patreon_links_state_known check (state in ('active', 'broken')),
    -- What was read last.
    patron_status text,
    tiers text[] not null default '{}',
    read_at timestamptz not null default now(),
    created_at timestamptz not null default now(),
    constraint patreon_links_tenant_key unique (tenant_id),
    -- One membership gives one workspace a plan.
    constraint patreon_links_account_key unique (patreon_user_id)
);
create index patreon_links_linked_by on patreon_links (linked_by);
create index patreon_links_stalest on patreon_links (read_at) where state = 'active';

-- Hints from Patreon that were taken in: they have no id, so each is known by its body.
create table patreon_hints (
    body_hash bytea primary key constraint patreon_hints_hash_is_sha256 check (octet_length(body_hash) = 32),
    received_at timestamptz not null default now()
);
create index patreon_hints_oldest on patreon_hints (received_at);

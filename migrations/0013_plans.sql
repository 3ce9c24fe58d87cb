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

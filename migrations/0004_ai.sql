-- Language models: what each call was reserved for and cost, what it may cost, and what was answered before.

-- One row per call to a provider, written before the call and settled after it: a crash between the two leaves a
-- reservation, which counts as spent until it is settled or written off as lost.
create table ai_usage (
    id uuid primary key,
    tenant_id uuid not null,
    job_id uuid,
    state text not null default 'reserved'
        constraint ai_usage_state_known check (state in ('reserved', 'settled', 'lost')),
    provider text not null,
    model_asked text not null,
    -- May differ from the one asked for.
    model_answered text,
    attempt smallint not null,
    -- 'answered', or the class of the failure.
    class text,
    http_status smallint,
    request_id text,
    -- Money in ticks of 1e-10 US dollars.
    reserved_ticks bigint not null constraint ai_usage_reserved_positive check (reserved_ticks >= 0),
    cost_ticks bigint constraint ai_usage_cost_positive check (cost_ticks >= 0),
    prompt_tokens integer,
    cached_tokens integer,
    completion_tokens integer,
    reasoning_tokens integer,
    -- The provider did not say what it used; it was counted here.
    estimated boolean not null default false,
    first_token_ms integer,
    latency_ms integer,
    reserved_at timestamptz not null default now(),
    expires_at timestamptz not null,
    settled_at timestamptz,
    constraint ai_usage_settled_is_priced
        check ((state = 'reserved') = (cost_ticks is null) and (state = 'reserved') = (settled_at is null))
);
create index ai_usage_tenant on ai_usage (tenant_id, reserved_at);
create index ai_usage_recent on ai_usage (provider, settled_at) where settled_at is not null;
create index ai_usage_open on ai_usage (expires_at) where state = 'reserved';

-- What may be spent in a period. Subjects: 'global', 'provider:<name>', 'tenant:<uuid>'. No row, no limit.
create table ai_budgets (
    subject text primary key,
    period text not null constraint ai_budgets_period_known check (period in ('day', 'month')),
    limit_ticks bigint not null constraint ai_budgets_limit_positive check (limit_ticks >= 0),
    -- Spent and reserved since period_start.
    used_ticks bigint not null default 0 constraint ai_budgets_used_positive check (used_ticks >= 0),
    period_start timestamptz not null default now()
);

-- Answers by the hash of everything that went into them. Never shared between tenants.
create table ai_cache (
    tenant_id uuid not null,
    key bytea not null,
    answer jsonb not null,
    created_at timestamptz not null default now(),
    expires_at timestamptz not null,
    primary key (tenant_id, key)
);
create index ai_cache_expired on ai_cache (expires_at);

-- The job engine: the ledger and what steers it. Words and guarantees: ARCHITECTURE.md, docs/hazards.md.

create type job_state as enum ('waiting', 'scheduled', 'queued', 'running', 'succeeded', 'failed', 'cancelled');

-- Order of becoming runnable, within a queue's list and tenant.
create sequence job_seq;

create table jobs (
    id uuid primary key,
    tenant_id uuid not null,
    group_id uuid,
    worker_id uuid,
    seq bigint not null default nextval('job_seq'),
    created_at timestamptz not null default now(),
    -- When it may run: changed by retries and snoozes.
    run_at timestamptz not null,
    -- When it was meant to run: never changed, the order within a serial key.
    due_at timestamptz not null,
    queued_at timestamptz,
    claimed_at timestamptz,
    -- Past it a run is not renewed any more: its time limit and a grace.
    deadline_at timestamptz,
    finished_at timestamptz,
    -- From here on it no longer waits for predecessors that are backing off (its serial order's patience).
    serial_until timestamptz,
    -- The fence: every claim raises it, every completion names it.
    run integer not null default 0,
    timeout_ms integer not null,
    priority smallint not null,
    attempt smallint not null default 0,
    max_attempts smallint not null,
    crashes smallint not null default 0,
    handbacks smallint not null default 0,
    open_parents smallint not null default 0,
    state job_state not null,
    -- Whoever made it runnable pushes it to the belt; otherwise the relay does, in fair turns.
    pushed boolean not null default false,
    -- It was in the hand of a process that crashed: it runs alone until it has shown its innocence.
    suspect boolean not null default false,
    -- Waits for an event, not only for a time: does not hold its serial order.
    parked boolean not null default false,
    cancel_requested boolean not null default false,
    has_children boolean not null default false,
    queue text not null,
    lane text not null,
    kind text not null,
    unique_key text,
    serial_key text,
    wake_key text,
    trace_id text,
    -- {"code", "message"}: why it waits or why it ended as it did.
    why jsonb,
    checkpoint jsonb,
    args jsonb not null,
    result jsonb,
    constraint jobs_finished_at_says_final
        check ((finished_at is not null) = (state in ('succeeded', 'failed', 'cancelled'))),
    constraint jobs_worker_holds_running check ((worker_id is not null) = (state = 'running')),
    constraint jobs_waiting_has_parents check (state <> 'waiting' or open_parents > 0)
) with (
    fillfactor = 80,
    autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_vacuum_insert_scale_factor = 0.05,
    autovacuum_analyze_scale_factor = 0.05,
    autovacuum_vacuum_cost_delay = 0
);

create index jobs_tenant_newest on jobs (tenant_id, id);
create index jobs_ready on jobs (queue, lane, priority, tenant_id, seq) where state = 'queued' and not suspect;
create index jobs_suspects on jobs (queue, lane, seq) where state = 'queued' and suspect;
create index jobs_running on jobs (worker_id) where state = 'running';
create index jobs_due on jobs (run_at) where state = 'scheduled' and serial_key is null;
create index jobs_due_serial on jobs (run_at) where state = 'scheduled' and serial_key is not null;
create index jobs_due_by_tenant on jobs (queue, lane, tenant_id, run_at) where state = 'scheduled';
create index jobs_waiting on jobs (id) where state = 'waiting';
create index jobs_failed on jobs (queue, finished_at) where state = 'failed';
create index jobs_tenant_failed on jobs (tenant_id, id) where state = 'failed';
create index jobs_group on jobs (group_id) where group_id is not null;
create index jobs_parked on jobs (wake_key) where wake_key is not null and state = 'scheduled';
create index jobs_serial on jobs (serial_key, due_at, id) where serial_key is not null and finished_at is null;
create unique index jobs_one_per_serial_key on jobs (serial_key)
    where serial_key is not null and state in ('queued', 'running');
create unique index jobs_unique_key on jobs (tenant_id, kind, unique_key)
    where unique_key is not null and finished_at is null;

create table job_edges (
    parent_id uuid not null,
    child_id uuid not null references jobs (id) on delete cascade,
    -- What a parent that did not succeed means for the child: 'cancel' or 'run'.
    on_parent text not null constraint job_edges_on_parent_known check (on_parent in ('cancel', 'run')),
    -- Closed once, by the statement that lowers the child for it.
    open boolean not null default true,
    primary key (parent_id, child_id)
);
create index job_edges_child on job_edges (child_id);

-- Runs that did not end in success, and why. Kept as long as their job.
create table job_attempts (
    job_id uuid not null references jobs (id) on delete cascade,
    run integer not null,
    worker_id uuid,
    started_at timestamptz,
    ended_at timestamptz not null default now(),
    class text not null,
    code text not null,
    message text not null,
    primary key (job_id, run)
);

-- When each wake-up event last came: a run that looked before it and parks after it must not sleep through it.
create table job_wakes (
    wake_key text primary key,
    at timestamptz not null
);
create index job_wakes_age on job_wakes (at);

-- Lines of a job's timeline beyond its own columns and attempts, written by allow-list.
create table job_notes (
    id bigint generated always as identity primary key,
    job_id uuid not null references jobs (id) on delete cascade,
    at timestamptz not null default now(),
    what text not null,
    detail jsonb not null
);
create index job_notes_job on job_notes (job_id, id);

create table job_groups (
    id uuid primary key,
    tenant_id uuid not null,
    name text not null,
    created_at timestamptz not null default now()
);
create index job_groups_tenant on job_groups (tenant_id, id);

-- One start of one worker process.
create table workers (
    id uuid primary key,
    -- Given by the supervising parent, which reports its death.
    process_id uuid not null,
    queue text not null,
    host text not null,
    pid integer not null,
    version text not null,
    started_at timestamptz not null default now(),
    lease_expires_at timestamptz not null,
    in_hand integer not null default 0,
    -- Runs since its start.
    ran bigint not null default 0,
    state text not null default 'alive'
        constraint workers_state_known check (state in ('alive', 'stopping', 'stopped', 'crashed', 'lost')),
    -- How it died: signal, exit code, out of memory, last lines of its log.
    cause text
);
create index workers_process on workers (process_id);
create index workers_expiry on workers (lease_expires_at) where state in ('alive', 'stopping', 'crashed');

create table queue_controls (
    queue text primary key,
    paused_at timestamptz,
    paused_by text
);

-- When a job last went the whole way through a queue.
create table queue_canaries (
    queue text primary key,
    seen_at timestamptz not null
);

-- The relay's leadership: one row, taken over when it expires by the server's clock.
create table relay_leader (
    singleton boolean primary key default true constraint relay_leader_is_one_row check (singleton),
    holder uuid not null,
    epoch bigint not null,
    expires_at timestamptz not null,
    -- Must equal the one kept in Redis; else the belt is rebuilt.
    belt_epoch uuid not null default gen_random_uuid()
);
insert into relay_leader (holder, epoch, expires_at)
values ('00000000-0000-0000-0000-000000000000', 0, 'epoch');

-- The database's own name on a shared Redis, so that staging beside production never mixes.
create table installation (
    singleton boolean primary key default true constraint installation_is_one_row check (singleton),
    id uuid not null default gen_random_uuid(),
    created_at timestamptz not null default now()
);
insert into installation default values;

create table schedules (
    name text primary key,
    cron text not null,
    timezone text not null,
    kind text not null,
    queue text not null,
    lane text not null,
    args jsonb not null,
    max_attempts smallint not null,
    timeout_ms integer not null,
    -- 'latest': of the fires missed while nobody led, the last one runs; 'skip': none does.
    catch_up text not null constraint schedules_catch_up_known check (catch_up in ('latest', 'skip')),
    next_at timestamptz not null,
    -- At most one unfinished job at a time; a fire that meets one is left out.
    exclusive boolean not null default false,
    paused boolean not null default false
);

create table schedule_fires (
    schedule text not null references schedules (name) on delete cascade,
    fire_at timestamptz not null,
    job_id uuid not null,
    primary key (schedule, fire_at)
);

-- Answers to repeated requests; outlive the jobs they point to.
create table idempotency_keys (
    tenant_id uuid not null,
    route text not null,
    key text not null,
    request_hash bytea not null,
    status smallint,
    location text,
    response jsonb,
    job_id uuid,
    created_at timestamptz not null default now(),
    primary key (tenant_id, route, key)
);
create index idempotency_keys_age on idempotency_keys (created_at);

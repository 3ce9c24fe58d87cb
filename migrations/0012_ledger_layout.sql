-- The ledger's columns in an order that Postgres reads fast: what is never null and of a fixed width first, so that the
-- place of each is known without walking the row; what is null most of the time and of any width last. Every move of a
-- job compares some twenty indexed columns of its old and its new row: with a null third they were walked to one by one,
-- and a job's way through the ledger cost a sixth more. Columns cannot be moved, so the table is written anew.
lock table jobs in access exclusive mode;

create table jobs_anew (
    id uuid not null,
    tenant_id uuid not null,
    seq bigint not null default nextval('job_seq'),
    created_at timestamptz not null default now(),
    -- When it may run: changed by retries and snoozes.
    run_at timestamptz not null,
    -- When it was meant to run: never changed, the order within a serial key.
    due_at timestamptz not null,
    -- The fence: every claim raises it, every completion names it.
    run integer not null default 0,
    timeout_ms integer not null,
    state job_state not null,
    priority smallint not null,
    attempt smallint not null default 0,
    max_attempts smallint not null,
    crashes smallint not null default 0,
    -- See 0006.
    blame smallint not null default 0,
    handbacks smallint not null default 0,
    -- How often somebody asked to run it once more.
    retries smallint not null default 0,
    open_parents smallint not null default 0,
    -- Whoever made it runnable pushes it to the belt; otherwise the relay does, in fair turns.
    pushed boolean not null default false,
    -- It was in the hand of a process that crashed: it runs alone until it has shown its innocence.
    suspect boolean not null default false,
    -- Waits for an event, not only for a time: does not hold its serial order.
    parked boolean not null default false,
    cancel_requested boolean not null default false,
    -- Past the point where cancelling it could undo what it does.
    committed boolean not null default false,
    has_children boolean not null default false,
    queue text not null,
    lane text not null,
    kind text not null,
    group_id uuid,
    worker_id uuid,
    queued_at timestamptz,
    claimed_at timestamptz,
    -- Past it a run is not renewed any more: its time limit and a grace.
    deadline_at timestamptz,
    finished_at timestamptz,
    -- From here on it no longer waits for predecessors that are backing off (its serial order's patience).
    serial_until timestamptz,
    wake_seen bigint,
    unique_key text,
    serial_key text,
    wake_key text,
    trace_id text,
    -- {"code", "message"}: why it waits or why it ended as it did.
    why jsonb,
    checkpoint jsonb,
    args jsonb not null,
    result jsonb
) with (
    fillfactor = 80,
    autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_vacuum_insert_scale_factor = 0.05,
    autovacuum_analyze_scale_factor = 0.05,
    autovacuum_vacuum_cost_delay = 0
);

insert into jobs_anew (
    id, tenant_id, seq, created_at, run_at, due_at, run, timeout_ms, state, priority, attempt, max_attempts, crashes,
    blame, handbacks, retries, open_parents, pushed, suspect, parked, cancel_requested, committed, has_children, queue,
    lane, kind, group_id, worker_id, queued_at, claimed_at, deadline_at, finished_at, serial_until, wake_seen,
    unique_key, serial_key, wake_key, trace_id, why, checkpoint, args, result
)
select
    id, tenant_id, seq, created_at, run_at, due_at, run, timeout_ms, state, priority, attempt, max_attempts, crashes,
    blame, handbacks, retries, open_parents, pushed, suspect, parked, cancel_requested, committed, has_children, queue,
    lane, kind, group_id, worker_id, queued_at, claimed_at, deadline_at, finished_at, serial_until, wake_seen,
    unique_key, serial_key, wake_key, trace_id, why, checkpoint, args, result
from jobs order by id;

alter table job_edges drop constraint job_edges_child_id_fkey;
alter table job_attempts drop constraint job_attempts_job_id_fkey;
alter table job_notes drop constraint job_notes_job_id_fkey;
drop table jobs;
alter table jobs_anew rename to jobs;

alter table jobs
    -- A job has three versions on its way, and each has an entry in the two indexes of all jobs, which grow at their end:
    -- with room beside the first, its others neither split pages nor make Postgres look for dead ones to push out.
    add constraint jobs_pkey primary key (id) with (fillfactor = 40),
    add constraint jobs_finished_at_says_final
        check ((finished_at is not null) = (state in ('succeeded', 'failed', 'cancelled'))),
    add constraint jobs_worker_holds_running check ((worker_id is not null) = (state = 'running')),
    add constraint jobs_waiting_has_parents check (state <> 'waiting' or open_parents > 0);
alter table job_edges add constraint job_edges_child_id_fkey foreign key (child_id) references jobs on delete cascade;
alter table job_attempts add constraint job_attempts_job_id_fkey foreign key (job_id) references jobs on delete cascade;
alter table job_notes add constraint job_notes_job_id_fkey foreign key (job_id) references jobs on delete cascade;

-- The same indexes but one, whose rows two others divide between them. Each condition asks first what tells most rows
-- apart: it is asked for each index at each move.
create index jobs_tenant_newest on jobs (tenant_id, id) with (fillfactor = 40);
create index jobs_ready on jobs (queue, lane, priority, tenant_id, seq) where state = 'queued' and not suspect;
create index jobs_pushed on jobs (queue, lane, priority) where state = 'queued' and pushed and not suspect;
create index jobs_suspects on jobs (queue, lane, seq) where state = 'queued' and suspect;
create index jobs_running on jobs (worker_id) where state = 'running';
create index jobs_due on jobs (run_at) where state = 'scheduled' and serial_key is null;
create index jobs_due_serial on jobs (run_at) where state = 'scheduled' and serial_key is not null;
-- Turns between tenants are over jobs without a serial order only: thousands of the others must not stand before them.
create index jobs_due_turns on jobs (queue, lane, tenant_id, run_at) where state = 'scheduled' and serial_key is null;
-- Which serial orders have something due.
create index jobs_serial_due on jobs (serial_key, run_at) where state = 'scheduled' and serial_key is not null;
create index jobs_serial_scheduled on jobs (queue, lane) where state = 'scheduled' and serial_key is not null;
-- The line of a serial order: who holds whom, parked ones left out.
create index jobs_serial_line on jobs (serial_key, due_at, id)
    where state in ('waiting', 'scheduled') and serial_key is not null and not parked;
create unique index jobs_one_per_serial_key on jobs (serial_key)
    where state in ('queued', 'running') and serial_key is not null;
create index jobs_parked on jobs (wake_key) where state = 'scheduled' and wake_key is not null;
create index jobs_waiting on jobs (id) where state = 'waiting';
create index jobs_failed on jobs (queue, finished_at) where state = 'failed';
create index jobs_tenant_failed on jobs (tenant_id, id) where state = 'failed';
create unique index jobs_unique_key on jobs (tenant_id, kind, unique_key)
    where finished_at is null and unique_key is not null;
-- Handed back again and again: somebody should look.
create index jobs_handed_back on jobs (queue) where handbacks >= 3 and finished_at is null;
-- A page of a group.
create index jobs_group_page on jobs (group_id, id) where group_id is not null;

-- Not an empty one: the planner believes of a table that was never looked at that it will fill, and of one that was found
-- empty that it stays so.
do $$
begin
    if exists (select from jobs) then
        analyze jobs;
    end if;
end
$$;

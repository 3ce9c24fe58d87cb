-- What keeps the engine's statements bounded however large the ledger is. Each index is partial on something that a
-- plain job is not, so that the common way of a job through the ledger costs no more.

-- Queued rows that their makers push: what resuming resets and the audit compares, without reading the backlog.
create index jobs_pushed on jobs (queue, lane, priority) where state = 'queued' and pushed and not suspect;

-- The line of a serial order: who holds whom, parked ones left out.
create index jobs_serial_line on jobs (serial_key, due_at, id)
    where serial_key is not null and state in ('waiting', 'scheduled') and not parked;
-- Which serial orders have something due.
create index jobs_serial_due on jobs (serial_key, run_at) where serial_key is not null and state = 'scheduled';

-- Turns between tenants are over jobs without a serial order only: thousands of the others must not stand before them.
create index jobs_due_turns on jobs (queue, lane, tenant_id, run_at) where state = 'scheduled' and serial_key is null;
create index jobs_serial_scheduled on jobs (queue, lane) where state = 'scheduled' and serial_key is not null;
drop index jobs_due_by_tenant;

-- Handed back again and again: somebody should look.
create index jobs_handed_back on jobs (queue) where handbacks >= 3 and finished_at is null;

-- A page of a group.
create index jobs_group_page on jobs (group_id, id) where group_id is not null;
drop index jobs_group;

-- Which event a parked job has been woken by, so that the same event does not wake it twice.
create sequence job_wake_seq;
alter table job_wakes add column seq bigint not null default nextval('job_wake_seq');
alter table jobs add column wake_seen bigint;

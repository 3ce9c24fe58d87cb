-- Jobs without a unique key can meet no other: their rows are written straight away. Watching for a conflict writes each
-- row by a detour (a token taken and confirmed, in the log as well), a tenth of what the ledger does for a new job.
-- The body of a function in SQL is looked at while it is made: as its owner may see.
set local row_security = on;
grant create on schema app to multivio_definer;
set local role multivio_definer;

-- The rows that enter, by whichever way. Planned as a part of the statement that asks.
create function app.entering(
    p_ids uuid[], p_tenants uuid[], p_groups uuid[], p_queues text[], p_lanes text[], p_kinds text[],
    p_priorities smallint[], p_args text[], p_max_attempts smallint[], p_timeouts_ms integer[],
    p_run_at timestamptz[], p_pushed boolean[], p_unique_keys text[], p_serial_keys text[],
    p_open_parents smallint[], p_patience_ms bigint[]
) returns table (
    id uuid, tenant_id uuid, group_id uuid, queue text, lane text, kind text, priority smallint, args jsonb,
    max_attempts smallint, timeout_ms integer, run_at timestamptz, due_at timestamptz, serial_until timestamptz,
    state public.job_state, queued_at timestamptz, pushed boolean, unique_key text, serial_key text,
    open_parents smallint
) language sql stable as $$
    select n.id, n.tenant_id, n.group_id, n.queue, n.lane, n.kind, n.priority, n.args::jsonb, n.max_attempts,
           n.timeout_ms, coalesce(n.run_at, now()), coalesce(n.run_at, now()),
           coalesce(n.run_at, now()) + n.patience_ms * interval '1 millisecond', s.state,
           case when s.state = 'queued' then now() end,
           n.pushed and s.state = 'queued' and not exists (
               select from public.queue_controls c where c.queue = n.queue and c.paused_at is not null), n.unique_key,
           n.serial_key, n.open_parents
    from unnest(p_ids, p_tenants, p_groups, p_queues, p_lanes, p_kinds, p_priorities, p_args, p_max_attempts,
                p_timeouts_ms, p_run_at, p_pushed, p_unique_keys, p_serial_keys, p_open_parents, p_patience_ms)
         as n (id, tenant_id, group_id, queue, lane, kind, priority, args, max_attempts, timeout_ms, run_at,
               pushed, unique_key, serial_key, open_parents, patience_ms),
         lateral (select case when n.open_parents > 0 then 'waiting'
                              when n.serial_key is not null or n.run_at > now() then 'scheduled'
                              else 'queued' end::public.job_state as state) as s
$$;
revoke execute on function app.entering from public;
grant execute on function app.entering to multivio_api, multivio_worker;

create or replace function app.enqueue(
    p_ids uuid[], p_tenants uuid[], p_groups uuid[], p_queues text[], p_lanes text[], p_kinds text[],
    p_priorities smallint[], p_args text[], p_max_attempts smallint[], p_timeouts_ms integer[],
    p_run_at timestamptz[], p_pushed boolean[], p_unique_keys text[], p_serial_keys text[],
    p_open_parents smallint[], p_patience_ms bigint[]
) returns table (id uuid, state text) language plpgsql security definer set search_path = '' as $$
#variable_conflict use_column
begin
    if pg_catalog.array_position(p_tenants, null) is not null then
        raise exception 'a job has a workspace' using errcode = 'insufficient_privilege';
    end if;
    -- Two questions in one another: the outer one costs no query, and most batches end there.
    if pg_catalog.array_remove(p_groups, null) <> '{}' then
        if exists (
            select from unnest(p_tenants, p_groups) as r (tenant_id, group_id)
            where r.group_id is not null and not exists (
                select from public.job_groups g where g.id = r.group_id and g.tenant_id = r.tenant_id)
        ) then
            raise exception 'a job may enter its own workspace''s groups only' using errcode = 'insufficient_privilege';
        end if;
    end if;
    if pg_catalog.array_remove(p_unique_keys, null) = '{}' then
        return query
        insert into public.jobs as j (id, tenant_id, group_id, queue, lane, kind, priority, args, max_attempts,
                                      timeout_ms, run_at, due_at, serial_until, state, queued_at, pushed, unique_key,
                                      serial_key, open_parents)
        select e.id, e.tenant_id, e.group_id, e.queue, e.lane, e.kind, e.priority, e.args, e.max_attempts, e.timeout_ms,
               e.run_at, e.due_at, e.serial_until, e.state, e.queued_at, e.pushed, e.unique_key, e.serial_key,
               e.open_parents
        from app.entering(
            p_ids, p_tenants, p_groups, p_queues, p_lanes, p_kinds, p_priorities, p_args, p_max_attempts,
            p_timeouts_ms, p_run_at, p_pushed, p_unique_keys, p_serial_keys, p_open_parents, p_patience_ms) e
        returning j.id, j.state::text;
    else
        return query
        insert into public.jobs as j (id, tenant_id, group_id, queue, lane, kind, priority, args, max_attempts,
                                      timeout_ms, run_at, due_at, serial_until, state, queued_at, pushed, unique_key,
                                      serial_key, open_parents)
        select e.id, e.tenant_id, e.group_id, e.queue, e.lane, e.kind, e.priority, e.args, e.max_attempts, e.timeout_ms,
               e.run_at, e.due_at, e.serial_until, e.state, e.queued_at, e.pushed, e.unique_key, e.serial_key,
               e.open_parents
        from app.entering(
            p_ids, p_tenants, p_groups, p_queues, p_lanes, p_kinds, p_priorities, p_args, p_max_attempts,
            p_timeouts_ms, p_run_at, p_pushed, p_unique_keys, p_serial_keys, p_open_parents, p_patience_ms) e
        on conflict (tenant_id, kind, unique_key) where unique_key is not null and finished_at is null do nothing
        returning j.id, j.state::text;
    end if;
end
$$;
reset role;
revoke create on schema app from multivio_definer;

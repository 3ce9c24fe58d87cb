-- The group commit asks about groups only where a job names one: the question cost each batch a query of its own.
-- Replaced as its owner, so that who may run it stays as it is.
grant create on schema app to multivio_definer;
set local role multivio_definer;
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
    return query
    insert into public.jobs as j (id, tenant_id, group_id, queue, lane, kind, priority, args, max_attempts, timeout_ms,
                                  run_at, due_at, serial_until, state, queued_at, pushed, unique_key, serial_key,
                                  open_parents)
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
    on conflict (tenant_id, kind, unique_key) where unique_key is not null and finished_at is null do nothing
    returning j.id, j.state::text;
end
$$;
reset role;
revoke create on schema app from multivio_definer;

-- Row level security: the database itself keeps tenants apart, whatever a statement forgets. How and why:
-- docs/security.md, "Tenancy", and docs/decisions/0010.

-- Who the product's sessions are: they log in as whoever DATABASE_URL names and become one of the first two
-- (`set role`). Roles belong to the whole cluster: another database of it may have made them, perhaps at this moment.
do $$
declare
    ours text;
    is_new boolean := current_setting('server_version_num')::integer >= 160000;
begin
    foreach ours in array array['multivio_api', 'multivio_worker', 'multivio_definer'] loop
        if not exists (select from pg_catalog.pg_roles where rolname = ours) then
            begin
                execute format('create role %I nologin noinherit nobypassrls', ours);
            exception
                when duplicate_object or unique_violation then null;
                when insufficient_privilege then
                    raise exception 'the role % does not exist and % may not make it', ours, current_user
                        using errcode = 'insufficient_privilege', hint = format(
                            'As an administrator: create role %1$I nologin noinherit nobypassrls; grant %1$I to %2$I%3$s', ours,
                            -- Before 16 it is the login that inherits or not; one that does not has no right to `public`
                            -- by owning the database.
                            current_user, case when is_new then ' with inherit false, set true' else format(
                                '; alter role %1$I noinherit; grant create, usage on schema public to %1$I', current_user) end);
            end;
        end if;
        for attempt in 1..10 loop
            -- Without inheriting: what forgets to become one of them is nobody.
            exit when pg_has_role(current_user, ours, case when is_new then 'SET' else 'MEMBER' end);
            begin
                execute format('grant %I to %I', ours, current_user)
                    || case when is_new then ' with inherit false, set true' else '' end;
            exception
                -- Another database is being migrated.
                when unique_violation or internal_error then perform pg_sleep(0.1);
            end;
        end loop;
    end loop;
end
$$;

-- `auth.uid()`: there on Supabase, made here elsewhere. It reads the same setting with the same meaning.
do $$
begin
    if to_regnamespace('auth') is null then
        create schema auth;
        grant usage on schema auth to multivio_api, multivio_worker, multivio_definer;
    end if;
    if to_regprocedure('auth.uid()') is null then
        create function auth.uid() returns uuid language sql stable as $uid$
            select coalesce(
                nullif(pg_catalog.current_setting('request.jwt.claim.sub', true), ''),
                nullif(pg_catalog.current_setting('request.jwt.claims', true), '')::pg_catalog.jsonb ->> 'sub'
            )::pg_catalog.uuid
        $uid$;
    end if;
end
$$;

-- Not exposed by Supabase's API, which shows `public`.
create schema app;
grant usage on schema app to multivio_api, multivio_worker, multivio_definer;

-- The workspace of the call that this session serves; null: none, and then no row is anybody's.
create function app.tenant() returns uuid language sql stable as $$
    select nullif(pg_catalog.current_setting('multivio.tenant', true), '')::pg_catalog.uuid
$$;

-- Every table is closed first. What follows opens; what nobody opened stays closed.
do $$
declare
    closed text;
    client text;
begin
    foreach closed in array array[
        'ai_budgets', 'ai_cache', 'ai_usage', 'api_keys', 'audit_log', 'budget_grants', 'budget_windows',
        'connections', 'idempotency_keys', 'installation', 'job_attempts', 'job_edges', 'job_groups', 'job_notes',
        'job_wakes', 'jobs', 'media', 'media_objects', 'media_references', 'platform_circuits', 'post_media', 'posts',
        'publication_intents', 'publication_media', 'publications', 'queue_canaries', 'queue_controls',
        'relay_leader', 'renditions', 'schedule_fires', 'schedules', 'token_flights', 'users', 'workers',
        'workspace_members', 'workspaces'
    ] loop
        execute format('alter table public.%I enable row level security', closed);
        execute format('alter table public.%I force row level security', closed);
        execute format('revoke all on public.%I from public', closed);
        -- Supabase gives its clients every new table.
        for client in select rolname from pg_catalog.pg_roles where rolname in ('anon', 'authenticated') loop
            execute format('revoke all on public.%I from %I', closed, client);
        end loop;
    end loop;
    for client in select rolname from pg_catalog.pg_roles where rolname in ('anon', 'authenticated') loop
        execute format('revoke all on sequence public.job_seq, public.job_wake_seq from %I', client);
    end loop;
end
$$;
grant usage on schema public to multivio_api, multivio_worker, multivio_definer;

-- Workers and the relay serve every tenant: all of the engine, of publishing, media and language models. Of people
-- they need nothing: users, workspaces, members and API keys stay closed to them.
do $$
declare
    served text;
begin
    foreach served in array array[
        'ai_budgets', 'ai_cache', 'ai_usage', 'budget_grants', 'budget_windows', 'connections', 'idempotency_keys',
        'installation', 'job_attempts', 'job_edges', 'job_groups', 'job_notes', 'job_wakes', 'jobs', 'media',
        'media_objects', 'media_references', 'platform_circuits', 'post_media', 'posts', 'publication_intents',
        'publication_media', 'publications', 'queue_canaries', 'queue_controls', 'relay_leader', 'renditions',
        'schedule_fires', 'schedules', 'token_flights', 'workers'
    ] loop
        execute format('grant select, insert, update, delete on public.%I to multivio_worker', served);
        execute format('create policy worker on public.%I to multivio_worker using (true) with check (true)', served);
    end loop;
end
$$;
grant usage on sequence public.job_seq, public.job_wake_seq to multivio_worker;
-- What operators do is written down, and what is a year old is let go.
grant select, insert, delete on public.audit_log to multivio_worker;
create policy worker on public.audit_log to multivio_worker using (true) with check (true);

-- The API: the rows of the call's workspace, and of each table only what its calls do.
do $$
declare
    tenants text;
begin
    foreach tenants in array array[
        'ai_usage', 'api_keys', 'connections', 'idempotency_keys', 'job_groups', 'media', 'media_objects', 'post_media',
        'posts', 'publication_intents', 'publication_media', 'publications', 'renditions'
    ] loop
        execute format(
            'create policy tenant on public.%I to multivio_api '
            'using (tenant_id = (select app.tenant())) with check (tenant_id = (select app.tenant()))', tenants);
    end loop;
end
$$;
grant select on public.ai_usage, public.renditions, public.publication_media to multivio_api;
grant select, insert on public.idempotency_keys, public.job_groups to multivio_api;
grant select, insert, update on public.media, public.posts, public.publications to multivio_api;
grant select, update on public.publication_intents to multivio_api;
grant select, insert, update, delete on public.media_objects to multivio_api;
grant select, insert, delete on public.post_media to multivio_api;
-- Tokens go in and never come out: only workers read them.
grant select (id, tenant_id, platform, remote_account_id, username, display_name, state, problem, access_expires_at,
              generation, refreshed_at, created_at, updated_at), insert, update
    on public.connections to multivio_api;
-- Nor do the hashes of keys: see app.find_key.
grant select (id, tenant_id, created_by, name, prefix, scopes, connections, expires_at, last_used_at, revoked_at,
              created_at), insert, update (revoked_at)
    on public.api_keys to multivio_api;

-- A job of another workspace's group would show itself there.
grant select, insert, update on public.jobs to multivio_api;
grant usage on sequence public.job_seq to multivio_api;
create policy tenant on public.jobs to multivio_api using (tenant_id = (select app.tenant())) with check (
    tenant_id = (select app.tenant())
    and (group_id is null or exists (select from public.job_groups g where g.id = group_id)));
-- Whose these are say the rows they hang on, which are looked at by the policies of their own table.
grant select on public.job_attempts, public.job_notes to multivio_api;
grant select, insert, update on public.job_edges to multivio_api;
grant select, insert, delete on public.media_references to multivio_api;
create policy tenant on public.job_attempts to multivio_api
    using (exists (select from public.jobs j where j.id = job_id));
create policy tenant on public.job_notes to multivio_api
    using (exists (select from public.jobs j where j.id = job_id));
create policy tenant on public.job_edges to multivio_api
    using (exists (select from public.jobs j where j.id = child_id))
    with check (exists (select from public.jobs j where j.id = child_id)
                and exists (select from public.jobs j where j.id = parent_id));
create policy tenant on public.media_references to multivio_api
    using (exists (select from public.media m where m.id = media_id))
    with check (exists (select from public.media m where m.id = media_id));
grant select on public.ai_budgets to multivio_api;
create policy tenant on public.ai_budgets to multivio_api
    using (subject = 'tenant:' || (select app.tenant())::text);
-- Nobody's in particular: whether a queue is paused.
grant select on public.queue_controls to multivio_api;
create policy everybody on public.queue_controls for select to multivio_api using (true);

-- People: oneself, whoever is in the workspace of the call, and the workspaces that one is in.
grant select, insert, update (role), delete on public.workspace_members to multivio_api;
create policy seen on public.workspace_members for select to multivio_api
    using (tenant_id = (select app.tenant()) or user_id = (select auth.uid()));
create policy added on public.workspace_members for insert to multivio_api
    with check (tenant_id = (select app.tenant()));
create policy changed on public.workspace_members for update to multivio_api
    using (tenant_id = (select app.tenant())) with check (tenant_id = (select app.tenant()));
create policy removed on public.workspace_members for delete to multivio_api
    using (tenant_id = (select app.tenant()));
-- Changed by nobody here, but locked: to change members one after the other.
grant select, update (name) on public.workspaces to multivio_api;
create policy seen on public.workspaces for select to multivio_api
    using (id in (select m.tenant_id from public.workspace_members m where m.user_id = (select auth.uid())));
create policy changed on public.workspaces for update to multivio_api using (id = (select app.tenant()));
-- Of a user nothing can be changed but since when tokens are good: nobody makes himself an administrator.
grant select, update (tokens_valid_after) on public.users to multivio_api;
create policy seen on public.users for select to multivio_api using (
    id = (select auth.uid())
    or id in (select m.user_id from public.workspace_members m where m.tenant_id = (select app.tenant())));
create policy changed on public.users for update to multivio_api
    using (id = (select auth.uid())) with check (id = (select auth.uid()));
-- A session that serves a workspace's things and no caller sees and changes nothing of people, whatever is open above.
do $$
declare
    of_people text;
begin
    foreach of_people in array array['api_keys', 'audit_log', 'users', 'workspace_members', 'workspaces'] loop
        execute format('create policy somebodys on public.%I as restrictive to multivio_api '
                       'using ((select auth.uid()) is not null)', of_people);
    end loop;
end
$$;
-- What was done, by whoever did it.
grant select, insert on public.audit_log to multivio_api;
create policy seen on public.audit_log for select to multivio_api using (tenant_id = (select app.tenant()));
create policy written on public.audit_log for insert to multivio_api with check (
    user_id = (select auth.uid())
    and (tenant_id = (select app.tenant())
         -- A workspace that was made this moment.
         or tenant_id in (select m.tenant_id from public.workspace_members m where m.user_id = (select auth.uid()))));

-- What has to be looked up before it is known whose call it is, and the little that crosses workspaces: one narrow
-- function each. They run as a role of their own, which may do this and nothing else.
grant select, insert on public.users to multivio_definer;
grant update (email, name, personal_workspace_id, role, disabled_at) on public.users to multivio_definer;
grant select, insert on public.workspaces, public.workspace_members to multivio_definer;
grant select, update (last_used_at) on public.api_keys to multivio_definer;
grant select, insert, update on public.jobs to multivio_definer;
grant select, insert, update on public.job_wakes to multivio_definer;
grant select on public.job_groups, public.queue_controls to multivio_definer;
grant select (id, tenant_id, platform, remote_account_id) on public.connections to multivio_definer;
grant select (id, connection_id, phase, remote_id, sent_at) on public.publications to multivio_definer;
grant usage on sequence public.job_seq, public.job_wake_seq to multivio_definer;
do $$
declare
    behind text;
begin
    foreach behind in array array[
        'api_keys', 'connections', 'job_groups', 'job_wakes', 'jobs', 'publications', 'queue_controls', 'users',
        'workspace_members', 'workspaces'
    ] loop
        execute format('create policy definer on public.%I to multivio_definer using (true) with check (true)', behind);
    end loop;
end
$$;

-- They are looked at as they are made, and what they read is closed to whoever makes them.
set local row_security = on;

create function app.find_key(p_prefix text)
returns table (id uuid, tenant_id uuid, created_by uuid, secret_hash bytea, scopes text[], connections uuid[],
               expires_at timestamptz, is_alive boolean, is_admin boolean, role text, is_use_to_be_noted boolean)
language sql stable security definer set search_path = '' as $$
    select k.id, k.tenant_id, k.created_by, k.secret_hash, k.scopes, k.connections, k.expires_at,
        k.revoked_at is null and coalesce(k.expires_at > now(), true) and u.disabled_at is null,
        u.role = 'admin', m.role, coalesce(k.last_used_at < now() - interval '1 minute', true)
    from public.api_keys k join public.users u on u.id = k.created_by
    left join public.workspace_members m on m.tenant_id = k.tenant_id and m.user_id = k.created_by
    where k.prefix = p_prefix
$$;

create function app.note_key_use(p_key uuid) returns void language sql security definer set search_path = '' as $$
    update public.api_keys set last_used_at = now()
    where id = p_key and coalesce(last_used_at < now() - interval '1 minute', true)
$$;

-- What a user may do in a workspace; without one, in their own.
create function app.access(p_user uuid, p_workspace uuid)
returns table (tenant_id uuid, role text, is_admin boolean, is_disabled boolean, tokens_valid_after bigint)
language sql stable security definer set search_path = '' as $$
    select m.tenant_id, m.role, u.role = 'admin', u.disabled_at is not null,
        ceil(extract(epoch from u.tokens_valid_after))::bigint
    from public.users u join public.workspace_members m on m.user_id = u.id
    where u.id = p_user and m.tenant_id = coalesce(p_workspace, u.personal_workspace_id)
$$;

-- One statement after the other, each harmless to repeat: whoever comes second finds what the first has made. A
-- workspace that is somebody's already stays theirs.
create function app.ensure_personal(p_workspace uuid, p_user uuid) returns void
language sql security definer set search_path = '' as $$
    insert into public.workspaces (id, name) values (p_workspace, 'Personal') on conflict do nothing;
    insert into public.workspace_members (tenant_id, user_id, role) select p_workspace, p_user, 'owner'
    where not exists (select from public.workspace_members m where m.tenant_id = p_workspace) on conflict do nothing
$$;

create function app.ensure_local(p_workspace uuid, p_user uuid) returns void
language sql security definer set search_path = '' as $$
    insert into public.users (id, provider, subject, personal_workspace_id)
    values (p_user, 'local', p_user::text, p_workspace) on conflict do nothing;
    select app.ensure_personal(p_workspace, p_user)
$$;

create function app.firebase_user(p_subject text, p_email text, p_name text, p_new_user uuid, p_new_workspace uuid)
returns uuid language plpgsql security definer set search_path = '' as $$
declare
    found_user uuid;
    own_workspace uuid;
begin
    insert into public.users (id, provider, subject, email, name, personal_workspace_id)
    values (p_new_user, 'firebase', p_subject, p_email, p_name, p_new_workspace)
    on conflict (provider, subject) do update set email = excluded.email, name = coalesce(excluded.name, users.name)
    returning id, personal_workspace_id into found_user, own_workspace;
    perform app.ensure_personal(own_workspace, found_user);
    -- Whoever was put out of their own while that was possible, or whose workspace is gone, gets another: without one
    -- they could not even leave.
    if not exists (
        select from public.workspace_members m where m.tenant_id = own_workspace and m.user_id = found_user
    ) then
        update public.users set personal_workspace_id = p_new_workspace where id = found_user;
        perform app.ensure_personal(p_new_workspace, found_user);
    end if;
    return found_user;
end
$$;

-- For whoever adds a member: the id of a user who is here, and nothing else about them.
create function app.user_known(p_user uuid) returns boolean language sql stable security definer set search_path = '' as $$
    select exists (select from public.users where id = p_user)
$$;
-- Whoever has verified this address; nobody when it is not certain who is meant.
create function app.user_by_email(p_email text) returns uuid language sql stable security definer set search_path = '' as $$
    select case when count(*) = 1 then min(id::text)::uuid end from (
        select id from public.users where lower(email) = lower(p_email) and disabled_at is null limit 2) found
$$;

-- With the user of the call as its first owner. Read now and not when it runs: on Supabase the schema `auth` is not
-- open to roles of ours. A user who ends meanwhile is waited for, and owns nothing then.
create function app.create_workspace(p_id uuid, p_name text) returns void
language sql security definer set search_path = ''
begin atomic
    insert into public.workspaces (id, name) values (p_id, p_name);
    insert into public.workspace_members (tenant_id, user_id, role)
    select p_id, u.id, 'owner' from public.users u where u.id = (select auth.uid()) for key share of u;
end;

-- Wakes what is parked on a key and remembers the event; in a call, only what is its workspace's.
create function app.wake(p_key text) returns bigint language plpgsql security definer set search_path = '' as $$
declare
    woken bigint;
begin
    with event as (
        insert into public.job_wakes (wake_key, at) values (p_key, clock_timestamp())
        on conflict (wake_key) do update set at = excluded.at, seq = excluded.seq returning seq
    )
    update public.jobs set run_at = now(), parked = false, wake_key = null, wake_seen = (select seq from event)
    where wake_key = p_key and state = 'scheduled'
        and (tenant_id = (select app.tenant()) or current_setting('role') <> 'multivio_api');
    get diagnostics woken = row_count;
    return woken;
end
$$;

-- Remote posts of an account that belong to other publications, whoever's: the platform shows one list of posts for
-- the account, and a call may ask for its own account only.
create function app.taken_posts(p_connection uuid, p_publication uuid, p_limit bigint) returns setof text
language sql stable security definer set search_path = '' as $$
    select p.remote_id from public.connections mine
    join public.connections c on c.platform = mine.platform and c.remote_account_id = mine.remote_account_id
    join public.publications p on p.connection_id = c.id and p.phase = 'sent'
    where mine.id = p_connection and p.id <> p_publication
        and (mine.tenant_id = (select app.tenant()) or current_setting('role') <> 'multivio_api')
    order by p.sent_at desc limit p_limit
$$;

-- The one way in for jobs of many workspaces at once: the API's group commit. `p_tenants` holds the workspace of each
-- row's verified caller. The statement is that of src/jobs/ledger/enqueue.rs; a test compares what the two write.
create function app.enqueue(
    p_ids uuid[], p_tenants uuid[], p_groups uuid[], p_queues text[], p_lanes text[], p_kinds text[],
    p_priorities smallint[], p_args text[], p_max_attempts smallint[], p_timeouts_ms integer[],
    p_run_at timestamptz[], p_pushed boolean[], p_unique_keys text[], p_serial_keys text[],
    p_open_parents smallint[], p_patience_ms bigint[]
) returns table (id uuid, state text) language plpgsql security definer set search_path = '' as $$
#variable_conflict use_column
begin
    if exists (
        select from unnest(p_tenants, p_groups) as r (tenant_id, group_id)
        where r.tenant_id is null or r.group_id is not null and not exists (
            select from public.job_groups g where g.id = r.group_id and g.tenant_id = r.tenant_id)
    ) then
        raise exception 'a job may enter its own workspace''s groups only' using errcode = 'insufficient_privilege';
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

-- Who is an administrator, and whom nobody lets in: said by the login that migrates, at the command line, and by no
-- program that serves. Null leaves it as it is. `false`: there is no such user.
create function app.set_user(p_user uuid, p_role text, p_is_disabled boolean) returns boolean
language sql security definer set search_path = '' as $$
    with changed as (
        update public.users u set
            role = coalesce(p_role, u.role),
            disabled_at = case when p_is_disabled then coalesce(u.disabled_at, now())
                               when p_is_disabled is null then u.disabled_at end
        where u.id = p_user returning 1
    )
    select exists (select from changed)
$$;

-- Owned by their own role, and run by the API alone where they are about people.
grant create on schema app to multivio_definer;
do $$
declare
    ours record;
begin
    for ours in
        select p.oid::regprocedure as name, p.proname from pg_catalog.pg_proc p
        where p.pronamespace = 'app'::regnamespace and p.prosecdef
    loop
        execute format('revoke all on function %s from public', ours.name);
        if ours.proname not in ('ensure_personal', 'set_user') then
            execute format('grant execute on function %s to multivio_api', ours.name);
        end if;
        if ours.proname in ('wake', 'taken_posts') then
            execute format('grant execute on function %s to multivio_worker', ours.name);
        end if;
        -- Last: from here on it is not whoever migrates who may give it away.
        execute format('alter function %s owner to multivio_definer', ours.name);
    end loop;
end
$$;
revoke create on schema app from multivio_definer;
-- As its owner: whoever has given a function away has lost it.
set local role multivio_definer;
do $$
begin
    execute format('grant execute on function app.set_user(uuid, text, boolean) to %I', session_user);
end
$$;
reset role;

-- What a signed-in client of Supabase (its role `authenticated`) may read by itself: of the workspaces that it is in, of
-- each table what the API shows as well. It writes nothing: what a write needs (scopes, plans, jobs, the audit log) is the
-- API's alone. Where there is no such role, nothing is opened. What is left out and why: docs/security.md, "Supabase".

set local row_security = on;

-- The workspaces of whoever signed the request, as long as the API would let them in as well: not disabled, and signed in
-- since they last signed out everywhere. `auth.uid()` is read now and not when it runs, as in app.create_workspace.
create function app.own_workspaces() returns setof uuid language sql stable security definer set search_path = ''
begin atomic
    select m.tenant_id from public.workspace_members m join public.users u on u.id = m.user_id
    where u.id = (select auth.uid()) and u.disabled_at is null and (
        u.tokens_valid_after is null
        or ceil(extract(epoch from u.tokens_valid_after)) <= (
            select coalesce(s.claims ->> 'auth_time', s.claims ->> 'iat')::numeric
            from (select nullif(current_setting('request.jwt.claims', true), '')::jsonb as claims) s));
end;
revoke all on function app.own_workspaces() from public;

do $$
declare
    client text;
    opened record;
begin
    for client in select rolname from pg_catalog.pg_roles where rolname in ('anon', 'authenticated') loop
        -- Supabase gives its clients every new table and sequence: also those of identity columns, and the table of
        -- migrations, which is made before the first of them.
        execute format('revoke all on all sequences in schema public from %I', client);
        if to_regclass('public._sqlx_migrations') is not null then
            execute format('revoke all on public._sqlx_migrations from %I', client);
        end if;
    end loop;
    if not exists (select from pg_catalog.pg_roles where rolname = 'authenticated') then
        return;
    end if;
    for opened in
        select * from (values
            ('workspaces', 'id, name, created_at', 'id', 'true'),
            ('workspace_members', 'tenant_id, user_id, role, created_at', 'tenant_id', 'true'),
            -- No tokens.
            ('connections', 'id, tenant_id, platform, remote_account_id, username, display_name, state, problem, '
                'created_at, updated_at', 'tenant_id', 'state <> ''removed'''),
            ('posts', 'id, tenant_id, universal_content, variants, version, created_at, updated_at', 'tenant_id',
                'removed_at is null'),
            ('post_media', 'post_id, position, tenant_id, media_id, alt_text', 'tenant_id', 'true'),
            ('publications', 'id, tenant_id, post_id, connection_id, platform, group_id, job_id, phase, due_at, wall_time, '
                'time_zone, remote_id, permalink, problem, sent_at, remote_deleted_at, created_at, updated_at', 'tenant_id', 'true'),
            -- Not where the bytes are.
            ('media', 'id, tenant_id, name, kind, created_at', 'tenant_id', 'deleted_at is null'),
            ('job_groups', 'id, tenant_id, name, created_at', 'tenant_id', 'true'),
            -- Neither what it was given nor what it came to: their forms are the product's own.
            ('jobs', 'id, tenant_id, group_id, kind, queue, priority, state, attempt, max_attempts, created_at, run_at, '
                'due_at, claimed_at, finished_at, why', 'tenant_id', 'true')
        ) as t (name, columns, whose, shown)
    loop
        execute format('grant select (%s) on public.%I to authenticated', opened.columns, opened.name);
        -- An array, so that the workspaces are looked up once and the rows by an index.
        execute format(
            'create policy client on public.%I for select to authenticated '
            'using (%I = any (array(select app.own_workspaces())) and %s)', opened.name, opened.whose, opened.shown);
    end loop;
    grant execute on function app.own_workspaces() to authenticated;
end
$$;

grant create on schema app to multivio_definer;
alter function app.own_workspaces() owner to multivio_definer;
revoke create on schema app from multivio_definer;

-- Files that are fetched for a user, and people's rights over their data.

-- An address that a job fetches a file from. It may hold a key (a signed link), so it is not among the job's
-- arguments, which operators see, and it goes when the file has come or never will.
create table media_imports (
    id uuid primary key,
    tenant_id uuid not null,
    -- Whose end is the address's.
    job_id uuid not null,
    -- Encrypted, bound to this row.
    sealed bytea,
    -- The name the user gave.
    name text constraint media_imports_name_length check (length(name) between 1 and 255),
    -- What came of it. Kept for a while, so that a job that is repeated finds what it has made.
    media_id uuid references media (id) on delete set null,
    created_at timestamptz not null default now(),
    finished_at timestamptz,
    constraint media_imports_finished_keeps_no_address check ((finished_at is null) = (sealed is not null))
);
create index media_imports_tenant on media_imports (tenant_id);
create index media_imports_oldest on media_imports (created_at);
create index media_imports_open on media_imports (job_id) where finished_at is null;
create index media_imports_media on media_imports (media_id);

-- What was asked to be erased: the work to do, and for ever after the reason why credentials of before open nothing.
-- Ids and times; nothing of what was erased.
create table erasures (
    id uuid primary key,
    kind text not null constraint erasures_kind_known check (kind in ('workspace', 'user')),
    -- The workspace's id, or the user's.
    subject uuid not null,
    -- SHA-256 of what the provider calls the user: tokens from before the erasure must not make them anew.
    identity_hash bytea constraint erasures_identity_hash_is_sha256 check (octet_length(identity_hash) = 32),
    requested_at timestamptz not null default now(),
    finished_at timestamptz,
    -- Accounts whose platform did not take their tokens back; they were forgotten here all the same.
    not_revoked integer not null default 0,
    changed_at timestamptz not null default clock_timestamp(),
    constraint erasures_subject_key unique (kind, subject)
);
create index erasures_changed on erasures (changed_at);
create function app.erasure_changed() returns trigger language plpgsql set search_path = '' as $$
begin
    new.changed_at := clock_timestamp();
    return new;
end
$$;
create trigger erasures_say_when_they_changed before update on erasures
    for each row execute function app.erasure_changed();
create index erasures_identity on erasures (identity_hash) where identity_hash is not null;

-- Tokens of an account that was disconnected stay until the platform has them back, for a day at most.
alter table connections drop constraint connections_removed_holds_no_token;
create index connections_to_give_back on connections (updated_at) where state = 'removed' and access_token is not null;

-- A file with somebody's data, for them alone, for a week.
create table exports (
    id uuid primary key,
    tenant_id uuid not null,
    -- Whoever asked: nobody else gets it.
    user_id uuid not null,
    kind text not null constraint exports_kind_known check (kind in ('workspace', 'user')),
    -- How its files begin. Each run writes one of its own, `storage_key`-1 and so on, so that one which was silent and
    -- comes back writes over nothing that was given out.
    storage_key text not null,
    -- Up to which run there may be such a file. Written before the first byte, so that no file is without a row.
    runs integer not null default 0,
    -- Whose file it is.
    file_run integer,
    size_bytes bigint,
    row_count bigint,
    created_at timestamptz not null default now(),
    ready_at timestamptz,
    expires_at timestamptz not null default now() + interval '7 days',
    constraint exports_storage_key_key unique (storage_key),
    constraint exports_ready_has_a_file check (
        num_nulls(ready_at, file_run, size_bytes, row_count) in (0, 4) and (file_run is null or file_run <= runs))
);
create index exports_tenant on exports (tenant_id, id);
create index exports_user on exports (user_id);
create index exports_expired on exports (expires_at);

-- What erases and exports looks for the rows of a tenant in every table, and a statement has five seconds. Nothing else
-- needed these: the older ones are led by something else, or leave rows out.
create index post_media_tenant on post_media (tenant_id);
create index posts_tenant on posts (tenant_id);
create index publication_media_tenant on publication_media (tenant_id);
create index publication_intents_tenant on publication_intents (tenant_id);
create index budget_grants_tenant on budget_grants (tenant_id);
create index token_flights_tenant on token_flights (tenant_id);
create index renditions_tenant on renditions (tenant_id);
create index media_tenant on media (tenant_id);
create index media_objects_tenant on media_objects (tenant_id, id);
-- The same of the lines about a person.
create index audit_log_user on audit_log (user_id) where user_id is not null;

-- Whose all of this is (0013 says how): closed first, then opened.
do $$
declare
    closed text;
    client text;
begin
    foreach closed in array array['media_imports', 'erasures', 'exports'] loop
        execute format('alter table public.%I enable row level security', closed);
        execute format('alter table public.%I force row level security', closed);
        execute format('revoke all on public.%I from public', closed);
        for client in select rolname from pg_catalog.pg_roles where rolname in ('anon', 'authenticated') loop
            execute format('revoke all on public.%I from %I', closed, client);
        end loop;
        execute format('create policy worker on public.%I to multivio_worker using (true) with check (true)', closed);
    end loop;
end
$$;
grant select, insert, update, delete on media_imports to multivio_worker;
-- Neither is made by a worker: what it may learn of people is bound to what somebody has asked for.
grant select, update (finished_at, not_revoked) on erasures to multivio_worker;
grant select, update (runs, file_run, size_bytes, row_count, ready_at), delete on exports to multivio_worker;
-- Addresses go in and never come out: only workers read them.
grant select (id, tenant_id, name, media_id, created_at, finished_at), insert on media_imports to multivio_api;
create policy tenant on media_imports to multivio_api
    using (tenant_id = (select app.tenant())) with check (tenant_id = (select app.tenant()));
-- A copy is for whoever asked.
grant select, insert on exports to multivio_api;
create policy own on exports to multivio_api
    using (tenant_id = (select app.tenant()) and user_id = (select auth.uid()))
    with check (tenant_id = (select app.tenant()) and user_id = (select auth.uid()));
-- Of erasures the API has nothing but the functions below.

grant select, insert, update on erasures to multivio_definer;
create policy definer on erasures to multivio_definer using (true) with check (true);
grant select (id, tenant_id, user_id, kind, ready_at, expires_at) on exports to multivio_definer;
create policy definer on exports to multivio_definer using (true);
grant select (tenant_id), delete on account_consents to multivio_definer;
create policy definer on account_consents to multivio_definer using (true);
grant delete on users, workspaces, workspace_members, api_keys to multivio_definer;
-- Changed by nobody, but locked.
grant update (name) on workspaces to multivio_definer;
grant select (tenant_id), update (phase, updated_at) on publications to multivio_definer;

set local row_security = on;

-- The user of the call. Read now and not when it runs, as in app.create_workspace.
create function app.caller() returns uuid language sql stable begin atomic select auth.uid(); end;

-- Who was erased, for those who believe a token without asking for its user. Ids and times. Of what has changed since
-- then, and a while before: a transaction that was slow to commit shows its changes later than it made them.
create function app.erased(p_since timestamptz)
returns table (subject uuid, requested_at bigint, is_finished boolean, changed_at timestamptz)
language sql stable security definer set search_path = '' as $$
    select e.subject, ceil(extract(epoch from e.requested_at))::bigint, e.finished_at is not null, e.changed_at
    from public.erasures e where e.changed_at > coalesce(p_since - interval '5 minutes', '-infinity')
$$;

-- What is being erased is not made anew meanwhile.
drop function app.ensure_personal(uuid, uuid);
create function app.ensure_personal(p_workspace uuid, p_user uuid) returns void
language sql security definer set search_path = '' as $$
    insert into public.workspaces (id, name) select p_workspace, 'Personal'
    where not exists (select from public.erasures e where e.subject = p_workspace and e.finished_at is null)
    on conflict do nothing;
    insert into public.workspace_members (tenant_id, user_id, role) select p_workspace, p_user, 'owner'
    where not exists (select from public.workspace_members m where m.tenant_id = p_workspace)
        and exists (select from public.workspaces w where w.id = p_workspace)
        and exists (select from public.users u where u.id = p_user)
        and not exists (select from public.erasures e where e.subject = p_workspace and e.finished_at is null)
    on conflict do nothing
$$;

drop function app.ensure_local(uuid, uuid);
create function app.ensure_local(p_workspace uuid, p_user uuid) returns void
language sql security definer set search_path = '' as $$
    insert into public.users (id, provider, subject, personal_workspace_id)
    select p_user, 'local', p_user::text, p_workspace
    where not exists (
        select from public.erasures e where e.subject in (p_user, p_workspace) and e.finished_at is null)
    on conflict do nothing;
    -- Making them waits for an end that is under way, and does not see it.
    delete from public.users u where u.id = p_user and exists (
        select from public.erasures e where e.kind = 'user' and e.subject = u.id and e.finished_at is null);
    select app.ensure_personal(p_workspace, p_user)
$$;

-- Null: the user was erased, and signed in before that; a token that is issued later does not change it. The form
-- without the last two asks nobody, and is closed.
create function app.firebase_user(p_subject text, p_email text, p_name text, p_new_user uuid, p_new_workspace uuid,
                                  p_identity_hash bytea, p_signed_in_at bigint)
returns uuid language plpgsql security definer set search_path = '' as $$
declare
    found_user uuid;
begin
    if exists (
        select from public.erasures e
        where e.identity_hash = p_identity_hash and extract(epoch from e.requested_at) >= p_signed_in_at
    ) then
        return null;
    end if;
    found_user := app.firebase_user(p_subject, p_email, p_name, p_new_user, p_new_workspace);
    -- Once more, because making them waits for an end that is under way: this statement sees what has been committed
    -- meanwhile.
    if exists (
        select from public.erasures e
        where e.identity_hash = p_identity_hash and extract(epoch from e.requested_at) >= p_signed_in_at
    ) then
        raise sqlstate 'MV001';
    end if;
    return found_user;
exception when sqlstate 'MV001' then
    -- Nothing of it was done.
    return null;
end
$$;

-- Where the user of the call is, and what their end would mean for others, whom policies hide from them. The
-- workspaces stay as they are until the transaction ends, and so does where the user is: a membership takes hold of its
-- workspace and then of its user, so we do as well; and then once more of workspaces, for one made in between.
create function app.own_memberships()
returns table (tenant_id uuid, name text, is_owner boolean, has_others boolean, has_other_owner boolean)
language plpgsql security definer set search_path = '' as $$
#variable_conflict use_column
begin
    perform from public.workspaces w
    where w.id in (select m.tenant_id from public.workspace_members m where m.user_id = app.caller())
    order by w.id for update;
    perform from public.users u where u.id = app.caller() for update;
    perform from public.workspaces w
    where w.id in (select m.tenant_id from public.workspace_members m where m.user_id = app.caller())
    order by w.id for update;
    return query
    select m.tenant_id, w.name, m.role = 'owner', others.some, others.owners
    from public.workspace_members m join public.workspaces w on w.id = m.tenant_id,
        lateral (select count(*) > 0 as some, coalesce(bool_or(o.role = 'owner'), false) as owners
                 from public.workspace_members o
                 where o.tenant_id = m.tenant_id and o.user_id <> m.user_id) others
    where m.user_id = app.caller() order by m.tenant_id;
end
$$;

-- Whether the workspace of the call is where somebody in it is who names none.
create function app.is_personal() returns boolean language sql stable security definer set search_path = '' as $$
    select exists (
        select from public.users u join public.workspace_members m
            on m.user_id = u.id and m.tenant_id = u.personal_workspace_id
        where u.personal_workspace_id = (select app.tenant()))
$$;

-- Begins the end of a workspace that the user of the call owns, or is alone in: from this commit on no credential
-- opens it, and nothing of it goes out any more that has not left. What was erased before is erased again.
create function app.end_workspace(p_erasure uuid, p_workspace uuid) returns uuid
language plpgsql security definer set search_path = '' as $$
declare
    begun uuid;
begin
    if not exists (
        select from public.workspace_members m
        where m.tenant_id = p_workspace and m.user_id = app.caller() and (m.role = 'owner' or not exists (
            select from public.workspace_members o where o.tenant_id = p_workspace and o.user_id <> m.user_id))
    ) then
        raise exception 'a workspace ends by its owners' using errcode = 'insufficient_privilege';
    end if;
    delete from public.api_keys k where k.tenant_id = p_workspace;
    delete from public.workspace_members m where m.tenant_id = p_workspace;
    delete from public.account_consents c where c.tenant_id = p_workspace;
    update public.publications p set phase = 'cancelled', updated_at = now()
    where p.tenant_id = p_workspace and p.phase in ('planned', 'prepared', 'uploaded', 'needs_reconnect');
    insert into public.erasures (id, kind, subject) values (p_erasure, 'workspace', p_workspace)
    on conflict (kind, subject) do update set requested_at = now(), finished_at = null, not_revoked = 0
    returning id into begun;
    return begun;
end
$$;

-- The same of the user of the call; they themselves go with `app.forget_user`, last.
create function app.end_user(p_erasure uuid, p_identity_hash bytea) returns uuid
language plpgsql security definer set search_path = '' as $$
declare
    begun uuid;
begin
    if app.caller() is null then
        raise exception 'there is nobody to end' using errcode = 'insufficient_privilege';
    end if;
    insert into public.erasures (id, kind, subject, identity_hash) values (p_erasure, 'user', app.caller(), p_identity_hash)
    on conflict (kind, subject) do update set requested_at = now(), finished_at = null, not_revoked = 0,
        -- Whoever asks twice is gone by the second time, and nobody knows any more what their provider calls them.
        identity_hash = coalesce(excluded.identity_hash, erasures.identity_hash)
    returning id into begun;
    return begun;
end
$$;

create function app.forget_user() returns void language sql security definer set search_path = '' as $$
    delete from public.users u where u.id = app.caller() and exists (
        select from public.erasures e where e.kind = 'user' and e.subject = u.id and e.finished_at is null)
$$;

-- What an erasure and an export need of people, who are closed to workers. Functions and not policies, and by the id of
-- the work and not of whoever it is about: a worker learns and ends nothing that nobody has asked for.
create function app.erase_workspace(p_erasure uuid) returns bigint
language plpgsql security definer set search_path = '' as $$
declare
    ending uuid;
    gone bigint;
    erased bigint := 0;
begin
    select e.subject into ending from public.erasures e
    where e.id = p_erasure and e.kind = 'workspace' and e.finished_at is null;
    if not found then
        return 0;
    end if;
    delete from public.api_keys k where k.tenant_id = ending;
    get diagnostics gone = row_count;
    erased := erased + gone;
    delete from public.workspace_members m where m.tenant_id = ending;
    get diagnostics gone = row_count;
    erased := erased + gone;
    delete from public.workspaces w where w.id = ending;
    get diagnostics gone = row_count;
    return erased + gone;
end
$$;

-- The workspaces that a copy is of; of a person's those that would end with them.
create function app.export_tenants(p_export uuid) returns setof uuid
language sql stable security definer set search_path = '' as $$
    select e.tenant_id from public.exports e
    where e.id = p_export and e.kind = 'workspace' and e.ready_at is null and e.expires_at > now()
    union
    select m.tenant_id from public.exports e join public.workspace_members m on m.user_id = e.user_id
    where e.id = p_export and e.kind = 'user' and e.ready_at is null and e.expires_at > now() and not exists (
        select from public.workspace_members o where o.tenant_id = m.tenant_id and o.user_id <> e.user_id)
$$;

create function app.export_people(p_export uuid, p_table text) returns setof jsonb
language plpgsql stable security definer set search_path = '' as $$
declare
    person uuid;
    spaces uuid[] := array(select app.export_tenants(p_export));
begin
    select e.user_id into person from public.exports e
    where e.id = p_export and e.kind = 'user' and e.ready_at is null and e.expires_at > now();
    case p_table
        when 'users' then
            return query select to_jsonb(t) from public.users t where t.id = person;
        when 'memberships' then
            return query select to_jsonb(t) from public.workspace_members t where t.user_id = person;
        when 'own_api_keys' then
            return query select to_jsonb(t) - 'secret_hash' from public.api_keys t where t.created_by = person;
        when 'workspaces' then
            return query select to_jsonb(t) from public.workspaces t where t.id = any(spaces);
        when 'workspace_members' then
            return query select to_jsonb(t) from public.workspace_members t where t.tenant_id = any(spaces);
        when 'api_keys' then
            return query select to_jsonb(t) - 'secret_hash' from public.api_keys t where t.tenant_id = any(spaces);
    end case;
end
$$;

grant create on schema app to multivio_definer;
do $$
declare
    ours regprocedure;
    for_api regprocedure[] := array[
        'app.erased(timestamptz)', 'app.ensure_local(uuid, uuid)', 'app.own_memberships()', 'app.is_personal()',
        'app.firebase_user(text, text, text, uuid, uuid, bytea, bigint)', 'app.end_workspace(uuid, uuid)',
        'app.end_user(uuid, bytea)', 'app.forget_user()'
    ]::regprocedure[];
    for_workers regprocedure[] := array[
        'app.erase_workspace(uuid)', 'app.export_tenants(uuid)', 'app.export_people(uuid, text)'
    ]::regprocedure[];
begin
    foreach ours in array for_api || for_workers || 'app.ensure_personal(uuid, uuid)'::regprocedure loop
        execute format('revoke all on function %s from public', ours);
    end loop;
    foreach ours in array for_api loop
        execute format('grant execute on function %s to multivio_api', ours);
    end loop;
    foreach ours in array for_workers loop
        execute format('grant execute on function %s to multivio_worker', ours);
    end loop;
    foreach ours in array for_api || for_workers || 'app.ensure_personal(uuid, uuid)'::regprocedure loop
        execute format('alter function %s owner to multivio_definer', ours);
    end loop;
end
$$;
revoke create on schema app from multivio_definer;
-- As its owner: whoever has given a function away takes nothing back from others.
set local role multivio_definer;
revoke execute on function app.firebase_user(text, text, text, uuid, uuid) from multivio_api;
reset role;

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

-- What each tier of the installation's own campaign on Patreon is worth here.
create table patreon_tiers (
    tier_id text primary key,
    plan text not null references plans (name) on update cascade on delete restrict
);
create index patreon_tiers_plan on patreon_tiers (plan);

-- Linkings under way: each is good once, for a while, and for whoever began it.
create table patreon_flows (
    -- SHA-256 of the state: the state itself is known to the browser that went to Patreon alone.
    state_hash bytea primary key constraint patreon_flows_state_is_sha256 check (octet_length(state_hash) = 32),
    tenant_id uuid not null references workspaces (id) on delete cascade,
    user_id uuid not null references users (id) on delete cascade,
    -- SHA-256 of a secret that whoever began keeps, and shows at the end.
    challenge bytea not null constraint patreon_flows_challenge_is_sha256 check (octet_length(challenge) = 32),
    expires_at timestamptz not null,
    -- Since when what came back is being worked on; `expires_at` says from then on how long that may take.
    taken_at timestamptz,
    constraint patreon_flows_one_each unique (tenant_id, user_id)
);
create index patreon_flows_user on patreon_flows (user_id);
create index patreon_flows_expired on patreon_flows (expires_at);

create table patreon_links (
    id uuid primary key,
    tenant_id uuid not null references workspaces (id) on delete cascade,
    linked_by uuid not null references users (id) on delete cascade,
    patreon_user_id text not null,
    -- Encrypted, bound to this row and column.
    access_token bytea not null,
    refresh_token bytea not null,
    access_expires_at timestamptz not null,
    -- Raised with every new pair of tokens.
    generation integer not null default 1,
    -- Broken: Patreon refuses the tokens, and its owner has to link it again.
    state text not null default 'active' constraint patreon_links_state_known check (state in ('active', 'broken')),
    -- What was read last.
    patron_status text,
    tiers text[] not null default '{}',
    read_at timestamptz not null default now(),
    -- When a look that nobody asked for was begun last, whatever came of it.
    looked_at timestamptz not null default now(),
    created_at timestamptz not null default now(),
    constraint patreon_links_tenant_key unique (tenant_id),
    -- One membership gives one workspace a plan.
    constraint patreon_links_account_key unique (patreon_user_id)
);
create index patreon_links_linked_by on patreon_links (linked_by);
create index patreon_links_stalest on patreon_links (looked_at) where state = 'active';

-- Hints from Patreon that were taken in: they have no id, so each is known by its body.
create table patreon_hints (
    body_hash bytea primary key constraint patreon_hints_hash_is_sha256 check (octet_length(body_hash) = 32),
    received_at timestamptz not null default now()
);
create index patreon_hints_oldest on patreon_hints (received_at);

-- Whose all of this is (0013 says how): closed first, then opened.
do $$
declare
    closed text;
    client text;
begin
    foreach closed in array array[
        'plans', 'workspace_plans', 'patreon_tiers', 'patreon_flows', 'patreon_links', 'patreon_hints'
    ] loop
        execute format('alter table public.%I enable row level security', closed);
        execute format('alter table public.%I force row level security', closed);
        execute format('revoke all on public.%I from public', closed);
        for client in select rolname from pg_catalog.pg_roles where rolname in ('anon', 'authenticated') loop
            execute format('revoke all on public.%I from %I', closed, client);
        end loop;
        execute format('grant select, insert, update, delete on public.%I to multivio_worker', closed);
        execute format('create policy worker on public.%I to multivio_worker using (true) with check (true)', closed);
    end loop;
end
$$;
-- Nobody's in particular, and changed by the operator alone.
grant select on public.plans, public.patreon_tiers to multivio_api;
create policy everybody on public.plans for select to multivio_api using (true);
create policy everybody on public.patreon_tiers for select to multivio_api using (true);
-- A call changes what a membership gives, and never what the operator gave.
grant select, insert, update, delete on public.workspace_plans to multivio_api;
create policy seen on public.workspace_plans for select to multivio_api using (tenant_id = (select app.tenant()));
create policy given on public.workspace_plans for insert to multivio_api
    with check (tenant_id = (select app.tenant()) and source = 'patreon');
create policy renewed on public.workspace_plans for update to multivio_api
    using (tenant_id = (select app.tenant()) and source = 'patreon')
    with check (tenant_id = (select app.tenant()) and source = 'patreon');
create policy taken_back on public.workspace_plans for delete to multivio_api
    using (tenant_id = (select app.tenant()) and source = 'patreon');
-- A linking is its user's own, in the workspace where it began.
grant select, insert, update, delete on public.patreon_flows to multivio_api;
create policy own on public.patreon_flows to multivio_api
    using (tenant_id = (select app.tenant()) and user_id = (select auth.uid()))
    with check (tenant_id = (select app.tenant()) and user_id = (select auth.uid()));
-- Tokens go in and never come out: only workers read them.
grant select (id, tenant_id, linked_by, patreon_user_id, state, patron_status, tiers, read_at, created_at), insert, delete
    on public.patreon_links to multivio_api;
create policy tenant on public.patreon_links to multivio_api
    using (tenant_id = (select app.tenant())) with check (tenant_id = (select app.tenant()));
grant select (rate_limit), update (rate_limit) on public.api_keys to multivio_api;

grant select (id, tenant_id, linked_by, patreon_user_id, state), delete on public.patreon_links to multivio_definer;
grant select (tenant_id, source), delete on public.workspace_plans to multivio_definer;
create policy definer on public.workspace_plans to multivio_definer using (true);
create policy definer on public.patreon_links to multivio_definer using (true) with check (true);
grant select (tenant_id, user_id), delete on public.patreon_flows to multivio_definer;
create policy definer on public.patreon_flows to multivio_definer using (true);
grant insert on public.patreon_hints to multivio_definer;
create policy definer on public.patreon_hints to multivio_definer using (true) with check (true);

set local row_security = on;

drop function app.find_key(text);
create function app.find_key(p_prefix text)
returns table (id uuid, tenant_id uuid, created_by uuid, secret_hash bytea, scopes text[], connections uuid[],
               rate_limit integer, expires_at timestamptz, is_alive boolean, is_admin boolean, role text,
               is_use_to_be_noted boolean)
language sql stable security definer set search_path = '' as $$
    select k.id, k.tenant_id, k.created_by, k.secret_hash, k.scopes, k.connections, k.rate_limit, k.expires_at,
        k.revoked_at is null and coalesce(k.expires_at > now(), true) and u.disabled_at is null,
        u.role = 'admin', m.role, coalesce(k.last_used_at < now() - interval '1 minute', true)
    from public.api_keys k join public.users u on u.id = k.created_by
    left join public.workspace_members m on m.tenant_id = k.tenant_id and m.user_id = k.created_by
    where k.prefix = p_prefix
$$;

-- Which workspace a hint from Patreon concerns.
create function app.patreon_link(p_account text) returns table (id uuid, tenant_id uuid)
language sql stable security definer set search_path = '' as $$
    select l.id, l.tenant_id from public.patreon_links l where l.patreon_user_id = p_account and l.state = 'active'
$$;

-- False: the same hint was taken in before.
create function app.take_patreon_hint(p_body_hash bytea) returns boolean
language plpgsql security definer set search_path = '' as $$
begin
    insert into public.patreon_hints (body_hash) values (p_body_hash) on conflict do nothing;
    return found;
end
$$;

-- Whoever owns a workspace no more gives it no plan, and may give it to another; and a plan ends with the link that it
-- came from, however that ends: one membership could serve one workspace after the other otherwise.
create function app.end_membership() returns trigger language plpgsql security definer set search_path = '' as $$
begin
    -- First what is about to become a link: whoever finishes it has it locked.
    delete from public.patreon_flows f where f.tenant_id = old.tenant_id and f.user_id = old.user_id;
    delete from public.patreon_links l where l.tenant_id = old.tenant_id and l.linked_by = old.user_id;
    return null;
end
$$;
create trigger patreon_links_end_with_a_member after delete on public.workspace_members
    for each row execute function app.end_membership();
create trigger patreon_links_end_with_an_owner after update of role on public.workspace_members
    for each row when (old.role = 'owner' and new.role <> 'owner') execute function app.end_membership();
create function app.end_plan_of_link() returns trigger language plpgsql security definer set search_path = '' as $$
begin
    delete from public.workspace_plans p where p.tenant_id = old.tenant_id and p.source = 'patreon';
    return null;
end
$$;
create trigger workspace_plans_end_with_a_link after delete on public.patreon_links
    for each row execute function app.end_plan_of_link();

-- A plan is given to a workspace that there is.
create function app.has_workspace(p_workspace uuid) returns boolean
language sql stable security definer set search_path = '' as $$
    select exists (select from public.workspaces w where w.id = p_workspace)
$$;

grant create on schema app to multivio_definer;
do $$
declare
    ours regprocedure;
begin
    foreach ours in array array[
        'app.find_key(text)', 'app.patreon_link(text)', 'app.take_patreon_hint(bytea)', 'app.has_workspace(uuid)'
    ]::regprocedure[] loop
        execute format('grant execute on function %s to multivio_api', ours);
    end loop;
    grant execute on function app.has_workspace(uuid) to multivio_worker;
    foreach ours in array array[
        'app.find_key(text)', 'app.patreon_link(text)', 'app.take_patreon_hint(bytea)', 'app.has_workspace(uuid)',
        'app.end_membership()', 'app.end_plan_of_link()'
    ]::regprocedure[] loop
        execute format('revoke all on function %s from public', ours);
        execute format('alter function %s owner to multivio_definer', ours);
    end loop;
end
$$;
revoke create on schema app from multivio_definer;

-- Connecting an account by its owner's consent: what binds the platform's answer to whoever asked for it.

create table account_consents (
    id uuid primary key,
    tenant_id uuid not null,
    -- Only they can bring the answer back.
    user_id uuid not null references users (id) on delete cascade,
    platform text not null,
    -- SHA-256 of the state: its 256 random bits need no slower hash.
    state_hash bytea not null constraint account_consents_state_hash_is_sha256 check (octet_length(state_hash) = 32),
    -- The state and the PKCE verifier, encrypted, bound to this row; gone once the answer was taken.
    sealed bytea,
    expires_at timestamptz not null,
    created_at timestamptz not null default now(),
    -- Since when the answer is being worked on, or was: it is taken once.
    taken_at timestamptz,
    -- When that had come to an end, whatever end.
    finished_at timestamptz,
    constraint account_consents_state_key unique (state_hash),
    constraint account_consents_taken_keeps_no_secret check ((taken_at is null) = (sealed is not null)),
    constraint account_consents_finished_was_taken check (finished_at is null or taken_at is not null)
);
create index account_consents_expired on account_consents (tenant_id, expires_at);
create index account_consents_user on account_consents (user_id);

-- Since when the platform itself has said that whoever connected the account owns it. Null: it came with tokens, and
-- its name and id are whatever was typed in.
alter table connections add column proven_at timestamptz;
create index connections_proven on connections (platform, remote_account_id)
    where proven_at is not null and state = 'active';

-- Answers that hold a secret, kept to be given again: encrypted, bound to an id of their own.
alter table idempotency_keys add column sealed_id uuid, add column sealed bytea;
create unique index idempotency_keys_sealed on idempotency_keys (sealed_id) where sealed is not null;

-- Whose these are (0013 says how): an asking is its user's own, in the workspace where it began.
alter table account_consents enable row level security;
alter table account_consents force row level security;
revoke all on account_consents from public;
do $$
declare
    client text;
begin
    for client in select rolname from pg_catalog.pg_roles where rolname in ('anon', 'authenticated') loop
        execute format('revoke all on public.account_consents from %I', client);
    end loop;
end
$$;
grant select, insert, update, delete on account_consents to multivio_api, multivio_worker;
create policy own on account_consents to multivio_api
    using (tenant_id = (select app.tenant()) and user_id = (select auth.uid()))
    with check (tenant_id = (select app.tenant()) and user_id = (select auth.uid()));
create policy worker on account_consents to multivio_worker using (true) with check (true);

set local row_security = on;

-- Whether another workspace than the call's holds the account, said without saying which: the one question across
-- workspaces, so it is asked here and nowhere else.
create function app.account_is_held_elsewhere(p_platform text, p_account text) returns boolean
language sql stable security definer set search_path = '' as $$
    select exists (
        select from public.connections c
        where c.platform = p_platform and c.remote_account_id = p_account
          and c.tenant_id is distinct from (select app.tenant()) and c.proven_at is not null and c.state = 'active')
$$;
-- The generation of the pair of tokens that the call's workspace can trade; null: there is nothing to trade. The API
-- itself reads no token, not even whether there is one.
create function app.refreshable(p_connection uuid) returns integer
language sql stable security definer set search_path = '' as $$
    select c.generation from public.connections c
    where c.id = p_connection and c.tenant_id = (select app.tenant()) and c.refresh_token is not null
$$;
grant select (generation, refresh_token) on connections to multivio_definer;
grant select (proven_at, state) on connections to multivio_definer;
revoke all on function app.account_is_held_elsewhere(text, text), app.refreshable(uuid) from public;
grant execute on function app.account_is_held_elsewhere(text, text), app.refreshable(uuid) to multivio_api;
grant create on schema app to multivio_definer;
alter function app.account_is_held_elsewhere(text, text) owner to multivio_definer;
alter function app.refreshable(uuid) owner to multivio_definer;
revoke create on schema app from multivio_definer;

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

-- Whether another workspace holds the account, said without saying which: the one question across workspaces, so it
-- is asked here and nowhere else.
create function account_is_held_elsewhere(tenant uuid, of_platform text, account text) returns boolean
language sql stable security definer set search_path = '' as $$
    select exists (
        select from public.connections c
        where c.platform = of_platform and c.remote_account_id = account and c.tenant_id <> tenant
          and c.proven_at is not null and c.state = 'active')
$$;

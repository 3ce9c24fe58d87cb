-- Who there is, who may do what, and who did what.

create table users (
    id uuid primary key,
    -- Who vouches for them: Firebase, or this installation's own tokens.
    provider text not null constraint users_provider_known check (provider in ('firebase', 'local')),
    -- What the provider calls them.
    subject text not null,
    -- Only an address that the provider has verified.
    email text,
    name text,
    role text not null default 'user' constraint users_role_known check (role in ('user', 'admin')),
    -- Where they are when they name no workspace.
    personal_workspace_id uuid not null,
    -- Tokens issued before are refused.
    tokens_valid_after timestamptz,
    disabled_at timestamptz,
    created_at timestamptz not null default now(),
    constraint users_identity_key unique (provider, subject)
);

create index users_email on users (lower(email)) where email is not null;

-- A workspace's id is the tenant_id of every row that belongs to it.
create table workspaces (
    id uuid primary key,
    name text not null,
    created_at timestamptz not null default now()
);

create table workspace_members (
    tenant_id uuid not null references workspaces (id) on delete cascade,
    user_id uuid not null references users (id) on delete cascade,
    role text not null constraint workspace_members_role_known check (role in ('owner', 'editor', 'viewer')),
    created_at timestamptz not null default now(),
    primary key (tenant_id, user_id)
);

create index workspace_members_user on workspace_members (user_id, tenant_id);

create table api_keys (
    id uuid primary key,
    tenant_id uuid not null references workspaces (id) on delete cascade,
    -- The key is good while they are a member, and never for more than they may do.
    created_by uuid not null references users (id) on delete cascade,
    name text not null,
    -- The part that is shown for ever, and found by.
    prefix text not null,
    -- SHA-256 of the whole key: its 256 random bits need no slower hash.
    secret_hash bytea not null constraint api_keys_secret_hash_is_sha256 check (octet_length(secret_hash) = 32),
    scopes text[] not null,
    -- The only connections it may use; null: all, also those added later.
    connections uuid[],
    expires_at timestamptz,
    last_used_at timestamptz,
    revoked_at timestamptz,
    created_at timestamptz not null default now(),
    constraint api_keys_prefix_key unique (prefix)
);

create index api_keys_newest on api_keys (tenant_id, id);
create index api_keys_created_by on api_keys (created_by);

-- Append-only: no foreign keys, so that what happened outlives what it happened to.
create table audit_log (
    id uuid primary key,
    -- Null: it concerned the installation and no single workspace.
    tenant_id uuid,
    at timestamptz not null default now(),
    actor text not null constraint audit_log_actor_known check (actor in ('user', 'key', 'operator')),
    user_id uuid,
    key_id uuid,
    action text not null,
    -- What it was done to, as the API names it.
    target text,
    details jsonb not null default '{}',
    address inet,
    request_id text
);

create index audit_log_newest on audit_log (tenant_id, id);
create index audit_log_oldest on audit_log (at);

-- The one way out is age.
create function audit_log_is_append_only() returns trigger language plpgsql set search_path = '' as $$
begin
    if tg_op = 'DELETE' and old.at < now() - interval '365 days' then
        return old;
    end if;
    raise exception 'audit_log is append-only: % is refused', tg_op using errcode = 'insufficient_privilege';
end
$$;

create trigger audit_log_keeps_rows before update or delete on audit_log
    for each row execute function audit_log_is_append_only();
create trigger audit_log_keeps_all before truncate on audit_log
    for each statement execute function audit_log_is_append_only();

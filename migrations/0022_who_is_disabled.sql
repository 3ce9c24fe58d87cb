-- Who was disabled or enabled lately, for those who believe a local token without asking for its user: as app.erased says
-- who was erased.

alter table users add column disabling_changed_at timestamptz;
create function app.disabling_changed() returns trigger language plpgsql set search_path = '' as $$
begin
    new.disabling_changed_at := clock_timestamp();
    return new;
end
$$;
create trigger users_say_when_they_were_disabled before update of disabled_at on users
    for each row when (old.disabled_at is distinct from new.disabled_at) execute function app.disabling_changed();
-- Whoever is disabled already. The rows of a forced table are hidden from whoever migrates.
alter table users no force row level security;
update users set disabling_changed_at = disabled_at where disabled_at is not null;
alter table users force row level security;
create index users_disabling_changed on users (disabling_changed_at) where disabling_changed_at is not null;

set local row_security = on;

-- Ids and times. Of what has changed since then, and a while before: a transaction that was slow to commit shows its
-- changes later than it made them.
create function app.standing(p_since timestamptz)
returns table (id uuid, is_disabled boolean, changed_at timestamptz)
language sql stable security definer set search_path = '' as $$
    select u.id, u.disabled_at is not null, u.disabling_changed_at from public.users u
    where u.disabling_changed_at > coalesce(p_since - interval '5 minutes', '-infinity')
$$;
revoke all on function app.standing(timestamptz) from public;
grant execute on function app.standing(timestamptz) to multivio_api;
grant create on schema app to multivio_definer;
alter function app.standing(timestamptz) owner to multivio_definer;
revoke create on schema app from multivio_definer;

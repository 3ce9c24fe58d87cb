-- Whose remote posts count as taken, whom an operator finds, and what administrators read of the installation.
grant select on audit_log to multivio_definer;
create policy definer on audit_log for select to multivio_definer using (tenant_id is null);

-- Functions are replaced and made as their owner (see 0017), for whom the tables have policies: whoever migrates may have
-- said that none may change what he reads.
set local row_security = on;
grant create on schema app to multivio_definer;
set local role multivio_definer;

-- Across workspaces only where the platform itself has said, on both sides, whose the account is: an id that somebody
-- typed in would tell of a stranger's posts, or take them away.
create or replace function app.taken_posts(p_connection uuid, p_publication uuid, p_limit bigint) returns setof text
language sql stable security definer set search_path = '' as $$
    select p.remote_id from public.connections mine
    join public.connections c on c.platform = mine.platform and c.remote_account_id = mine.remote_account_id
        and (c.tenant_id = mine.tenant_id or c.proven_at is not null and mine.proven_at is not null)
    join public.publications p on p.connection_id = c.id and p.phase = 'sent'
    where mine.id = p_connection and p.id <> p_publication
        and (mine.tenant_id = (select app.tenant()) or current_setting('role') <> 'multivio_api')
    order by p.sent_at desc limit p_limit
$$;

-- A user by address, also one who is let in no more: for the operator, who lets them in again, copies and erases.
create function app.anybody_by_email(p_email text) returns uuid
language sql stable security definer set search_path = '' as $$
    select case when count(*) = 1 then min(id::text)::uuid end from (
        select id from public.users where lower(email) = lower(p_email) limit 2) found
$$;
revoke all on function app.anybody_by_email(text) from public;
grant execute on function app.anybody_by_email(text) to multivio_api;

-- What was done to the installation and to no workspace. The API asks for an administrator alone.
create function app.installation_audit(p_action text, p_before uuid, p_limit bigint) returns setof public.audit_log
language sql stable security definer set search_path = '' as $$
    select l.* from public.audit_log l
    where l.tenant_id is null and (p_action is null or l.action = p_action) and (p_before is null or l.id < p_before)
    order by l.id desc limit p_limit
$$;
revoke all on function app.installation_audit(text, uuid, bigint) from public;
grant execute on function app.installation_audit(text, uuid, bigint) to multivio_api;
reset role;
revoke create on schema app from multivio_definer;

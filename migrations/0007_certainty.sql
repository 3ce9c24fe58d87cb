-- Effects that cannot be called back, second chances that were asked for, and publications that nobody settles.

-- What the job does elsewhere may have happened already: it is neither cancelled nor run once more on request, until
-- the outcome is known. Set in the transaction that makes it so, cleared in the one that settles it.
alter table jobs add column committed boolean not null default false;
-- How often somebody asked to run it once more; a run after a crash is none of these.
alter table jobs add column retries smallint not null default 0;

alter table publications
    -- The second chances of its job that it has taken note of: a failed one opens again only for a new one.
    add column retries_seen smallint not null default 0,
    -- Jobs that make its media, asked for by its own runs.
    add column makings smallint not null default 0,
    -- Removed from the platform on its owner's word.
    add column remote_deleted_at timestamptz;

-- Since when the platform has been processing the file.
alter table publication_media add column processing_since timestamptz;

-- All connections of one account at a platform, whoever's they are: a remote post belongs to one publication.
create index connections_remote_account on connections (platform, remote_account_id);

-- Counted and never asked for: a refresh token that is spent shows by being refused.
alter table token_flights drop column sent;

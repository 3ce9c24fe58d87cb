-- How strongly the deaths of its processes speak against a job (E10): a process that ended by itself or ran out of
-- memory says more than one that vanished, and that more than one that was killed from outside.

alter table jobs add column blame smallint not null default 0;
alter table workers add column blame smallint;

-- Hints from Patreon are not remembered any more: each has the membership read anew. A worker of before that is still there
-- meets one error in its upkeep of Patreon, which is tried again, until it is replaced.

drop function app.take_patreon_hint(bytea);
drop table patreon_hints;

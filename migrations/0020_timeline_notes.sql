-- What a caller asks of a job (cancel, retry, another priority) writes its own line of the timeline, in the statement
-- that does it. The policy of the table holds each line to a job of the caller's.

grant insert on public.job_notes to multivio_api;
